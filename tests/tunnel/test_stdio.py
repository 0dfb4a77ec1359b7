"""Stdio routes with servers and clients that we did not write: the Python SDK's and the TypeScript SDK's stdio servers, reached through the real gateway by the
official Python client over streamable HTTP (straight to the port of --behind-cloudflared, which takes TLS as it is)."""
import asyncio
import json
import os
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.types import ElicitResult

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from cloudflared import Behind, resolve_here  # noqa: E402
from gw_harness import SLOW  # noqa: E402

PY = [sys.executable, str(HERE / "stdio_server.py")]
TS = ["/usr/bin/env", "node", str(HERE / "ts" / "server.mjs")]


class Front:
    def __init__(self, path, argv, **more):
        conf = {"command": argv[0], "args": argv[1:], "env": {"PATH": os.environ["PATH"], "GREETING": "hello"}, **more}
        self.behind = Behind(path, "  docs: {stdio: " + json.dumps(conf) + "}\n", env={"ANTHROPIC_API_KEY": "do-not-leak"})
        self.url, self.tls = self.behind.url(), self.behind.tls
        self.wait_log = self.behind.gateway.wait_log

    def count(self, text):
        return self.behind.gateway.log.count(text)

    @asynccontextmanager
    async def client(self, **how):
        async with httpx2.AsyncClient(verify=self.tls, timeout=60 * SLOW) as http:
            async with Client(streamable_http_client(self.url, http_client=http), **how) as c:
                yield c

    def post(self, body, **headers):
        h = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        r = urllib.request.Request(self.url, json.dumps(body).encode(), {**h, **{k.replace("_", "-"): v for k, v in headers.items()}})
        return urllib.request.urlopen(r, timeout=60 * SLOW, context=self.tls)


@pytest.fixture
def front(tmp_path, monkeypatch):
    made = []
    resolve_here(monkeypatch)

    def make(argv, **more):
        made.append(Front(tmp_path, argv, **more))
        return made[-1]
    yield make
    for f in made:
        f.behind.stop()


def run(coro):
    return asyncio.run(asyncio.wait_for(coro, 60 * SLOW))


def value(result):
    assert not result.is_error, result
    return result.content[0].text


def wait_for(what, why):
    end = time.monotonic() + 30 * SLOW
    while not what():
        assert time.monotonic() < end, why
        time.sleep(0.02)


def gone(pid):
    try:
        os.kill(pid, 0)
        return False
    except ProcessLookupError:
        return True


async def colours(ctx, params):
    return ElicitResult(action="accept", content={"colour": "blue"})


@pytest.mark.parametrize("argv", [PY, TS], ids=["python", "typescript"])
def test_session(front, argv):
    f = front(argv)

    async def go():
        async with f.client(mode="legacy", elicitation_callback=colours) as c:
            assert c.protocol_version.startswith("2025-")
            assert {"add", "pid", "env", "count", "ask"} <= {t.name for t in (await c.list_tools()).tools}
            assert value(await c.call_tool("add", {"a": 2, "b": 3})) == "5"
            sums = await asyncio.gather(*[c.call_tool("add", {"a": i, "b": 1}) for i in range(30)])
            assert [value(r) for r in sums] == [str(i + 1) for i in range(30)]
            seen = []

            async def progress(done, total, message):
                seen.append((done, total))
            assert value(await c.call_tool("count", {"n": 4}, progress_callback=progress)) == "counted"
            assert seen == [(i, 4) for i in range(1, 5)]
            assert value(await c.call_tool("ask", {})) == "blue", "a request of the server to the client, and its answer"
            names = value(await c.call_tool("env", {})).split()
            assert "GREETING" in names and "ANTHROPIC_API_KEY" not in names
            mine = int(value(await c.call_tool("pid", {})))
            async with f.client(mode="legacy") as other:
                assert int(value(await other.call_tool("pid", {}))) != mine, "a process for each session"
            return mine
    pid = run(go())
    wait_for(lambda: gone(pid), "DELETE ends the process")
    f.wait_log("server is up", 2)
    assert f.count("do-not-leak") == 0


@pytest.mark.parametrize("argv", [PY, TS], ids=["python", "typescript"])
def test_crash_and_again(front, argv):
    f = front(argv)

    async def go():
        async with f.client(mode="legacy") as c:
            with pytest.raises(MCPError, match="exit status 3"):
                await c.call_tool("die", {})
            with pytest.raises(MCPError, match="Session not found"):
                await c.call_tool("add", {"a": 1, "b": 1})
        async with f.client(mode="legacy") as c:
            assert value(await c.call_tool("add", {"a": 1, "b": 1})) == "2"
    run(go())


async def warm(f):
    """Starts the shared process: a client that finds out the revision by itself waits a few seconds for an answer, and Python may need them to start."""
    async with f.client(mode="2026-07-28") as c:
        await c.list_tools()


def test_sessionless(front, tmp_path):
    f = front(PY)

    async def go():
        await warm(f)
        async with f.client() as a, f.client() as b:
            assert a.protocol_version == b.protocol_version == "2026-07-28"
            assert value(await a.call_tool("add", {"a": 2, "b": 3})) == "5"
            seen = []

            async def progress(done, total, message):
                seen.append(done)
            assert value(await a.call_tool("count", {"n": 3}, progress_callback=progress)) == "counted"
            assert seen == [1, 2, 3]
            both = await asyncio.gather(*[c.call_tool("add", {"a": i, "b": k}) for i in range(10) for k, c in ((0, a), (100, b))])
            assert [value(r) for r in both] == [str(i + k) for i in range(10) for k in (0, 100)], "the same ids from two clients at once"
            return None
    run(go())
    assert f.count("session=shared pid") >= 1


def test_old_server_and_new_client(front):
    f = front(TS)

    async def go():
        async with f.client() as c:                       # asks server/discover first
            assert c.protocol_version.startswith("2025-")
            assert value(await c.call_tool("add", {"a": 2, "b": 3})) == "5"
        async with f.client() as c:
            assert value(await c.call_tool("add", {"a": 2, "b": 3})) == "5"
    run(go())
    assert len(re.findall(r"stdio\.started.* session=shared", f.behind.gateway.log)) == 1, "the second time it is known"


def test_closing_the_stream_cancels_without_sessions(front, tmp_path):
    f = front(PY)
    trace = tmp_path / "trace"

    async def go():
        await warm(f)
        async with f.client() as c:
            assert c.protocol_version == "2026-07-28"
            task = asyncio.create_task(c.call_tool("hang", {"path": str(trace)}))
            while not (trace.exists() and "begun" in trace.read_text()):
                await asyncio.sleep(0.02)
            assert value(await c.call_tool("add", {"a": 1, "b": 1})) == "2"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while "cancelled" not in trace.read_text():
                await asyncio.sleep(0.02)
            assert value(await c.call_tool("add", {"a": 1, "b": 1})) == "2"
    run(go())


INIT = {"jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}


def test_cancelling_with_sessions(front, tmp_path):
    """The client's notification cancels; a closed answer does not."""
    f = front(PY)
    with f.post(INIT) as r:
        session = r.headers["mcp-session-id"]
    f.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, mcp_session_id=session).close()
    hang = lambda i, path: {"jsonrpc": "2.0", "id": i, "method": "tools/call", "params": {"name": "hang", "arguments": {"path": str(path)}}}
    answers = []

    def wait():
        with f.post(hang(7, tmp_path / "a"), mcp_session_id=session) as r:
            answers.append(r.read().decode())
    t = threading.Thread(target=wait)
    t.start()
    wait_for(lambda: (tmp_path / "a").exists(), "the tool runs")
    with f.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}, mcp_session_id=session) as r:
        assert r.status == 202
    wait_for(lambda: "cancelled" in (tmp_path / "a").read_text(), "the server has heard of it")
    t.join(60 * SLOW)
    assert not t.is_alive() and '"error"' in answers[0], "the exchange of a cancelled request ends"

    async def leave():
        async with httpx2.AsyncClient(verify=f.tls, timeout=60 * SLOW) as http:
            h = {"content-type": "application/json", "accept": "application/json, text/event-stream", "mcp-session-id": session}
            task = asyncio.create_task(http.post(f.url, json=hang(8, tmp_path / "b"), headers=h))
            while not (tmp_path / "b").exists():
                await asyncio.sleep(0.02)
            task.cancel()
    run(leave())
    with f.post({"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "add", "arguments": {"a": 1, "b": 1}}}, mcp_session_id=session) as r:
        assert b'"2"' in r.read()
    assert "cancelled" not in (tmp_path / "b").read_text()


def test_idle_and_limit(front):
    f = front(PY, processes=1, idle_timeout="300ms")
    with f.post(INIT) as r:
        assert re.fullmatch(r"[\x21-\x7e]{40,}", r.headers["mcp-session-id"])
        r.read()
    with pytest.raises(urllib.error.HTTPError) as e:
        f.post(INIT)
    assert e.value.code == 503 and e.value.headers["retry-after"] and b"processes of this route" in e.value.read()
    f.wait_log("why=idle")
    with f.post(INIT) as r:
        assert r.status == 200


def test_reload_keeps_sessions(front):
    f = front(PY)

    async def go():
        async with f.client(mode="legacy") as c:
            pid = value(await c.call_tool("pid", {}))
            config = f.behind.gateway.config.read_text()
            await asyncio.to_thread(f.behind.gateway.reload, config.replace("routes:\n", "routes:\n  other: http://127.0.0.1:9\n"))
            assert value(await c.call_tool("pid", {})) == pid
    run(go())
