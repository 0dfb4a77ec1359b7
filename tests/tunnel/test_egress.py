"""A gateway in a network that lets nothing out but through an HTTP proxy."""
import base64
import socket
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from gw_harness import wait_for  # noqa: E402
from test_gateway import World  # noqa: E402


class Proxy:
    """CONNECT only, with a user name and password; every request's head is kept."""

    def __init__(self, credentials="corp:p@ss"):
        self.want = "Basic " + base64.b64encode(credentials.encode()).decode()
        self.heads, self.carried = [], 0
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                c, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(c,), daemon=True).start()

    def _serve(self, c):
        with c:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = c.recv(4096)
                if not piece:
                    return
                head += piece
            head, early = head.split(b"\r\n\r\n", 1)
            lines = head.decode().split("\r\n")
            self.heads.append(lines)
            assert not early, "TLS begins after the proxy's answer"
            if f"Proxy-Authorization: {self.want}" not in lines:
                c.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
                return
            port = int(lines[0].split()[1].rsplit(":", 1)[1])
            with socket.create_connection(("127.0.0.1", port)) as up:
                c.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                t = threading.Thread(target=self._pump, args=(up, c), daemon=True)
                t.start()
                self._pump(c, up)
                t.join()

    def _pump(self, a, b):
        try:
            while data := a.recv(65536):
                self.carried += len(data)
                b.sendall(data)
        except OSError:
            pass
        for s in (a, b):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


@pytest.fixture
def world(tmp_path):
    w = World(tmp_path)
    w.proxy = Proxy()
    yield w
    w.stop()
    w.proxy.close()


def test_everything_goes_through_the_proxy(world):
    edge = f"localhost:{world.edge.gateways}"
    world.gateway(world.config(edge=edge), env={"HTTPS_PROXY": f"http://corp:p%40ss@127.0.0.1:{world.proxy.port}"})
    assert world.json("/mcp")["path"] == "/mcp"
    wait_for(lambda: len(world.proxy.heads) == 2, why="both connections go through it")
    assert all(h[0] == f"CONNECT {edge} HTTP/1.1" for h in world.proxy.heads), "the name is left to the proxy"
    before = world.proxy.carried
    assert len(world.curl("/big?n=1000000").stdout) == 1000000
    assert world.proxy.carried - before > 1000000


def test_no_proxy(world):
    world.gateway(world.config(), "--proxy", f"http://127.0.0.1:{world.proxy.port}", env={"NO_PROXY": "127.0.0.0/8"})
    assert world.status("/mcp") == "200" and not world.proxy.heads


def test_refusals_say_whose_fault_it_was(world):
    g = world.gateway(world.config(), "--proxy", f"http://127.0.0.1:{world.proxy.port}", wait=False)
    g.wait_log("it wants a user name and password")
    g.kill()
    g = world.gateway(world.config(), "--proxy", f"http://corp:wrong@127.0.0.1:{world.proxy.port}", wait=False)
    g.wait_log("the user name or password is wrong")
    assert "wrong@" not in g.log, "no credentials in the log"
    g.kill()
    g = world.gateway(world.config(), "--proxy", "https://127.0.0.1:1", wait=False)
    assert g.p.wait(60) == 2 and "only http:// proxies" in g.log
