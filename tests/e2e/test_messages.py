"""POST /v1/messages and count_tokens as a gateway to the provider, with the official SDKs against the fake Messages API."""
from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time

import anthropic
import pytest

from harness import MODEL, ROOT, SLOW, plan, tool, wait_for

SAY = [{"role": "user", "content": plan(["Hello from the provider."])}]


@pytest.fixture(scope="module")
def gate(world):
    world.model.unstreamed = True
    world.client = anthropic.Anthropic(base_url=world.server.url, api_key=world.key, max_retries=0, timeout=60 * SLOW)
    return world


def user(*steps):
    return [{"role": "user", "content": plan(*steps)}]


def raw_call(world, body: bytes, path="/v1/messages", headers=None, key=None):
    """One plain HTTP exchange on a socket of its own; the socket, positioned after the head, and the head."""
    s = socket.create_connection(("127.0.0.1", world.server.port))
    h = {"host": "x", "authorization": f"Bearer {key or world.key}", "content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    s.sendall(f"POST {path} HTTP/1.1\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in h.items()).encode() + b"\r\n" + body)
    return s


# ---- passing through ----------------------------------------------------------------------------------------------

def test_create(gate):
    r = gate.client.messages.with_raw_response.create(model=MODEL, max_tokens=100, messages=SAY)
    m = r.parse()
    assert m.content[0].text == "Hello from the provider." and m.stop_reason == "end_turn" and m.usage.output_tokens == 7
    assert r.headers["request-id"].startswith("req_01") and r.headers["anthropic-organization-id"] == "org_outwork"
    assert r.headers["anthropic-ratelimit-requests-remaining"] == "99" and r.headers["x-provider-request-id"].startswith("req_")
    seen = {k.lower(): v for k, v in gate.model.headers[-1].items()}
    assert seen["x-api-key"] == "sk-test-model-key" and gate.key not in json.dumps(seen)
    assert seen["anthropic-version"] in ("2023-06-01", "2026-10-21") and "authorization" not in seen


def test_body_is_not_touched(gate):
    body = b'{ "model":"' + MODEL.encode() + b'",\n "max_tokens": 1.0e2, "temperature":0.10000000000000000555, "metadata": {"user_id":"\\u0041\\/"},' \
           b' "messages":[{"role":"user","content":"big 123456789012345678901234567890"}], "x-unknown": [1E400, -0.0] }'
    s = raw_call(gate, body, headers={"anthropic-version": "2026-10-21", "anthropic-beta": "one-2026-01-01, two-2026-01-01", "anthropic-workspace-id": "wrkspc_x"})
    assert s.recv(12) == b"HTTP/1.1 200"
    assert gate.model.raw[-1] == body
    seen = {k.lower(): v for k, v in gate.model.headers[-1].items()}
    assert seen["anthropic-version"] == "2026-10-21" and seen["anthropic-beta"] == "one-2026-01-01, two-2026-01-01"
    assert "anthropic-workspace-id" not in seen


def test_stream(gate):
    with gate.client.messages.stream(model=MODEL, max_tokens=100, messages=user([{"thinking": "hm"}, "A text that comes in pieces: äöü ✓.", tool("look", at=1.5)]),
                                     tools=[{"name": "look", "input_schema": {"type": "object"}}]) as stream:
        text = "".join(stream.text_stream)
        m = stream.get_final_message()
    assert text == "A text that comes in pieces: äöü ✓." and m.stop_reason == "tool_use"
    assert [b.type for b in m.content] == ["thinking", "text", "tool_use"] and m.content[2].input == {"at": 1.5}
    assert gate.model.paths[-1] == "/v1/messages"


def test_stream_bytes_are_the_providers(gate):
    frames = 'event: message_start\r\ndata: {"type":"message_start",  "n":1.50}\r\n\r\n: comment\n\nevent: ping\ndata: {}\n\ndata: last without an end\n'
    body = json.dumps({"model": MODEL, "stream": True, "messages": user({"blocks": [], "raw": frames, "type": "text/event-stream; charset=utf-8"})}).encode()
    s = raw_call(gate, body, headers={"connection": "close"})
    got = b""
    while piece := s.recv(65536):
        got += piece
    head, rest = got.split(b"\r\n\r\n", 1)
    assert b"content-type: text/event-stream; charset=utf-8" in head.lower() and b"request-id: req_01" in head
    out = b""
    while not rest.startswith(b"0\r\n"):
        size, rest = rest.split(b"\r\n", 1)
        out, rest = out + rest[:int(size, 16)], rest[int(size, 16) + 2:]
    assert out == frames.encode()


def test_beta_and_count_tokens(gate):
    n = gate.client.messages.count_tokens(model=MODEL, messages=SAY)
    assert n.input_tokens == 11 and gate.model.paths[-1] == "/v1/messages/count_tokens"
    n = gate.client.beta.messages.count_tokens(model=MODEL, messages=SAY, betas=["context-management-2025-06-27"], context_management={"edits": []})
    assert n.input_tokens == 11 and gate.model.paths[-1].startswith("/v1/messages/count_tokens")
    assert "context-management-2025-06-27" in gate.model.headers[-1].get("anthropic-beta", "")
    m = gate.client.beta.messages.create(model=MODEL, max_tokens=5, messages=SAY, betas=["some-beta-2026-01-01"])
    assert m.content[0].text == "Hello from the provider." and "some-beta-2026-01-01" in gate.model.headers[-1]["anthropic-beta"]


def test_large_request(gate):
    text = "x" * (20 << 20)
    m = gate.client.messages.create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}, *SAY])
    assert m.content[0].text == "Hello from the provider." and len(gate.model.requests[-1]["messages"][0]["content"]) == 20 << 20
    gate.model.raw.clear()


# ---- errors -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status,kind,cls,headers", [
    (429, "rate_limit_error", anthropic.RateLimitError, {"retry-after": "17"}), (529, "overloaded_error", anthropic.APIStatusError, {}),
    (400, "invalid_request_error", anthropic.BadRequestError, {"x-should-retry": "false"}), (413, "request_too_large", anthropic.APIStatusError, {}),
    (404, "not_found_error", anthropic.NotFoundError, {}), (500, "api_error", anthropic.InternalServerError, {}), (403, "permission_error", anthropic.PermissionDeniedError, {}),
])
def test_provider_errors(gate, status, kind, cls, headers, stream):
    step = {"status": status, "error": kind, "message": f"words {status}", "headers": headers, "times": 9}
    with pytest.raises(cls) as e:
        gate.client.messages.create(model=MODEL, max_tokens=5, messages=user(step), stream=stream)
    assert e.value.status_code == status
    assert e.value.body["error"] == {"type": kind, "message": f"words {status}"} and e.value.body["type"] == "error"
    assert e.value.body["request_id"] == e.value.response.headers["request-id"] != "req_fake"
    for k, v in headers.items():
        assert e.value.response.headers[k] == v


def test_provider_credential_is_not_the_clients(gate):
    with pytest.raises(anthropic.InternalServerError) as e:
        gate.client.messages.create(model=MODEL, max_tokens=5, messages=user({"status": 401, "error": "authentication_error", "times": 9}))
    assert e.value.status_code == 502 and "credential" in e.value.body["error"]["message"]


def test_retry_goes_through(gate):
    client = gate.client.with_options(max_retries=2)
    m = client.messages.create(model=MODEL, max_tokens=5, messages=user({"status": 429, "error": "rate_limit_error", "headers": {"retry-after-ms": "1"}, "times": 1}))
    assert m.content[0].text == "recovered"


def test_error_event_in_the_stream(gate):
    with pytest.raises(anthropic.APIStatusError) as e:
        with gate.client.messages.stream(model=MODEL, max_tokens=5, messages=user({"blocks": ["some text here"], "error_after": 3, "error": "overloaded_error"})) as s:
            for _ in s:
                pass
    assert "injected in the stream" in str(e.value)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_provider_breaks_off(gate, after):
    with pytest.raises(anthropic.APIError) as e:
        with gate.client.messages.stream(model=MODEL, max_tokens=5, messages=user({"break_after": after, "times": 9, "then": ["a text of some length, in pieces"]})) as s:
            for _ in s:
                pass
    assert "provider" in str(e.value)
    with pytest.raises(anthropic.InternalServerError) as e:
        gate.client.messages.create(model=MODEL, max_tokens=5, messages=user({"break_after": after, "times": 9}))
    assert e.value.status_code == 502


def test_html_instead_of_an_answer(gate):
    step = {"blocks": [], "raw": "<html>proxy</html>", "type": "text/html"}
    r = gate.client.messages.with_raw_response.create(model=MODEL, max_tokens=5, messages=user(step))
    assert r.headers["content-type"] == "text/html"


@pytest.mark.parametrize("body,words", [
    (b"", "body"), (b"[]", "body"), (b"{", "body: not valid JSON at offset 1"), (b"{}", "model: Field required"), (b'{"model":1}', "model"),
    (b'{"model":"m","model":"n"}', "twice"), (b'{"model":"m","stream":1}', "stream"), (b'{"model":"m"} x', "offset 14"), (b'{"model":"' + b"m" * 300 + b'"}', "model"),
    (b'{"model":"m","mod\\u0065l":"n"}', "twice"), (b'{"model":"m","a":' + b"[" * 100 + b"]" * 100 + b"}", "offset"),
])
def test_refused_here(gate, body, words):
    before = len(gate.model.requests)
    r = gate.api.request("POST", "/v1/messages", raw=body, headers={"content-type": "application/json"})
    assert words in r.error(400)["message"]
    assert len(gate.model.requests) == before


def test_who_may(gate):
    weak = gate.server.api_key("user")
    assert anthropic.Anthropic(base_url=gate.server.url, api_key=weak).messages.create(model=MODEL, max_tokens=5, messages=SAY).stop_reason == "end_turn"
    for key in ("ow-api-wrong", gate.env_key):
        with pytest.raises((anthropic.AuthenticationError, anthropic.PermissionDeniedError)):
            anthropic.Anthropic(base_url=gate.server.url, api_key=key, max_retries=0).messages.create(model=MODEL, max_tokens=5, messages=SAY)


# ---- slow and leaving clients -------------------------------------------------------------------------------------

def test_client_leaves_a_stream(gate):
    gate.model.cut.clear()
    step = {"blocks": ["x" * 400000], "chunk_delay": 0.001}
    with gate.client.messages.stream(model=MODEL, max_tokens=5, messages=user(step)) as s:
        next(iter(s.text_stream))
    wait_for(gate.model.cut.is_set, why="the provider's call is cut")
    wait_for(lambda: "outwork_messages_running 0" in metrics(gate), why="nothing runs")


def test_client_leaves_before_the_answer(gate):
    """The provider has not begun to answer; the server hangs up on it as soon as the client is gone."""
    began, seen = threading.Event(), threading.Event()

    def hold(index, body):
        began.set()
        seen.wait(20 * SLOW)

    gate.model.on_request = hold
    try:
        for stream in (False, True):
            began.clear()
            s = raw_call(gate, json.dumps({"model": MODEL, "max_tokens": 5, "stream": stream, "messages": SAY}).encode())
            assert began.wait(20 * SLOW)
            assert "outwork_messages_running 1" in metrics(gate)
            s.close()
            wait_for(lambda: "outwork_messages_running 0" in metrics(gate), why="the call is cancelled while the provider still thinks")
    finally:
        seen.set()
        gate.model.on_request = None


def metrics(world) -> str:
    return world.api.get("/metrics").value.decode()


def test_slow_reader_slows_the_provider(gate):
    """A client that does not read: the provider is not read either, so that nothing piles up here; then every byte arrives."""
    sent = []
    gate.model.on_event = lambda index, n: sent.append(n)
    blocks = ["y" * 600000 for _ in range(40)]
    whole = json.dumps({"model": MODEL, "stream": True, "messages": user({"blocks": blocks, "piece": 2000})}).encode()
    try:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        s.connect(("127.0.0.1", gate.server.port))
        s.sendall(f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gate.key}\r\ncontent-length: {len(whole)}\r\n\r\n".encode() + whole)
        total = 40 * (300 + 2) + 3
        wait_for(lambda: sent, why="the stream begins")
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
        assert len(sent) >= total and got.count(b"event: message_stop") == 1 and got.count(b"text_delta") == 40 * 300
    finally:
        gate.model.on_event = None


def test_server_ends_while_streaming(fresh):
    w = fresh()
    client = anthropic.Anthropic(base_url=w.server.url, api_key=w.key, max_retries=0)
    with client.messages.stream(model=MODEL, max_tokens=5, messages=user({"blocks": ["z" * 2000], "chunk_delay": 0.01})) as s:
        it = iter(s.text_stream)
        text = next(it)
        stopper = threading.Thread(target=w.server.stop)
        stopper.start()
        text += "".join(it)                 # the drain lets it finish
        assert text == "z" * 2000
    stopper.join()


# ---- the provider `script` ----------------------------------------------------------------------------------------

SCRIPT = {
    "models": ["script-1"], "default": "Nothing is scripted.",
    "scenarios": [
        {"name": "fail", "when": {"user": "fail"}, "turns": [{"text": "recovered", "error": {"status": 529, "times": 1}}]},
        {"name": "late", "when": {"user": "late"}, "turns": [{"text": "0123456789" * 20, "error": {"status": 529, "times": 1, "after_chunks": 2}}]},
        {"name": "cut", "when": {"user": "cut"}, "turns": [{"text": "0123456789" * 20, "error": {"status": 0, "times": 1, "after_chunks": 2}}]},
        {"name": "hello", "turns": [{"thinking": "hm", "text": "I look: äöü ✓ and more text.", "tool_use": [{"name": "look", "input": {"at": [1, 2.5]}}], "usage": {"output_tokens": 77}},
                                    {"text": "I saw: ${result}"}]},
    ],
}


def test_script(tmp_path, spec):
    from harness import World
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    w = World(tmp_path / "w", spec, None, script=script)
    try:
        c = anthropic.Anthropic(base_url=w.server.url, api_key=w.key, max_retries=0)
        ask = [{"role": "user", "content": "hello"}]
        m = c.messages.create(model="script-1", max_tokens=100, messages=ask)
        assert [b.type for b in m.content] == ["thinking", "text", "tool_use"] and m.stop_reason == "tool_use" and m.usage.output_tokens == 77
        with c.messages.stream(model="script-1", max_tokens=100, messages=ask) as s:
            streamed = s.get_final_message()
        assert [b.to_dict() for b in streamed.content] == [b.to_dict() for b in m.content] and streamed.usage.output_tokens == 77 and m.content[2].input == {"at": [1, 2.5]}
        ask += [{"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in m.content]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": m.content[2].id, "content": "a cat"}]}]
        assert c.messages.create(model="script-1", max_tokens=100, messages=ask).content[0].text == "I saw: a cat"
        assert c.messages.count_tokens(model="script-1", messages=ask).input_tokens > 10
        for stream in (False, True):
            fail = [{"role": "user", "content": f"fail {stream}"}]
            with pytest.raises(anthropic.APIStatusError) as e:
                c.messages.create(model="script-1", max_tokens=100, messages=fail, stream=stream)
            assert e.value.status_code == 529 and e.value.body["error"]["type"] == "overloaded_error"
            again = c.messages.create(model="script-1", max_tokens=100, messages=fail, stream=stream)
            assert stream or again.content[0].text == "recovered"
        for word in ("late", "cut"):
            with pytest.raises(anthropic.APIError):
                with c.messages.stream(model="script-1", max_tokens=100, messages=[{"role": "user", "content": word}]) as s:
                    s.get_final_message()
            with c.messages.stream(model="script-1", max_tokens=100, messages=[{"role": "user", "content": word}]) as s:
                assert s.get_final_message().content[0].text == "0123456789" * 20
    finally:
        w.close()


# ---- TypeScript ---------------------------------------------------------------------------------------------------

def test_typescript_client(gate):
    node = shutil.which("node")
    r = subprocess.run([node, str(ROOT / "tests/clients/ts/messages.mjs"), plan([{"thinking": "hm"}, "from typescript", tool("look", n=3)])], text=True, capture_output=True,
                       timeout=60 * SLOW, env={"PATH": "/usr/bin:/bin", "ANTHROPIC_BASE_URL": gate.server.url, "ANTHROPIC_API_KEY": gate.key})
    assert r.returncode == 0, r.stderr
    out = json.loads(r.stdout)
    assert out["create"] == out["stream"] and out["create"][1]["text"] == "from typescript" and out["tokens"] == 11
    assert out["error"] == {"status": 429, "type": "rate_limit_error", "retry": "3"}
