"""The way to an MCP server behind a tunnel, as the server goes it: edge as HTTPS proxy with client certificate, inner TLS under exactly the registered
authorities. The edge and the gateway's TLS are stand-ins of this file, so that each can misbehave."""
import socket
import sqlite3
import ssl
import threading
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

import certs
from harness import plan, tool
from test_mcp import McpServer, agent, of, text

DOMAIN = "abc123.tunnel.example.com"
HOST = "docs." + DOMAIN


def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except (OSError, ValueError):
        pass
    for s in (a, b):
        try:
            s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class Listener:
    """Accepts on loopback, one thread a connection."""

    def __init__(self):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                c, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self.guarded, args=(c,), daemon=True).start()

    def guarded(self, c):
        try:
            self.serve(c)
        except OSError:
            c.close()

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)         # wakes accept()
        except OSError:
            pass
        self.sock.close()


class Gateway(Listener):
    """Ends the inner TLS and passes the bytes to the MCP server."""

    def __init__(self, upstream_port, tmp, cert, chain=""):
        self.upstream_port, self.tmp, self.conns = upstream_port, tmp, 0
        self.use(cert, chain)
        super().__init__()

    def use(self, cert, chain="", old=False):
        f = self.tmp / f"leaf-{time.monotonic_ns()}.pem"
        f.write_text(cert.pem + chain + cert.key_pem)
        self.ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ctx.set_ciphers("DEFAULT@SECLEVEL=0")           # it shows whatever it has
        self.ctx.load_cert_chain(f)
        if old:
            self.ctx.maximum_version = ssl.TLSVersion.TLSv1_2

    def serve(self, c):
        t = self.ctx.wrap_socket(c, server_side=True)
        self.conns += 1
        up = socket.create_connection(("127.0.0.1", self.upstream_port))
        threading.Thread(target=pump, args=(up, t), daemon=True).start()
        pump(t, up)


class Edge(Listener):
    def __init__(self, tmp, authority, gateway):
        self.gateway, self.refuse, self.seen = gateway, None, []
        self.ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ctx.load_cert_chain(certs.leaf(authority, "127.0.0.1").write(tmp / f"edge-{time.monotonic_ns()}.pem"))
        ca = tmp / "edge-ca.pem"
        ca.write_text(authority.pem)
        self.ctx.load_verify_locations(ca)
        self.ctx.verify_mode = ssl.CERT_REQUIRED
        super().__init__()

    def serve(self, c):
        t = self.ctx.wrap_socket(c, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head:
            more = t.recv(65536)
            if not more:
                return
            head += more
        self.seen.append(head.decode())
        if self.refuse:
            t.sendall(self.refuse)
            t.close()
            return
        up = socket.create_connection(("127.0.0.1", self.gateway.port))
        t.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        threading.Thread(target=pump, args=(up, t), daemon=True).start()
        pump(t, up)


class Rig:
    def __init__(self, fresh, tmp, workspace="wrkspc_default", authorities=1, edges=1):
        self.tmp = tmp
        self.outer = certs.ca("outer")
        self.cas = [certs.ca(f"inner {i}") for i in range(2)]
        self.mcp = McpServer(tmp).start()
        self.gateway = Gateway(self.mcp.port, tmp, certs.leaf(self.cas[0], "*." + DOMAIN))
        self.edges = [Edge(tmp, self.outer, self.gateway) for _ in range(edges)]
        client = certs.leaf(self.outer, "server.example.com", client=True)
        client.write(tmp / "client.pem")
        self.world = fresh(server_args=["--tunnel-domain", "tunnel.example.com", *(a for e in self.edges for a in ("--tunnel-edge", f"https://127.0.0.1:{e.port}")),
                                        "--tunnel-edge-ca", str(tmp / "edge-ca.pem"), "--tunnel-edge-cert", str(tmp / "client.pem"), "--tunnel-edge-key", str(tmp / "client.pem")])
        self.sql("INSERT INTO tunnels VALUES('tnl_1', ?, NULL, ?, 1, NULL)", workspace, DOMAIN)
        for i in range(authorities):
            self.register(i)

    def sql(self, q, *args):
        db = sqlite3.connect(self.world.server.data / "outwork.db", timeout=30)
        with db:
            db.execute(q, args)
        db.close()

    def register(self, i):
        self.sql("INSERT INTO tunnel_certificates VALUES(?, 'tnl_1', ?, 99999999999999, ?, NULL, ?)", f"tcrt_{i}", f"f{i}", i + 1, self.cas[i].pem)

    def revoke(self, i):
        self.sql("UPDATE tunnel_certificates SET archived_ms = 5 WHERE id = ?", f"tcrt_{i}")

    def run(self, sid=None, url=f"https://{HOST}/mcp"):
        """One turn with one call: (text of the result or None, errors, session)."""
        w = self.world
        p = plan([tool("mcp__demo__add", a=40, b=2)], ["Done."])
        if sid is None:
            sid, before = w.session(p, agent=agent(w, url)), 0
        else:
            before = len(of(w.events(sid), "session.status_idle"))
            w.say(sid, p)
        events = w.idle(sid, after=before)
        at = max(i for i, e in enumerate(events) if e["type"] == "user.message")
        start = max((i for i, e in enumerate(events[:at]) if e["type"] == "session.status_idle"), default=0)
        results = of(events[at:], "agent.mcp_tool_result")
        return (text(results[0]) if results else None), [e["error"]["message"] for e in of(events[start:], "session.error")], sid

    def close(self):
        for x in [self.gateway, *self.edges]:
            x.close()
        self.mcp.stop()


@pytest.fixture
def rig(fresh, tmp_path):
    made = []

    def make(**kw):
        made.append(Rig(fresh, tmp_path, **kw))
        return made[-1]

    yield make
    for r in made:
        r.close()


def test_through_the_edge(rig):
    r = rig()
    assert r.run()[:2] == ("42", [])
    assert r.edges[0].seen and all(s.startswith(f"CONNECT {HOST}:443 ") for s in r.edges[0].seen)
    assert r.gateway.conns < len(r.mcp.lines("requests"))          # kept connections are used


def test_revoking_acts_on_the_next_call_though_a_connection_is_kept(rig):
    r = rig(authorities=2)
    answer, errors, sid = r.run()
    assert (answer, errors) == ("42", [])
    conns = r.gateway.conns
    assert r.run(sid)[:2] == ("42", []) and r.gateway.conns == conns      # it is kept, across turns
    r.revoke(0)
    answer, errors, _ = r.run(sid)
    assert answer is None or "42" not in answer
    assert len(errors) == 1 and "certificate" in errors[0].lower()
    assert r.gateway.conns == conns
    r.gateway.use(certs.leaf(r.cas[1], HOST))
    assert r.run(sid)[:2] == ("42", [])


def test_no_authority_no_dial(rig):
    r = rig(authorities=0)
    _, errors, sid = r.run()
    assert "no certificate authority" in errors[0] and not r.edges[0].seen
    r.register(0)
    assert r.run(sid)[:2] == ("42", [])


@pytest.mark.parametrize("url,words", [
    (f"https://docs.unknown.tunnel.example.com/mcp", "no tunnel of this workspace"), (f"https://a.b.{DOMAIN}/mcp", "no tunnel of this workspace"),
    ("https://tunnel.example.com/mcp", "names no route"), (f"https://{DOMAIN}/mcp", "names no route"), (f"http://{HOST}/mcp", "443"), (f"https://{HOST}:8443/mcp", "443"),
    (f"https://{HOST}./mcp", "dot")])
def test_names_that_are_refused(rig, url, words):
    r = rig()
    _, errors, _ = r.run(url=url)
    assert words in errors[0] and not r.edges[0].seen


def test_a_tunnel_of_another_workspace_is_refused_before_any_dial(rig):
    r = rig(workspace="wrkspc_other")
    _, errors, _ = r.run()
    assert "no tunnel of this workspace" in errors[0] and not r.edges[0].seen


def test_an_archived_tunnel(rig):
    r = rig()
    r.sql("UPDATE tunnels SET archived_ms = 5")
    _, errors, _ = r.run()
    assert "archived" in errors[0] and not r.edges[0].seen


def bad_leafs(r):
    middle = certs.ca("between", issuer=r.cas[0])
    yield "other authority", certs.leaf(r.cas[1], HOST), "", False
    yield "through an intermediate", certs.leaf(middle, HOST), middle.pem, False
    yield "other name", certs.leaf(r.cas[0], "docs.other.tunnel.example.com"), "", False
    yield "no alternative name", certs.leaf(r.cas[0], HOST, names=False), "", False
    yield "no key identifier", certs.leaf(r.cas[0], HOST, key_id=False), "", False
    yield "expired", certs.leaf(r.cas[0], HOST, expired=True), "", False
    yield "for clients only", certs.leaf(r.cas[0], HOST, client=True), "", False
    yield "a short key", certs.leaf(r.cas[0], HOST, key=rsa.generate_private_key(65537, 1536)), "", False
    yield "another kind of key", certs.leaf(r.cas[0], HOST, key=ed25519.Ed25519PrivateKey.generate()), "", False
    yield "an authority itself", certs.ca("x", issuer=r.cas[0]), "", False
    yield "TLS 1.2", certs.leaf(r.cas[0], HOST), "", True


def test_certificates_that_are_refused(rig):
    r = rig()
    hits = len(r.mcp.lines("requests"))
    for what, cert, chain, old in bad_leafs(r):
        r.gateway.use(cert, chain, old)
        _, errors, _ = r.run()
        assert len(errors) == 1 and ("certificate" in errors[0] or what in ("TLS 1.2", "other name")), (what, errors)
        assert {"a short key": "its RSA key has 1536 bits", "another kind of key": "type ED25519"}.get(what, "") in errors[0], errors
        assert len(r.mcp.lines("requests")) == hits, what
    r.gateway.use(certs.leaf(r.cas[0], HOST))
    assert r.run()[:2] == ("42", [])


@pytest.mark.parametrize("code,status,words", [("no_connector", 502, "no gateway of the tunnel is connected"), ("busy", 503, "limit"), ("no_certificate", 403, "no certificate authority"),
                                               ("connector_failed", 502, "gateway refused"), ("else", 500, "status 500")])
def test_the_edges_refusals_in_words(rig, code, status, words):
    r = rig()
    r.edges[0].refuse = f"HTTP/1.1 {status} X\r\nOutwork-Error: {code}\r\nContent-Length: 0\r\n\r\n".encode()
    _, errors, sid = r.run()
    assert words in errors[0]
    r.edges[0].refuse = None
    assert r.run(sid)[:2] == ("42", [])


def test_the_next_edge_is_tried(rig):
    r = rig(edges=3)
    r.edges[0].close()
    r.edges[1].refuse = b"HTTP/1.1 502 X\r\noutwork-error: no_connector\r\n\r\n"
    assert r.run()[:2] == ("42", [])
    n = len(r.edges[1].seen)
    assert n >= 1 and r.edges[2].seen
    assert r.run()[:2] == ("42", []) and len(r.edges[1].seen) == n        # the one that worked comes first


def test_the_environments_proxy_settings_do_not_matter(rig, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert rig().run()[:2] == ("42", [])
