"""What stands in front of `outwork gateway --behind-cloudflared` in tests: a relay that wraps TCP connections into WebSockets the way cloudflared hands them
over, and the gateway with a certificate of its own. Loopback only."""
from __future__ import annotations

import base64
import hashlib
import random
import re
import secrets
import socket
import ssl
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from gw_harness import DOMAIN, Authority, Gateway, wait_for  # noqa: E402


def frame(op: int, data: bytes, fin=True, masked=True) -> bytes:
    n, m = len(data), 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | op]) + (bytes([m | n]) if n < 126 else bytes([m | 126]) + n.to_bytes(2, "big") if n < 65536 else bytes([m | 127]) + n.to_bytes(8, "big"))
    if not masked:
        return head + data
    key = secrets.token_bytes(4)
    return head + key + (int.from_bytes(data, "big") ^ int.from_bytes((key * (n // 4 + 1))[:n], "big")).to_bytes(n, "big")


class WebSocket:
    """A client's side over a connected socket."""

    def __init__(self, sock: socket.socket, path="/", headers=()):
        self.sock, self.buf = sock, b""
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        lines = [f"GET {path} HTTP/1.1", f"Host: docs.{DOMAIN}", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                 f"Sec-WebSocket-Key: {key}", *headers, "", ""]
        sock.sendall("\r\n".join(lines).encode())
        while b"\r\n\r\n" not in self.buf:
            piece = sock.recv(4096)
            assert piece, self.buf
            self.buf += piece
        head, self.buf = self.buf.split(b"\r\n\r\n", 1)
        self.head = head.decode()
        assert self.head.startswith("HTTP/1.1 101 "), self.head
        accept = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
        assert f"Sec-WebSocket-Accept: {accept}" in self.head

    def _take(self, n):
        while len(self.buf) < n:
            piece = self.sock.recv(65536)
            if not piece:
                raise EOFError
            self.buf += piece
        out, self.buf = self.buf[:n], self.buf[n:]
        return out

    def recv(self):
        """(opcode, payload) of the next frame."""
        a, b = self._take(2)
        assert not b & 0x80, "a server's frames are not masked"
        n = b & 0x7f
        n = int.from_bytes(self._take(2), "big") if n == 126 else int.from_bytes(self._take(8), "big") if n == 127 else n
        return a & 0x0f, self._take(n)


class Relay:
    """Listens; each connection becomes a WebSocket to the gateway. `style` says how the bytes are put into frames."""

    def __init__(self, port: int, style="binary"):
        self.port_to, self.style = port, style
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.pongs = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                c, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(c,), daemon=True).start()

    def frames(self, data: bytes) -> bytes:
        if self.style == "text":
            return frame(1, data)
        if self.style == "unmasked":
            return frame(2, data, masked=False)
        if self.style == "pieces":                       # fragments that have nothing to do with records, and pings in between
            out, first = b"", True
            while data:
                n = random.randint(1, 400)
                piece, data = data[:n], data[n:]
                out += frame(2 if first else 0, piece, fin=not data)
                if data and random.random() < 0.3:
                    out += frame(9, b"ping")
                first = False
            return out
        return frame(2, data)

    def _serve(self, c: socket.socket):
        up = socket.create_connection(("127.0.0.1", self.port_to))
        try:
            ws = WebSocket(up, headers=["Cf-Connecting-Ip: 198.51.100.7"])

            def back():
                try:
                    while True:
                        op, data = ws.recv()
                        if op == 8:
                            break
                        if op == 10:
                            self.pongs += 1
                        elif op in (0, 1, 2):
                            c.sendall(data)
                except (EOFError, OSError):
                    pass
                try:
                    c.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
            t = threading.Thread(target=back, daemon=True)
            t.start()
            try:
                while data := c.recv(65536):
                    up.sendall(self.frames(data))
                up.sendall(frame(8, b"\x03\xe8"))
            except OSError:
                pass
            up.shutdown(socket.SHUT_RDWR)
            t.join()
        except OSError:
            pass
        finally:
            up.close()
            c.close()

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class Behind:
    """The gateway in that mode, with a configuration as the hosted service's proxy has it."""

    def __init__(self, path: Path, routes: str, *args, env=None):
        self.ca = Authority(path / "keys")
        cert, key = self.ca.leaf("tls", dns=[f"*.{DOMAIN}"])
        self.gateway = Gateway(path, f"listen_addr: 127.0.0.1:0\nlog_level: debug\nshutdown_timeout: 5s\ntunnel_domain: {DOMAIN}\n"
                                     f"tls:\n  cert_file: {cert}\n  key_file: {key}\nroutes:\n{routes}"
                                     "upstream:\n  allowed_ips: [127.0.0.0/8]\n", "--behind-cloudflared", *args, env=env, wait=False)
        self.gateway.wait_log("gateway.behind_cloudflared")
        self.port = int(re.search(r"listen=127\.0\.0\.1:(\d+)", self.gateway.log).group(1))
        self.tls = ssl.create_default_context(cafile=str(self.ca.file))

    def url(self, route="docs", port=None):
        return f"https://{route}.{DOMAIN}:{port or self.port}/mcp"

    def stop(self):
        status = self.gateway.stop()
        assert status == 0, self.gateway.log[-4000:]


def resolve_here(monkeypatch):
    """Names of the test's domain lead to this machine."""
    real = socket.getaddrinfo

    def fake(host, *a, **k):
        host = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if host and host.endswith(DOMAIN) else host, *a, **k)
    monkeypatch.setattr(socket, "getaddrinfo", fake)


__all__ = ["Behind", "Relay", "WebSocket", "frame", "resolve_here", "wait_for", "DOMAIN"]
