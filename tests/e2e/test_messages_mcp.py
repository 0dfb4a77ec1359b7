"""mcp_servers of POST /v1/messages, called by this server: official Anthropic SDKs in front, MCP servers of the official MCP SDK behind."""
from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time

import anthropic
import pytest

from fake_model import FakeModel
from harness import MODEL, ROOT, SLOW, World, plan, tool, wait_for
from test_mcp import McpServer

B11, B09, B04 = "mcp-client-2025-11-20", "mcp-client-2026-09-15", "mcp-client-2025-04-04"


@pytest.fixture(scope="module")
def gate(tmp_path_factory, spec):
    """One server, two MCP servers: `demo` (sessions, SSE answers), `safe` (asks for a token, stateless, JSON answers)."""
    tmp = tmp_path_factory.mktemp("gate")
    token = tmp / "token"
    token.write_text("letmein\n")
    demo, safe = McpServer(tmp).start(), McpServer(tmp, "--stateless", "--json", "--token", str(token)).start()
    late = McpServer(tmp)
    w = World(tmp, spec, FakeModel(), server_args=[a for m in (demo, safe, late) for a in ("--mcp-private-ok", f"127.0.0.1:{m.port}")])
    w.demo, w.safe, w.late = demo, safe, late
    w.client = anthropic.Anthropic(base_url=w.server.url, api_key=w.key, max_retries=0, timeout=60 * SLOW)
    yield w
    violations = list(w.model.violations)
    w.close()
    for m in (demo, safe, late):
        m.stop()
    assert violations == []


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def ask(request, gate):
    """client.beta.messages, streamed or not; the message in the end."""
    def call(messages, servers=("demo",), tools=(), sets=None, betas=(B11,), **more):
        kw = {"model": MODEL, "max_tokens": 100, "messages": messages, "mcp_servers": [server(gate, n) for n in servers], "betas": list(betas),
              "tools": [*(sets if sets is not None else [{"type": "mcp_toolset", "mcp_server_name": n} for n in servers]), *tools], **more}
        kw = {k: v for k, v in kw.items() if v != []}
        if not request.param:
            return gate.client.beta.messages.create(**kw)
        events = []
        with gate.client.beta.messages.stream(**kw) as s:
            for e in s:
                events.append(e)
            m = s.get_final_message()
        check_stream([e for e in events if e.type in ("message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop")])
        return m
    return call


def server(gate, name):
    m = {"demo": gate.demo, "safe": gate.safe, "late": gate.late}[name]
    return {"type": "url", "name": name, "url": m.url, **({"authorization_token": "letmein"} if name == "safe" else {})}


def check_stream(events):
    types = [e.type for e in events]
    assert types[0] == "message_start" and types.count("message_start") == 1 and types[-2:] == ["message_delta", "message_stop"] and types.count("message_delta") == 1
    starts = [e.index for e in events if e.type == "content_block_start"]
    assert starts == list(range(len(starts))) == [e.index for e in events if e.type == "content_block_stop"]


def user(*steps):
    return [{"role": "user", "content": plan(*steps)}]


def kinds(m):
    return [b.type for b in m.content]


def dumped(m):
    return {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in m.content]}


# ---- calls ----------------------------------------------------------------------------------------------------------

def test_one_call(gate, ask):
    before = len(gate.model.requests)
    m = ask(user(["I add.", tool("mcp__demo__add", a=2, b=3)], ["It is five."]))
    assert kinds(m) == ["text", "mcp_tool_use", "mcp_tool_result", "text"] and m.stop_reason == "end_turn" and m.content[3].text == "It is five."
    use, result = m.content[1], m.content[2]
    assert (use.name, use.server_name, use.input) == ("add", "demo", {"a": 2, "b": 3}) and use.id.startswith("mcptoolu_")
    assert result.tool_use_id == use.id and result.is_error is False and "5" in result.content[0].text
    assert (m.usage.input_tokens, m.usage.output_tokens) == (20, 14)
    first, second = gate.model.requests[before:]
    assert len(gate.model.requests) == before + 2 and "mcp_servers" not in first and first["stream"] is True
    assert B11 not in gate.model.headers[-1].get("anthropic-beta", "")
    offered = {t["name"]: t for t in first["tools"]}
    assert offered["mcp__demo__add"]["description"] == "Adds two numbers." and set(offered["mcp__demo__add"]["input_schema"]["properties"]) == {"a", "b"}
    assert any(n.startswith("mcp__demo__odd_name_x_") for n in offered)
    assert second["messages"][-1]["content"][0]["type"] == "tool_result" and second["messages"][:1] == first["messages"]


def test_two_servers_at_once(gate, ask):
    m = ask(user([tool("mcp__demo__add", a=1, b=1), tool("mcp__safe__add", a=2, b=2)], [tool("mcp__safe__add", a=3, b=3)], ["done"]), servers=("demo", "safe"))
    assert kinds(m) == ["mcp_tool_use", "mcp_tool_use", "mcp_tool_result", "mcp_tool_result", "mcp_tool_use", "mcp_tool_result", "text"]
    assert [b.server_name for b in m.content if b.type == "mcp_tool_use"] == ["demo", "safe", "safe"]
    assert [b.content[0].text for b in m.content if b.type == "mcp_tool_result"] == ["2", "4", "6"]
    assert any(json.loads(line)["auth"] == "Bearer letmein" for line in gate.safe.lines("requests"))
    assert not any(json.loads(line)["auth"] for line in gate.demo.lines("requests"))


def test_tool_error_and_unknown_arguments(gate, ask):
    m = ask(user([tool("mcp__demo__boom"), tool("mcp__demo__add", a="x")], ["I see."]))
    results = [b for b in m.content if b.type == "mcp_tool_result"]
    assert [r.is_error for r in results] == [True, True] and "boom" in results[0].content[0].text and m.content[-1].text == "I see."
    assert all(b["is_error"] for b in gate.model.requests[-1]["messages"][-1]["content"])


def test_image_is_shown_to_the_model(gate, ask):
    m = ask(user([tool("mcp__demo__picture")], ["A picture."]))
    result = next(b for b in m.content if b.type == "mcp_tool_result")
    assert "image/png" in result.content[0].text and result.content[0].type == "text"
    assert gate.model.requests[-1]["messages"][-1]["content"][0]["content"][0]["source"]["media_type"] == "image/png"


def test_calls_run_side_by_side(gate, ask):
    """Both calls have begun before one may end; the client sees pings, and results in the order of the calls."""
    for f in ("go", "calls"):
        (gate.demo.dir / f).unlink(missing_ok=True)
    got = []
    t = threading.Thread(target=lambda: got.append(ask(user([tool("mcp__demo__look"), tool("mcp__demo__change")], ["ok"]))))
    t.start()
    wait_for(lambda: sorted(gate.demo.lines("calls")) == ["change", "look"], why="both calls run")
    gate.demo.go()
    t.join(60 * SLOW)
    assert [b.content[0].text for b in got[0].content if b.type == "mcp_tool_result"] == ["look done", "change done"]


# ---- the client's own tools, history -------------------------------------------------------------------------------

def test_mixed_turn_and_history(gate, ask):
    own = {"name": "mine", "input_schema": {"type": "object"}}
    msgs = user(["Both.", tool("mine", q=1), tool("mcp__demo__add", a=4, b=4)], ["Thanks.", tool("mcp__demo__add", a=5, b=5)], ["All done."])
    m = ask(msgs, tools=[own])
    assert kinds(m) == ["text", "tool_use", "mcp_tool_use", "mcp_tool_result"] and m.stop_reason == "tool_use"
    msgs += [dumped(m), {"role": "user", "content": [{"type": "tool_result", "tool_use_id": m.content[1].id, "content": "own result"}]}]
    m2 = ask(msgs, tools=[own])
    assert kinds(m2) == ["text", "mcp_tool_use", "mcp_tool_result", "text"] and m2.content[-1].text == "All done."
    sent = gate.model.requests[-1]["messages"]
    assert [b["type"] for b in sent[2]["content"]] == ["tool_result", "tool_result"] and sent[1]["content"][2]["name"] == "mcp__demo__add"
    msgs += [dumped(m2), *user(["Again."])]
    m3 = ask(msgs, tools=[own])                                     # translated to the same as before
    assert gate.model.requests[-1]["messages"][:len(sent)] == sent and m3.content[0].text == "Again."
    m4 = gate.client.messages.create(model=MODEL, max_tokens=9, messages=msgs, stream=True)        # and without any server
    assert "mcp_tool" not in json.dumps(gate.model.requests[-1]) and [e.type for e in m4][-1] == "message_stop"


def test_broken_history(gate):
    bad = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "mcp_tool_use", "id": "mcptoolu_1", "name": "add", "server_name": "demo", "input": {}}]}]
    with pytest.raises(anthropic.BadRequestError, match="messages.1.content.0.*no mcp_tool_result"):
        gate.client.beta.messages.create(model=MODEL, max_tokens=5, messages=bad, betas=[B11])


# ---- which tools ---------------------------------------------------------------------------------------------------

def test_configs(gate, ask):
    sets = [{"type": "mcp_toolset", "mcp_server_name": "demo", "default_config": {"enabled": False}, "configs": {"add": {"enabled": True, "defer_loading": True}, "ghost": {}},
             "cache_control": {"type": "ephemeral"}}]
    m = ask(user([tool("mcp__demo__boom")], ["ok"]), sets=sets)
    tools = gate.model.requests[-1]["tools"]
    assert [(t["name"], t["defer_loading"], t["cache_control"]["type"]) for t in tools] == [("mcp__demo__add", True, "ephemeral")]
    assert m.content[1].is_error and "not enabled" in m.content[1].content[0].text
    assert '"tool":"ghost"' in gate.server.proc.text()


def test_older_beta(gate):
    m = gate.client.beta.messages.create(model=MODEL, max_tokens=9, messages=user([tool("mcp__demo__add", a=1, b=2)], ["ok"]), betas=[B04],
                                         mcp_servers=[{**server(gate, "demo"), "tool_configuration": {"enabled": True, "allowed_tools": ["add"]}}])
    assert kinds(m) == ["mcp_tool_use", "mcp_tool_result", "text"] and [t["name"] for t in gate.model.requests[-1]["tools"]] == ["mcp__demo__add"]


def test_listings_and_pins(gate, ask):
    """The newer beta tells what a server offers; given back, or pinned, the server is not asked again: it need not even be there."""
    gate.late.start()
    m = ask(user(["Hello."]), servers=("late",), betas=(B09,))
    assert kinds(m) == ["mcp_tool_listing", "text"] and m.content[0].mcp_server_name == "late"
    listed = m.content[0].tools
    assert "odd.name/x" in [t.name for t in listed]
    gate.late.stop()
    msgs = [*user(["Hello."]), dumped(m), *user([tool("mcp__late__add", a=1, b=1)], ["Not there."])]
    m = ask(msgs, servers=("late",), betas=(B09,))
    assert kinds(m) == ["mcp_tool_use", "mcp_tool_result", "text"] and m.content[1].is_error and "late" in m.content[1].content[0].text
    assert len(gate.model.requests[-1]["tools"]) == len(listed)
    pin = [{"type": "mcp_toolset", "mcp_server_name": "late", "tools": [t.model_dump(exclude_none=True) for t in listed if t.name == "add"]}]
    gate.late.start()
    before = len(gate.late.lines("requests"))
    m = ask(user(["No call."]), servers=("late",), sets=pin, betas=(B09,))
    assert kinds(m) == ["text"] and len(gate.late.lines("requests")) == before
    m = ask(user([tool("mcp__late__add", a=1, b=1), tool("mcp__late__add", a=2, b=2)], ["Two."]), servers=("late",), sets=pin, betas=(B09,))
    assert [b.content[0].text for b in m.content if b.type == "mcp_tool_result"] == ["2", "4"]
    gate.late.stop()


def test_count_tokens(gate):
    n = gate.client.beta.messages.count_tokens(model=MODEL, messages=user(["x"]), mcp_servers=[server(gate, "demo")], betas=[B11],
                                               tools=[{"type": "mcp_toolset", "mcp_server_name": "demo"}])
    sent = gate.model.requests[-1]
    assert n.input_tokens == 11 and "mcp__demo__add" in json.dumps(sent["tools"]) and "stream" not in sent and "mcp_servers" not in sent


# ---- refusals and failures -----------------------------------------------------------------------------------------

def test_refused(gate):
    demo, sets = server(gate, "demo"), [{"type": "mcp_toolset", "mcp_server_name": "demo"}]
    before = len(gate.model.requests)
    for words, kw in [
        ("mcp-client-2025-11-20", {"betas": ["x-1"]}), ("no mcp_toolset", {"tools": []}), ("not in mcp_servers", {"mcp_servers": []}), ("there twice", {"mcp_servers": [demo, demo]}),
        ("has a toolset already", {"tools": sets * 2}), ("must start with https://", {"mcp_servers": [{**demo, "url": "ws://x/"}]}),
        ("is that of a tool of the MCP server", {"tools": [*sets, {"name": "mcp__demo__add", "input_schema": {"type": "object"}}]}),
        ("may not be called", {"mcp_servers": [{**demo, "url": "https://public.example.com/mcp"}]}), ("may not be called", {"mcp_servers": [{**demo, "url": "http://127.0.0.1:1/mcp"}]}),
    ]:
        with pytest.raises(anthropic.BadRequestError) as e:
            gate.client.beta.messages.create(**{"model": MODEL, "max_tokens": 5, "messages": user(["x"]), "mcp_servers": [demo], "tools": sets, "betas": [B11], **kw})
        assert words in e.value.body["error"]["message"] and e.value.body["error"]["type"] == "invalid_request_error", e.value.body
    assert len(gate.model.requests) == before


@pytest.mark.parametrize("stream", [False, True])
def test_connect_and_authentication_failures(gate, stream):
    for name, more, words in [("late", {}, "Connection to MCP server .*late.* failed"), ("safe", {"authorization_token": "wrong"}, "Authentication with MCP server .*safe.* failed")]:
        with pytest.raises(anthropic.BadRequestError, match=words) as e:
            gate.client.beta.messages.create(model=MODEL, max_tokens=5, messages=user(["x"]), mcp_servers=[server(gate, "demo"), {**server(gate, name), **more}], betas=[B11],
                                             tools=[{"type": "mcp_toolset", "mcp_server_name": n} for n in ("demo", name)], stream=stream)
        assert "wrong" not in str(e.value.body) and "letmein" not in gate.server.proc.text()


def test_errors_of_the_provider(gate, ask):
    with pytest.raises(anthropic.RateLimitError) as e:              # the first round: the client's to retry
        ask(user({"status": 429, "error": "rate_limit_error", "message": "slow", "headers": {"retry-after": "7"}, "times": 9}))
    assert e.value.response.headers["retry-after"] == "7" and e.value.body["error"]["message"] == "slow"
    m = ask(user([tool("mcp__demo__add", a=1, b=1)], {"status": 529, "error": "overloaded_error", "times": 2, "headers": {"retry-after-ms": "1"}, "then": ["after all"]}))
    assert m.content[-1].text == "after all"                        # a later one: ours, tools have run
    with pytest.raises(anthropic.APIStatusError, match="no more"):
        ask(user([tool("mcp__demo__add", a=1, b=1)], {"status": 400, "error": "invalid_request_error", "message": "no more", "times": 9}))
    with pytest.raises(anthropic.APIError, match="in the stream"):
        ask(user([tool("mcp__demo__add", a=1, b=1)], {"blocks": ["some text"], "error_after": 3, "error": "overloaded_error"}))
    with pytest.raises(anthropic.APIError, match="provider"):
        ask(user([tool("mcp__demo__add", a=1, b=1)], {"break_after": 4, "times": 9, "then": ["a text of some length, in pieces"]}))


def test_cut_turn_stays_well_formed(gate, ask):
    msgs = user({"blocks": ["Cut.", tool("mcp__demo__add", a=1, b=1)], "stop_reason": "max_tokens"}, ["Goes on."])
    before = len(gate.demo.lines("calls"))
    m = ask(msgs)
    assert m.stop_reason == "max_tokens" and kinds(m) == ["text", "mcp_tool_use", "mcp_tool_result"] and m.content[2].is_error and len(gate.demo.lines("calls")) == before
    assert ask([*msgs, dumped(m)]).content[0].text == "Goes on."


def test_too_many_rounds_pause(gate, ask):
    msgs = user(*[[tool("mcp__demo__add", a=n, b=0)] for n in range(33)], ["The end."])
    m = ask(msgs)
    assert m.stop_reason == "pause_turn" and kinds(m) == ["mcp_tool_use", "mcp_tool_result"] * 32
    m = ask([*msgs, dumped(m)])
    assert m.stop_reason == "end_turn" and kinds(m) == ["mcp_tool_use", "mcp_tool_result", "text"] and m.content[0].input == {"a": 32, "b": 0}


def test_client_leaves_while_a_tool_runs(gate):
    for f in ("go", "calls", "cancelled"):
        (gate.demo.dir / f).unlink(missing_ok=True)
    with gate.client.beta.messages.stream(model=MODEL, max_tokens=5, messages=user([tool("mcp__demo__look")], ["never"]), mcp_servers=[server(gate, "demo")], betas=[B11],
                                          tools=[{"type": "mcp_toolset", "mcp_server_name": "demo"}]) as s:
        next(iter(s))
        wait_for(lambda: gate.demo.lines("calls") == ["look"], why="the call runs")
    wait_for(lambda: gate.demo.lines("cancelled") == ["look"], why="the call is cancelled at its server")
    assert "outwork_messages_running 0" in gate.api.get("/metrics").value.decode()


def test_server_dies_while_a_tool_runs(gate, ask):
    gate.late.start()
    (gate.late.dir / "calls").unlink(missing_ok=True)
    got = []
    t = threading.Thread(target=lambda: got.append(ask(user([tool("mcp__late__look")], ["It broke."]), servers=("late",))))
    t.start()
    wait_for(lambda: gate.late.lines("calls") == ["look"], why="the call runs")
    gate.late.stop()
    t.join(60 * SLOW)
    assert got[0].content[1].is_error and got[0].content[-1].text == "It broke."


# ---- without MCP, other clients --------------------------------------------------------------------------------------

def test_script_calls_a_server(tmp_path, spec):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"models": ["script-1"], "scenarios": [{"turns": [
        {"text": "I add.", "tool_use": [{"name": "mcp__demo__add", "input": {"a": 20, "b": 3}}]}, {"text": "The tool says ${result}."}]}]}))
    demo = McpServer(tmp_path).start()
    w = World(tmp_path / "w", spec, None, script=script, server_args=["--mcp-private-ok", f"127.0.0.1:{demo.port}"])
    try:
        c = anthropic.Anthropic(base_url=w.server.url, api_key=w.key, max_retries=0)
        m = c.beta.messages.create(model="script-1", max_tokens=9, messages=[{"role": "user", "content": "go"}], betas=[B11], tools=[{"type": "mcp_toolset", "mcp_server_name": "demo"}],
                                   mcp_servers=[{"type": "url", "name": "demo", "url": demo.url}])
        assert m.content[-1].text == "The tool says 23."
    finally:
        w.close()
        demo.stop()


def test_typescript_client(gate):
    r = subprocess.run([shutil.which("node"), str(ROOT / "tests/clients/ts/messages_mcp.mjs"), plan([tool("mcp__demo__add", a=1, b=6)], ["from typescript"]), gate.demo.url],
                       text=True, capture_output=True, timeout=60 * SLOW, env={"PATH": "/usr/bin:/bin", "ANTHROPIC_BASE_URL": gate.server.url, "ANTHROPIC_API_KEY": gate.key})
    assert r.returncode == 0, r.stderr
    out = json.loads(r.stdout)
    assert out["create"] == out["stream"] and [b["type"] for b in out["create"]] == ["mcp_tool_use", "mcp_tool_result", "text"]
    assert out["create"][1]["content"][0]["text"] == "7"


def test_slow_reader(gate):
    """Also between rounds: the provider waits for a client that does not read, and nothing is lost."""
    sent, total = [], 40 * (300 + 2) + 3
    gate.model.on_event = lambda index, n: sent.append(n)
    body = json.dumps({"model": MODEL, "max_tokens": 5, "stream": True, "mcp_servers": [server(gate, "demo")], "tools": [{"type": "mcp_toolset", "mcp_server_name": "demo"}],
                       "messages": user([tool("mcp__demo__add", a=1, b=1)], {"blocks": ["y" * 600000 for _ in range(40)], "piece": 2000})}).encode()
    try:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        s.connect(("127.0.0.1", gate.server.port))
        s.sendall(f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gate.key}\r\nanthropic-beta: {B11}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: len(sent) > 100, why="the second round begins")
        last = -1
        while last != len(sent):            # until it stands still
            last = len(sent)
            time.sleep(0.5 * SLOW)
        assert len(sent) < total * 0.9, (len(sent), total)
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            piece = s.recv(1 << 20)
            assert piece
            got += piece
        assert got.count(b"event: message_stop") == got.count(b"event: message_start") == 1 and got.count(b"text_delta") == 40 * 300
    finally:
        gate.model.on_event = None
