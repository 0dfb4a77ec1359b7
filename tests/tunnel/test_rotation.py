"""A token rotated and an authority revoked while calls run: the real server (official Anthropic SDK in front), the real edge and gateway, a server of the official
MCP SDK behind. Open connections go on, new ones need what is valid now, and no call gets the answer of another."""
from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import anthropic
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from edge_harness import SLOW, Edge, Keys, failed, wait_for  # noqa: E402
from fake_model import FakeModel  # noqa: E402
from fault_harness import own_address  # noqa: E402
from gw_harness import Authority, Gateway  # noqa: E402
from harness import MODEL, World, plan, tool  # noqa: E402
from test_mcp import McpServer  # noqa: E402

DOMAIN = "tunnel.example.com"


class Office:
    """Everything, with one tunnel that has one authority."""

    def __init__(self, tmp: Path):
        self.tmp, address = tmp, own_address()
        self.keys = Keys(tmp / "outer", f"127.0.0.1,localhost,{address}")
        with socket.create_server((address, 0)) as s:        # nobody else uses this address
            port = s.getsockname()[1]
        self.mcp = McpServer(tmp).start()
        self.world = World(tmp, None, FakeModel(), server_args=[
            "--tunnel-domain", DOMAIN, "--tunnel-edge", f"https://{address}:{port}", "--tunnel-edge-ca", self.keys.ca_crt, "--tunnel-edge-cert", self.keys.provider_crt,
            "--tunnel-edge-key", self.keys.provider_key])
        server = self.world.server
        self.control = SimpleNamespace(url=server.url, key=server.cli("edge-key", "create", "--data", str(server.data), "--name", "edge 1"))
        self.edge_args = ("--provider-listen", f"{address}:{port}")
        self.address, self.gateways, self.edges = address, [], []
        self.edge = self.new_edge()
        self.client = anthropic.Anthropic(base_url=server.url, api_key=self.world.key, max_retries=0, timeout=60 * SLOW)
        self.tunnels = self.client.beta.tunnels
        self.tunnel = self.tunnels.create(display_name="office")
        self.authorities = [Authority(tmp / f"ca{i}", f"authority {i}") for i in range(2)]
        self.certificates = [self.register(0)]
        self.leaf = tmp / "leaf"
        self.leaf.mkdir()
        self.show(0)

    def new_edge(self, *args) -> Edge:
        self.edges.append(Edge(self.keys, self.control, *self.edge_args, *args, host=self.address))
        return self.edges[-1]

    def register(self, i):
        return self.tunnels.certificates.create(self.tunnel.id, ca_certificate_pem=self.authorities[i].file.read_text())

    def show(self, i):
        """The gateway's certificate is of this authority from its next look on."""
        cert, key = self.authorities[i].leaf("gw", dns=[f"*.{self.tunnel.domain}"])
        for name, path in (("tls.key", key), ("tls.crt", cert)):
            (self.leaf / "new").write_bytes(Path(path).read_bytes())
            (self.leaf / "new").rename(self.leaf / name)

    def token(self, name: str, text: str) -> Path:
        f = self.tmp / name
        (self.tmp / "new-token").write_text(text)
        (self.tmp / "new-token").chmod(0o600)
        (self.tmp / "new-token").rename(f)
        return f

    def gateway(self, token_file: Path, connections=2, wait=True) -> Gateway:
        d, ready = self.tmp / f"gateway{len(self.gateways)}", self.edge.text().count('"edge.gateway_ready"')
        d.mkdir()
        g = Gateway(d, f"tunnel_domain: {self.tunnel.domain}\ntls: {{cert_file: {self.leaf}/tls.crt, key_file: {self.leaf}/tls.key}}\n"
                       f"routes: {{docs: 'http://127.0.0.1:{self.mcp.port}'}}\nupstream: {{allowed_ips: [127.0.0.1]}}\n"
                       f"edge: ['{self.address}:{self.edge.gateway}']\nedge_ca: {self.keys.ca_crt}\nconnections: {connections}\ntoken_file: {token_file}\n", wait=False)
        self.gateways.append(g)
        if wait:
            g.wait_log("edge.connected", connections)
            wait_for(lambda: self.edge.text().count('"edge.gateway_ready"') >= ready + connections, why="the edge can open streams")
        return g

    # -- calls --
    def message(self, name, **inp):
        """One Messages request with one tool call: the text of its result, or the error."""
        try:
            m = self.client.beta.messages.create(
                model=MODEL, max_tokens=100, betas=["mcp-client-2025-11-20"], messages=[{"role": "user", "content": plan([tool(f"mcp__docs__{name}", **inp)], ["Done."])}],
                mcp_servers=[{"type": "url", "name": "docs", "url": f"https://docs.{self.tunnel.domain}/mcp"}], tools=[{"type": "mcp_toolset", "mcp_server_name": "docs"}])
        except anthropic.APIStatusError as e:
            assert e.status_code == 400 and "MCP server 'docs'" in str(e) or "no certificate authority" in str(e), e      # said in words, not a failure of the server's own
            return "error", str(e)
        results = [b for b in m.content if b.type == "mcp_tool_result"]
        if len(results) != 1 or results[0].is_error:
            return "error", str(m.content)
        return "ok", results[0].content[0].text

    def add(self, n):
        """(answered, text): an answer is the right one, or the test fails."""
        kind, said = self.message("add", a=n, b=1000)
        assert kind == "error" or said == str(n + 1000), f"{n} + 1000 was answered with {said}"
        return kind == "ok", said

    def close(self, failed):
        bad = []
        if failed:
            for g in self.gateways:
                print(f"---- gateway ----\n{g.log[-4000:]}")
            print(f"---- server ----\n{self.world.server.proc.text()[-3000:]}")
        for what in (*(g.end for g in self.gateways), *(e.close for e in self.edges), self.world.close, self.mcp.stop):
            try:
                if what() not in (0, None):
                    bad.append(AssertionError(f"{what} did not end in good order"))
            except AssertionError as e:
                bad.append(e)
        if bad:
            raise bad[0]


@pytest.fixture
def office(tmp_path, request):
    o = Office(tmp_path)
    yield o
    o.close(failed(request))


class Load:
    """Callers that never stop. `log`: (begun, ended, answered, text) of each call."""

    def __init__(self, office, threads=3):
        self.office, self.stop, self.log, self.wrong = office, threading.Event(), [], []
        self.threads = [threading.Thread(target=self.run, args=(k,)) for k in range(threads)]
        for t in self.threads:
            t.start()

    def run(self, k):
        n = k * 1_000_000
        while not self.stop.is_set() and not self.wrong:
            n += 1
            began = time.monotonic()
            try:
                ok, said = self.office.add(n)
            except Exception as e:           # noqa: BLE001 - told in done()
                self.wrong.append(repr(e))
                return
            self.log.append((began, time.monotonic(), ok, said))

    def more(self, n=6, ok=True):
        """Until n calls that begin from here on were answered (or refused)."""
        now = time.monotonic()
        wait_for(lambda: self.wrong or sum(b >= now and good == ok for b, _, good, _ in self.log) >= n, 60, why=f"{n} calls {'succeed' if ok else 'fail'}: {self.log[-5:]}")
        assert not self.wrong, self.wrong

    def done(self):
        self.stop.set()
        for t in self.threads:
            t.join(90 * SLOW)
        assert not self.wrong, self.wrong
        assert not any(t.is_alive() for t in self.threads)
        return self.log


def in_flight(office):
    """A call that the MCP server has and does not answer before go(): (thread, its result)."""
    got, before = [], len(office.mcp.lines("calls"))
    t = threading.Thread(target=lambda: got.append(office.message("look")))
    t.start()
    wait_for(lambda: "look" in office.mcp.lines("calls")[before:], why="the call has come to the MCP server")
    return t, got


def test_token_rotated_under_load(office):
    o = office
    old = o.tunnels.reveal_token(o.tunnel.id).tunnel_token
    mine, stale = o.token("token", old), o.token("stale", old)
    g = o.gateway(mine)
    load = Load(o)
    load.more()
    flight, result = in_flight(o)
    new = o.tunnels.rotate_token(o.tunnel.id).tunnel_token
    load.more()
    late = o.gateway(stale, connections=1, wait=False)
    late.wait_log("refuses the token (401)")
    o.mcp.go()
    flight.join(60 * SLOW)
    assert result == [("ok", "look done")], "what was in flight is answered"
    assert all(ok for _, _, ok, _ in load.log), "open connections go on: no call noticed the rotation"
    # its connections are lost while it has only the old token: it is refused, and comes in by itself when the file has the new one
    o.edge.p.kill()
    o.edge.p.wait()
    port = o.edge.gateway
    o.edge = o.new_edge("--gateway-listen", f"{o.address}:{port}")
    g.wait_log("refuses the token (401)", timeout=60)
    load.more(ok=False)
    assert o.edge.metric("outwork_edge_links") == 0
    o.token("token", new)
    load.more()
    log = load.done()
    failed = [said for _, _, ok, said in log if not ok]
    assert failed, "the edge was killed, and no call noticed"
    assert "edge.connected" not in late.log
    assert new not in g.log + o.edge.text() and old not in g.log + o.edge.text()


def test_token_rotated_with_an_overlap(office):
    """Both tokens are good for a while; then the old one is not, and nobody is cut off."""
    o = office
    old = o.tunnels.reveal_token(o.tunnel.id).tunnel_token
    stale = o.token("stale", old)
    first = o.gateway(stale)
    load = Load(o)
    load.more()
    r = o.world.api.post(f"/v1/tunnels/{o.tunnel.id}/rotate_token", {"overlap_seconds": 3600}, headers={"anthropic-beta": "mcp-tunnels-2026-06-22"}).ok()
    second, third = o.gateway(stale, connections=1), o.gateway(o.token("token", r["tunnel_token"]), connections=1)
    load.more()
    r = o.world.api.post(f"/v1/tunnels/{o.tunnel.id}/rotate_token", {}, headers={"anthropic-beta": "mcp-tunnels-2026-06-22"}).ok()       # ends the overlap
    for f in (stale, o.tmp / "token"):
        o.gateway(f, connections=1, wait=False).wait_log("refuses the token (401)")
    load.more()
    assert all(ok for _, _, ok, _ in load.done())
    assert o.edge.metric("outwork_edge_links") == 4 and not any("edge.disconnected" in g.log for g in (first, second, third))


def test_authority_revoked_under_load(office):
    o = office
    o.gateway(o.token("token", o.tunnels.reveal_token(o.tunnel.id).tunnel_token))
    o.certificates.append(o.register(1))
    load = Load(o)
    load.more()
    flight, result = in_flight(o)
    # the gateway still shows a certificate of the authority that is revoked
    o.tunnels.certificates.archive(o.certificates[0].id, tunnel_id=o.tunnel.id)
    revoked = time.monotonic()
    load.more(ok=False)
    o.show(1)
    trusted = time.monotonic()
    load.more()
    o.mcp.go()
    flight.join(60 * SLOW)
    assert result == [("ok", "look done")], "what was in flight is answered"
    between = [(ok, said) for began, ended, ok, said in load.log if began > revoked and ended < trusted]
    assert between and not any(ok for ok, _ in between), "a call that begins after the revocation is not answered under the revoked authority"
    assert all("certificate" in said for _, said in between), between[:2]
    # none left: nothing is dialled any more
    o.tunnels.certificates.archive(o.certificates[1].id, tunnel_id=o.tunnel.id)
    load.more(ok=False)
    relays = o.edge.metric("outwork_edge_relays_total")
    hits = len(o.mcp.lines("calls"))
    load.more(ok=False)
    assert o.edge.metric("outwork_edge_relays_total") == relays and len(o.mcp.lines("calls")) == hits
    log = load.done()
    assert not log[-1][2] and "certificate" in log[-1][3]
