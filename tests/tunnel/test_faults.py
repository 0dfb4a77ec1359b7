"""kill -9 of each program of a tunnel at each stage of a call: the client is told at once, nobody else notices, nothing is done twice, and the next call works."""
from __future__ import annotations

import re
import signal
import socket
import threading
import time

import pytest

from edge_harness import SLOW, Refused, Stream, wait_for
from fault_harness import Cut, Inner, Rig, Watched, new_id, outcome

BODY = 200_000


class Field:
    """Tunnel t1 with edge, gateway and upstream, which are to die, and two streams that touch one or two of them each."""

    def __init__(self, rig: Rig):
        self.rig = rig
        self.t1, self.t2, self.t3 = rig.tunnel("t1"), rig.tunnel("t2"), rig.tunnel("t3")
        self.upstream, self.other = rig.upstream(), rig.upstream()
        self.edge, self.other_edge = rig.edge(), rig.edge()
        # Their waits double with each kill (up to 30 s, random); of four connections one is back soon.
        self.gateway = rig.gateway(self.t1, [self.edge], self.upstream, connections=4)
        rig.gateway(self.t2, [self.edge], self.other, connections=4)  # the same edge
        rig.gateway(self.t3, [self.other_edge], self.other)           # nothing in common

    def bystanders(self, victim):
        out = [Watched(self.rig.call(self.other_edge, self.t3))]
        if victim != "edge":
            out.append(Watched(self.rig.call(self.edge, self.t2)))
        return out

    def kill(self, victim):
        x = getattr(self, victim)
        if victim == "upstream":
            x.kill()
        else:
            x.p.kill()
            x.p.wait()

    def restart(self, victim):
        if victim == "edge":
            self.edge = self.rig.edge_again(self.edge)
            self.rig.works(self.edge, self.t2, self.other)
        elif victim == "gateway":
            self.gateway = self.rig.gateway_again(self.gateway)
        else:
            self.upstream.start()


@pytest.fixture(scope="module")
def field(tmp_path_factory, address_keys, address):
    r = Rig(tmp_path_factory.mktemp("field"), address_keys, address)
    try:
        yield Field(r)
    finally:
        r.close()


@pytest.fixture(autouse=True)
def logs(request):
    yield
    if "field" in request.fixturenames and getattr(request.node, "report_call", None) and request.node.report_call.failed:
        f = request.getfixturevalue("field")
        print(f"---- gateway ----\n{f.gateway.log[-4000:]}\n---- edge ----\n{f.edge.text()[-4000:]}")


def begin(f: Field, stage: str, ident: str):
    """Goes as far as `stage`; returns what the client does next, once the victim is dead."""
    rig, connect = f.rig, f"CONNECT {f.t1.host}:443 HTTP/1.1\r\nHost: x\r\n"
    if stage == "before":
        return lambda: rig.once(f.edge, f.t1, ident)
    if stage == "connect":                   # half of what the edge is asked
        tls = f.edge.tls().wrap_socket(_tcp(f.edge), server_hostname=f.edge.host, suppress_ragged_eofs=False)
        tls.sendall(connect.encode())
        return lambda: _rest_of_connect(tls, rig, f, ident)
    if stage == "hello":                     # the stream is there; half of the inner handshake's first flight has left
        inner = Inner(f.edge.connect(f.t1.host), rig.ca, f.t1.host, handshake=False)
        hello = inner.hello()
        inner.sock.sendall(hello[:len(hello) // 2])
        wait_for(lambda: f.edge.metric("outwork_edge_relays") >= 1, why="the stream is there")

        def go_on():
            try:
                inner.sock.sendall(hello[len(hello) // 2:])
            except OSError as e:
                raise Cut(str(e)) from None
            inner.step(inner.tls.do_handshake)
            return inner.small(ident)
        return go_on
    c = rig.call(f.edge, f.t1)
    if stage == "head":                      # half of the head has left
        head = c.head("POST", f"/echo?id={ident}", 1)
        c.send(head[:30])
        return lambda: (c.send(head[30:] + b"x"), c.reply()[0])[1]
    if stage == "body":                      # the upstream has a part of the body
        data = b"b" * BODY
        c.send(c.head("POST", f"/echo?id={ident}", BODY) + data[:BODY // 2])
        wait_for(lambda: f.upstream.seen("got", ident), why="half of the body has come")
        return lambda: (c.send(data[BODY // 2:]), c.reply()[0])[1]
    if stage == "waiting":                   # the upstream has it all and says nothing
        c.send(c.head("POST", f"/hang?id={ident}", 1) + b"x")
        wait_for(lambda: f.upstream.seen("head", ident), why="the request has come")
        return lambda: c.reply()[0]
    if stage == "response":                  # ten events of many have come
        c.send(c.head("GET", f"/sse?id={ident}&n=100000&ms=5"))
        assert c.reply()[0] == 200
        return lambda: _events(c, ident)
    assert stage == "idle"                   # a call has been made on this connection, the next one is not begun
    assert c.small(new_id()) == 200
    return lambda: c.small(ident)


def _tcp(edge):
    return socket.create_connection((edge.host, edge.provider), timeout=20 * SLOW)


def _rest_of_connect(tls, rig, f, ident):
    try:
        tls.sendall(b"\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            part = tls.recv(4096)
            if not part:
                raise Cut("no answer to CONNECT")
            head += part
    except TimeoutError:
        raise
    except OSError as e:
        raise Cut(str(e)) from None
    status = int(head.split()[1])
    if status != 200:
        raise Refused(status, {}, head.decode())
    return Inner(Stream(tls), rig.ca, f.t1.host).small(ident)


def _events(c, ident):
    """All that came are in their order; how it ends is what counts."""
    seen, rest = 0, b""
    for part in c.pieces():
        rest += part
        while b"\n\n" in rest:
            event, _, rest = rest.partition(b"\n\n")
            assert event == f"data: {ident}/{seen}".encode(), (seen, event)
            seen += 1
    return f"whole after {seen}"


STAGES = ["before", "connect", "hello", "head", "body", "waiting", "response", "idle"]
SEEN = {   # what the client is told; the edge notices a dead gateway before or after the next call has been sent there
    "edge": dict.fromkeys(STAGES, "cut") | {"before": "unreachable"},
    "gateway": dict.fromkeys(STAGES, "cut") | {"before": "refused 502", "connect": "refused 502"},
    "upstream": dict.fromkeys(STAGES, "status 502") | {"response": "cut"},
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("victim", ["edge", "gateway", "upstream"])
def test_kill(field, victim, stage):
    f, ident = field, new_id()
    watched = f.bystanders(victim)
    try:
        go_on = begin(f, stage, ident)
        f.kill(victim)
        assert outcome(go_on) == SEEN[victim][stage]
        for w in watched:
            w.goes_on()
        f.restart(victim)
        f.rig.works(f.edge, f.t1, f.upstream)
        counts = f.upstream.counts()
        assert counts[ident] == (stage in ("body", "waiting", "response")), "what broke was made once at most, and not again afterwards"
        assert max(counts.values()) == 1
        for w in watched:
            w.goes_on()
    finally:
        for w in watched:
            w.close()


@pytest.mark.parametrize("stage", ["body", "waiting", "response"])
def test_kill_of_the_client(field, stage):
    """Its connection is reset, as the kernel does for a process that was killed: the upstream is told, and nobody else."""
    f, ident = field, new_id()
    watched = f.bystanders("upstream")
    c = f.rig.call(f.edge, f.t1)
    try:
        if stage == "body":
            c.send(c.head("POST", f"/echo?id={ident}", BODY) + b"b" * (BODY // 2))
            wait_for(lambda: f.upstream.seen("got", ident), why="half of the body has come")
        elif stage == "waiting":
            c.send(c.head("POST", f"/hang?id={ident}", 1) + b"x")
            wait_for(lambda: f.upstream.seen("head", ident), why="the request has come")
        else:
            c.send(c.head("GET", f"/sse?id={ident}&n=100000&ms=5"))
            assert c.reply()[0] == 200 and next(c.pieces())
        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        socket.socket.close(c.sock)          # not a word of TLS
        wait_for(lambda: f.upstream.seen("gone", ident), why="the upstream is told")
        assert not f.upstream.seen("done", ident) and f.upstream.counts()[ident] == 1
        f.rig.works(f.edge, f.t1, f.upstream)
    finally:
        for w in watched:
            w.goes_on()
            w.close()


def test_kept_connections_of_a_restarted_upstream(field):
    """The gateway holds connections to a process that is gone: a POST finds the new one, and is made once."""
    f = field
    c = f.rig.call(f.edge, f.t1)
    many = [f.rig.call(f.edge, f.t1) for _ in range(8)]
    for x in (c, *many):
        assert x.small(new_id()) == 200
    f.kill("upstream")
    f.restart("upstream")
    for x in (c, *many):
        ident = new_id()
        assert x.small(ident) == 200
        assert f.upstream.counts()[ident] == 1
        x.close()


# ---- more than one ----

def test_another_edge_takes_over(rig):
    """A gateway at two edges: with one dead, calls go on at the other, and its connections come there."""
    t, up = rig.tunnel(), rig.upstream()
    first, second = rig.edge(peer=True), rig.edge(peer=True)
    g = rig.gateway(t, [first, second], up)
    stream = Watched(rig.call(second, t))
    assert rig.once(first, t) == 200
    first.p.kill()
    first.p.wait()
    assert outcome(lambda: rig.once(first, t)) == "unreachable"
    for _ in range(5):
        assert rig.once(second, t) == 200
    at_second = rf"edge.connected .*edge={rig.address}:{second.gateway} "
    wait_for(lambda: len(re.findall(at_second, g.log)) >= 2, why="the lost connection is replaced at the other edge")
    wait_for(lambda: second.metric("outwork_edge_links") == 2, why="both stand there")
    # the first comes back: it has no gateway of its own now, and the directory tells it who has
    first = rig.edge_again(first)
    wait_for(lambda: first.id in rig.control.edges and second.id in rig.control.edges, why="the directory")
    rig.works(first, t, up)
    stream.goes_on()
    stream.close()


def test_a_stale_directory(rig):
    """The edge that has the gateways dies. The other one still reads its name in the directory: refused at once, not tried for ever; then it has them itself."""
    t, up = rig.tunnel(), rig.upstream()
    first, second = rig.edge(peer=True), rig.edge(peer=True)
    rig.gateway(t, [second, first], up, connections=1)               # begins at the second
    wait_for(lambda: rig.control.connections() == 1, why="directory")
    assert rig.once(first, t) == 200
    assert first.metric("outwork_edge_forwarded_total") == 1
    stream = Watched(rig.call(first, t))
    second.p.kill()
    second.p.wait()
    wait_for(lambda: stream.end, why="the stream over both ends")
    assert stream.end == "cut"
    assert outcome(lambda: rig.once(first, t)) in ("refused 502", "status 200")      # 200: the gateway is there already
    rig.works(first, t, up)
    wait_for(lambda: first.metric("outwork_edge_links") == 1, why="the gateway has come to the first edge")
    assert max(up.counts().values()) == 1
    stream.close()


def test_another_gateway_takes_over(rig):
    """Two gateways of one tunnel: the death of one ends its streams and no others, and new calls find the other without waiting."""
    t, up = rig.tunnel(), rig.upstream()
    edge = rig.edge()
    a, b = (rig.gateway(t, [edge], up) for _ in range(2))
    streams = [Watched(rig.call(edge, t)) for _ in range(12)]
    a.p.kill()
    a.p.wait()
    wait_for(lambda: edge.metric("outwork_edge_links") == 2, why="the edge has noticed")
    wait_for(lambda: edge.metric("outwork_edge_relays") < 12, why="its streams have ended")
    for _ in range(5):
        assert rig.once(edge, t) == 200
    ended = [s for s in streams if s.end]
    wait_for(lambda: [s for s in streams if s.end] and len([s for s in streams if s.end]) == 12 - edge.metric("outwork_edge_relays"), why="each end is told")
    ended = [s for s in streams if s.end]
    assert 0 < len(ended) < 12, "the streams were spread over both gateways"
    assert {s.end for s in ended} == {"cut"}
    for s in streams:
        if s not in ended:
            s.goes_on()
        s.close()
    assert b.p.poll() is None


# ---- under load ----

def test_calls_while_everything_dies_in_turn(rig):
    """Callers that never stop, and a program killed every moment: each call is answered rightly or ends with an error, no request is made twice."""
    t, up = rig.tunnel(), rig.upstream()
    edge = rig.edge()
    gateways = [rig.gateway(t, [edge], up) for _ in range(2)]
    now = {"edge": edge}
    stop, wrong, seen, good = threading.Event(), [], {}, []
    lock = threading.Lock()

    def caller(k):
        while not stop.is_set():
            ident, kind = new_id(), k % 2
            try:
                def one():
                    c = rig.call(now["edge"], t)
                    try:
                        if kind:
                            return c.download(ident, 300_000)
                        return c.small(ident)
                    finally:
                        c.close()
                got = outcome(one)
            except Exception as e:       # noqa: BLE001 - told below: a wrong answer, or a hang
                wrong.append(repr(e))
                return
            with lock:
                seen[got] = seen.get(got, 0) + 1
                if got == "status 200":
                    good.append(ident)
            if got != "status 200":
                time.sleep(0.01)         # as a client does, and so that the machine is not busy with refusals alone

    threads = [threading.Thread(target=caller, args=(k,)) for k in range(4)]
    for x in threads:
        x.start()
    try:
        for victim in ("gateway", "upstream", "edge", "gateway", "upstream", "edge"):
            n = len(good)
            wait_for(lambda: len(good) >= n + 10 or wrong, 60, why=f"calls go on; so far {seen}")
            if victim == "edge":
                now["edge"].p.kill()
                now["edge"].p.wait()
                now["edge"] = rig.edge_again(now["edge"])
            elif victim == "gateway":
                g = gateways.pop(0)
                g.p.kill()
                g.p.wait()
                gateways.append(rig.gateway_again(g, wait=False))
            else:
                up.kill()
                up.start()
        n = len(good)
        wait_for(lambda: len(good) >= n + 10 or wrong, 60, why=f"calls go on at the end; {seen}")
    finally:
        stop.set()
        for x in threads:
            x.join(60 * SLOW)
    assert not wrong, wrong[:3]
    assert set(seen) <= {"status 200", "status 502", "refused 502", "refused 503", "cut", "unreachable"}, seen
    counts = up.counts()
    posts = {x[1] for x in up.lines("head") if x[2] == "/echo"}
    assert all(counts[i] == 1 for i in posts), "a POST was made twice"
    assert all(counts[i] >= 1 for i in good)
    print(f"\n{seen}")


def test_server_and_edge_away_together(rig):
    """The server (the control API) is down while the edge is restarted: gateways are sent away, not refused for good, and come back with the server."""
    t, up = rig.tunnel(), rig.upstream()
    edge = rig.edge()
    g = rig.gateway(t, [edge], up)
    rig.control.down = True
    edge.p.kill()
    edge.p.wait()
    args, kw = edge.made
    edge.made = (args, kw | {"ready": False})
    edge = rig.edge_again(edge)
    g.wait_log("takes no connection now")
    assert outcome(lambda: rig.once(edge, t)) == "refused 502"
    rig.control.down = False
    rig.works(edge, t, up)
    assert "refuses the token" not in g.log


@pytest.mark.parametrize("victim", ["gateway", "edge"])
def test_a_frozen_program(rig, victim):
    """Stopped, not dead: no end is seen by anybody. The echo finds a frozen gateway; a frozen edge holds its clients up until they give up, and no one else."""
    t, t2, up = rig.tunnel("t1"), rig.tunnel("t2"), rig.upstream()
    edge = rig.edge("--echo-interval", "1s")
    g = rig.gateway(t, [edge], up)
    rig.gateway(t2, [edge], up)
    stream, other = Watched(rig.call(edge, t)), Watched(rig.call(edge, t2))
    p = g.p if victim == "gateway" else edge.p
    p.send_signal(signal.SIGSTOP)
    try:
        if victim == "gateway":
            wait_for(lambda: stream.end, 30, why="the client of a frozen gateway is told")
            assert stream.end == "cut"
            assert outcome(lambda: rig.once(edge, t)) == "refused 502"
            other.goes_on()
        else:
            time.sleep(1.5)              # longer than the echo interval
    finally:
        p.send_signal(signal.SIGCONT)
    rig.works(edge, t, up)
    other.goes_on()
    if victim == "edge":
        stream.goes_on()
        assert edge.metric("outwork_edge_echo_failures_total") == 0, "a pause of its own is not blamed on gateways"
    stream.close()
    other.close()
