"""`outwork gateway` as a process: a small edge in front of it, curl and raw TLS as clients, an HTTP/1.1 upstream that misbehaves on demand."""
from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gw_harness import BIN, DOMAIN, Authority, Gateway, MiniEdge, Upstream, token, wait_for


class World:
    """Keys, an edge and an upstream; gateways are started by the tests."""

    def __init__(self, path: Path):
        self.path = path
        self.edge_ca, self.ca = Authority(path / "edge-ca", "edge authority"), Authority(path / "ca", "tunnel authority")
        self.cert, self.key = self.ca.leaf("gw", dns=[DOMAIN, f"*.{DOMAIN}"])
        self.token_file = path / "token"
        self.token_file.write_text(token())
        self.token_file.chmod(0o600)
        self.edge, self.up, self.made = MiniEdge(self.edge_ca), Upstream(), []

    def upstream(self, *a, **k):
        self.made.append(Upstream(*a, **k))
        return self.made[-1]

    def config(self, routes=None, more="", allowed='["127.0.0.1", "::1"]', upstream_more="", connections=2, edge=None):
        routes = routes if routes is not None else f"  docs: http://127.0.0.1:{self.up.port}\n"
        allow = f"  allowed_ips: {allowed}\n" if allowed else ""
        up = f"upstream:\n{allow}{upstream_more}" if allow or upstream_more else ""
        return (f"tunnel_domain: {DOMAIN}\ntls:\n  cert_file: {self.cert}\n  key_file: {self.key}\nroutes:\n{routes}{up}"
                f"edge: [\"{edge or f'127.0.0.1:{self.edge.gateways}'}\"]\nedge_ca: {self.edge_ca.file}\nconnections: {connections}\ntoken_file: {self.token_file}\n{more}")

    def gateway(self, config=None, *args, wait=True, **k):
        d = self.path / f"g{len(self.made)}"
        d.mkdir()
        g = Gateway(d, config if config is not None else self.config(), *args, wait=wait, **k)
        self.made.append(g)
        if wait:
            self.edge.wait("link ready")
        return g

    def curl(self, path, *args, route="docs", timeout=20):
        return subprocess.run(["curl", "-sS", "--max-time", str(timeout), "--cacert", str(self.ca.file), "--connect-to", f"::127.0.0.1:{self.edge.clients}", *args,
                               f"https://{route}.{DOMAIN}{path}"], capture_output=True)

    def status(self, path, *args, route="docs"):
        r = self.curl(path, "-o", os.devnull, "-w", "%{http_code}", *args, route=route)
        return r.stdout.decode()

    def json(self, path, *args, route="docs"):
        r = self.curl(path, *args, route=route)
        assert r.returncode == 0, r.stderr
        return json.loads(r.stdout)

    def tls(self, route="docs", sni=None):
        c = ssl.create_default_context(cafile=str(self.ca.file))
        c.check_hostname = sni is None
        s = c.wrap_socket(socket.create_connection(("127.0.0.1", self.edge.clients)), server_hostname=sni or f"{route}.{DOMAIN}")
        s.settimeout(20)
        return s

    def stop(self):
        for m in self.made:
            m.kill() if isinstance(m, Gateway) else m.stop()
        self.edge.stop()
        self.up.stop()


@pytest.fixture
def world(tmp_path):
    w = World(tmp_path)
    yield w
    w.stop()


def head(path, host=f"docs.{DOMAIN}", method="GET", *lines):
    return ("\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *lines]) + "\r\n\r\n").encode()


def read_until(s, mark):
    data = b""
    while mark not in data:
        got = s.recv(65536)
        assert got, data
        data += got
    return data


# ---- passing requests ----

def test_headers_cross_untouched(world):
    world.gateway()
    got = world.json("/mcp?a=%2f&b", "-H", "Authorization: Bearer abc", "-H", "Origin: https://o", "-H", "X-b: 1", "-H", "X-A: 2", "-H", "Mcp-Param-Zed: =?base64?YQ==?=",
                     "-H", "Connection: keep-alive, X-Drop", "-H", "X-Drop: 1", "-H", "TE: trailers", "-H", "X-Forwarded-Host: evil", "-H", "X-Forwarded-Proto: http")
    h = got["headers"]
    assert got["path"] == "/mcp?a=%2f&b"
    order = [x.split(":")[0] for x in h]
    assert order == ["Host", "User-Agent", "Accept", "Authorization", "Origin", "X-b", "X-A", "Mcp-Param-Zed", "x-forwarded-host", "x-forwarded-proto"]
    assert h[0] == f"Host: docs.{DOMAIN}" and f"x-forwarded-host: docs.{DOMAIN}" in h and "x-forwarded-proto: https" in h


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "PUT", "OPTIONS", "PATCH"])
def test_methods(world, method):
    world.gateway()
    assert world.json("/x", "-X", method)["method"] == method


def test_head_and_no_content(world):
    world.gateway()
    r = world.curl("/x", "-I")
    assert r.returncode == 0 and b"200 OK" in r.stdout and re.search(rb"content-length: [1-9]", r.stdout)
    assert world.status("/204") == "204"


def test_bodies_of_any_length(world):
    world.gateway()
    for n in (0, 1, 16384, 65536, 5_000_000):
        f = world.path / "body"
        f.write_bytes(os.urandom(n))
        for extra in ((), ("-H", "Transfer-Encoding: chunked")):
            assert world.json("/x", "-X", "POST", "--data-binary", f"@{f}", *extra)["n"] == n
            assert world.up.bodies[-1] == f.read_bytes()
    for path, n in (("/big=0", 0), ("/big=1", 1), ("/big=30000000", 30_000_000)):
        out = world.curl(path).stdout
        assert len(out) == n and out == (bytes(range(256)) * (n // 256 + 1))[:n]
    want = b"".join(bytes([i % 256]) * (1 + i * 37 % 5000) for i in range(300))
    assert world.curl("/chunks=300").stdout == want
    assert world.curl("/untilclose").stdout == b"until the end"


def test_expect_continue(world):
    world.gateway()
    with world.tls() as s:
        s.sendall(head("/x", f"docs.{DOMAIN}", "POST", "Content-Length: 5", "Expect: 100-continue"))
        assert read_until(s, b"\r\n\r\n").startswith(b"HTTP/1.1 100 Continue")
        s.sendall(b"hello")
        assert b'"n": 5' in read_until(s, b'"n": 5')
    assert not any("Expect" in x for x in world.up.heads[-1][2])


def test_pipelined_requests_are_answered_in_order(world):
    world.gateway()
    with world.tls() as s:
        s.sendall(b"".join(head(f"/p{i}") for i in range(20)) + head("/last", f"docs.{DOMAIN}", "GET", "Connection: close"))
        data = b""
        while got := s.recv(65536):
            data += got
    assert [m.decode() for m in re.findall(rb'"path": "/(p\d+|last)"', data)] == [f"p{i}" for i in range(20)] + ["last"]


def test_kept_connections_are_used_again_and_stale_ones_not(world):
    world.gateway()
    with world.tls() as s:
        conns = []
        for i in range(5):
            s.sendall(head("/close" if i == 2 else "/x"))
            conns.append(int(re.search(rb'"conn": (\d+)', read_until(s, b"]}")).group(1)))
    assert conns[0] == conns[1] == conns[2] != conns[3] == conns[4]


def test_early_answer_before_the_body_is_read(world):
    world.gateway()
    f = world.path / "body"
    f.write_bytes(b"z" * 3_000_000)
    r = world.curl("/early", "-X", "POST", "--data-binary", f"@{f}", "-H", "Expect:", "-i")
    assert b"401 Unauthorized" in r.stdout and b'WWW-Authenticate: Bearer x="y"' in r.stdout


# ---- streams and disconnects ----

def test_sse_is_not_buffered(world):
    world.gateway()
    with world.tls() as s:
        s.sendall(head("/sse"))
        data = read_until(s, b": keep-alive 3")
        assert b"data: 0" in data and b"content-length" not in data.lower()


def test_client_disconnect_ends_the_upstream(world):
    world.gateway()
    s = world.tls()
    s.sendall(head("/stuck"))
    read_until(s, b": hi")
    s.close()
    wait_for(lambda: "/stuck" in world.up.gone, 5, "the upstream sees the end")


def test_upstream_disconnect_ends_the_client(world):
    world.gateway()
    r = world.curl("/half")
    assert r.returncode in (18, 56) and r.stdout == b"only this"


def test_slow_reader_holds_the_upstream_and_nobody_else(world):
    g = world.gateway()
    s = world.tls()
    s.sendall(head("/big=300000000"))
    read_until(s, b"\r\n\r\n")
    for _ in range(5):
        assert world.status("/x") == "200"
    rss = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{g.p.pid}/status").read_text()).group(1))
    assert rss < 120_000 or "asan" in BIN
    s.close()
    wait_for(lambda: any("/big" in x for x in world.up.gone), 10, "the upstream sees the end")


def test_upstream_that_does_not_read_the_body(world):
    g = world.gateway()
    f = world.path / "body"
    f.write_bytes(b"q" * 30_000_000)
    p = subprocess.Popen(["curl", "-sS", "--max-time", "60", "--cacert", str(world.ca.file), "--connect-to", f"::127.0.0.1:{world.edge.clients}", "-X", "POST", "--data-binary",
                          f"@{f}", f"https://docs.{DOMAIN}/never"], stdout=subprocess.PIPE)
    wait_for(lambda: any(x[1] == "/never" for x in world.up.heads), 10)
    for _ in range(3):
        assert world.status("/x") == "200"
    assert g.p.poll() is None
    world.up.release.set()
    assert json.loads(p.communicate()[0])["n"] == 30_000_000


# ---- refusals ----

def test_names(world):
    g = world.gateway()
    assert world.curl("/x", route="nope").stdout == b"No route configured for host"
    assert world.status("/x", route="nope") == "502" and "no route for host" in g.log
    assert world.status("/x", "-H", f"Host: other.{DOMAIN}") == "421"
    assert world.status("/x", "-H", f"Host: DOCS.{DOMAIN.upper()}:443") == "200"
    with world.tls(sni="docs.elsewhere.example") as s:
        s.sendall(head("/x", "docs.elsewhere.example"))
        assert b" 421 " in read_until(s, b"\r\n\r\n")
    with world.tls() as s:
        s.sendall(head(f"https://docs.{DOMAIN}/abs?x=1"))
        assert b'"path": "/abs?x=1"' in read_until(s, b"]}")
        s.sendall(head(f"https://docs.{DOMAIN}?x=2"))
        assert b'"path": "/?x=2"' in read_until(s, b"]}")
        s.sendall(head(f"https://other.{DOMAIN}/abs"))
        assert b" 421 " in read_until(s, b"\r\n\r\n")


@pytest.mark.parametrize("raw,status", [
    (b"GET / HTTP/1.1\nHost: x\n\n", b"400"), (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", b"400"), (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", b"501"),
    (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40000 + b"\r\n\r\n", b"431"),
])
def test_malformed(world, raw, status):
    world.gateway()
    with world.tls() as s:
        s.sendall(raw)
        assert read_until(s, b"\r\n\r\n").startswith(b"HTTP/1.1 " + status)
    assert world.status("/x") == "200"


def test_slow_clients_are_cut_off(world):
    g = world.gateway(None, "--limits-head-timeout", "300ms", "--limits-body-timeout", "300ms", "--limits-idle-timeout", "300ms")
    raw = socket.create_connection(("127.0.0.1", world.edge.clients))
    with world.tls() as s:
        assert s.recv(10) == b""                                            # between requests
    with world.tls() as s:
        s.sendall(b"GET /x HTTP/1.1\r\nHo")
        assert s.recv(10) == b""
    with world.tls() as s:
        s.sendall(head("/x", f"docs.{DOMAIN}", "POST", "Content-Length: 10") + b"abc")
        assert s.recv(10) == b""
    g.wait_log("what=\"body of a request\"")
    assert "what=\"head of a request\"" in g.log
    c = ssl.create_default_context(cafile=str(world.ca.file))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    o = c.wrap_bio(incoming, outgoing, server_hostname=f"docs.{DOMAIN}")
    with pytest.raises(ssl.SSLWantReadError):
        o.do_handshake()
    raw.sendall(outgoing.read())                                            # a ClientHello, then nothing
    raw.settimeout(20)
    with pytest.raises(ConnectionResetError):
        while raw.recv(65536):
            pass
    raw.close()
    g.wait_log("what=\"TLS handshake\"")
    with world.tls() as s:                                                  # an answer has no limit
        s.sendall(head("/sse"))
        for _ in range(3):
            read_until(s, b"data: ")
        time.sleep(0.5)
        read_until(s, b": keep-alive 11")


def test_limits_on_requests_and_connections(world):
    world.gateway(None, "--limits-requests", "2", "--limits-connections", "4")
    streams = [world.tls() for _ in range(2)]
    for s in streams:
        s.sendall(head("/sse"))
        read_until(s, b"data: 0")
    r = world.curl("/x", "-i")
    assert b" 503 " in r.stdout and b"retry-after: 1" in r.stdout
    streams += [world.tls() for _ in range(2)]
    assert world.curl("/x").returncode in (35, 56)
    for s in streams:
        s.close()
    wait_for(lambda: world.status("/x") == "200", 10)


def test_stalled_readers_do_not_slow_the_others(world):
    world.gateway(world.config(connections=1))
    stalled = []
    for _ in range(8):
        s = world.tls()
        s.sendall(head("/big=100000000"))
        read_until(s, b"\r\n\r\n")
        stalled.append(s)
    for _ in range(10):
        assert world.status("/x") == "200"
    assert len(world.curl("/big=20000000").stdout) == 20_000_000
    for s in stalled:
        s.close()


def test_many_idle_streams(world):
    g = world.gateway(None, "--limits-connections", "1000")
    streams = [world.tls() for _ in range(200)]
    for s in streams:
        s.sendall(head("/stuck"))
    for s in streams:
        read_until(s, b": hi")
    assert world.status("/x") == "200"
    for s in streams:
        s.close()
    wait_for(lambda: len(world.up.gone) >= 200, 20, "each upstream sees the end")
    assert g.stop() == 0


def test_upgrade_and_tls12_are_refused(world):
    world.gateway()
    assert world.status("/x", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket") == "501"
    r = world.curl("/x", "--tls-max", "1.2")
    assert r.returncode == 35


@pytest.mark.parametrize("path", ["/garbage", "/drop"])
def test_bad_upstream_is_502(world, path):
    world.gateway()
    assert world.status(path) == "502"
    assert world.status(path, "-X", "POST", "-d", "x") == "502"
    assert sum(x[1] == path and x[0] == "POST" for x in world.up.heads) == 1        # never sent twice


def test_addresses(world):
    g = world.gateway(world.config(allowed=None))
    r = world.curl("/x", "-i")
    assert b"502" in r.stdout and b"127.0.0.1" not in r.stdout
    assert "IP validation failed: 127.0.0.1 is not a private address" in g.log
    g.reload(world.config(allowed='["0.0.0.0/0"]'))
    assert world.status("/x") == "502" and "is not in upstream.allowed_ips" in g.log      # loopback only by an entry of its own
    g.reload(world.config(allowed=None, upstream_more="  disable_ip_validation: true\n"))
    assert world.status("/x") == "200"
    g.reload(world.config(routes=f"  docs: http://localhost:{world.up.port}\n", allowed='["10.0.0.0/8"]'))
    assert world.status("/x") == "502"                                                    # a name: what it resolves to is checked
    g.reload(world.config(routes=f"  docs: http://localhost:{world.up.port}\n"))
    assert world.status("/x") == "200"


def test_ipv6_and_unix_upstreams(world):
    six, path = world.upstream(family=socket.AF_INET6), str(world.path / "up.sock")
    world.upstream(unix=path)
    world.gateway(world.config(routes=f"  six: http://[::1]:{six.port}\n  sock: unix:{path}\n"))
    assert world.json("/x", route="six")["port"] == six.port
    assert world.json("/y", route="sock")["path"] == "/y"


def test_https_upstream_with_own_authority_and_client_certificate(world):
    up_ca = Authority(world.path / "up-ca", "upstream authority")
    client_cert, client_key = up_ca.leaf("client", client=True)
    up = world.upstream(ca=up_ca, client_ca=str(up_ca.file))
    routes = f"  docs: https://localhost:{up.port}\n"
    more = f"  tls:\n    ca_file: {up_ca.file}\n    cert_file: {client_cert}\n    key_file: {client_key}\n"
    g = world.gateway(world.config(routes=routes, upstream_more=more))
    assert world.json("/x")["port"] == up.port
    f = world.path / "body"
    f.write_bytes(os.urandom(2_000_000))
    assert world.json("/x", "-X", "POST", "--data-binary", f"@{f}")["n"] == 2_000_000
    assert len(world.curl("/big=8000000").stdout) == 8_000_000
    g.reload(world.config(routes=routes, upstream_more="  tls:\n    include_system_cas: true\n"))
    assert world.status("/x") == "502" and "certificate" in g.log
    g.reload(world.config(routes=routes), expect="refused=")
    assert "include_system_cas" in g.log


# ---- several upstreams ----

def test_round_robin_sticky_and_failover(world):
    ups = [world.upstream() for _ in range(3)]
    g = world.gateway(world.config(routes="  docs:\n    upstreams:\n" + "".join(f"      - http://127.0.0.1:{u.port}\n" for u in ups)))
    assert {world.json("/x")["port"] for _ in range(6)} == {u.port for u in ups}
    r = world.curl("/sticky", "-i").stdout.decode()
    session = re.search(r"Mcp-Session-Id: (\S+)", r).group(1)
    home = int(session.split("-")[0][1:])
    assert {world.json("/x", "-H", f"Mcp-Session-Id: {session}")["port"] for _ in range(6)} == {home}
    dead = next(u for u in ups if u.port != home)
    dead.stop()
    ports = [world.json("/x", "-X", "POST", "-d", "{}")["port"] for _ in range(8)]
    assert dead.port not in ports and len(set(ports)) == 2
    assert g.log.count("gateway.upstream_unreachable") <= 2     # left out for a while
    next(u for u in ups if u.port == home).stop()
    other = world.json("/x", "-H", f"Mcp-Session-Id: {session}")["port"]
    assert other not in (home, dead.port)                       # it answers 404 there, and the client begins anew


def test_header_rules_and_host(world):
    secret = world.path / "secret"
    secret.write_text("Bearer very-secret\n")
    secret.chmod(0o600)
    routes = (f"  docs:\n    upstream: http://127.0.0.1:{world.up.port}\n    host: upstream\n    headers:\n      remove: [X-Gone]\n      add:\n        X-Team: blue\n"
              f"        Authorization: {{file: {secret}}}\n")
    g = world.gateway(world.config(routes=routes))
    h = world.json("/x", "-H", "X-Gone: 1", "-H", "Authorization: Bearer mine", "-H", "X-Team: red")["headers"]
    assert h[0] == f"Host: 127.0.0.1:{world.up.port}" and "X-Team: blue" in h and "Authorization: Bearer very-secret" in h
    assert not any(x.startswith("X-Gone") or "mine" in x or "red" in x for x in h)
    assert "very-secret" not in g.log
    secret.write_text("Bearer second\n")
    g.wait_log("gateway.reload", 1)
    assert "Authorization: Bearer second" in world.json("/x")["headers"]


# ---- reload ----

def test_reload_under_a_running_stream(world):
    g = world.gateway()
    with world.tls() as s:
        s.sendall(head("/sse"))
        read_until(s, b"data: 0")
        other = world.upstream()
        g.reload(world.config(routes=f"  docs: http://127.0.0.1:{other.port}\n  more: http://127.0.0.1:{world.up.port}\n"))
        assert world.json("/x")["port"] == other.port and world.json("/x", route="more")["port"] == world.up.port
        n = g.log.count("refused=")
        g.write(world.config(routes="  docs: http://127.0.0.1\n"))          # noticed without a signal
        g.wait_log("refused=", n + 1)
        assert "invalid upstream (must be scheme://host:port)" in g.log and "gateway.yaml:6: routes.docs:" in g.log
        assert world.json("/x")["port"] == other.port
        read_until(s, b"data: ")
        a = len(re.findall(rb"data: ", read_until(s, b"data: ") + read_until(s, b"data: ")))
        assert a >= 2                                                       # it still flows
        world.cert, world.key = world.ca.leaf("gw", dns=[DOMAIN, f"*.{DOMAIN}"], days=77)
        g.wait_log("gateway.certificate", 1)
        g.write(world.config())
        wait_for(lambda: _serial(world) == _file_serial(world.cert), 10, "the new certificate is served")
        read_until(s, b"data: ")


def _serial(world):
    with world.tls() as s:
        return ssl.DER_cert_to_PEM_cert(s.getpeercert(True)).replace("\n", "")


def _file_serial(path):
    return Path(path).read_text().replace("\n", "")


def test_unchanged_routes_keep_their_connections(world):
    g = world.gateway()
    with world.tls() as s:
        s.sendall(head("/x"))
        first = re.search(rb'"conn": (\d+)', read_until(s, b"]}")).group(1)
        g.reload(world.config(routes=f"  docs: http://127.0.0.1:{world.up.port}\n  more: http://127.0.0.1:1\n"))
        s.sendall(head("/x"))
        assert re.search(rb'"conn": (\d+)', read_until(s, b"]}")).group(1) == first


# ---- policy and audit ----

def call(tool, ident=1, **more):
    return json.dumps({"jsonrpc": "2.0", "id": ident, "method": "tools/call", "params": {"name": tool, "arguments": {"secret": "s3cr3t", **more}}})


def audit_lines(path):
    return [json.loads(x) for x in Path(path).read_text().splitlines()]


def test_tool_policy_and_audit(world):
    log = world.path / "audit.jsonl"
    routes = (f"  docs:\n    upstream: http://127.0.0.1:{world.up.port}\n    tools:\n      allow: [\"read_*\", search]\n      deny: [\"*_all\"]\n"
              f"  open: http://127.0.0.1:{world.up.port}\n")
    g = world.gateway(world.config(routes=routes), "--audit-log", str(log))
    post = lambda body, *a, route="docs": world.curl("/mcp", "-H", "Content-Type: application/json", *a, "--data-binary", body, route=route)
    seen = len(world.up.heads)
    for tool, rule in (("write", "no rule of tools.allow matches it"), ("read_all", 'rule tools.deny "*_all"')):
        r = json.loads(post(call(tool, "abc")).stdout)
        assert r["id"] == "abc" and r["error"]["code"] == -32603 and rule in r["error"]["message"] and "Do not retry" in r["error"]["message"] and "'docs'" in r["error"]["message"]
    tricks = [
        '{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call","params":{"name":"write"}}',
        '{"jsonrpc":"2.0","id":1,"Method":"tools/call","method":"tools/list","params":{"name":"write"}}',
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","name":"write"}}',
        '{"jsonrpc":"2.0","id":1,"params":{"name":"wr\\u0069te","arguments":{}},"\\u006dethod":"tools/call"}',
        '[' + call("search") + ',' + call("write", 2) + ']', '{"jsonrpc":', call("search") + call("write"),
    ]
    for t in tricks:
        assert b"refused by the tool policy" in post(t).stdout, t
    for raw in (call("write").encode("utf-16"), call("write").encode("utf-16-be"), call("write").encode("utf-32"), b"\xef\xbb\xbf" + call("write").encode()):
        f = world.path / "raw"
        f.write_bytes(raw)
        assert b"refused by the tool policy" in post(f"@{f}").stdout
    assert b"refused by the tool policy" in post(call("search"), "-H", "Content-Encoding: gzip").stdout
    big = world.path / "big"
    big.write_text(call("search", x="y" * 5_000_000))
    r = post(f"@{big}", "-i")
    assert b" 413 " in r.stdout and b"refused by the tool policy" in r.stdout
    assert len(world.up.heads) == seen                              # nothing of all that went upstream
    for good in (call("read_x"), call("search"), '{"jsonrpc":"2.0","id":1,"method":"tools/list"}', "[" + call("search") + "," + call("read_a") + "]", "grant_type=x&code=y"):
        assert json.loads(post(good).stdout)["n"] == len(good)
        assert world.up.bodies[-1] == good.encode()
    mirrored = ["-H", "MCP-Protocol-Version: 2026-07-28", "-H", "Mcp-Method: tools/call"]
    assert b"say something else" in post(call("search"), *mirrored, "-H", "Mcp-Name: read_a").stdout
    assert json.loads(post(call("search"), *mirrored, "-H", "Mcp-Name: =?base64?c2VhcmNo?=").stdout)["n"]
    post(call("write"), "-H", "Mcp-Session-Id: sess", "-H", "Authorization: Bearer t0ken", route="open")
    world.status("/mcp", route="open")
    assert g.stop() == 0
    lines = [x for x in audit_lines(log) if x["kind"] == "mcp.request"]
    text = log.read_text()
    assert "s3cr3t" not in text and "t0ken" not in text and '"sess"' not in text
    last, get = lines[-2], lines[-1]
    assert last["route"] == "open" and last["method"] == "tools/call" and last["tool"] == "write" and last["status"] == 200 and last["bytes_in"] == len(call("write"))
    assert re.fullmatch(r"[0-9a-f]{16}", last["session"]) and last["client"] == "198.51.100.7" and last["duration_us"] > 0 and last["bytes_out"] > 0
    assert get["http_method"] == "GET" and get["method"] is None
    refused = [x for x in lines if "refused" in x]
    assert len(refused) >= 2 + len(tricks) and any(x.get("batch") == 2 for x in refused) and any("unparsed" in x for x in lines)
    assert any(x.get("protocol_version") == "2026-07-28" for x in lines)
    v = subprocess.run([BIN, "audit", "verify", str(log)], capture_output=True, text=True)
    assert v.returncode == 0, v.stdout + v.stderr
    log.write_text(text.replace('"tool":"write"', '"tool":"other"', 1))
    assert subprocess.run([BIN, "audit", "verify", str(log)], capture_output=True).returncode != 0


# ---- links ----

def test_reconnects_after_a_cut_and_takes_a_new_token(world):
    g = world.gateway()
    assert world.status("/x") == "200"
    new = token("another" * 6)
    world.token_file.write_text(new)
    world.edge.say("cut")
    g.wait_log("edge.connected", 4)
    world.edge.wait(f"token Bearer {new}")
    wait_for(lambda: world.status("/x") == "200", 20)
    assert new not in g.log and new not in Path(f"/proc/{g.p.pid}/cmdline").read_text()


def test_token_in_the_environment_is_wiped(world):
    config = re.sub(r"token_file: .*\n", "", world.config())
    g = world.gateway(config, env={"TUNNEL_TOKEN": token()})
    assert world.status("/x") == "200"
    assert token() not in Path(f"/proc/{g.p.pid}/environ").read_text()


@pytest.mark.parametrize("status,words", [(401, "refuses the token"), (403, "archived"), (429, "takes no connection now"), (503, "takes no connection now")])
def test_refusals_of_the_edge(world, status, words):
    world.edge.say(f"refuse {status}")
    g = world.gateway(wait=False)
    g.wait_log(words)
    world.edge.say("refuse 0")
    g.wait_log("edge.connected", timeout=40)


def test_goaway_opens_a_replacement_first_and_cuts_nothing(world):
    g = world.gateway(world.config(connections=1))
    s = world.tls()
    s.sendall(head("/sse"))
    read_until(s, b"data: 0")
    world.edge.say("goaway")
    g.wait_log("edge.drains")
    g.wait_log("edge.connected", 2)
    assert "edge.disconnected" not in g.log
    assert world.status("/x") == "200"
    read_until(s, b"data: ")
    s.close()
    g.wait_log("edge.disconnected")


def test_admin(world):
    with socket.socket() as p:
        p.bind(("127.0.0.1", 0))
        port = p.getsockname()[1]
    g = world.gateway(None, "--admin-listen", f"127.0.0.1:{port}")

    def get(path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as r:
                return r.status, r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    world.status("/x")
    world.status("/x", route="nope")
    assert get("/healthz") == (200, "ok\n") and get("/readyz") == (200, "ok\n")
    text = get("/metrics")[1]
    assert 'gateway_requests_total{route="docs",class="2xx"} 1' in text and 'gateway_refusals_total{reason="no_route"} 1' in text
    assert re.search(r"gateway_links 2\b", text) and int(re.search(r"gateway_certificate_expiry_seconds (\d+)", text).group(1)) > time.time()
    world.cert, world.key = world.ca.leaf("gw", dns=[f"*.{DOMAIN}"], days=-0.01)
    g.wait_log("expired=")
    assert get("/readyz") == (503, "the certificate has expired\n")
    world.cert, world.key = world.ca.leaf("gw", dns=[f"*.{DOMAIN}"])
    g.wait_log("gateway.reload", 2)
    world.edge.say("refuse 503")
    world.edge.say("cut")
    wait_for(lambda: get("/readyz") == (503, "no connection to an edge\n"), 20)


def test_sigterm_lets_requests_finish(world):
    g = world.gateway()
    f = world.path / "body"
    f.write_bytes(b"q" * 20_000_000)
    p = subprocess.Popen(["curl", "-sS", "--max-time", "60", "--cacert", str(world.ca.file), "--connect-to", f"::127.0.0.1:{world.edge.clients}", "-X", "POST", "--data-binary",
                          f"@{f}", f"https://docs.{DOMAIN}/never"], stdout=subprocess.PIPE)
    idle = world.tls()
    idle.sendall(head("/x"))
    read_until(idle, b"]}")
    wait_for(lambda: any(x[1] == "/never" for x in world.up.heads), 10)
    g.p.send_signal(signal.SIGTERM)
    world.edge.wait("gateway drains")
    assert idle.recv(100) == b""
    assert g.p.poll() is None
    world.up.release.set()
    assert json.loads(p.communicate()[0])["n"] == 20_000_000
    assert g.p.wait(20) == 0


def test_sigterm_does_not_wait_for_ever(world):
    g = world.gateway(None, "--shutdown-timeout", "500ms")
    s = world.tls()
    s.sendall(head("/sse"))
    read_until(s, b"data: 0")
    assert g.stop() == 0 and "shutdown_timeout is over" in g.log


# ---- settings ----

def test_check(world):
    config = world.path / "c.yaml"

    def check(text):
        config.write_text(text)
        return subprocess.run([BIN, "gateway", "check", "--config", str(config)], capture_output=True, text=True)

    r = check(world.config(routes="  docs: http://10.0.0.5:8080\n  api: {upstreams: [\"http://10.0.0.6:1\", \"http://[fd00::1]:2\"], tools: {deny: \"x*\"}}\n  a.other.example: unix:/run/x\n"))
    assert r.returncode == 0 and r.stdout == (f"https://a.other.example -> unix:/run/x\nhttps://api.{DOMAIN} -> http://10.0.0.6:1, http://[fd00::1]:2 (tool policy)\n"
                                              f"https://docs.{DOMAIN} -> http://10.0.0.5:8080\n")
    hosted = (f"listen_addr: \":8080\"\nlog_level: debug\nshutdown_timeout: 1m30s\ntunnel_domain: {DOMAIN}\ntls:\n  cert_file: {world.cert}\n  key_file: {world.key}\n"
              "routes:\n  docs: http://docs.internal:8080\n  wiki: https://10.1.2.3:443\nupstream:\n  allowed_ips: [10.0.0.0/8, 192.168.1.7]\n  tls:\n    include_system_cas: true\n")
    assert check(hosted).returncode == 0
    one = subprocess.run([BIN, "gateway", "check", "-config", str(config), "-tunnel-domain", "x.example"], capture_output=True, text=True)
    assert "https://docs.x.example -> " in one.stdout
    for text, words in (("routes:\n  - docs: http://10.0.0.1:80\n", "cannot unmarshal !!seq into map[string]string"),
                        ("routes:\n  docs: http://10.0.0.1:80/path\n", "invalid upstream (must be scheme://host:port)"),
                        ("routes:\n  docs: http://10.0.0.1\n", "invalid upstream (must be scheme://host:port)"),
                        ("routes:\n  docs: {upstream: \"http://10.0.0.1:80\", tool: {}}\n", "unknown setting 'tool'")):
        r = check(f"tunnel_domain: d.example\ntls: {{cert_file: {world.cert}, key_file: {world.key}}}\n{text}")
        assert r.returncode == 1 and words in r.stderr and "c.yaml:" in r.stderr


# ---- real peers ----

MCP_SERVER = """
import asyncio, socket, sys, uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
s = MCPServer("demo")

@s.tool()
def add(a: int, b: int) -> int:
    return a + b

@s.tool()
def delete_everything() -> str:
    return "gone"

@s.tool()
async def slow(ctx: Context) -> str:
    for i in range(3):
        await ctx.report_progress(i, 3)
        await asyncio.sleep(0.05)
    return "finished"

sock = socket.socket()
sock.bind(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(s.streamable_http_app(host="0.0.0.0"), log_level="warning")).run(sockets=[sock])
"""

MCP_CLIENT = """
import asyncio, json, ssl, sys, httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
url, ca, mode = sys.argv[1:4]

async def main():
    progress = []

    async def on_progress(p, total, message):
        progress.append(p)
    async with httpx2.AsyncClient(verify=ssl.create_default_context(cafile=ca), timeout=60 * SLOW) as http:
        async with Client(streamable_http_client(url, http_client=http), mode=mode) as c:
            tools = sorted(t.name for t in (await c.list_tools()).tools)
            r = await c.call_tool("add", {"a": 2, "b": 40})
            slow = await c.call_tool("slow", {}, progress_callback=on_progress)
            try:
                refused = str(await c.call_tool("delete_everything", {}))
            except Exception as e:
                refused = str(e)
            print(json.dumps({"tools": tools, "sum": r.content[0].text, "slow": slow.content[0].text, "progress": progress, "refused": refused}))

asyncio.run(main())
"""


PATCH_DNS = """
import socket
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *a, **k: real("127.0.0.1" if host and ".example" in str(host) else host, *a, **k)
"""


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_official_sdk_through_the_gateway(world, mode):
    server = subprocess.Popen([sys.executable, "-c", MCP_SERVER], stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline())
        log = world.path / "audit.jsonl"
        world.gateway(world.config(routes=f"  docs:\n    upstream: http://127.0.0.1:{port}\n    tools: {{deny: \"delete_*\"}}\n"), "--audit-log", str(log))
        wait_for(lambda: world.status("/mcp") in ("400", "405", "406"), 20, "the MCP server is up")
        r = subprocess.run([sys.executable, "-c", PATCH_DNS + MCP_CLIENT, f"https://docs.{DOMAIN}:{world.edge.clients}/mcp", str(world.ca.file), mode], capture_output=True,
                           text=True, timeout=60)
        assert r.returncode == 0, r.stderr
        got = json.loads(r.stdout)
        assert got["tools"] == ["add", "delete_everything", "slow"] and got["sum"] == "42" and got["slow"] == "finished" and got["progress"] == [0, 1, 2]
        assert "tools.deny" in got["refused"] and "Do not retry" in got["refused"]
        lines = [x for x in audit_lines(log) if x["kind"] == "mcp.request"]
        assert {"add", "slow", "delete_everything"} <= {x.get("tool") for x in lines} and len({x["session"] for x in lines if "session" in x}) <= 1
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
