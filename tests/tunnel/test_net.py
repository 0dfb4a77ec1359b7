"""Edge and gateway in network namespaces of their own: packets are dropped at random by nftables (there is no netem everywhere), a relay delays what passes,
the wire is cut and mended. What arrives is whole, nothing is done twice, and the echo keeps the link or ends it."""
from __future__ import annotations

import asyncio
import ctypes
import os
import random
import re
import subprocess
import threading
import time

import pytest

from edge_harness import SLOW, Keys, failed, wait_for
from fault_harness import SCALE, Rig, Watched, new_id, outcome, provider

HERE, THERE = "10.77.0.1", "10.77.0.2"   # edge; gateway. Only inside the namespaces
CLONE_NEWNET = 0x40000000
BULK = 6_000_000 // SCALE
CALLS = 120 // SCALE


def must(*argv, stdin=None):
    needs = "this test needs root, network namespaces, iproute2 and nftables (tools/setup test)"
    try:
        r = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=30 * SLOW)
    except FileNotFoundError:
        pytest.fail(f"{needs}: there is no {argv[0]}")
    assert r.returncode == 0, f"{needs}, and '{' '.join(argv)}' says: {r.stderr.strip()}"
    return r.stdout


libc = ctypes.CDLL(None, use_errno=True)


def enter(fd=None):
    """This thread, and those that it starts from here on, into a network namespace; without `fd` a new one."""
    rc = libc.unshare(CLONE_NEWNET) if fd is None else libc.setns(fd, CLONE_NEWNET)
    assert rc == 0, f"this test needs root and network namespaces: {os.strerror(ctypes.get_errno())}"


class Wire:
    """A veth pair: this end is ours, the other is in the gateway's namespace. Both ends drop what comes in by chance."""

    def __init__(self):
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        enter()
        self.sleeper = None
        try:
            mine = os.stat("/proc/thread-self/ns/net").st_ino
            self.sleeper = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
            there = f"/proc/{self.sleeper.pid}/ns/net"
            wait_for(lambda: os.stat(there).st_ino != mine or self.sleeper.poll() is not None, why="the gateway's namespace")
            assert self.sleeper.poll() is None, "this test needs root and network namespaces: unshare -n failed"
            self.into = ["nsenter", f"--net={there}", "--"]
            must("ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", str(self.sleeper.pid))
            for enter_it, address in (([], HERE), (self.into, THERE)):
                must(*enter_it, "ip", "link", "set", "lo", "up")
                must(*enter_it, "ip", "link", "set", "wire", "up", "gso_max_segs", "1")      # packets as on a real wire: a drop costs one, not forty
                must(*enter_it, "ip", "addr", "add", f"{address}/24", "dev", "wire")
        except BaseException:
            self.close()
            raise

    def loss(self, percent: int):
        """Of 100 packets that come in at each end, `percent` are dropped."""
        rule = "drop" if percent == 100 else f"numgen random mod 100 < {percent} counter drop"
        text = "flush ruleset\n"
        if percent:
            text += f'table inet loss {{\n chain in {{\n  type filter hook prerouting priority -300\n  iifname "wire" {rule}\n }}\n}}\n'
        for enter_it in ([], self.into):
            must(*enter_it, "nft", "-f", "-", stdin=text)

    def dropped(self) -> int:
        return sum(int(n) for enter_it in ([], self.into) for n in re.findall(r"counter packets (\d+)", must(*enter_it, "nft", "list", "ruleset")))

    def close(self):
        if self.sleeper:
            self.sleeper.kill()
            self.sleeper.wait()
        enter(self.home)
        os.close(self.home)


class Delay:
    """TCP relay: what comes in goes on `ms` (least, most) later, in its order."""

    def __init__(self, to, ms):
        self.to, self.ms, self.loop, ready = to, ms, asyncio.new_event_loop(), threading.Event()

        def run():
            asyncio.set_event_loop(self.loop)
            self.server = self.loop.run_until_complete(asyncio.start_server(self.serve, HERE, 0))
            self.port = self.server.sockets[0].getsockname()[1]
            ready.set()
            self.loop.run_forever()
        threading.Thread(target=run, daemon=True).start()
        assert ready.wait(10 * SLOW)

    async def serve(self, r, w):
        try:
            r2, w2 = await asyncio.open_connection(*self.to)
        except OSError:
            w.close()
            return
        try:
            await asyncio.gather(self.one_way(r, w2), self.one_way(r2, w))
        except asyncio.CancelledError:           # close()
            pass

    async def one_way(self, r, w):
        q: asyncio.Queue = asyncio.Queue(256)            # of up to 64 KiB: the bytes that are on their way

        async def put():
            try:
                while data := await r.read(65536):
                    await q.put((self.loop.time() + random.uniform(*self.ms) / 1000, data))
            except OSError:
                pass
            await q.put((self.loop.time(), b""))

        task = self.loop.create_task(put())
        try:
            while True:
                at, data = await q.get()
                await asyncio.sleep(max(0, at - self.loop.time()))
                if not data:
                    break
                w.write(data)
                await w.drain()
        except OSError:
            pass
        w.close()
        task.cancel()

    def close(self):
        async def stop():
            tasks = [x for x in asyncio.all_tasks() if x is not asyncio.current_task()]
            for x in tasks:
                x.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.loop.stop()
        asyncio.run_coroutine_threadsafe(stop(), self.loop)


@pytest.fixture(scope="module")
def address_keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("outer"), f"127.0.0.1,localhost,{HERE}")


@pytest.fixture
def net(tmp_path, address_keys, request):
    wire = Wire()
    rig = Rig(tmp_path, address_keys, HERE)
    rig.wire, rig.relays = wire, []
    try:
        yield rig
    finally:
        try:
            wire.loss(0)
            rig.close(failed(request))
        finally:
            for x in rig.relays:
                x.close()
            wire.close()


def through(net, *edge_args, delay=None):
    """Edge here, gateway and upstream there."""
    t, up, edge = net.tunnel(), net.upstream(host="127.0.0.1", wrap=net.wire.into), net.edge(*edge_args)
    at = None
    if delay:
        net.relays.append(Delay((HERE, edge.gateway), delay))
        at = [f"{HERE}:{net.relays[0].port}"]
    g = net.gateway(t, [edge], up, wrap=net.wire.into, at=at)
    return t, up, edge, g


def everything_at_once(net, t, up, edge):
    """Bulk up, bulk down and many small calls together. Every byte is compared, every request counted."""
    bad, calls, before = [], [], up.counts()

    def guarded(f):
        try:
            f()
        except Exception as e:           # noqa: BLE001 - told below
            bad.append(repr(e))

    def bulk(what):
        c = provider(edge, t.host, net.ca, timeout=60)
        assert getattr(c, what)(new_id(), BULK) in (200, None)
        c.close()

    def small():
        c = provider(edge, t.host, net.ca, timeout=60)
        for k in range(CALLS // 6):
            if k % 5 == 4:
                c.close()
                c = provider(edge, t.host, net.ca, timeout=60)
            ident = new_id()
            assert c.small(ident) == 200
            calls.append(ident)
        c.close()
    threads = [threading.Thread(target=guarded, args=(lambda w=w: bulk(w),)) for w in ("upload", "upload", "download", "download")]
    threads += [threading.Thread(target=guarded, args=(small,)) for _ in range(6)]
    for x in threads:
        x.start()
    for x in threads:
        x.join()
    assert not bad, bad
    counts = up.counts()
    assert len(calls) == CALLS // 6 * 6 and all(counts[i] == 1 for i in calls)
    assert len(counts) == len(before) + len(calls) + 4 and max(counts.values()) == 1


@pytest.mark.parametrize("percent", [1, 5])
def test_loss(net, percent):
    t, up, edge, g = through(net)
    net.wire.loss(percent)
    everything_at_once(net, t, up, edge)
    assert net.wire.dropped() > 10, "the wire lost nothing: this test shows nothing"
    assert g.log.count("edge.connected") == 2 and "edge.disconnected" not in g.log, "the links stand"


def test_delay_and_loss(net):
    """A round trip takes 100 to 200 ms, on a wire that loses 1 of 100."""
    t, up, edge, g = through(net, delay=(50, 100))
    net.wire.loss(1)
    watched = Watched(provider(edge, t.host, net.ca))
    everything_at_once(net, t, up, edge)
    watched.goes_on()
    watched.close()
    assert "edge.disconnected" not in g.log
    wait_for(lambda: edge.metric("outwork_edge_echo_seconds_count") >= 1, why="an echo came through the delay")
    assert edge.metric("outwork_edge_echo_failures_total") == 0


def test_a_short_cut_of_the_wire(net):
    """For less than the echo's patience nothing passes at all: whatever was open goes on as if nothing had been."""
    t, up, edge, g = through(net)
    watched = [Watched(provider(edge, t.host, net.ca)) for _ in range(4)]
    for w in watched:
        w.goes_on()
    net.wire.loss(100)
    ident, got = new_id(), []
    late = provider_thread(lambda: net.once(edge, t, ident), got)
    time.sleep(1.0)
    assert not any(w.end for w in watched) and not got
    net.wire.loss(0)
    late.join(60 * SLOW)
    assert got == ["status 200"] and up.counts()[ident] == 1, "a call that was begun while the wire was cut arrives"
    for w in watched:
        w.goes_on()
        w.close()
    assert g.log.count("edge.connected") == 2 and "edge.disconnected" not in g.log


def provider_thread(what, into):
    x = threading.Thread(target=lambda: into.append(outcome(what)))
    x.start()
    return x


def test_a_long_cut_of_the_wire(net):
    """The echo finds it: streams end, new calls are refused at once; when the wire is whole the gateway connects by itself."""
    t, up, edge, g = through(net, "--echo-interval", "1s")
    watched = [Watched(provider(edge, t.host, net.ca)) for _ in range(4)]
    net.wire.loss(100)
    wait_for(lambda: edge.metric("outwork_edge_links") == 0, 30, why="the echo ends the links")
    wait_for(lambda: all(w.end for w in watched), why="the clients are told")
    assert {w.end for w in watched} == {"cut"}
    assert outcome(lambda: net.once(edge, t)) == "refused 502"
    net.wire.loss(0)
    g.wait_log("edge.connected", 4, timeout=60)
    net.works(edge, t, up)
    assert max(up.counts().values()) == 1
    for w in watched:
        w.close()
