"""What the fault and scale tests have in common: an upstream process that can be killed, a client that goes the whole way step by step (TLS to the edge,
CONNECT, TLS to the gateway, HTTP), watchers of streams, and a rig that kills and restarts each program at its old address."""
from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
import resource
import socket
import ssl
import sys
import threading
import urllib.request
from collections import Counter
from pathlib import Path

from edge_harness import SLOW, Control, Edge, Keys, Process, Refused, Stream, wait_for
from fault_upstream import digest, payload
from gw_harness import Authority, Gateway

SCALE = 4 if SLOW > 1 else 1             # sanitizer builds: counts of streams, connections and bytes are divided by this
CALL_S = 20.0                            # longest that a call may stay without a word: more is a hang
_ids = itertools.count()


def own_address() -> str:
    """An address of 127/8 that no other process of the tests uses: the port of a program that was killed stays free for the one that follows it, and a
    connection that looks for it never meets itself."""
    pid = os.getpid()
    return f"127.{64 + (pid >> 16) % 64}.{(pid >> 8) % 256}.{pid % 254 + 1}"


def new_id() -> str:
    return f"r{os.getpid()}x{next(_ids)}"


def rss(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


def admin_port(g: Gateway) -> int:
    """Of a gateway with `admin_listen: 127.0.0.1:0`."""
    return int(re.search(r"gateway.admin .*listen=127.0.0.1:(\d+)", g.log)[1])


def metric(g: Gateway, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin_port(g)}/metrics", timeout=10 * SLOW) as r:
        return sum(float(l.rsplit(" ", 1)[1]) for l in r.read().decode().splitlines() if l.startswith(name) and l[len(name):][:1] in (" ", "{"))


def fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def need_descriptors(n: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= n, f"this test needs {n} descriptors a process, the limit is {hard} (ulimit -Hn): it cannot be run here"
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Cut(Exception):
    """The connection ended before the answer was whole."""


# ---- upstream ----

class UpstreamProcess:
    """fault_upstream.py; what it has seen is kept over its deaths."""

    def __init__(self, log: Path, host="127.0.0.1", port=0, wrap=()):
        self.log, self.host, self.port, self.wrap = Path(log), host, port, tuple(wrap)
        self.start()

    def start(self):
        n = len(self.lines("listening"))
        self.proc = Process([*self.wrap, sys.executable, str(Path(__file__).with_name("fault_upstream.py")), self.host, str(self.port), str(self.log)], name="upstream")
        wait_for(lambda: len(self.lines("listening")) > n or not self.proc.alive(), why="upstream listens")
        assert self.proc.alive(), self.proc.text()
        self.port = int(self.lines("listening")[-1][1])

    def lines(self, word: str) -> list[list[str]]:
        if not self.log.exists():
            return []
        return [x.split() for x in self.log.read_text().splitlines() if x.startswith(word + " ")]

    def seen(self, word: str, ident: str) -> list[list[str]]:
        return [x for x in self.lines(word) if x[1] == ident]

    def counts(self) -> Counter:
        return Counter(x[1] for x in self.lines("head"))

    def kill(self):
        self.proc.close()

    def close(self):
        self.proc.close()


# ---- client ----

@functools.cache
def inner_context(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


class Inner:
    """The inner connection of a client: TLS under the customer's authority over a stream that the edge relays."""

    def __init__(self, stream: Stream, ca: str, host: str, handshake=True):
        self.stream, self.host, self.sock = stream, host, stream.sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = inner_context(ca).wrap_bio(self.incoming, self.outgoing, server_hostname=host)
        self.buf = b""
        if handshake:
            self.step(self.tls.do_handshake)

    def hello(self) -> bytes:
        """The bytes of the hello, unsent."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()

    def step(self, what):
        """One TLS operation, with what it needs of the stream. Cut: the connection is gone; a hang is no Cut but TimeoutError."""
        try:
            while True:
                try:
                    got = what()
                    self.flush()
                    return got
                except ssl.SSLWantReadError:
                    self.flush()
                    data = self.stream.early or self.sock.recv(65536)
                    self.stream.early = b""
                    if not data:
                        self.incoming.write_eof()
                        raise Cut("end of the stream") from None
                    self.incoming.write(data)
        except TimeoutError:
            raise
        except (ssl.SSLError, OSError) as e:
            raise Cut(str(e) or type(e).__name__) from None

    def flush(self):
        if out := self.outgoing.read():
            self.sock.sendall(out)

    def send(self, data: bytes):
        for i in range(0, len(data), 1 << 20):
            self.step(lambda: self.tls.write(data[i:i + (1 << 20)]))

    def more(self) -> None:
        got = self.step(lambda: self.tls.read(65536))
        if not got:
            raise Cut("orderly end")
        self.buf += got

    def line(self) -> bytes:
        while b"\r\n" not in self.buf:
            self.more()
        out, _, self.buf = self.buf.partition(b"\r\n")
        return out

    def take(self, n: int) -> bytes:
        while len(self.buf) < n:
            self.more()
        out, self.buf = self.buf[:n], self.buf[n:]
        return out

    # -- HTTP --
    def head(self, method, path, n=0) -> bytes:
        return f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: {n}\r\n\r\n".encode()

    def reply(self) -> tuple[int, dict]:
        status = int(self.line().split()[1])
        fields = {}
        while line := self.line():
            k, _, v = line.decode().partition(":")
            fields[k.lower()] = v.strip()
        self.fields = fields
        return status, fields

    def pieces(self):
        """The body, as it comes; ends with its end, and with Cut when that does not come."""
        if self.fields.get("transfer-encoding") == "chunked":
            while n := int(self.line(), 16):
                yield self.take(n)
                assert self.line() == b""
            assert self.line() == b""
            return
        left = int(self.fields.get("content-length", 0))
        while left:
            if not self.buf:
                self.more()
            part = self.take(min(left, len(self.buf)))
            left -= len(part)
            yield part

    def call(self, method, path, body=()) -> tuple[int, bytes]:
        body = b"".join(body)
        self.send(self.head(method, path, len(body)) + body)
        status, _ = self.reply()
        return status, b"".join(self.pieces())

    def small(self, ident: str) -> int:
        """A counted POST with an answer that must fit it. Returns the status."""
        data = f"body of {ident}".encode()
        status, got = self.call("POST", f"/echo?id={ident}", [data])
        if status == 200:
            doc = json.loads(got)
            assert (doc["id"], doc["n"]) == (ident, len(data)), doc
        return status

    def upload(self, ident: str, n: int):
        self.send(self.head("POST", f"/echo?id={ident}", n))
        for b in payload(ident, n):
            self.send(b)
        status, _ = self.reply()
        doc = json.loads(b"".join(self.pieces()))
        assert (status, doc["n"], doc["sha"]) == (200, n, digest(ident, n)), (status, doc)

    def download(self, ident: str, n: int) -> int:
        """The status; 200 only with exactly the right bytes."""
        self.send(self.head("GET", f"/blob?id={ident}&n={n}"))
        status, _ = self.reply()
        h = hashlib.sha256()
        for part in self.pieces():
            h.update(part)
        assert status != 200 or h.hexdigest() == digest(ident, n), f"{ident}: the bytes are not those that were sent"
        return status

    def close(self):
        self.sock.close()


class Direct(Inner):
    """The same where nothing is around it: a TLS socket to the passthrough listener."""

    def __init__(self, sock: socket.socket, ca: str, host: str):
        self.host, self.buf = host, b""
        self.sock = self.tls = self.step(lambda: inner_context(ca).wrap_socket(sock, server_hostname=host, suppress_ragged_eofs=False))

    def step(self, what):
        try:
            return what()
        except TimeoutError:
            raise
        except (ssl.SSLError, OSError) as e:
            raise Cut(str(e) or type(e).__name__) from None

    def send(self, data: bytes):
        self.step(lambda: self.sock.sendall(data))


def provider(edge: Edge, host: str, ca: str, timeout=CALL_S) -> Inner:
    """The whole way in. Refused, Cut, ConnectionRefusedError; a hang is TimeoutError."""
    try:
        stream = edge.connect(host, timeout=timeout)
    except (ConnectionRefusedError, TimeoutError):
        raise
    except (ssl.SSLError, OSError) as e:
        raise Cut(str(e)) from None
    return Inner(stream, ca, host)


def passthrough(address, host: str, ca: str, timeout=CALL_S) -> Inner:
    s = socket.create_connection(address, timeout=timeout * SLOW)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Direct(s, ca, host)


def outcome(what) -> str:
    """What a client sees: 'unreachable', 'refused STATUS', 'status STATUS', 'cut'. It never waits for ever: that is TimeoutError, and no outcome."""
    try:
        return f"status {what()}"
    except Refused as e:
        return f"refused {e.status}"
    except ConnectionRefusedError:
        return "unreachable"
    except Cut:
        return "cut"


class Watched:
    """A stream of numbered events that must go on: each is checked on a thread of its own."""

    def __init__(self, inner: Inner, n=1_000_000, ms=10):
        self.ident, self.inner, self.n, self.count, self.end = new_id(), inner, n, 0, None
        inner.send(inner.head("GET", f"/sse?id={self.ident}&n={n}&ms={ms}"))
        status, _ = inner.reply()
        assert status == 200
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        rest = b""
        try:
            for part in self.inner.pieces():
                rest += part
                while b"\n\n" in rest:
                    event, _, rest = rest.partition(b"\n\n")
                    if event != f"data: {self.ident}/{self.count}".encode():
                        self.end = f"event {self.count} is {event!r}"
                        return
                    self.count += 1
            self.end = "whole" if self.count == self.n else f"ended after {self.count}"
        except Cut:
            self.end = "cut"
        except Exception as e:               # noqa: BLE001 - told by goes_on(), in the test's own thread
            self.end = repr(e)

    def goes_on(self, by=5):
        start = self.count
        wait_for(lambda: self.count >= start + by or self.end, why=f"a stream that was not concerned goes on (it stands at {self.count})")
        assert self.end is None, f"a stream that was not concerned ended: {self.end}"

    def close(self):
        try:
            self.inner.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.thread.join(30 * SLOW)
        self.inner.close()


# ---- programs ----

class Tunnel:
    def __init__(self, rig: "Rig", name: str):
        self.name, self.domain, self.rig = name, f"{name}.tunnel.example", rig
        self.token = rig.control.tunnel(name)
        self.token_file = rig.dir / f"token-{name}"
        self.write(self.token)
        self.cert, self.key = rig.authority.leaf(name, dns=[f"*.{self.domain}"])

    def write(self, token: str):
        tmp = self.token_file.with_suffix(".new")
        tmp.write_text(token)
        tmp.chmod(0o600)
        tmp.rename(self.token_file)

    @property
    def host(self):
        return f"docs.{self.domain}"


class Rig:
    """Edges, gateways and upstreams at addresses of their own, each of which can be killed and started again."""

    def __init__(self, path: Path, keys: Keys, address: str):
        self.dir, self.keys, self.address = Path(path), keys, address
        self.control = Control()
        self.authority = Authority(self.dir / "inner")
        self.ca = str(self.authority.file)
        self.edges, self.gateways, self.upstreams, self.n = [], [], [], 0

    def tunnel(self, name="t1") -> Tunnel:
        return Tunnel(self, name)

    def upstream(self, **kw) -> UpstreamProcess:
        self.upstreams.append(UpstreamProcess(self.dir / f"upstream-{len(self.upstreams)}.log", kw.pop("host", self.address), **kw))
        return self.upstreams[-1]

    def edge(self, *args, **kw) -> Edge:
        e = Edge(self.keys, self.control, *args, host=self.address, **kw)
        e.made = (args, kw)
        self.edges.append(e)
        return e

    def edge_again(self, old: Edge) -> Edge:
        """A new process where the old one was."""
        args, kw = old.made
        at = ["--gateway-listen", f"{self.address}:{old.gateway}", "--provider-listen", f"{self.address}:{old.provider}"]
        if old.peer:
            at += ["--peer-listen", f"127.0.0.1:{old.peer}"]
        e = self.edge(*args, *at, **kw)
        e.made = (args, kw)
        return e

    def gateway(self, tunnel: Tunnel, edges, upstream, *, stuck=None, connections=2, more="", wrap=(), at=None, wait=True) -> Gateway:
        """`upstream` as route docs, `stuck` as route stuck."""
        d = self.dir / f"gateway-{self.n}"
        self.n += 1
        d.mkdir()
        where = at or [f"{self.address}:{e.gateway}" for e in edges]
        config = (f"tunnel_domain: {tunnel.domain}\ntls: {{cert_file: {tunnel.cert}, key_file: {tunnel.key}}}\n"
                  f"routes:\n  docs: http://{upstream.host}:{upstream.port}\n" + (f"  stuck: http://{stuck.host}:{stuck.port}\n" if stuck else "") +
                  f"upstream: {{allowed_ips: [\"{upstream.host}\"]}}\n"
                  f"edge: [{', '.join(chr(34) + w + chr(34) for w in where)}]\nedge_ca: {self.keys.ca_crt}\nconnections: {connections}\ntoken_file: {tunnel.token_file}\n{more}")
        ready = self.ready_links()
        g = Gateway(d, config, wait=False, wrap=wrap)
        g.made = (tunnel, edges, upstream, dict(stuck=stuck, connections=connections, more=more, wrap=wrap, at=at))
        self.gateways.append(g)
        if wait:
            g.wait_log("edge.connected", connections)
            wait_for(lambda: self.ready_links() >= ready + connections, why="the edge can open streams")
        return g

    def ready_links(self) -> int:
        """How many links the edges have ever been able to open streams on: a round trip after the gateway has called itself connected."""
        return sum(e.text().count('"edge.gateway_ready"') for e in self.edges)

    def gateway_again(self, old: Gateway, wait=True) -> Gateway:
        tunnel, edges, upstream, kw = old.made
        return self.gateway(tunnel, edges, upstream, wait=wait, **kw)

    def call(self, edge: Edge, tunnel: Tunnel) -> Inner:
        return provider(edge, tunnel.host, self.ca)

    def once(self, edge: Edge, tunnel: Tunnel, ident=None) -> int:
        c = self.call(edge, tunnel)
        try:
            return c.small(ident or new_id())
        finally:
            c.close()

    def works(self, edge: Edge, tunnel: Tunnel, upstream: UpstreamProcess):
        """The next call that finds everything back works by itself, and is made once."""
        done = []

        def attempt():
            ident = new_id()
            if outcome(lambda: self.once(edge, tunnel, ident)) == "status 200":
                done.append(ident)
            return done
        wait_for(attempt, 40, why=f"a call works again; gateway:\n{self.gateways[-1].log[-3000:]}")
        assert upstream.counts()[done[0]] == 1

    def close(self, failed=False):
        bad = []
        for g in self.gateways:
            if failed:
                print(f"---- {g.path.name} ----\n{g.log[-4000:]}")
            try:
                code = g.end()
                assert code in (0, None), f"gateway ended with {code}\n{g.log[-6000:]}"
                assert "Sanitizer" not in g.log and "runtime error" not in g.log, g.log[-6000:]
            except AssertionError as e:
                bad.append(e)
        for e in self.edges:
            if failed:
                print(f"---- edge ----\n{e.text()[-4000:]}")
            try:
                e.close()
            except (AssertionError, FileNotFoundError) as x:
                bad.append(x)
        for u in self.upstreams:
            u.close()
        self.control.close()
        if bad:
            raise bad[0]
