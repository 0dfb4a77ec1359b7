"""Tunnel rows of make bench. One nginx worker is the upstream of everybody. Who is measured is alone at that moment; each round measures everybody once, and a
figure is the median over the rounds. Two comparisons, since no other tunnel does what ours does:

"inner TLS": the client's TLS goes through the tunnel to its end. Ours is the product: client -> edge (by server name) -> gateway, which ends the inner TLS, reads
the request and calls nginx over plain HTTP. The others carry the same bytes to an nginx that ends TLS itself; that is one HTTP proxy less than ours. nghttpx cannot
carry TLS: it ends it at its first half and reads everything.

"transport": plain HTTP in, plain HTTP out, encrypted between the two halves. Ours is tunnel_pair, the product's links and relays alone: the product itself has no
way in without inner TLS."""
from __future__ import annotations

import re
import shutil
import socket
import ssl
import statistics
import subprocess
import time
from pathlib import Path

from peers import BULK, HOST, Field

SECONDS, CLIENTS, IDLE = 2, 64, 2000


class Wrk:
    """wrk, which takes the TLS server name from the URL: names resolve by a hosts file that only it sees."""

    def __init__(self, dir: Path):
        self.hosts = dir / "hosts"
        self.hosts.write_text(f"127.0.0.1 {HOST} localhost\n")

    def __call__(self, port: int, tls: bool, clients=CLIENTS, seconds=SECONDS, path="/1k", close=False) -> dict:
        argv = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", *(["-H", "Connection: close"] if close else []),
                f"{'https' if tls else 'http'}://{HOST if tls else '127.0.0.1'}:{port}{path}"]
        out = subprocess.run(["unshare", "-rm", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(self.hosts), *argv], capture_output=True, text=True, timeout=120)
        rate, p99 = re.search(r"Requests/sec:\s+([\d.]+)", out.stdout), re.search(r"99%\s+([\d.]+)(us|ms|s)", out.stdout)
        if not rate or not p99 or float(rate[1]) == 0 or "Non-2xx" in out.stdout:
            raise RuntimeError(f"{' '.join(argv)}:\n{out.stdout[-1500:]}{out.stderr[-500:]}")
        return {"rate": float(rate[1]), "p99": float(p99[1]) * {"us": 0.001, "ms": 1, "s": 1000}[p99[2]]}


def bulk(port: int, tls: bool, streams: int) -> dict:
    """MiB/s over so many curls at once."""
    url = [f"https://{HOST}/bulk", "-k", "--connect-to", f"::127.0.0.1:{port}"] if tls else [f"http://127.0.0.1:{port}/bulk"]
    began = time.monotonic()
    procs = [subprocess.Popen(["curl", "-sS", "--http1.1", "--noproxy", "*", "-o", "/dev/null", *url]) for _ in range(streams)]
    codes = [p.wait(120) for p in procs]
    if any(codes):
        raise RuntimeError(f"curl of bulk from port {port}: {codes}")
    return {"mib": BULK / 2**20 * streams / (time.monotonic() - began)}


def inner(port: int, connect: tuple[ssl.SSLContext, str] | None = None, rcvbuf=0):
    """An inner TLS connection as (send, recv, close): by server name, or with `connect` through the provider's listener."""
    s = socket.socket()
    if rcvbuf:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    s.connect(("127.0.0.1", port))
    s.settimeout(20)
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    if not connect:
        return c.wrap_socket(s, server_hostname=HOST)
    outer = connect[0].wrap_socket(s, server_hostname=connect[1])
    outer.sendall(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        part = outer.recv(4096)
        if not part:
            raise RuntimeError(f"the edge closed after {head!r}")
        head += part
    if b" 200 " not in head:
        raise RuntimeError(head)
    return Nested(c, outer)


def plain(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


class Nested:
    """TLS inside TLS, which the ssl module does only over memory."""

    def __init__(self, ctx: ssl.SSLContext, outer: ssl.SSLSocket):
        self.outer, self.ins, self.outs = outer, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = ctx.wrap_bio(self.ins, self.outs, server_hostname=HOST)
        self.run(self.tls.do_handshake)

    def run(self, f, *args):
        while True:
            try:
                r = f(*args)
                break
            except ssl.SSLWantReadError:
                if self.outs.pending:
                    self.outer.sendall(self.outs.read())
                self.ins.write(self.outer.recv(65536))
        if self.outs.pending:
            self.outer.sendall(self.outs.read())
        return r

    def sendall(self, b: bytes):
        self.run(self.tls.write, b)

    def recv(self, n: int) -> bytes:
        return self.run(self.tls.read, n)

    def close(self):
        self.outer.close()


def get_1k(c) -> None:
    c.sendall(f"GET /1k HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    got = b""
    while not got.endswith(b"x" * 1024):
        got += c.recv(65536)


def pss_kib(pid: int) -> int:
    return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])


class Rows:
    def __init__(self, field: Field, rounds: int, row):
        self.f, self.rounds, self.row, self.wrk = field, rounds, row, Wrk(field.dir)

    def measure(self, ports: dict[str, int], fn) -> dict[str, dict]:
        """fn(port) of everybody, in turn, once a round: medians."""
        got: dict[str, list[dict]] = {n: [] for n in ports}
        for _ in range(self.rounds):
            for name, port in ports.items():
                got[name].append(fn(port))
        return {n: {k: statistics.median(x[k] for x in v) for k in v[0]} for n, v in got.items()}

    def against(self, what: str, m: dict[str, dict], key: str, unit: str, goals: dict[str, str], goal: str) -> None:
        for ref in m:
            if ref != "ours":
                self.row(f"{what}, vs {ref}", f"{m['ours'][key]:.{2 if key == 'p99' else 0}f} {unit}", f"{m[ref][key]:.{2 if key == 'p99' else 0}f} {unit}",
                         m["ours"][key] / m[ref][key], goals.get(ref, goal))

    def keepalive(self) -> None:
        m = self.measure(self.f.tls, lambda port: self.wrk(port, True))
        self.against("tunnel, inner TLS, 1 KiB, 64 clients", m, "rate", "/s", {"TLS direct": ">= 0.33"}, "> 1")
        self.row("tunnel, inner TLS, 1 KiB, 64 clients, p99, vs 2 ms", f"{m['ours']['p99']:.2f} ms", "2.00 ms", m["ours"]["p99"] / 2, "<= 1")
        m.pop("TLS direct")
        self.against("tunnel, inner TLS, 1 KiB, 64 clients, p99", m, "p99", "ms", {}, "< 1")
        m = self.measure(self.f.plain, lambda port: self.wrk(port, False))
        self.against("tunnel transport, 1 KiB, 64 clients", m, "rate", "/s", {}, "> 1")
        self.against("tunnel transport, 1 KiB, 64 clients, p99", m, "p99", "ms", {}, "< 1")

    def bulk(self) -> None:
        tunnels = {k: v for k, v in self.f.tls.items() if k != "TLS direct"}
        for n in (1, 4):
            streams = f"{n} stream{'s' if n > 1 else ''}"
            self.against(f"tunnel, inner TLS, bulk, {streams}", self.measure(tunnels, lambda port: bulk(port, True, n)), "mib", "MiB/s", {}, "> 1")
            self.against(f"tunnel transport, bulk, {streams}", self.measure(self.f.plain, lambda port: bulk(port, False, n)), "mib", "MiB/s", {}, "> 1")

    def stalled(self) -> None:
        """Eight clients ask for 256 MiB and read nothing; the others' rate is taken with and without them in turn."""
        port, free, held = self.f.tls["ours"], [], []
        for _ in range(self.rounds):
            free.append(self.wrk(port, True)["rate"])
            readers = [inner(port, rcvbuf=4096) for _ in range(8)]
            for r in readers:
                r.sendall(f"GET /bulk HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            time.sleep(0.5)     # until every buffer on the way is full
            held.append(self.wrk(port, True)["rate"])
            for r in readers:
                r.close()
        free, held = statistics.median(free), statistics.median(held)
        self.row("tunnel, 8 stalled readers, vs without them", f"{held:.0f} /s", f"{free:.0f} /s", held / free, ">= 0.97")

    def connections(self) -> None:
        """One request a connection. nghttpx takes a kept connection to nginx for it; who carries TCP has to open one there, too."""
        m = self.measure(self.f.plain, lambda port: self.wrk(port, False, clients=16, close=True))
        self.against("tunnel transport, new connections", m, "rate", "/s", {"nghttpx pair": ">= 1.2"}, "> 1")
        m = self.measure({n: p for n, p in self.f.tls.items() if n != "TLS direct"}, lambda port: self.wrk(port, True, clients=16, close=True))
        self.against("tunnel, inner TLS, new connections", m, "rate", "/s", {"nghttpx pair": "-"}, "> 1")

    def memory(self) -> None:
        """Growth of the processes' memory for each connection that has had one request and is idle; new processes for each row. The goal is for what a stream costs.
        TLS that ends in the same process comes on top: there nginx, which ends TLS and does nothing else, is what can be expected."""
        _, tls, worker = self.f.web("idle")
        nginx = self.idle({"nginx": worker}, lambda: inner(tls))["nginx"]
        port, front, back = self.f.transport()
        for name, kib in self.idle({"front": front, "back": back}, lambda: plain(port)).items():
            self.kib(f"tunnel transport, memory per idle stream, {name}", kib, 3, "<= 1")
        for outer in (False, True):
            edge, gateway = self.f.product()
            context = (edge.tls(), "127.0.0.1") if outer else None
            each = self.idle({"edge": edge.p.pid, "gateway": gateway.p.pid}, lambda: inner(edge.provider if outer else edge.plain, context))
            if outer:
                self.kib("tunnel, memory per idle provider, edge (mutual TLS), vs nginx TLS", each["edge"], nginx, "-")
            else:
                self.kib("tunnel, memory per idle passthrough, edge", each["edge"], 3, "<= 1")
                self.kib("tunnel, memory per idle inner TLS, gateway, vs nginx TLS", each["gateway"], nginx, "<= 1.1")
            gateway.kill()
            edge.kill()

    def kib(self, what: str, ours: float, reference: float, goal: str) -> None:
        self.row(what, f"{ours:.1f} KiB", f"{reference:.1f} KiB", ours / reference, goal)

    @staticmethod
    def idle(pids: dict[str, int], connect) -> dict[str, float]:
        """KiB of each process for each of IDLE connections."""
        held = [connect()]
        get_1k(held[0])
        before = {n: pss_kib(p) for n, p in pids.items()}
        for _ in range(IDLE):
            held.append(connect())
            get_1k(held[-1])
        each = {n: (pss_kib(p) - before[n]) / IDLE for n, p in pids.items()}
        for c in held:
            c.close()
        return each


PARTS = ("keepalive", "bulk", "stalled", "connections", "memory")


def bench(build: Path, rounds: int, row, parts=PARTS) -> None:
    for tool in ("wrk", "nginx", "nghttpx", "stunnel", "curl", "unshare"):
        if not shutil.which(tool):
            raise SystemExit(f"make bench: {tool} is missing; tools/setup bench installs it")
    field = Field(build)
    try:
        for name, why in field.absent.items():
            print(f"tunnel rows without {name}: {why}", flush=True)
        rows = Rows(field, rounds, row)
        for p in parts:
            getattr(rows, p)()
    finally:
        field.close()
