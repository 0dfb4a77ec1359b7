"""Connections that hold on to every listener of edge and gateway: silent, half a hello, half a request, a byte now and then. They end by the deadline, and while
they stand they keep nobody out."""
from __future__ import annotations

import socket
import ssl
import threading
import urllib.request

import pytest

from cloudflared import DOMAIN as CF_DOMAIN, Behind, WebSocket, frame
from edge_harness import SLOW, wait_for
from fault_harness import Watched, admin_port, metric, new_id, outcome, passthrough
from gw_harness import Upstream

PLACES = 32                                  # unfinished handshakes that a listener of the edge may have
STUCK = 3 * PLACES
ADMIN_STUCK = 100                            # more than an admin listener takes at once


def hello(host="x.example") -> bytes:
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(a, b, server_hostname=host).do_handshake()
    return b.read()


class Stuck:
    """Connections that never come to their point; some trickle on for ever."""

    def __init__(self, at, n, firsts, tls=None, source="127.0.0.%d"):
        self.all, self.trickle, self.over = [], [], threading.Event()
        for k in range(n):
            first, go_on = firsts[k % len(firsts)]
            s = socket.create_connection(at, timeout=60 * SLOW, source_address=(source % (k % 4 + 2), 0) if source else None)
            if first is not None:
                s.sendall(first)
            self.all.append(s)
            if go_on:
                self.trickle.append([s, go_on])
        self.thread = threading.Thread(target=self._drip, daemon=True)
        self.thread.start()

    def _drip(self):
        while not self.over.wait(0.1):
            for x in self.trickle:
                try:
                    x[0].send(x[1][:1])
                    x[1] = x[1][1:] or b"x"
                except OSError:
                    pass

    def ended(self):
        """Each of them is closed by the other side; it may say why before."""
        for s in self.all:
            try:
                while s.recv(4096):
                    pass
            except TimeoutError:
                pytest.fail("a connection that says nothing is held for ever")
            except OSError:
                pass

    def close(self):
        self.over.set()
        self.thread.join()
        for s in self.all:
            s.close()


HELLO = hello("docs.t1.tunnel.example")
TLS_FIRSTS = [(None, None), (HELLO[:6], None), (HELLO[:100], HELLO[100:]), (HELLO, None)]
HTTP_FIRSTS = [(None, None), (b"GET /me", None), (b"GET / HTTP/1.1\r\nX: ", b"y" * 10000)]


def new_gateway(rig, edge, t, up):
    g = rig.gateway(t, [edge], up, connections=1)
    assert outcome(lambda: rig.once(edge, t)) == "status 200"
    g.end()


def peer_is_heard(edge):
    c = edge.tls("peer", ca=edge.keys.peer_ca_crt)
    c.check_hostname = False
    with c.wrap_socket(socket.create_connection(("127.0.0.1", edge.peer), timeout=60 * SLOW)) as s:
        s.sendall(b"GET /outwork/v1/tunnel HTTP/1.1\r\nHost: x\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 400")       # it was let in, and what it asked was read


def visit(rig, edge, t, up, door):
    """Somebody with good intentions, at this listener."""
    if door == "gateway":
        new_gateway(rig, edge, t, up)
    elif door == "provider":
        assert outcome(lambda: rig.once(edge, t)) == "status 200"
    elif door == "peer":
        peer_is_heard(edge)
    else:
        c = passthrough(("127.0.0.1", edge.plain), t.host, rig.ca, timeout=60)
        assert c.small(new_id()) == 200
        c.close()


DOORS = ("gateway", "provider", "peer", "passthrough")


def where(edge, door):
    return {"gateway": (edge.host, edge.gateway), "provider": (edge.host, edge.provider), "peer": ("127.0.0.1", edge.peer), "passthrough": ("127.0.0.1", edge.plain)}[door]


def test_nobody_is_kept_out_of_the_edge(rig):
    """No deadline helps here: three times as many as each listener has places, from several sources, hold on for ten minutes."""
    t, up = rig.tunnel(), rig.upstream()
    edge = rig.edge("--head-timeout", "10m", "--max-handshakes", str(PLACES), "--max-handshakes-per-source", str(PLACES), peer=True, passthrough=True)
    rig.gateway(t, [edge], up)
    watched = Watched(rig.call(edge, t))
    stuck = [Stuck(where(edge, door), STUCK, TLS_FIRSTS) for door in DOORS]
    try:
        wait_for(lambda: edge.metric("outwork_edge_handshakes_open") >= len(DOORS) * PLACES // 2, why="the places are taken")
        for door in DOORS:
            visit(rig, edge, t, up, door)
        watched.goes_on()
    finally:
        for s in stuck:
            s.close()
    watched.close()


def test_the_edges_deadline(rig):
    """With the deadline they are gone, also those that send a byte now and then, and those that have got as far as half a request inside TLS."""
    t, up = rig.tunnel(), rig.upstream()
    edge = rig.edge("--head-timeout", "1s", peer=True, passthrough=True)
    rig.gateway(t, [edge], up, more="limits: {head-timeout: 1s}\n")          # who has said whom it wants is the gateway's
    stuck = [Stuck(where(edge, door), 8, TLS_FIRSTS) for door in DOORS]
    half = []
    for door, cert, ca in (("gateway", None, None), ("provider", "provider", None), ("peer", "peer", edge.keys.peer_ca_crt)):
        c = edge.tls(cert, ca=ca)
        c.check_hostname = False
        s = c.wrap_socket(socket.create_connection(where(edge, door), timeout=60 * SLOW))
        s.sendall(b"CONNECT docs.t1.tunnel.example:443 HTTP/1.1\r\nHos")
        half.append(s)
    for door in DOORS:
        visit(rig, edge, t, up, door)
    for s in stuck:
        s.ended()
        s.close()
    for s in half:
        assert s.recv(100).startswith(b"HTTP/1.1 408")
        s.close()
    wait_for(lambda: edge.metric("outwork_edge_handshakes_open") == 0, why="nothing is left")


def test_inner_connections_of_the_gateway(rig):
    """Streams through the edge whose inner handshake or request never comes to its end."""
    t, up = rig.tunnel(), rig.upstream()
    edge = rig.edge(passthrough=True)
    g = rig.gateway(t, [edge], up, more="limits: {head-timeout: 1s}\nadmin_listen: 127.0.0.1:0\n")
    whole_hello = hello(t.host)              # the edge waits for all of it, so the gateway sees a client that is silent after its hello
    stuck = Stuck(("127.0.0.1", edge.plain), 24, [(whole_hello, None), (whole_hello, b"\x16\x03\x03\x40\x00" + bytes(10000))])
    raw = [edge.connect(t.host, timeout=60) for _ in range(8)]       # and here one that sends half of it, or nothing
    for s in raw[::2]:
        s.send(whole_hello[:50])
    heads = [rig.call(edge, t) for _ in range(8)]
    for k, c in enumerate(heads):
        c.send(c.head("POST", f"/echo?id={new_id()}", 10)[:10 + k])
    for _ in range(5):
        assert rig.once(edge, t) == 200
    stuck.ended()
    stuck.close()
    for s in raw:
        s.ended()
    for c in heads:
        assert outcome(lambda: c.reply()[0]) in ("cut", "status 408")
        c.close()
    wait_for(lambda: metric(g, "gateway_inner_connections") == 0 and edge.metric("outwork_edge_relays") == 0, why="nothing is left at either end")


def healthy(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60 * SLOW) as r:
        return r.status == 200


def test_admin_listeners(rig):
    """More silent connections than they take at once: health is told all the same."""
    t, up = rig.tunnel(), rig.upstream()
    edge = rig.edge()
    g = rig.gateway(t, [edge], up, more="admin_listen: 127.0.0.1:0\n")
    ports = (edge.admin, admin_port(g))
    stuck = [Stuck(("127.0.0.1", p), ADMIN_STUCK, HTTP_FIRSTS) for p in ports]
    try:
        for p in ports:
            for _ in range(3):
                assert healthy(p)
    finally:
        for s in stuck:
            s.close()


def test_the_listener_for_cloudflared(tmp_path):
    up = Upstream()
    b = Behind(tmp_path, f"  docs: http://127.0.0.1:{up.port}\n", "--limits-connections", "32", "--limits-head-timeout", "1s")
    stuck = None
    try:
        stuck = Stuck(("127.0.0.1", b.port), 64, HTTP_FIRSTS + [(hello(f"docs.{CF_DOMAIN}"), None), (HELLO[:50], HELLO[50:])], source=None)
        half = []
        for first in (b"", frame(2, hello(f"docs.{CF_DOMAIN}"))[:60]):       # an upgrade, then silence or half a frame
            ws = WebSocket(socket.create_connection(("127.0.0.1", b.port), timeout=60 * SLOW))
            ws.sock.sendall(first)
            half.append(ws)
        with b.tls.wrap_socket(socket.create_connection(("127.0.0.1", b.port), timeout=60 * SLOW), server_hostname=f"docs.{CF_DOMAIN}") as s:
            s.sendall(f"GET /mcp HTTP/1.1\r\nHost: docs.{CF_DOMAIN}\r\n\r\n".encode())
            assert s.recv(4096).startswith(b"HTTP/1.1 200")
        stuck.ended()
        for ws in half:
            try:
                while ws.sock.recv(4096):
                    pass
            except ConnectionError:
                pass
            ws.sock.close()
    finally:
        if stuck:
            stuck.close()
        b.stop()
        up.stop()
