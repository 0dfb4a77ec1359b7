"""The whole way of a tunnel, nothing of it a stand-in: `outwork server`, `outwork edge`, `outwork gateway init` and `outwork gateway` on loopback; the tunnel is
made with the official SDK. In front stand clients that we did not write, behind MCP servers that we did not write."""
from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import anthropic

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from edge_harness import Edge, Keys  # noqa: E402
from fake_model import FakeModel  # noqa: E402
from gw_harness import Gateway  # noqa: E402
from harness import BIN, MODEL, ROOT, SLOW, Api, Process, Server, World, plan, tool, wait_for  # noqa: E402, F401
from schema import Spec  # noqa: E402


class AtServer:
    """What an edge of the harness asks: here the real server."""

    def __init__(self, url, key):
        self.url, self.key = url, key


def command(*args, env=None, code=0) -> str:
    base = {k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC_", "OUTWORK_", "API_", "TUNNEL_")) and not k.lower().endswith("_proxy")}
    r = subprocess.run([BIN, *map(str, args)], env={**base, **(env or {})}, capture_output=True, text=True, timeout=120 * SLOW)
    assert r.returncode == code, f"outwork {' '.join(map(str, args))}: status {r.returncode}\n{r.stdout}\n{r.stderr}"
    return r.stdout


class Stack(World):
    """`routes`: name to what stands behind it, as in the gateway's configuration. Started in the order in which ports become known."""

    def __init__(self, tmp: Path, routes: dict, *, server_args=(), gateway_more=None, passthrough=False):
        self.tmp, self.spec, self.model = Path(tmp), Spec(), FakeModel()
        self.workers, self.agents, self.things = [], {}, []
        try:
            self.start(routes, list(server_args), gateway_more or {}, passthrough)
        except BaseException:
            self.close(check=False)
            raise

    def start(self, routes, server_args, gateway_more, passthrough):
        self.server = Server(self.tmp / "data", model_url=self.model.url)
        self.keys = Keys(self.tmp / "keys", "127.0.0.1")
        edge_key = command("edge-key", "create", "--data", self.server.data).strip()
        self.edge = self.keep(Edge(self.keys, AtServer(self.server.url, edge_key), passthrough=passthrough, ready=False))
        self.server.args += ["--tunnel-domain", "tunnel.example.com", "--tunnel-edge", f"https://127.0.0.1:{self.edge.provider}", "--tunnel-edge-ca", self.keys.ca_crt,
                             "--tunnel-edge-cert", self.keys.provider_crt, "--tunnel-edge-key", self.keys.provider_key, *server_args]
        self.server.start()
        self.key = self.server.api_key()
        self.api = Api(self.server.url, self.key, self.spec)
        self.env_id = self.api.post("/v1/environments", {"name": "local", "config": {"type": "self_hosted"}}).ok()["id"]
        self.sdk = anthropic.Anthropic(base_url=self.server.url, api_key=None, auth_token=self.key, max_retries=0, timeout=60 * SLOW)
        self.tunnel = self.sdk.beta.tunnels.create(display_name="whole way")
        self.domain = self.tunnel.domain
        self.gw_dir = self.tmp / "gateway"
        command("gateway", "init", "--api-url", self.server.url, "--tunnel-id", self.tunnel.id, "--output", f"dir:{self.gw_dir}", env={"API_TOKEN": self.key})
        wait_for(lambda: self.edge.get("/readyz")[0] == 200, why="edge has reached the server")
        self.gateway = self.start_gateway(routes, **gateway_more)
        self.relay = self.keep(Relay(self.edge))

    def keep(self, x):
        self.things.append(x)
        return x

    def config(self, routes, **more) -> str:
        d = self.gw_dir
        return json.dumps({"tunnel_domain": self.domain, "tls": {"cert_file": f"{d}/tls.crt", "key_file": f"{d}/tls.key"}, "token_file": f"{d}/tunnel-token",
                           "edge": [f"127.0.0.1:{self.edge.gateway}"], "edge_ca": self.keys.ca_crt, "connections": 2, "upstream": {"allowed_ips": ["127.0.0.1"]},
                           "routes": routes, **more})

    def start_gateway(self, routes, wait=True, **more) -> Gateway:
        d = self.tmp / f"gw{len(self.things)}"
        d.mkdir()
        g = Gateway(d, self.config(routes, **more), wait=False)
        self.things.append(g)
        if wait:
            g.wait_log("edge.connected", 2)
        return g

    def url(self, route, path="/mcp") -> str:
        return f"https://{route}.{self.domain}{path}"

    @property
    def ca(self) -> str:
        return str(self.gw_dir / "ca.crt")

    def tls(self) -> ssl.SSLContext:
        """What a client trusts: the registered authority and nothing else."""
        return ssl.create_default_context(cafile=self.ca)

    def logs(self) -> str:
        out = [f"---- {x.name if hasattr(x, 'name') else 'gateway'} ----\n{(x.text() if hasattr(x, 'text') else x.log)[-5000:]}" for x in self.things if hasattr(x, "text") or hasattr(x, "log_file")]
        return "\n".join(out + ["---- server ----\n" + self.server.proc.text()[-5000:] if self.server.proc else ""])

    def close(self, check=True):
        bad = []
        for x in reversed(self.things):
            try:
                if isinstance(x, Gateway):
                    code = x.stop()
                    assert code == 0 and "Sanitizer" not in x.log and "runtime error" not in x.log, f"gateway: status {code}\n{x.log[-6000:]}"
                else:
                    x.close()
            except AssertionError as e:
                bad.append(e)
        for w in self.workers:
            w.kill()
        if getattr(self, "server", None) and self.server.proc and self.server.proc.alive():
            try:
                assert self.server.stop() == 0, self.server.proc.text()[-3000:]
            except AssertionError as e:
                bad.append(e)
        if check:
            assert not bad, bad[0]
            assert not self.model.violations, self.model.violations[:5]


class Relay:
    """A plain HTTP proxy on loopback that hands CONNECT to the edge, adding the client certificate: for clients that can name a proxy, but no certificate for it.
    The inner TLS is theirs. `heads`: what was asked for."""

    def __init__(self, edge: Edge):
        self.edge, self.heads, self.loop, ready = edge, [], asyncio.new_event_loop(), threading.Event()

        async def main():
            self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=256)
            self.port = self.server.sockets[0].getsockname()[1]
            ready.set()

        def run():
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(main())
            self.loop.run_forever()
        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert ready.wait(10)
        self.url = f"http://127.0.0.1:{self.port}"

    async def serve(self, r, w):
        up = None
        try:
            head = await r.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode().split("\r\n")[0])
            er, up = await asyncio.open_connection("127.0.0.1", self.edge.provider, ssl=self.edge.tls(), server_hostname="127.0.0.1")
            up.write(head)

            async def pump(a, b):
                try:
                    while data := await a.read(65536):
                        b.write(data)
                        await b.drain()
                finally:
                    b.close()        # TLS to the edge knows no half end either
            await asyncio.gather(pump(r, up), pump(er, w), return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for x in (w, up):
                if x:
                    x.close()

    def close(self):
        async def stop():
            self.server.close()
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for t in tasks:
                t.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.loop.stop()
        asyncio.run_coroutine_threadsafe(stop(), self.loop)
        self.thread.join(10)


class Upstream(Process):
    """An MCP server in a process of its own; its first line on standard output is `port N`."""

    def __init__(self, argv, name="mcp", env=None):
        super().__init__([str(a) for a in argv], env=env, name=name)
        try:
            wait_for(lambda: "port " in self.text() or not self.alive(), 60, why=f"{name} names its port")
            self.port = int(self.text().split("port ", 1)[1].split()[0])
            wait_for(self.answers, 60, why=f"{name} answers")
        except (AssertionError, IndexError) as e:
            self.kill()
            raise AssertionError(f"{name}: {e}\n{self.text()[-3000:]}") from None

    def answers(self):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/none", timeout=2)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    close = Process.kill


def python_server(*args) -> Upstream:
    return Upstream([sys.executable, ROOT / "tests/tunnel/everything.py", *args], name="python-sdk-server")
