"""Clients of the official MCP SDKs, Python and TypeScript, against servers of both, through the real server's tunnel, edge and gateway."""
from __future__ import annotations

import asyncio
import json
import subprocess

import httpx2
import pytest
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CreateMessageResult, ElicitResult, TextContent

from stack import SLOW, Stack, python_server
from typescript import NODE, TS, everything_server, node_env


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    made = {"python": python_server(), "oldpython": python_server("--sse"), "everything": everything_server("streamableHttp"), "oldeverything": everything_server("sse")}
    tmp = tmp_path_factory.mktemp("stack")
    s = Stack(tmp, {n: f"http://127.0.0.1:{p.port}" for n, p in made.items()}, gateway_more={"audit_log": str(tmp / "audit.jsonl")})
    s.audit_log = tmp / "audit.jsonl"
    yield s
    s.close()
    for p in made.values():
        p.close()


@pytest.fixture
def seen(stack):
    """The gateway's audit lines since the test began, each as (HTTP method, status, session)."""
    before = len(stack.audit_log.read_text().splitlines()) if stack.audit_log.exists() else 0
    return lambda: [x for x in map(json.loads, stack.audit_log.read_text().splitlines()[before:]) if x["kind"] == "mcp.request"]


def http(stack, **kw):
    """The edge as HTTPS proxy with a client certificate; the registered authority and no other."""
    return httpx2.AsyncClient(verify=stack.tls(), proxy=httpx2.Proxy(f"https://127.0.0.1:{stack.edge.provider}", ssl_context=stack.edge.tls()), timeout=60 * SLOW, **kw)


async def sampled(context, params):
    return CreateMessageResult(role="assistant", model="m", content=TextContent(type="text", text=f'to "{params.messages[0].content.text}": hello'))


async def elicited(context, params):
    return ElicitResult(action="accept", content={"response": "blue", "name": "Ada"})


def client(transport, mode):
    return Client(transport, mode=mode, sampling_callback=sampled, elicitation_callback=elicited, read_timeout_seconds=60 * SLOW)


def text(result):
    return result.content[0].text


async def use(c, modern):
    """What both SDKs' clients do with the Python server, see also ts/client.mjs."""
    assert len((await c.list_tools()).tools) > 20
    assert text(await c.call_tool("echo", {"value": "ü" * 100_000})) == "ü" * 100_000
    assert [t.uri_template for t in (await c.list_resource_templates()).resource_templates] == ["test://template/{id}/data"]
    assert json.loads((await c.read_resource("test://template/7/data")).contents[0].text)["id"] == "7"
    assert (await c.read_resource("test://static-binary")).contents[0].blob
    assert "arg1='x', arg2='y'" in (await c.get_prompt("test_prompt_with_arguments", {"arg1": "x", "arg2": "y"})).messages[0].content.text
    progress, calls = [], []

    async def on_progress(n, total, message):
        progress.append(n)
        calls.append(asyncio.create_task(c.call_tool("step", {})))       # the stream goes on when its reader has answered: nothing on the way may wait for more
    assert text(await c.call_tool("steps", {"n": 5}, progress_callback=on_progress)) == "5 steps"
    await asyncio.gather(*calls)
    assert progress == [1, 2, 3, 4, 5]
    assert (await c.call_tool("test_error_handling", {})).is_error
    if modern:
        assert text(await c.call_tool("test_input_required_result_elicitation", {})) == "Hello, Ada!"
        assert text(await c.call_tool("test_input_required_result_sampling", {})) == 'to "What is the capital of France?": hello'
        assert text(await c.call_tool("test_custom_headers", {"region": " Österreich "})) == " Österreich "
    else:
        assert text(await c.call_tool("test_sampling", {"prompt": "hi"})) == 'LLM response: to "hi": hello'
        assert "blue" in text(await c.call_tool("test_elicitation", {"message": "Colour?"}))


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_python_client(stack, seen, mode):
    async def run():
        async with http(stack) as h, client(streamable_http_client(stack.url("python"), http_client=h), mode) as c:
            await use(c, mode == "auto")
            assert c.protocol_version == ("2026-07-28" if mode == "auto" else "2025-11-25")
            if mode == "legacy":             # the server ends the stream of this call, the client takes it up again at its last event
                assert text(await c.call_tool("test_reconnection", {})) == "Reconnection test completed"
    asyncio.run(run())
    verbs = {x["http_method"] for x in seen()}
    assert verbs == ({"POST", "GET", "DELETE"} if mode == "legacy" else {"POST"})


def test_python_client_of_the_typescript_server(stack):
    async def run():
        async with http(stack) as h, client(streamable_http_client(stack.url("everything"), http_client=h), "legacy") as c:
            assert "hello" in text(await c.call_tool("echo", {"message": "hello"}))
            assert (await c.call_tool("get-tiny-image", {})).content[1].mime_type == "image/png"
            assert 'to \\"Resource trigger-sampling-request context: hi\\": hello' in text(await c.call_tool("trigger-sampling-request", {"prompt": "hi", "maxTokens": 10}))
            assert "Ada" in str(await c.call_tool("trigger-elicitation-request", {}))
            progress = []

            async def on_progress(n, total, message):
                progress.append((n, total))
            await c.call_tool("trigger-long-running-operation", {"duration": 2, "steps": 8}, progress_callback=on_progress)
            assert progress == [(n, 8) for n in range(1, 9)]
            assert len((await c.list_resources()).resources) > 3 and (await c.list_prompts()).prompts
    asyncio.run(run())


@pytest.mark.parametrize("server", ["oldpython", "oldeverything"])
def test_python_client_of_the_older_transport(stack, server):
    """Two endpoints: a stream that stays open, and the answers to all requests on it."""
    async def run():
        factory = lambda headers=None, timeout=None, auth=None: http(stack, headers=headers, auth=auth)
        async with client(sse_client(stack.url(server, "/sse"), httpx_client_factory=factory), "legacy") as c:
            if server == "oldpython":
                await use(c, False)
            else:
                assert "hello" in text(await c.call_tool("echo", {"message": "hello"}))
                assert "hello" in text(await c.call_tool("trigger-sampling-request", {"prompt": "hi", "maxTokens": 10}))
    asyncio.run(run())


@pytest.mark.parametrize("kind", ["v1", "v2", "sse"])
def test_typescript_client(stack, seen, kind):
    url = stack.url("oldpython", "/sse") if kind == "sse" else stack.url("python")
    r = subprocess.run([NODE, TS / "client.mjs", url, kind], env=node_env(stack), capture_output=True, text=True, timeout=120 * SLOW)
    assert r.returncode == 0, r.stderr + stack.logs()
    got = json.loads(r.stdout)
    assert got["tools"] > 20 and got["echo"] == 100_000 and got["templates"] == ["test://template/{id}/data"] and json.loads(got["resource"])["id"] == "7" and got["binary"] > 50
    assert "arg1='x', arg2='y'" in got["prompt"] and got["completed"] == ["ab-completed"] and got["progress"] == [1, 2, 3, 4, 5] and got["steps"] == "5 steps" and got["isError"] is True
    assert "hello" in got["sampled"] and ("blue" in got["elicited"] or got["elicited"] == "Hello, Ada!")
    verbs = [x["http_method"] for x in seen()]
    if kind == "v1":
        assert got["reconnected"] == "Reconnection test completed" and got["resumed"] == "2 steps" and got["gone"] == 404 and "DELETE" in verbs and "GET" in verbs
    if kind == "v2":
        assert set(verbs) == {"POST"} and got["header"] == " Österreich " and got["session"] is None
