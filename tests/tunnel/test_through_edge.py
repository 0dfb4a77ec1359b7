"""The real edge and the real gateway, curl in front, an upstream behind: what the two tests of each alone cannot show."""
from __future__ import annotations

import json
import re
import signal

import pytest

from edge_harness import curl_through
from gw_harness import Authority, Gateway, Upstream, wait_for

DOMAIN = "t1.tunnel.example"


@pytest.fixture
def ours(world, tmp_path):
    ca = Authority(tmp_path / "inner")
    cert, key = ca.leaf("gw", dns=[f"*.{DOMAIN}"])
    token = tmp_path / "token"
    token.write_text(world.token)
    token.chmod(0o600)
    up, made = Upstream(), []

    def gateway(*edges, connections=2):
        d = tmp_path / f"g{len(made)}"
        d.mkdir()
        at = ", ".join(f'"127.0.0.1:{e.gateway}"' for e in edges)
        made.append(Gateway(d, f"tunnel_domain: {DOMAIN}\ntls: {{cert_file: {cert}, key_file: {key}}}\nroutes:\n  docs: http://127.0.0.1:{up.port}\nupstream: {{allowed_ips: [127.0.0.1]}}\n"
                               f"edge: [{at}]\nedge_ca: {world.keys.ca_crt}\nconnections: {connections}\ntoken_file: {token}\n"))
        made[-1].wait_log("edge.connected", connections)
        return made[-1]
    yield type("Ours", (), {"ca": str(ca.file), "up": up, "gateway": staticmethod(gateway)})
    for g in made:
        g.kill()
    up.stop()


def get(edge, ours, path, *args):
    return curl_through(edge, ours.ca, *args, f"https://docs.{DOMAIN}{path}")


def test_requests_and_bulk(world, ours):
    edge = world.edge()
    ours.gateway(edge)
    got = json.loads(get(edge, ours, "/mcp").stdout)
    assert got["path"] == "/mcp" and f"Host: docs.{DOMAIN}" in got["headers"]
    assert get(edge, ours, "/big=20000000", "-o", "/dev/null", "-w", "%{size_download}").stdout == "20000000"
    assert json.loads(get(edge, ours, "/x", "-X", "POST", "-d", "y" * 100_000).stdout)["n"] == 100_000


def test_token_is_checked_and_echoes_keep_a_link(world, ours):
    edge = world.edge()
    g = ours.gateway(edge)
    world.control.rotate("tnl_t1")
    assert json.loads(get(edge, ours, "/x").stdout)["path"] == "/x"     # open connections are not cut by a rotation
    assert g.log.count("edge.connected") == 2 and "no echo" not in g.log


def test_edge_drains_into_another_edge(world, ours):
    first, second = world.edge(), world.edge()
    g = ours.gateway(first, second)
    assert json.loads(get(first, ours, "/x").stdout)["path"] == "/x"
    first.p.send_signal(signal.SIGTERM)
    g.wait_log("edge.drains")
    g.wait_log("edge.connected", 3)
    wait_for(lambda: len(re.findall(rf"edge.connected .*edge=127.0.0.1:{second.gateway} ", g.log)) >= 2, 20, "both connections end at the second edge")
    assert json.loads(get(second, ours, "/y").stdout)["path"] == "/y"


def memory_holds(pid: int, what: bytes) -> bool:
    """Whether `what` stands anywhere in the writable memory of a process."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            at, mode = line.split()[:2]
            if not mode.startswith("rw"):
                continue
            start, end = (int(x, 16) for x in at.split("-"))
            if end - start > 1 << 30:         # a sanitizer's own map of memory
                continue
            try:
                mem.seek(start)
                if what in mem.read(end - start):
                    return True
            except (OSError, ValueError):     # [vvar] and the like
                pass
    return False


def test_the_edge_never_holds_a_payload(world, ours):
    """Neither what is asked nor what is answered is in the edge's memory, while the host name, which it may know, is: so the search does find things."""
    edge = world.edge()
    ours.gateway(edge)
    marker = "payload-" + "c0ffee" * 8
    got = json.loads(get(edge, ours, f"/{marker}", "-H", f"X-Secret: {marker}", "-X", "POST", "-d", marker * 20).stdout)
    assert got["path"] == f"/{marker}"
    for n in range(20):
        get(edge, ours, f"/{marker}?{n}")
    assert not memory_holds(edge.p.pid, marker.encode())
    assert memory_holds(edge.p.pid, b"t1.tunnel.example")
