"""`outwork gateway --behind-cloudflared`: in place of the hosted service's proxy (tunnels.md 4.4). The relay wraps connections the way cloudflared hands them
over; the client is the official SDK's, the server behind is the SDK's too."""
import asyncio
import socket
import ssl
import sys
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

sys.path.insert(0, str(Path(__file__).parent))
from cloudflared import DOMAIN, Behind, Relay, WebSocket, frame, resolve_here, wait_for  # noqa: E402
from gw_harness import SLOW, Upstream  # noqa: E402

SERVER = [sys.executable, str(Path(__file__).parent / "stdio_server.py")]


@pytest.fixture
def behind(tmp_path, monkeypatch):
    resolve_here(monkeypatch)
    up = Upstream()
    b = Behind(tmp_path, f"  docs: http://127.0.0.1:{up.port}\n  tools: {{stdio: {{command: {SERVER[0]}, args: [{SERVER[1]}]}}}}\n")
    b.up = up
    yield b
    b.stop()
    up.stop()


def connect(b):
    return socket.create_connection(("127.0.0.1", b.port), timeout=30 * SLOW)


class Tunnelled:
    """TLS inside a WebSocket, by hand."""

    def __init__(self, b, ws, host=f"docs.{DOMAIN}"):
        self.ws, self.inp, self.out = ws, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = b.tls.wrap_bio(self.inp, self.out, server_hostname=host)
        self.run(self.tls.do_handshake)

    def flush(self):
        if data := self.out.read():
            for i in range(0, len(data), 100):           # a record over several messages
                self.ws.sock.sendall(frame(2, data[i:i + 100]))

    def run(self, fn, *args):
        while True:
            try:
                r = fn(*args)
                self.flush()
                return r
            except ssl.SSLWantReadError:
                self.flush()
                op, data = self.ws.recv()
                if op == 8:
                    self.inp.write_eof()
                else:
                    self.inp.write(data)

    def request(self, path="/mcp"):
        self.run(self.tls.write, f"GET {path} HTTP/1.1\r\nHost: docs.{DOMAIN}\r\n\r\n".encode())
        got = b""
        while b"\r\n\r\n" not in got:
            got += self.run(self.tls.read, 65536)
        return got


def test_many_requests_on_one_websocket(behind):
    with connect(behind) as s:
        t = Tunnelled(behind, WebSocket(s, "/any/path?x=1", ["Sec-WebSocket-Protocol: binary"]))
        assert "Sec-WebSocket-Protocol: binary" in t.ws.head
        assert t.tls.version() == "TLSv1.3"
        for _ in range(3):
            assert t.request().startswith(b"HTTP/1.1 200 OK")
    assert [h[:2] for h in behind.up.heads] == [("GET", "/mcp")] * 3
    assert f"Host: docs.{DOMAIN}" in behind.up.heads[0][2]


def test_plain_words_for_a_browser(behind):
    for request, status in ((b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"426"), (b"hello\r\n\r\n", b"400")):
        with connect(behind) as s:
            s.sendall(request)
            got = b""
            while piece := s.recv(4096):
                got += piece
            assert got.startswith(b"HTTP/1.1 " + status)


def test_a_disconnect_reaches_the_upstream(behind):
    with connect(behind) as s:
        t = Tunnelled(behind, WebSocket(s))
        assert b"200 OK" in t.request("/stuck")
    wait_for(lambda: "/stuck" in behind.up.gone, 10, "the upstream notices")


def sdk(url, ca, mode):
    async def go():
        async with httpx2.AsyncClient(verify=ssl.create_default_context(cafile=str(ca)), timeout=60 * SLOW) as http:
            async with Client(streamable_http_client(url, http_client=http), mode=mode) as c:
                seen = []

                async def progress(done, total, message):
                    seen.append(done)
                r = await c.call_tool("add", {"a": 40, "b": 2})
                await c.call_tool("count", {"n": 3}, progress_callback=progress)
                return r.content[0].text, seen
    return asyncio.run(asyncio.wait_for(go(), 60 * SLOW))


@pytest.mark.parametrize("style", ["binary", "text", "unmasked", "pieces", "raw"])
def test_official_client_and_every_framing(behind, style):
    relay = Relay(behind.port, style) if style != "raw" else None        # raw: TLS right on the port, as from a tcp:// origin
    try:
        for mode in ("legacy", "auto"):
            url = behind.url("tools", relay.port if relay else None)
            assert sdk(url, behind.ca.file, mode) == ("42", [1, 2, 3])
        if style == "pieces":
            assert relay.pongs > 0
    finally:
        if relay:
            relay.close()
