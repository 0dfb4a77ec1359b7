"""Processes of the edge's tests: the server's control API as a fake, keys, edges, the smallest gateway (accept.c), backends, clients. Loopback only."""
from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).resolve().parents[2]
BIN = os.environ.get("OUTWORK_BIN", str(ROOT / "build" / "outwork"))
ACCEPT = str(Path(BIN).resolve().parent / "tests" / "tunnel" / "tunnel-accept")
SLOW = float(os.environ.get("OUTWORK_SLOW", "1"))       # sanitizer builds: time-outs are multiplied by this


def wait_for(what, timeout=20.0, step=0.02, why="condition"):
    end = time.monotonic() + timeout * SLOW
    while True:
        got = what()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"{why}: not within {timeout * SLOW:.0f} s")
        time.sleep(step)


def failed(request) -> bool:
    """Whether the test has failed, or not even run: then the logs are shown."""
    return getattr(request.node, "report_call", None) is None or request.node.report_call.failed


def make_token(tunnel_id: str) -> str:
    body = {"a": "org_test", "s": base64.b64encode(secrets.token_bytes(32)).decode(), "t": tunnel_id}
    return base64.b64encode(json.dumps(body).encode()).decode()


# ---- keys ----

class Keys:
    """What `outwork edge init` makes."""

    def __init__(self, path: Path, names="127.0.0.1,localhost"):
        self.dir = Path(path)
        r = subprocess.run([BIN, "edge", "init", "--dir", str(path), "--name", names], capture_output=True, text=True, timeout=30 * SLOW)
        assert r.returncode == 0, r.stderr
        self.said = r.stdout

    def __getattr__(self, name):             # keys.ca_crt, keys.provider_key, keys.peer_ca_crt ...
        base, _, kind = name.rpartition("_")
        return str(self.dir / f"{base.replace('_', '-')}.{kind}")


# ---- the server's control API ----

class Control:
    """tunnel/proto.h: authenticate, heartbeat, route. `tunnels` is what the server knows; `edges` what the edges have told it."""

    def __init__(self, ttl=3):
        self.ttl, self.key, self.lock = ttl, "ow-edge-test-key", threading.Lock()
        self.tunnels: dict[str, dict] = {}
        self.edges: dict[str, dict] = {}
        self.asked: list[tuple[str, str]] = []
        self.down = False
        control = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *a):
                pass

            def handle_one(self, body):
                if control.down:
                    return 500, {"type": "error", "error": {"type": "api_error", "message": "down"}}
                if self.headers.get("authorization") != f"Bearer {control.key}":
                    return 401, {"type": "error", "error": {"type": "authentication_error", "message": "refused", "details": {"error_code": "edge_key_refused"}}}
                u = urlsplit(self.path)
                with control.lock:
                    return control.answer(self.command, u.path, parse_qs(u.query), body)

            def do_POST(self):
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                status, doc = self.handle_one(json.loads(raw) if raw else None)
                out = json.dumps(doc).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(out)))
                self.end_headers()
                self.wfile.write(out)

            do_GET = do_POST

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 256

            def handle_error(self, *a):
                pass

        self.httpd = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def tunnel(self, name="t1", state="active") -> str:
        token, tid = make_token(f"tnl_{name}"), f"tnl_{name}"
        self.tunnels[tid] = {"domain": f"{name}.tunnel.example", "state": state, "tokens": {hashlib.sha256(token.encode()).hexdigest(): f"tok_{name}"}}
        return token

    def rotate(self, tid: str) -> str:
        token = make_token(tid)
        with self.lock:
            self.tunnels[tid]["tokens"] = {hashlib.sha256(token.encode()).hexdigest(): "tok_2"}
        return token

    def answer(self, method, path, query, body):
        self.asked.append((method, path))
        if path == "/outwork/v1/edges/authenticate":
            t = self.tunnels.get(body["tunnel_id"])
            if not t or body["token_sha256"] not in t["tokens"]:
                return 401, {"type": "error", "error": {"type": "authentication_error", "message": "unknown token", "details": {"error_code": "token_refused"}}}
            return 200, {"tunnel_id": body["tunnel_id"], "domain": t["domain"], "token_id": t["tokens"][body["token_sha256"]], "workspace_id": "w", "state": t["state"]}
        m = re.fullmatch(r"/outwork/v1/edges/([^/]+)/heartbeat", path)
        if m:
            self.edges[m[1]] = body
            ids = {c["tunnel_id"] for c in body["connectors"]}
            return 200, {"ttl_seconds": self.ttl, "tunnels": [{"id": i, "state": self.tunnels[i]["state"]} for i in ids if i in self.tunnels]}
        if path == "/outwork/v1/edges/route":
            domain = query["host"][0].split(".", 1)[1]
            for tid, t in self.tunnels.items():
                if t["domain"] == domain:
                    have = [{"id": i, "address": e["address"]} for i, e in self.edges.items()
                            if i != query["from"][0] and any(c["tunnel_id"] == tid for c in e["connectors"])]
                    return 200, {"tunnel_id": tid, "domain": domain, "state": t["state"], "edges": have}
            return 404, {"type": "error", "error": {"type": "not_found_error", "message": "no such tunnel"}}
        return 404, {}

    def connections(self, tid="tnl_t1") -> int:
        with self.lock:
            return sum(c["connections"] for e in self.edges.values() for c in e["connectors"] if c["tunnel_id"] == tid)

    def close(self):
        self.httpd.shutdown()
        self.httpd.server_close()


# ---- processes ----

class Process:
    def __init__(self, argv, env=None, name="process"):
        self.name, self.log = name, tempfile.NamedTemporaryFile(prefix=f"outwork-{name}-", suffix=".log", delete=False)
        base = {k: v for k, v in os.environ.items() if not k.startswith(("OUTWORK_", "TUNNEL_"))}
        self.p = subprocess.Popen(argv, env={**base, **(env or {})}, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)

    def text(self) -> str:
        return Path(self.log.name).read_text(errors="replace")

    def lines(self, word: str) -> list[str]:
        return [l for l in self.text().splitlines() if l.startswith(word + " ")]

    def alive(self) -> bool:
        return self.p.poll() is None

    def wait(self, timeout=40.0) -> int:
        return self.p.wait(timeout * SLOW)

    def stop(self, timeout=40.0) -> int:
        if self.alive():
            self.p.send_signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.text()[-3000:]}") from None

    def kill(self):
        if self.alive():
            self.p.kill()
        self.p.wait()

    def close(self):
        self.kill()
        self.log.close()
        os.unlink(self.log.name)

    def rss(self) -> int:
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.p.pid}/status").read_text())[1]) * 1024


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


class Edge(Process):
    def __init__(self, keys: Keys, control: Control, *args: str, peer=False, passthrough=False, ready=True, env=None, host="127.0.0.1"):
        """`host`: an address that the certificate names, for gateways and providers."""
        self.host, self.outer = host, None
        argv = [BIN, "edge", "--gateway-listen", f"{host}:0", "--provider-listen", f"{host}:0", "--admin-listen", "127.0.0.1:0", "--server", control.url,
                "--tls-cert", keys.edge_crt, "--tls-key", keys.edge_key, "--provider-client-ca", keys.ca_crt, "--log-level", "debug"]
        if peer:
            argv += ["--peer-listen", "127.0.0.1:0", "--peer-cert", keys.peer_crt, "--peer-key", keys.peer_key, "--peer-ca", keys.peer_ca_crt]
        if passthrough:
            argv += ["--passthrough-listen", "127.0.0.1:0", "--passthrough-allow", "127.0.0.0/8"]
        super().__init__(argv + list(args), env={"OUTWORK_EDGE_KEY": control.key, **(env or {})}, name="edge")
        self.keys, self.control = keys, control
        try:
            at = wait_for(lambda: self.event("edge.ready") or not self.alive(), why="edge ready")
            assert self.alive(), self.text()
        except AssertionError:
            self.kill()
            raise
        self.id = at[0]["id"]
        self.gateway, self.provider, self.admin = (port_of(at[0][k]) for k in ("gateway", "provider", "admin"))
        self.peer = port_of(at[0]["peer"]) if peer else None
        self.plain = port_of(at[0]["passthrough"]) if passthrough else None
        if ready:
            wait_for(lambda: self.get("/readyz")[0] == 200, why="edge has reached the server")

    def close(self):
        """Ends at once, and in good order: a sanitizer build looks for leaks then."""
        code = None
        if self.alive():
            self.p.send_signal(signal.SIGTERM)
            self.p.send_signal(signal.SIGINT)
            try:
                code = self.wait()
            except subprocess.TimeoutExpired:
                pass
        else:
            code = 0
        text = self.text()
        super().close()
        assert code == 0 and "Sanitizer" not in text and "runtime error" not in text, f"status {code}\n{text[-6000:]}"

    def event(self, name: str) -> list[dict]:
        return [e for e in self.events() if e.get("event") == name]

    def events(self) -> list[dict]:
        return [json.loads(l) for l in self.text().splitlines() if l.startswith("{") and l.endswith("}")]

    def get(self, path: str):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=10 * SLOW) as r:
                return r.status, r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def metric(self, name: str) -> float:
        return sum(float(l.rsplit(" ", 1)[1]) for l in self.get("/metrics")[1].splitlines() if l.startswith(name) and l[len(name):][:1] in (" ", "{"))

    # -- clients of the provider's listener --
    def tls(self, cert="provider", ca=None) -> ssl.SSLContext:
        c = ssl.create_default_context(cafile=ca or self.keys.ca_crt)
        if cert:
            c.load_cert_chain(str(self.keys.dir / f"{cert}.crt"), str(self.keys.dir / f"{cert}.key"))
        return c

    def connect(self, host="m.t1.tunnel.example", port=443, timeout=20.0, raw=None) -> "Stream":
        """CONNECT as a provider: a Stream, or Refused."""
        self.outer = self.outer or self.tls()
        s = self.outer.wrap_socket(socket.create_connection((self.host, self.provider), timeout=timeout * SLOW), server_hostname=self.host,
                                   suppress_ragged_eofs=False)
        s.sendall(raw or f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            part = s.recv(4096)
            if not part:
                raise ConnectionError(f"closed after {head!r}")
            head += part
        head, _, rest = head.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status == 200:
            return Stream(s, rest)
        fields = {k.lower(): v.strip() for k, _, v in (l.partition(":") for l in head.decode().split("\r\n")[1:])}
        while len(rest) < int(fields.get("content-length", 0)):
            rest += s.recv(4096) or b"?" * 10000
        s.close()
        raise Refused(status, fields, rest.decode())


class Refused(Exception):
    def __init__(self, status, fields, body):
        super().__init__(f"{status} {fields.get('outwork-error')} {body}")
        self.status, self.fields, self.body, self.error = status, fields, body, fields.get("outwork-error")


class Stream:
    """Bytes through a tunnel."""

    def __init__(self, sock, early=b""):
        self.sock, self.early = sock, early

    def send(self, data: bytes):
        self.sock.sendall(data)

    def recv(self, n: int) -> bytes:
        while len(self.early) < n:
            part = self.sock.recv(65536)
            if not part:
                break
            self.early += part
        out, self.early = self.early[:n], self.early[n:]
        return out

    def echo(self, data: bytes):
        self.send(data)
        got = self.recv(len(data))
        assert got == data, f"{len(got)} of {len(data)} bytes came back"

    def ended(self) -> str:
        """Waits for the other end: "" for an orderly end, else the error."""
        try:
            while self.sock.recv(65536):
                pass
            return ""
        except (ssl.SSLError, OSError) as e:
            return str(e) or type(e).__name__

    def end(self):
        """Says good-bye, as TLS has it, and hears the same."""
        self.sock.unwrap().close()

    def close(self):
        """Just goes: without a word of TLS that is a cut."""
        self.sock.close()


class Acceptor(Process):
    def __init__(self, edge: Edge, token: str | None, to_port: int, *args: str, connector="conn-1", connections=2, up=True):
        super().__init__([ACCEPT, str(edge.gateway), edge.keys.ca_crt, connector, str(connections), str(to_port), *args], env={"TUNNEL_TOKEN": token} if token else None,
                         name="accept")
        if up:
            try:
                wait_for(lambda: len(self.lines("up")) == connections or not self.alive(), why="gateway up")
                assert self.alive(), self.text()
            except AssertionError:
                self.kill()
                raise

    def streams(self) -> int:
        return len(self.lines("open")) - len(self.lines("closed"))


# ---- backends ----

class Backend:
    """TCP on loopback: echoes; a connection whose first byte is S gets bytes for ever; Q: takes everything and says nothing. `open`: connections now."""

    def __init__(self):
        self.open, self.total, self.ended = 0, 0, []
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def serve(r: asyncio.StreamReader, w: asyncio.StreamWriter):
            self.open += 1
            self.total += 1
            why = "eof"
            try:
                first = await r.read(65536)
                if first[:1] == b"S":
                    while True:
                        w.write(b"s" * 65536)
                        await w.drain()
                while first:
                    if first[:1] != b"Q":
                        w.write(first)
                        await w.drain()
                    first = await r.read(65536)
            except (OSError, asyncio.CancelledError) as e:
                why = type(e).__name__
            finally:
                self.open -= 1
                self.ended.append(why)
                w.close()

        async def main():
            self.server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
            self.port = self.server.sockets[0].getsockname()[1]
            ready.set()

        def run():
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(main())
            self.loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        assert ready.wait(10)

    def close(self):
        async def stop():
            self.server.close()
            tasks = [x for x in asyncio.all_tasks() if x is not asyncio.current_task()]
            for x in tasks:
                x.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.loop.stop()
        asyncio.run_coroutine_threadsafe(stop(), self.loop)


class HttpsBackend:
    """An HTTPS server that holds the inner key: GET /hello, POST /echo, GET /stream (a line, then one more for each `step()`)."""

    def __init__(self, inner: Keys):
        self.gate = threading.Semaphore(0)
        self.left = threading.Event()        # a reader of /stream has gone
        me = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *a):
                pass

            def do_GET(self):
                if self.path == "/stream":
                    self.send_response(200)
                    self.send_header("content-type", "text/event-stream")
                    self.send_header("connection", "close")
                    self.end_headers()
                    try:
                        for i in range(1000):
                            self.wfile.write(f"data: {i}\n\n".encode())
                            self.wfile.flush()
                            while not me.gate.acquire(timeout=0.05):
                                self.connection.setblocking(False)
                                try:
                                    if self.connection.recv(1) == b"":
                                        raise ConnectionError
                                except ssl.SSLWantReadError:
                                    pass
                                finally:
                                    self.connection.setblocking(True)
                    except OSError:
                        me.left.set()
                    return
                self.answer(f"hello {self.headers['host']}".encode())

            def do_POST(self):
                self.answer(self.rfile.read(int(self.headers["content-length"])))

            def answer(self, out):
                self.send_response(200)
                self.send_header("content-length", str(len(out)))
                self.end_headers()
                self.wfile.write(out)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *a):
                pass

        self.httpd = Server(("127.0.0.1", 0), Handler)
        c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        c.load_cert_chain(inner.edge_crt, inner.edge_key)
        self.httpd.socket = c.wrap_socket(self.httpd.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.httpd.server_port
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def step(self):
        self.gate.release()

    def close(self):
        self.httpd.shutdown()
        self.httpd.server_close()


def curl(*args: str, timeout=30.0, check=True) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k.lower() not in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")}
    r = subprocess.run(["curl", "-sS", "--max-time", str(timeout * SLOW), *args], capture_output=True, text=True, env=env)
    assert not check or r.returncode == 0, (r.returncode, r.stderr)
    return r


def curl_through(edge: Edge, inner_ca: str, *args: str, cert="provider", **kw):
    mine = ["--proxy-cert", str(edge.keys.dir / f"{cert}.crt"), "--proxy-key", str(edge.keys.dir / f"{cert}.key")] if cert else []
    return curl("--proxy", f"https://127.0.0.1:{edge.provider}", "--proxy-cacert", edge.keys.ca_crt, *mine, "--cacert", inner_ca, *args, **kw)
