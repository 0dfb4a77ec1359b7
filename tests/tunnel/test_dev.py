"""`outwork dev --route`: one command, and an agent's server calls MCP servers of this machine through edge and gateway."""
from __future__ import annotations

import os
import signal
import subprocess
import sys

import anthropic
import pytest

from stack import BIN, MODEL, ROOT, SLOW, FakeModel, Process, plan, python_server, tool, wait_for
from harness import free_port

STDIO = f"stdio:{sys.executable} {ROOT / 'tests/tunnel/stdio_server.py'}"


class Dev:
    def __init__(self, data, model, *routes):
        self.port = free_port()
        self.p = Process([BIN, "dev", "--data", str(data), "--listen", f"127.0.0.1:{self.port}", "--model-provider", "anthropic", "--model-url", model.url,
                          *(f"--route={r}" for r in routes)], env={"ANTHROPIC_API_KEY": "sk-test"}, name="dev")

    def ready(self):
        text = wait_for(lambda: self.p.text() if "MCP server: https://" in self.p.text() and "worker.start" in self.p.text() else not self.p.alive(), timeout=60, why="dev is ready")
        assert self.p.alive(), self.p.text()
        key = text.split("ANTHROPIC_API_KEY=")[1].split()[0]
        self.urls = {line.split("//")[1].split(".")[0]: line.split()[2] for line in text.splitlines() if line.startswith("MCP server: ")}
        self.sdk = anthropic.Anthropic(base_url=f"http://127.0.0.1:{self.port}", api_key=key, max_retries=0, timeout=60 * SLOW)
        wait_for(lambda: "edge.connected" in self.p.text(), why="the gateway is connected")
        return self

    def ask(self, route, name, **inp):
        m = self.sdk.beta.messages.create(model=MODEL, max_tokens=100, betas=["mcp-client-2025-11-20"], messages=[{"role": "user", "content": plan([tool(f"mcp__{route}__{name}", **inp)], ["Done."])}],
                                          tools=[{"type": "mcp_toolset", "mcp_server_name": route}], mcp_servers=[{"type": "url", "name": route, "url": self.urls[route]}])
        return m.content[1].content[0].text

    def stop(self):
        os.kill(self.p.p.pid, signal.SIGINT)
        assert self.p.p.wait(60 * SLOW) == 0, self.p.text()[-4000:]
        assert "Sanitizer" not in self.p.text()


@pytest.fixture
def model():
    m = FakeModel()
    yield m
    m.close()


def test_servers_of_this_machine(tmp_path, model):
    http, started = python_server(), []
    try:
        for _ in range(2):                                      # keys, tunnel and token are still there
            d = Dev(tmp_path / "dev", model, f"docs=http://127.0.0.1:{http.port}", f"notes={STDIO}")
            started.append(d)
            d.ready()
            assert d.ask("docs", "echo", value="over http") == "over http"
            assert d.ask("notes", "add", a=40, b=2) == "42"
            d.stop()
        assert started[0].urls == started[1].urls and set(started[0].urls) == {"docs", "notes"}
        audit = str(tmp_path / "dev/tunnel/audit.jsonl")
        assert subprocess.run([BIN, "audit", "verify", audit], capture_output=True).returncode == 0
        for secret in ("tunnel/edge-key", "tunnel/gateway/tunnel-token", "tunnel/gateway/tls.key", "tunnel/keys/provider.key", "api-key"):
            assert (tmp_path / "dev" / secret).stat().st_mode & 0o077 == 0
    finally:
        for d in started:
            d.p.kill()
        http.close()


@pytest.mark.parametrize("route, words", [("docs", "NAME=UPSTREAM"), ("Docs=http://127.0.0.1:1", "letters a-z"), ("docs=", "NAME=UPSTREAM"), ("-a=http://127.0.0.1:1", "letters a-z")])
def test_a_route_that_is_none(tmp_path, route, words):
    r = subprocess.run([BIN, "dev", "--data", str(tmp_path / "dev"), f"--route={route}"], capture_output=True, text=True, timeout=60 * SLOW)
    assert r.returncode == 2 and words in r.stderr and f"'{route}'" in r.stderr, r.stderr


def test_what_the_gateway_refuses_ends_all(tmp_path, model):
    d = Dev(tmp_path / "dev", model, "docs=gopher://127.0.0.1:70")
    try:
        assert d.p.p.wait(60 * SLOW) != 0
        assert "gopher" in d.p.text() and "the gateway ended" in d.p.text()
    finally:
        d.p.kill()
