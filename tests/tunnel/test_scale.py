"""Many at once through the real edge and gateway: readers that stall, ten thousand idle streams, everybody back after an edge was killed."""
from __future__ import annotations

import os
import select
import signal
import threading
import time

import pytest

from edge_harness import SLOW, wait_for
from fault_harness import CALL_S, SCALE, Cut, Rig, fds, metric, need_descriptors, new_id, passthrough, rss

KIB, MIB = 1024, 1024 * 1024
STALLED = 8
STALLED_BYTES = 24 * MIB                     # of each stalled stream: beyond all that sockets and we hold on the way (up to 10 MiB of kernel buffers)
STALLED_COST = MIB                           # what one stalled stream may cost an end: a window of 256 KiB, 64 KiB here and there, and room to spare
NOISE = 16 * MIB * (4 if SLOW > 1 else 1)    # what a process may grow by anything else
IDLE = 10_000 // SCALE
IDLE_COST = 48 * KIB * (4 if SLOW > 1 else 1)    # of one idle stream with its TLS: OpenSSL needs most of it, and a sanitizer three times as much
CLIENTS = 5_000 // SCALE
GATEWAYS, LINKS = 4, 50 // SCALE             # processes, connections of each


def together(n, what, threads=8):
    """`what(k)` for each k below n, on a few threads; the first failure is the test's."""
    bad, it, lock = [], iter(range(n)), threading.Lock()

    def run():
        while not bad:
            with lock:
                k = next(it, None)
            if k is None:
                return
            try:
                what(k)
            except BaseException as e:       # noqa: BLE001 - raised below, in the test's own thread
                bad.append(e)
    many = [threading.Thread(target=run) for _ in range(threads)]
    for x in many:
        x.start()
    for x in many:
        x.join()
    if bad:
        raise bad[0]


# ---- stalled readers ----

def calls(rig, edge, t, n):
    """How many of n calls were answered rightly, and the longest."""
    c, good, worst = rig.call(edge, t), 0, 0.0
    for _ in range(n):
        began = time.monotonic()
        good += c.small(new_id()) == 200
        worst = max(worst, time.monotonic() - began)
    c.close()
    return good, worst


def test_eight_stalled_readers(rig, monkeypatch):
    """On the only link: eight that asked for much and read nothing, and eight whose upstream reads nothing. The others are answered all the same."""
    monkeypatch.setenv("ASAN_OPTIONS", os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=8")     # what was freed is not held
    t, up, stuck = rig.tunnel(), rig.upstream(), rig.upstream()
    edge = rig.edge()
    g = rig.gateway(t, [edge], up, stuck=stuck, connections=1)
    assert calls(rig, edge, t, 50)[0] == 50
    warm = rig.call(edge, t)
    assert warm.download(new_id(), STALLED_BYTES) == 200             # buffers and windows of one busy stream are there before we measure
    before = {"edge": rss(edge.p.pid), "gateway": rss(g.p.pid)}
    readers, writers = [], []
    for _ in range(STALLED):
        c, ident = rig.call(edge, t), new_id()
        c.send(c.head("GET", f"/blob?id={ident}&n={STALLED_BYTES}"))
        readers.append((c, ident))
    stuck.proc.p.send_signal(signal.SIGSTOP)
    try:
        def upload(ident):
            c = Rig.call(rig, edge, stuck_host)
            c.upload(ident, STALLED_BYTES)
            c.close()
            done.append(ident)
        stuck_host = type("Stuck", (), {"host": f"stuck.{t.domain}"})
        done = []
        writers = [threading.Thread(target=upload, args=(new_id(),)) for _ in range(STALLED)]
        for w in writers:
            w.start()
        wait_for(lambda: metric_settles(edge, "outwork_edge_relayed_bytes_total"), 60, why="all sixteen have come to a stop")
        good, worst = calls(rig, edge, t, 400 // SCALE)
        assert good == 400 // SCALE and worst < CALL_S * SLOW
        assert warm.download(new_id(), STALLED_BYTES) == 200         # bulk passes them as well
        assert [c for c, ident in readers if up.seen("done", ident)] == [] and done == [], "all sixteen are still stalled"
        for name, pid in (("edge", edge.p.pid), ("gateway", g.p.pid)):
            grown = rss(pid) - before[name]
            print(f"\n{name}: {grown / MIB:.1f} MiB more with {2 * STALLED} stalled streams of {STALLED_BYTES // MIB} MiB", end="")
            assert grown < 2 * STALLED * STALLED_COST + NOISE, f"{name}: {grown} bytes"
    finally:
        stuck.proc.p.send_signal(signal.SIGCONT)
    for w in writers:
        w.join(60 * SLOW)
    assert len(done) == STALLED, "uploads go on when their upstream reads again, and arrive whole"
    for c, ident in readers:
        assert c.reply()[0] == 200
        whole(c, ident)
        c.close()


def whole(c, ident):
    import hashlib

    from fault_upstream import digest
    h = hashlib.sha256()
    for part in c.pieces():
        h.update(part)
    assert h.hexdigest() == digest(ident, STALLED_BYTES), "a stalled stream lost or mixed bytes"


def metric_settles(edge, name) -> bool:
    n = edge.metric(name)
    time.sleep(0.3 * SLOW)
    return n > 0 and edge.metric(name) == n


# ---- ten thousand ----

def test_ten_thousand_idle_streams(rig, address):
    """Inner connections that stand and say nothing, most through the passthrough listener, some through CONNECT; each is used once at the end."""
    need_descriptors(IDLE + 500)
    t, up = rig.tunnel(), rig.upstream()
    edge = rig.edge("--max-streams-per-tunnel", str(IDLE + 100), "--max-connections-per-source", str(IDLE), passthrough=True)
    g = rig.gateway(t, [edge], up, connections=4, more="admin_listen: 127.0.0.1:0\n")
    warm = rig.call(edge, t)
    assert warm.small(new_id()) == 200
    before = {"edge": (rss(edge.p.pid), fds(edge.p.pid)), "gateway": (rss(g.p.pid), fds(g.p.pid))}
    held, lock = [], threading.Lock()

    def one(k):
        c = rig.call(edge, t) if k % 10 == 0 else passthrough(("127.0.0.1", edge.plain), t.host, rig.ca)
        with lock:
            held.append(c)
    together(IDLE, one)
    assert edge.metric("outwork_edge_relays") == IDLE + 1 and metric(g, "gateway_inner_connections") == IDLE + 1
    for name, p in (("edge", edge.p), ("gateway", g.p)):
        each = (rss(p.pid) - before[name][0]) / IDLE
        print(f"\n{name}: {each / KIB:.1f} KiB for each of {IDLE} idle streams", end="")
        assert each < IDLE_COST, f"{name}: {each:.0f} bytes a stream"
    poll = select.poll()
    for c in held:
        poll.register(c.sock, select.POLLIN)
    good = sum(warm.small(new_id()) == 200 for _ in range(100))
    fresh = rig.call(edge, t)
    assert good == 100 and fresh.small(new_id()) == 200, "calls go on, on old connections and on new ones"
    # TLS tickets may lie there unread from the handshake; an end would be a hang-up or an end of file
    ended = [fd for fd, what in poll.poll(0) if what & (select.POLLHUP | select.POLLERR)]
    assert ended == [] and edge.metric("outwork_edge_relays") == IDLE + 2
    idents = [new_id() for _ in held]
    together(IDLE // 10, lambda k: held[k * 10].small(idents[k]) == 200 or pytest.fail("an idle stream did not serve a call"))
    counts = up.counts()
    assert all(counts[i] == 1 for i in idents[:IDLE // 10])
    for c in [*held, fresh]:
        c.close()
    wait_for(lambda: edge.metric("outwork_edge_relays") == 1 and metric(g, "gateway_inner_connections") == 1, 60, why="all have ended on both ends")
    wait_for(lambda: fds(edge.p.pid) <= before["edge"][1] + 2, why="the edge's descriptors")
    wait_for(lambda: fds(g.p.pid) <= before["gateway"][1] + 2, 20, why="the gateway's descriptors (kept connections to the upstream go after 4 s)")
    assert warm.small(new_id()) == 200


def test_everybody_comes_back_after_the_edge_was_killed(rig):
    """200 connections of four gateways and 5,000 clients, all at once, on the default limits of handshakes."""
    need_descriptors(CLIENTS + 500)
    t, up = rig.tunnel(), rig.upstream()
    edge = rig.edge("--max-links-per-tunnel", str(GATEWAYS * LINKS), "--max-connections-per-source", str(CLIENTS + GATEWAYS * LINKS), passthrough=True)
    gateways = [rig.gateway(t, [edge], up, connections=LINKS, more="admin_listen: 127.0.0.1:0\n", wait=False) for _ in range(GATEWAYS)]
    wait_for(lambda: edge.metric("outwork_edge_links") == GATEWAYS * LINKS, 60, why="all links stand")
    idle_fds = [fds(g.p.pid) for g in gateways]
    held = [None] * CLIENTS

    def dial(k):
        held[k] = passthrough(("127.0.0.1", edge.plain), t.host, rig.ca)
    together(CLIENTS, dial)
    assert edge.metric("outwork_edge_relays") == CLIENTS
    edge.p.kill()
    edge.p.wait()

    def ends(k):
        try:
            held[k].more()
        except Cut:
            held[k].close()
            return
        pytest.fail("a client of a killed edge was told nothing")
    together(CLIENTS, ends)
    wait_for(lambda: sum(metric(g, "gateway_inner_connections") for g in gateways) == 0, 60, why="the gateways have let go of every stream")
    edge = rig.edge_again(edge)
    wait_for(lambda: edge.metric("outwork_edge_links") == GATEWAYS * LINKS, 90, why="all links stand again")
    failed = sum(g.log.count("edge.failed") for g in gateways)
    assert failed < 15 * GATEWAYS * LINKS, f"{failed} attempts of {GATEWAYS * LINKS} connections: waits that double do not make so many"
    edge_fds = fds(edge.p.pid)
    idents = [new_id() for _ in range(CLIENTS)]

    def again(k):
        dial(k)
        assert held[k].small(idents[k]) == 200
    together(CLIENTS, again)
    assert edge.metric("outwork_edge_relays") == CLIENTS
    counts = up.counts()
    assert all(counts[i] == 1 for i in idents)
    for c in held:
        c.close()
    wait_for(lambda: edge.metric("outwork_edge_relays") == 0, 60, why="all have ended")
    wait_for(lambda: fds(edge.p.pid) <= edge_fds + 2, why="the edge's descriptors")
    for g, n in zip(gateways, idle_fds):
        wait_for(lambda: fds(g.p.pid) <= n + 2, 20, why="a gateway's descriptors")
    assert sum(g.p.poll() is None for g in gateways) == GATEWAYS
