"""`outwork edge` from outside: curl and raw clients on one side, the smallest gateway on the other."""
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

from edge_harness import BIN, SLOW, Refused, curl, curl_through, wait_for

HOST = "m.t1.tunnel.example"


# ---- the way through ----

def test_curl_through_the_edge(world, inner):
    backend = world.https(inner)
    edge = world.edge()
    world.accept(edge, backend)
    assert curl_through(edge, inner.ca_crt, f"https://{HOST}/hello").stdout == f"hello {HOST}"
    body = "x" * 3_000_000
    path = inner.dir / "body"
    path.write_text(body)
    assert curl_through(edge, inner.ca_crt, "--data-binary", f"@{path}", f"https://{HOST}/echo").stdout == body
    # another host of the tunnel arrives too, and its name is the inner certificate's affair
    assert curl_through(edge, inner.ca_crt, f"https://other.t1.tunnel.example/hello").stdout == "hello other.t1.tunnel.example"
    assert edge.metric("outwork_edge_relays_total") == 3
    assert edge.metric("outwork_edge_relayed_bytes_total") > 2 * len(body)
    assert world.token not in edge.text()


def test_bytes_both_ways_and_orderly_ends(world):
    backend = world.backend()
    edge = world.edge()
    gw = world.accept(edge, backend)
    s = edge.connect(HOST)
    for n in (1, 100, 16384, 16385, 1_000_000):
        s.echo(b"a" * n)
    s.end()
    wait_for(lambda: backend.open == 0, why="the end has crossed")
    cut = edge.connect(HOST)
    cut.echo(b"x")
    cut.close()
    wait_for(lambda: len(backend.ended) == 2, why="the cut has crossed")
    assert backend.ended == ["eof", "ConnectionResetError"]
    wait_for(lambda: gw.streams() == 0 and edge.metric("outwork_edge_relays") == 0, why="nothing is left")
    client = gw.lines("open")[0].split()
    assert client[1] == f"{HOST}:443" and client[2].startswith("127.0.0.1:") and client[3] == "0"


def test_early_bytes_behind_connect(world):
    backend = world.backend()
    edge = world.edge()
    world.accept(edge, backend)
    s = edge.connect(raw=f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() + b"early" * 1000)
    assert s.recv(5000) == b"early" * 1000


def test_directory_hears_of_gateways(world):
    backend = world.backend()
    edge = world.edge()
    world.accept(edge, backend, connections=3, connector="gw-a")
    b = world.accept(edge, backend, connections=1, connector="gw-b")
    wait_for(lambda: world.control.connections() == 4, why="heartbeat tells of four connections")
    mine = world.control.edges[edge.id]
    assert sorted((c["id"], c["connections"], c["token_id"], c["version"]) for c in mine["connectors"]) == [("gw-a", 3, "tok_t1", "tunnel-accept/1"),
                                                                                                          ("gw-b", 1, "tok_t1", "tunnel-accept/1")]
    b.kill()
    wait_for(lambda: world.control.connections() == 3, why="heartbeat tells of the one that left")


# ---- refusals ----

def refused(edge, host=HOST, **kw) -> Refused:
    with pytest.raises(Refused) as r:
        edge.connect(host, **kw)
    assert r.value.body.strip() and r.value.fields["content-type"].startswith("text/plain")
    return r.value


@pytest.mark.parametrize("token", [None, "", "garbage", "eyJhIjoiYiJ9"])
def test_no_token(world, token):
    gw = world.accept(world.edge(), world.backend(), token=token or None, connections=1, up=False)
    gw.wait()
    assert gw.lines("refused")[0].split()[2] == "401"


def test_unknown_token_and_rotation(world):
    backend = world.backend()
    edge = world.edge()
    old = world.accept(edge, backend)
    s = edge.connect(HOST)
    stale, world.token = world.token, world.control.rotate("tnl_t1")
    late = world.accept(edge, backend, token=stale, connections=1, up=False)
    late.wait()
    assert late.lines("refused")[0].split()[2] == "401"
    world.accept(edge, backend, connector="conn-2")
    s.echo(b"the old connection lives")
    assert old.alive() and stale not in edge.text() and world.token not in edge.text()


def test_archived_tunnel(world):
    backend = world.backend()
    edge = world.edge()
    gw = world.accept(edge, backend)
    s = edge.connect(HOST)
    s.echo(b"before")
    with world.control.lock:
        world.control.tunnels["tnl_t1"]["state"] = "archived"
    gw.wait()                                # its links are cut
    assert s.ended()
    assert refused(edge).error == "unknown_tunnel"
    late = world.accept(edge, backend, connections=1, up=False)
    late.wait()
    assert late.lines("refused")[0].split()[2] == "403"


def test_zero_certificates(world):
    backend = world.backend()
    edge = world.edge()
    world.control.tunnels["tnl_t1"]["state"] = "needs_certificate"
    world.accept(edge, backend)
    r = refused(edge)
    assert (r.status, r.error) == (403, "no_certificate") and "certificate" in r.body
    with world.control.lock:
        world.control.tunnels["tnl_t1"]["state"] = "active"
    wait_for(lambda: "tunnel_state" in edge.text(), why="the edge hears of the certificate")
    s = edge.connect(HOST)
    s.echo(b"now")
    with world.control.lock:
        world.control.tunnels["tnl_t1"]["state"] = "needs_certificate"
    wait_for(lambda: len(edge.event("edge.tunnel_state")) == 2, why="the edge hears of it")
    assert refused(edge).error == "no_certificate"
    s.echo(b"what is open goes on")


@pytest.mark.parametrize("host,error,status", [
    ("m.t9.tunnel.example", "unknown_tunnel", 404), ("www.example.com", "unknown_tunnel", 404), ("localhost", "unknown_tunnel", 404),
    ("a.b.t1.tunnel.example", "unknown_tunnel", 404), ("t1.tunnel.example", "unknown_tunnel", 404), ("127.0.0.1", "unknown_tunnel", 404),
    ("m.t2.tunnel.example", "no_connector", 502),
])
def test_unknown_and_foreign_hosts(world, host, error, status):
    edge = world.edge()
    backend = world.backend()
    world.control.tunnel("t2")
    acceptor = world.accept(edge, backend)
    r = refused(edge, host)
    assert (r.status, r.error) == (status, error)
    assert acceptor.lines("open") == []


def test_other_requests(world):
    edge = world.edge()
    for raw, status in ((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 405), (b"CONNECT m.t1.tunnel.example:80 HTTP/1.1\r\nHost: x\r\n\r\n", 403), (b"rubbish\r\n\r\n", 400),
                        (b"CONNECT m.t1.tunnel.example HTTP/1.1\r\nHost: x\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nX: " + b"y" * 40000, 431)):
        r = refused(edge, raw=raw)
        assert r.status == status, (raw[:40], r.status)
    # the gateways' listener
    for raw, status in ((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"400"), (b"GET /outwork/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", b"400")):
        s = edge.tls(None).wrap_socket(socket.create_connection(("127.0.0.1", edge.gateway), timeout=20 * SLOW), server_hostname="127.0.0.1")
        s.sendall(raw)
        assert s.recv(4096).split()[1] == status


def test_client_certificate(world, other_keys, inner):
    edge = world.edge()
    assert curl_through(edge, inner.ca_crt, f"https://{HOST}/", cert=None, check=False).returncode != 0
    foreign = curl("--proxy", f"https://127.0.0.1:{edge.provider}", "--proxy-cacert", edge.keys.ca_crt, "--proxy-cert", other_keys.provider_crt, "--proxy-key",
                   other_keys.provider_key, f"https://{HOST}/", check=False)
    assert foreign.returncode != 0
    # the edge's own server certificate is of the right authority, but not for clients; a peer's is of another authority
    for cert in ("edge", "peer"):
        assert curl_through(edge, inner.ca_crt, f"https://{HOST}/", cert=cert, check=False).returncode != 0
    assert edge.metric('outwork_edge_refused_total{reason="HANDSHAKE"}') == 4
    assert refused(edge, "m.t9.tunnel.example").status == 404      # and the right one is heard


def test_tls_versions(world):
    edge = world.edge()
    c = edge.tls()
    c.maximum_version = ssl.TLSVersion.TLSv1_2
    for port in (edge.provider, edge.gateway):
        with pytest.raises((ssl.SSLError, OSError)):
            c.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=20 * SLOW), server_hostname="127.0.0.1")


def closed_at_once(port) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=20 * SLOW) as s:
        try:
            return s.recv(1) == b""
        except ConnectionError:
            return True


def test_source_ranges(world):
    edge = world.edge("--provider-allow", "192.0.2.0/24", "--gateway-allow", "2001:db8::/32")
    assert closed_at_once(edge.provider) and closed_at_once(edge.gateway)
    assert edge.metric('outwork_edge_refused_total{reason="SOURCE"}') == 2
    assert world.edge("--provider-allow", "127.0.0.0/8,192.0.2.1").connect
    for bad in ("10.0.0.1/8", "300.1.1.1", "10.0.0.0/33", "x"):
        r = subprocess.run([BIN, "edge", "--server", "http://127.0.0.1:1", "--provider-allow", bad, "--tls-cert", "a", "--tls-key", "b", "--provider-client-ca", "c"],
                           capture_output=True, text=True, env={"OUTWORK_EDGE_KEY": "k"}, timeout=30 * SLOW)
        assert r.returncode == 2 and bad in r.stderr, r.stderr


def test_mandatory_settings():
    base = ["--server", "http://127.0.0.1:1", "--tls-cert", "a", "--tls-key", "b", "--provider-client-ca", "c"]
    for args, word in (([], "--server"), (["--server", "http://example.com", *base[2:]], "https"), (base[:6], "--provider-client-ca"),
                       ([*base, "--passthrough-listen", ":0"], "--passthrough-allow"), ([*base, "--peer-listen", ":0"], "--peer-cert")):
        r = subprocess.run([BIN, "edge", *args], capture_output=True, text=True, env={}, timeout=30 * SLOW)
        assert r.returncode == 2 and word in r.stderr, (args, r.stderr)


# ---- passthrough ----

def test_passthrough_with_fragmented_hello(world, inner):
    backend = world.https(inner)
    edge = world.edge(passthrough=True)
    world.accept(edge, backend)
    assert curl("--connect-to", f"{HOST}:443:127.0.0.1:{edge.plain}", "--cacert", inner.ca_crt, f"https://{HOST}/hello").stdout == f"hello {HOST}"
    # the hello byte by byte
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    t = ssl.create_default_context(cafile=inner.ca_crt).wrap_bio(a, b, server_hostname=HOST)
    with socket.create_connection(("127.0.0.1", edge.plain), timeout=20 * SLOW) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for step in (t.do_handshake, lambda: t.write(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"), lambda: t.read(4096)):
            while True:
                try:
                    got = step()
                    break
                except ssl.SSLWantReadError:
                    out = b.read()
                    for i in range(len(out)):
                        s.sendall(out[i:i + 1])
                    a.write(s.recv(65536))
            s.sendall(b.read())
        assert got.startswith(b"HTTP/1.1 200")


def test_passthrough_refusals(world, inner):
    edge = world.edge(passthrough=True)
    for name in ("m.t9.tunnel.example", "localhost", None):
        c = ssl.create_default_context()
        c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
        with pytest.raises(ssl.SSLError, match="(?i)unrecognized.name"):
            c.wrap_socket(socket.create_connection(("127.0.0.1", edge.plain), timeout=20 * SLOW), server_hostname=name)
    with socket.create_connection(("127.0.0.1", edge.plain), timeout=20 * SLOW) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        try:
            assert s.recv(100) == b""
        except ConnectionError:
            pass
    denied = world.edge("--passthrough-listen", "127.0.0.1:0", "--passthrough-allow", "192.0.2.0/24")
    assert closed_at_once(int(denied.event("edge.ready")[0]["passthrough"].rsplit(":", 1)[1]))


def test_passthrough_half_close(world):
    """Plain TCP keeps the difference between one end and both."""
    backend = world.backend()
    edge = world.edge(passthrough=True)
    world.accept(edge, backend)
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(a, b, server_hostname=HOST).do_handshake()
    hello = b.read()
    with socket.create_connection(("127.0.0.1", edge.plain), timeout=20 * SLOW) as s:
        s.sendall(hello + b"tail")
        s.shutdown(socket.SHUT_WR)
        got = b""
        while part := s.recv(65536):
            got += part
    assert got == hello + b"tail"
    wait_for(lambda: edge.metric("outwork_edge_relays") == 0, why="the relay has ended")


# ---- several edges ----

def test_forwarding_over_two_edges(world):
    backend = world.backend()
    a, b = world.edge(peer=True), world.edge(peer=True)
    gw = world.accept(b, backend)
    wait_for(lambda: world.control.connections() == 2, why="directory")
    s = a.connect(HOST)
    s.echo(b"over two edges" * 10000)
    assert gw.lines("open")[0].split()[1:] == [f"{HOST}:443", gw.lines("open")[0].split()[2], "1"]
    t = a.connect(HOST)
    t.echo(b"on the same link")
    assert len(b.event("edge.peer_in_up")) == 1 and a.metric("outwork_edge_forwarded_total") == 2 and b.metric("outwork_edge_forwarded_total") == 2
    t.close()
    wait_for(lambda: backend.open == 1, why="the end has crossed both edges")
    gw.kill()
    assert s.ended(), "the gateway's end has crossed both edges, and not as an orderly end"
    assert refused(a).error == "no_connector"


def test_never_forwarded_twice(world):
    """The directory says that B has a gateway, which it has not; B's directory says that A has one. A stream must not travel in a circle."""
    a, b = world.edge(peer=True), world.edge(peer=True)
    real = world.control.answer

    def lying(method, path, query, body):
        if path == "/outwork/v1/edges/route":
            other = b if query["from"][0] == a.id else a
            return 200, {"tunnel_id": "tnl_t1", "domain": "t1.tunnel.example", "state": "active", "edges": [{"id": other.id, "address": f"127.0.0.1:{other.peer}"}]}
        return real(method, path, query, body)
    world.control.answer = lying
    assert refused(a).error == "no_connector"
    assert a.metric("outwork_edge_forwarded_total") == 1 and b.metric("outwork_edge_forwarded_total") == 1 and b.metric("outwork_edge_route_lookups_total") == 0


def test_peers_know_each_other(world, other_keys):
    a = world.edge(peer=True)
    for cert in ("provider", "edge", None):      # none of these is an edge's certificate
        c = a.tls(cert, ca=a.keys.peer_ca_crt)
        with pytest.raises((ssl.SSLError, OSError)):
            s = c.wrap_socket(socket.create_connection(("127.0.0.1", a.peer), timeout=20 * SLOW), server_hostname="127.0.0.1")
            s.sendall(b"GET /outwork/v1/tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: outwork-peer/1\r\n\r\n")
            if s.recv(100) == b"":
                raise OSError("closed")
    # an address in the directory that is no edge of ours is not spoken to
    with world.control.lock:
        world.control.edges["edge_x"] = {"address": f"127.0.0.1:{a.provider}", "connectors": [{"tunnel_id": "tnl_t1", "connections": 1}]}
    assert refused(a).error == "no_connector"
    assert "certificate is refused" in a.event("edge.peer_failed")[0]["why"]


# ---- ends ----

def test_kill_of_the_gateway_is_seen(world):
    backend = world.backend()
    edge = world.edge()
    gw = world.accept(edge, backend, connections=1)
    s = edge.connect(HOST)
    s.echo(b"x")
    gw.kill()
    assert s.ended()
    wait_for(lambda: edge.metric("outwork_edge_links") == 0, why="link gone")
    assert refused(edge).error == "no_connector"


def test_kill_of_the_edge_is_seen(world):
    backend = world.backend()
    edge = world.edge()
    gw = world.accept(edge, backend, connections=2)
    s = edge.connect(HOST)
    s.echo(b"x")
    edge.p.kill()
    assert s.ended()
    gw.wait()
    wait_for(lambda: backend.open == 0, why="the backend's connection has ended")


def test_kill_of_the_client_is_seen(world):
    backend = world.backend()
    edge = world.edge()
    world.accept(edge, backend)
    s = edge.connect(HOST)
    s.echo(b"x")
    s.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    socket.socket.close(s.sock)              # a reset, without a word of TLS
    wait_for(lambda: backend.open == 0, why="the backend's connection has ended")


def test_disconnect_of_curl_reaches_the_backend(world, inner):
    backend = world.https(inner)
    edge = world.edge()
    world.accept(edge, backend)
    p = subprocess.Popen(["curl", "-sSN", "--proxy", f"https://127.0.0.1:{edge.provider}", "--proxy-cacert", edge.keys.ca_crt, "--proxy-cert", edge.keys.provider_crt,
                          "--proxy-key", edge.keys.provider_key, "--cacert", inner.ca_crt, f"https://{HOST}/stream"], stdout=subprocess.PIPE)
    try:
        assert p.stdout.readline() == b"data: 0\n"
        p.stdout.readline()
        backend.step()
        assert p.stdout.readline() == b"data: 1\n"       # at once, not when a buffer is full
    finally:
        p.kill()
        p.wait()
    assert backend.left.wait(20 * SLOW)


def test_reconnects(world):
    backend = world.backend()
    edge = world.edge()
    for i in range(5):
        gw = world.accept(edge, backend, connections=4)
        edge.connect(HOST).echo(b"again")
        gw.kill()
    wait_for(lambda: edge.metric("outwork_edge_links") == 0, why="all links gone")
    assert edge.metric("outwork_edge_tunnels") == 0


def test_another_link_is_tried(world):
    backend = world.backend()
    edge = world.edge("--connect-timeout", "30s")
    world.accept(edge, backend, "refuse=503", connector="full", connections=1)
    world.accept(edge, backend, connector="good", connections=1)
    for _ in range(4):
        edge.connect(HOST).echo(b"x")
    r = world.edge()
    world.accept(r, backend, "refuse=404", connections=2)
    assert refused(r).error == "connector_failed"


def test_gateway_that_never_answers(world):
    edge = world.edge("--connect-timeout", "500ms")
    gw = world.accept(edge, world.backend(), "silent", connections=1)
    assert refused(edge).error == "connector_failed"
    wait_for(lambda: gw.streams() == 0, why="the stream is taken back")


def test_drain(world):
    backend = world.backend()
    edge = world.edge("--drain", "60s")
    gw = world.accept(edge, backend)
    s = edge.connect(HOST)
    s.echo(b"before")
    edge.p.send_signal(signal.SIGTERM)
    wait_for(lambda: gw.lines("goaway"), why="GOAWAY")
    assert edge.get("/readyz") == (503, "draining\n") and edge.get("/healthz")[0] == 200
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", edge.provider), timeout=5).close()
    wait_for(lambda: world.control.edges[edge.id]["draining"], why="the directory knows")
    s.echo(b"during" * 50000)
    assert edge.alive()
    s.close()
    assert edge.wait() == 0


def test_drain_has_an_end(world):
    backend = world.backend()
    edge = world.edge("--drain", "300ms")
    world.accept(edge, backend)
    s = edge.connect(HOST)
    edge.p.send_signal(signal.SIGTERM)
    assert edge.wait() == 0
    assert s.ended()
    two = world.edge("--drain", "10m")
    world.accept(two, backend)
    s = two.connect(HOST)
    two.p.send_signal(signal.SIGTERM)
    wait_for(lambda: two.event("edge.drain"), why="draining")
    two.p.send_signal(signal.SIGTERM)
    assert two.wait() == 0
    assert s.ended()


def test_server_away(world):
    backend = world.backend()
    edge = world.edge()
    world.accept(edge, backend)
    s = edge.connect(HOST)
    world.control.down = True
    wait_for(lambda: edge.get("/readyz")[0] == 503, why="not ready")
    assert "server" in edge.get("/readyz")[1] or "heartbeat" in edge.get("/readyz")[1]
    late = world.accept(edge, backend, connections=1, up=False)
    late.wait()
    assert late.lines("refused")[0].split()[2] == "503" and int(late.lines("refused")[0].split()[3]) >= 1
    s.echo(b"connected gateways go on")
    edge.connect(HOST).echo(b"also with new streams")
    world.control.down = False
    wait_for(lambda: edge.get("/readyz")[0] == 200, why="ready again")
    world.accept(edge, backend, connector="conn-2")


def test_edge_key_refused(world):
    edge = world.edge(env={"OUTWORK_EDGE_KEY": "wrong"}, ready=False)
    wait_for(lambda: edge.get("/readyz") == (503, "the server refuses the edge key\n"), why="readyz says so")
    gw = world.accept(edge, world.backend(), connections=1, up=False)
    gw.wait()
    assert gw.lines("refused")[0].split()[2] == "503"       # not 401: the gateway's token may be good
    with open(f"/proc/{edge.p.pid}/environ", "rb") as f:
        assert b"wrong" not in f.read()


def test_reload_of_certificates(world, tmp_path, keys):
    import shutil
    d = tmp_path / "k"
    shutil.copytree(keys.dir, d)
    edge = world.edge("--tls-cert", str(d / "edge.crt"), "--tls-key", str(d / "edge.key"))
    backend = world.backend()
    world.accept(edge, backend)
    s = edge.connect(HOST)
    before = ssl.get_server_certificate(("127.0.0.1", edge.gateway))
    r = subprocess.run([BIN, "edge", "init", "--dir", str(d), "--name", "127.0.0.1", "--renew"], capture_output=True, text=True, timeout=30 * SLOW)
    assert r.returncode == 0, r.stderr
    edge.p.send_signal(signal.SIGHUP)
    wait_for(lambda: edge.event("edge.certificates_reloaded"), why="reload")
    assert ssl.get_server_certificate(("127.0.0.1", edge.gateway)) != before
    (d / "edge.crt").write_text("rubbish")
    edge.p.send_signal(signal.SIGHUP)
    wait_for(lambda: edge.event("edge.certificates_not_reloaded"), why="refused reload")
    edge.connect(HOST).echo(b"new")
    s.echo(b"old")


# ---- limits ----

def test_slow_loris(world):
    """Connections that say nothing, or half of something, end by themselves on every listener, and do not keep others out."""
    backend = world.backend()
    edge = world.edge("--head-timeout", "1s", peer=True, passthrough=True)
    world.accept(edge, backend)
    stuck = []
    for port in (edge.gateway, edge.provider, edge.peer, edge.plain):
        for first in (b"", b"\x16\x03\x01\x02\x00\x01"):
            s = socket.create_connection(("127.0.0.1", port), timeout=30 * SLOW)
            s.sendall(first)
            stuck.append(s)
    for port, cert in ((edge.gateway, None), (edge.provider, "provider")):
        s = edge.tls(cert).wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=30 * SLOW), server_hostname="127.0.0.1")
        s.sendall(b"CONNECT x:443 HTTP/1.1\r\nHos")
        stuck.append(s)
    edge.connect(HOST).echo(b"others come through")
    for s in stuck:
        try:
            while s.recv(4096):
                pass
        except OSError:
            pass
    wait_for(lambda: edge.metric("outwork_edge_handshakes_open") == 0, why="all gone")


@pytest.mark.parametrize("patience", ["1s", "10m"])
def test_handshakes_are_bounded(world, patience):
    """A few that hold all places and say nothing do not keep others out, neither with a short time limit nor with a long one."""
    backend = world.backend()
    edge = world.edge("--max-handshakes", "4", "--head-timeout", patience)
    world.accept(edge, backend)
    stuck = [socket.create_connection(("127.0.0.1", edge.provider), timeout=30 * SLOW) for _ in range(12)]
    wait_for(lambda: edge.metric("outwork_edge_handshakes_open") == 4, why="all places taken")
    edge.connect(HOST, timeout=60).echo(b"behind twelve that say nothing")
    for s in stuck:
        s.close()


def test_handshakes_of_one_source(world):
    edge = world.edge("--max-handshakes-per-source", "3")
    stuck = [socket.create_connection(("127.0.0.1", edge.gateway), timeout=30 * SLOW) for _ in range(3)]
    wait_for(lambda: edge.metric("outwork_edge_handshakes_open") == 3, why="three in")
    assert closed_at_once(edge.gateway)
    for s in stuck:
        s.close()


def test_connections_of_one_source(world):
    backend = world.backend()
    edge = world.edge("--max-connections-per-source", "3")
    world.accept(edge, backend, connections=3)
    assert closed_at_once(edge.gateway)
    many = [edge.connect(HOST) for _ in range(4)]
    for s in many:
        s.echo(b"the providers' listener counts for itself")


def test_the_listeners_count_for_themselves(world):
    """A server with more connections than a gateway may have, and a gateway, behind one address: neither keeps the other out."""
    backend = world.backend()
    edge = world.edge("--max-connections-per-source", "3", "--max-handshakes-per-source", "3")
    world.accept(edge, backend, connections=1)
    many = [edge.connect(HOST) for _ in range(6)]
    stuck = [socket.create_connection(("127.0.0.1", edge.provider), timeout=30 * SLOW) for _ in range(3)]
    wait_for(lambda: edge.metric("outwork_edge_handshakes_open") == 3, why="three that say nothing")
    world.accept(edge, backend, connector="conn-2", connections=1)
    for s in (*many, *stuck):
        s.close()


def test_limits_of_a_tunnel(world):
    backend = world.backend()
    edge = world.edge("--max-links-per-tunnel", "2", "--max-streams-per-tunnel", "3", "--echo-interval", "20s")
    world.accept(edge, backend, connections=2)
    late = world.accept(edge, backend, connections=1, up=False)
    late.wait()
    assert late.lines("refused")[0].split()[2] == "429"
    open_ = [edge.connect(HOST) for _ in range(3)]
    r = refused(edge)
    assert (r.status, r.error) == (503, "busy") and int(r.fields["retry-after"]) >= 1
    open_.pop().close()
    wait_for(lambda: backend.open == 2, why="room")
    wait_for(lambda: edge.metric("outwork_edge_streams") == 2, why="room")
    edge.connect(HOST).echo(b"room again")


def test_eight_stalled_readers(world):
    """Readers that stop reading hold only their own streams, on one link."""
    backend = world.backend()
    edge = world.edge()
    world.accept(edge, backend, connections=1)
    stalled = []
    for _ in range(8):
        s = edge.connect(HOST)
        s.send(b"S")
        stalled.append(s)
    live = edge.connect(HOST)
    for i in range(50):
        live.echo(b"m" * 2000)
    live.echo(b"b" * 4_000_000)
    # and writers whose other end does not read
    for s in stalled:
        assert s.recv(1000) == b"s" * 1000
    edge.connect(HOST).echo(b"new ones, too")


def test_many_idle_streams(world):
    backend = world.backend()
    edge = world.edge("--max-handshakes-per-source", "256")
    gw = world.accept(edge, backend, connections=4)
    warm = edge.connect(HOST)
    warm.echo(b"x")
    n, before = 2000, edge.rss()
    streams, lock, failed = [], threading.Lock(), []

    def open_some(k):
        try:
            for _ in range(k):
                s = edge.connect(HOST, timeout=60)
                s.echo(b"hello")
                with lock:
                    streams.append(s)
        except Exception as e:          # noqa: BLE001 - told below, in the test's own thread
            failed.append(e)
    threads = [threading.Thread(target=open_some, args=(n // 8,)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed, failed[0]
    per = (edge.rss() - before) / n
    print(f"\n{n} idle streams: {per / 1024:.1f} KiB each in the edge, {gw.rss() / n / 1024:.1f} KiB in the gateway")
    assert per < 64 * 1024 * SLOW
    warm.echo(b"still")
    for s in streams[::97]:
        s.echo(b"alive")
    for s in streams:
        s.close()
    wait_for(lambda: backend.open == 1, timeout=60, why="all have ended")
    wait_for(lambda: edge.metric("outwork_edge_relays") == 1, why="all relays have ended")


def test_health_check_drops_a_frozen_gateway(world):
    backend = world.backend()
    edge = world.edge("--echo-interval", "300ms")
    gw = world.accept(edge, backend)
    wait_for(lambda: edge.metric("outwork_edge_echo_seconds_count") >= 2, why="echo")
    gw.p.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: edge.metric("outwork_edge_links") == 0, why="the frozen links are dropped")
        assert edge.metric("outwork_edge_echo_failures_total") == 2
    finally:
        gw.p.send_signal(signal.SIGCONT)


# ---- init ----

def test_init(world, tmp_path, keys):
    for word in ("--provider-client-ca", "--tunnel-edge https://localhost:8444", "--tunnel-edge-ca ca.crt",
                 "--tunnel-edge-cert provider.crt", "--tunnel-edge-key provider.key", "--edge-ca ca.crt"):
        assert word in keys.said
    for name in ("ca", "edge", "provider", "peer", "peer-ca"):
        assert (keys.dir / f"{name}.key").stat().st_mode & 0o777 == 0o600
    before = {p.name: p.read_bytes() for p in keys.dir.iterdir()}
    r = subprocess.run([BIN, "edge", "init", "--dir", str(keys.dir), "--name", "x.example"], capture_output=True, text=True, timeout=30 * SLOW)
    assert r.returncode == 1 and "not overwritten" in r.stderr
    assert before == {p.name: p.read_bytes() for p in keys.dir.iterdir()}
    for args in ([], ["--dir", str(tmp_path / "n")], ["--dir", str(tmp_path / "n"), "--name", "bad name"]):
        assert subprocess.run([BIN, "edge", "init", *args], capture_output=True, timeout=30 * SLOW).returncode == 2
