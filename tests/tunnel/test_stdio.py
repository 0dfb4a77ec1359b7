"""The stdio upstream with servers and clients that we did not write: the Python SDK's and the TypeScript SDK's stdio servers, reached by the official Python
client over streamable HTTP. stdio_front is a plain HTTP front around the upstream; the whole gateway's suite goes through the tunnel."""
import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.types import ElicitResult

HERE = Path(__file__).resolve().parent
BIN = Path(os.environ.get("OUTWORK_BIN", str(HERE.parents[1] / "build" / "outwork"))).resolve()
FRONT = BIN.parent / "tests" / "tunnel" / "stdio_front"
SLOW = float(os.environ.get("OUTWORK_SLOW", "1"))
PY = [sys.executable, str(HERE / "stdio_server.py")]
TS = ["node", str(HERE / "ts" / "server.mjs")]


class Front:
    def __init__(self, argv, **env):
        base = {k: v for k, v in os.environ.items() if not k.startswith(("CHILD_", "FRONT_"))}
        child = {"CHILD_PATH": os.environ["PATH"], "CHILD_GREETING": "hello"}
        self.p = subprocess.Popen([str(FRONT), *argv], env={**base, **child, "ANTHROPIC_API_KEY": "do-not-leak", **env}, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines, self.cv = [], threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.url = f"http://127.0.0.1:{self.p.stdout.readline().split()[1]}/mcp"

    def _read(self):
        for line in self.p.stderr:
            with self.cv:
                self.lines.append(line)
                self.cv.notify_all()

    def wait_log(self, text, times=1):
        with self.cv:
            ok = self.cv.wait_for(lambda: sum(text in x for x in self.lines) >= times, 30 * SLOW)
            assert ok, f"'{text}' not in the log:\n" + "".join(self.lines[-40:])

    def count(self, text):
        with self.cv:
            return sum(text in x for x in self.lines)

    def close(self):
        self.p.send_signal(signal.SIGTERM)
        assert self.p.wait(30 * SLOW) == 0, "".join(self.lines[-40:])
        self.reader.join()
        self.p.stdout.close()
        self.p.stderr.close()


@pytest.fixture
def front():
    made = []

    def make(argv, **env):
        made.append(Front(argv, **env))
        return made[-1]
    yield make
    for f in made:
        f.close()


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
        async with Client(f.url, mode="legacy", elicitation_callback=colours) as c:
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
            async with Client(f.url, mode="legacy") as other:
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
        async with Client(f.url, mode="legacy") as c:
            with pytest.raises(MCPError, match="exit status 3"):
                await c.call_tool("die", {})
            with pytest.raises(MCPError, match="Session not found"):
                await c.call_tool("add", {"a": 1, "b": 1})
        async with Client(f.url, mode="legacy") as c:
            assert value(await c.call_tool("add", {"a": 1, "b": 1})) == "2"
    run(go())


def test_sessionless(front, tmp_path):
    f = front(PY)

    async def go():
        async with Client(f.url) as a, Client(f.url) as b:
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
        async with Client(f.url) as c:                       # asks server/discover first
            assert c.protocol_version.startswith("2025-")
            assert value(await c.call_tool("add", {"a": 2, "b": 3})) == "5"
        async with Client(f.url) as c:
            assert value(await c.call_tool("add", {"a": 2, "b": 3})) == "5"
    run(go())
    assert f.count("stdio.started role=front route=test session=shared") == 1, "the second time it is known"


def test_cancellation(front, tmp_path):
    """Closing the stream cancels in the revision without sessions, and only there."""
    f = front(PY)
    trace = tmp_path / "trace"

    async def go(mode):
        async with Client(f.url, mode=mode) as c:
            task = asyncio.create_task(c.call_tool("hang", {"path": str(trace)}))
            while not (trace.exists() and "begun" in trace.read_text()):
                await asyncio.sleep(0.02)
            assert value(await c.call_tool("add", {"a": 1, "b": 1})) == "2"
            await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                pass
            while "cancelled" not in trace.read_text():      # 2026: the closed stream; before: the client's own notification
                await asyncio.sleep(0.02)
    for mode in ("2026-07-28", "legacy"):
        run(go(mode))
        trace.unlink()


def test_idle_and_limit(front):
    f = front(PY, FRONT_PROCS="1", FRONT_IDLE_MS="300")
    body = (b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}')

    def post():
        r = urllib.request.Request(f.url, body, {"content-type": "application/json", "accept": "application/json, text/event-stream"})
        return urllib.request.urlopen(r, timeout=30 * SLOW)
    with post() as r:
        assert re.fullmatch(r"[\x21-\x7e]{40,}", r.headers["mcp-session-id"])
        r.read()
    with pytest.raises(urllib.error.HTTPError) as e:
        post()
    assert e.value.code == 503 and e.value.headers["retry-after"] and b"processes of this route" in e.value.read()
    f.wait_log("why=idle")
    with post() as r:
        assert r.status == 200
