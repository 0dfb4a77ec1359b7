"""Event sequences, custom tools, confirmations, interrupts, streams: what a client sees. No worker is involved unless said."""
import json
import threading
import time

import pytest

from harness import Stream, plan, tool, wait_for

CUSTOM = {"type": "custom", "name": "lookup", "description": "Looks a thing up.",
          "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}}


@pytest.fixture(scope="module")
def custom(world):
    return world.agent([CUSTOM], name="custom")


def public(events):
    return [e["type"] for e in events]


def result(e, text="found", **more):
    return {"type": "user.custom_tool_result", "custom_tool_use_id": e["id"], "content": [{"type": "text", "text": text}], **more}


def test_plain_turn_in_documented_order(world, custom):
    sid = world.session(agent=custom)
    st = Stream(world.api, f"/v1/sessions/{sid}/events/stream")
    sent = world.say(sid, plan([{"thinking": "hm"}, "Hello."]))["data"]
    assert sent[0]["processed_at"] is None and sent[0]["id"].startswith("sevt_")
    st.wait(lambda e: e["type"] == "session.status_idle")
    types = st.types()
    assert types[0] == "user.message" and types.count("user.message") == 2       # queued, then consumed
    assert set(types[1:3]) == {"session.status_running", "session.thread_status_running"}
    assert types[3:] == ["user.message", "span.model_request_start", "agent.thinking", "agent.message", "span.model_request_end",
                         "session.thread_status_idle", "session.usage", "session.status_idle"]
    by = {e["type"]: e for _, _, e in st.events()}
    assert by["span.model_request_end"]["model_request_start_id"] == by["span.model_request_start"]["id"]
    assert not by["span.model_request_end"]["is_error"] and by["span.model_request_end"]["model_usage"]["output_tokens"] == 7
    assert by["user.message"]["processed_at"]
    assert public(world.events(sid)) == types[1:3] + types[3:]
    st.close()


def test_resume_by_last_event_id(world, custom):
    sid = world.session(agent=custom)
    st = Stream(world.api, f"/v1/sessions/{sid}/events/stream")
    world.say(sid, plan(["one"]))
    st.wait(lambda e: e["type"] == "session.status_idle")
    all_frames = st.events()
    for cut in range(len(all_frames)):
        again = Stream(world.api, f"/v1/sessions/{sid}/events/stream", {"last-event-id": all_frames[cut][0]})
        want = all_frames[cut + 1:]
        wait_for(lambda: len(again.events()) >= len(want), why="the missed frames")
        assert again.events() == want
        again.close()
    live = Stream(world.api, f"/v1/sessions/{sid}/events/stream")       # without the header: only what comes after
    time.sleep(0.3)
    assert live.events() == []
    live.close(), st.close()


def test_deltas_are_a_prefix_and_carry_the_id(world, custom):
    sid = world.session(agent=custom)
    path = f"/v1/sessions/{sid}/events/stream"
    st = Stream(world.api, path + "?event_deltas[]=agent.message&event_deltas[]=agent.thinking")
    plain = Stream(world.api, path)
    world.say(sid, plan([{"thinking": "x"}, "A long answer in many pieces, to be shown as it comes."]))
    st.wait(lambda e: e["type"] == "session.status_idle")
    frames = [e for _, _, e in st.events()]
    message = next(e for e in frames if e["type"] == "agent.message")
    starts = [e for e in frames if e["type"] == "event_start"]
    assert [s["event"]["type"] for s in starts] == ["agent.thinking", "agent.message"]
    assert starts[1]["event"]["id"] == message["id"]
    text = "".join(e["delta"]["content"]["text"] for e in frames if e["type"] == "event_delta")
    assert text and message["content"][0]["text"].startswith(text)
    plain.wait(lambda e: e["type"] == "session.status_idle")
    assert not [t for t in plain.types() if t.startswith("event_")]
    world.api.get(path + "?event_deltas[]=nonsense").error(400)
    st.close(), plain.close()


def test_custom_tools_partial_answers(world, custom):
    sid = world.session(plan([tool("lookup", q="a"), tool("lookup", q="b")], ["both"]), agent=custom)
    events = world.idle(sid, "requires_action")
    calls = [e for e in events if e["type"] == "agent.custom_tool_use"]
    assert [c["input"]["q"] for c in calls] == ["a", "b"]
    assert events[-1]["stop_reason"]["event_ids"] == [c["id"] for c in calls]
    assert world.api.get(f"/v1/sessions/{sid}").ok()["status"] == "idle"
    world.api.post(f"/v1/sessions/{sid}/events", {"events": [{"type": "user.message", "content": [{"type": "text", "text": "x"}]}]}).error(400)
    world.send(sid, result(calls[1])).ok()
    events = world.idle(sid, "requires_action", after=1)
    assert events[-1]["stop_reason"]["event_ids"] == [calls[0]["id"]]
    first = world.send(sid, result(calls[1], "another")).ok()                 # a repeated answer is harmless and changes nothing
    assert first["data"][0]["content"][0]["text"] == "found"
    world.send(sid, result(calls[0])).ok()
    events = world.idle(sid)
    assert sum(e["type"] == "user.custom_tool_result" for e in events) == 2
    last = world.model.requests[-1]["messages"][-1]
    assert [b["type"] for b in last["content"]][:2] == ["tool_result", "tool_result"]


def test_wrong_answers_are_refused(world, custom):
    sid = world.session(plan([tool("lookup", q="a")], ["done"]), agent=custom)
    call = next(e for e in world.idle(sid, "requires_action") if e["type"] == "agent.custom_tool_use")
    world.send(sid, {"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_none", "content": []}).error(400)
    world.send(sid, {"type": "user.tool_confirmation", "tool_use_id": call["id"], "result": "allow"}).error(400)
    world.send(sid, {"type": "user.tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "x"}]}).error(403)
    world.send(sid, {"type": "agent.message", "content": []}).error(400)
    world.send(sid, {"type": "user.custom_tool_result", "custom_tool_use_id": call["id"], "content": [{"type": "text", "text": ""}]}).error(400)
    world.send(sid, result(call)).ok()
    world.idle(sid)


def test_interrupt_while_the_model_speaks(world, custom):
    sid = world.session(plan({"blocks": ["slow " * 40], "chunk_delay": 0.2}, ["after"]), agent=custom)
    wait_for(lambda: "span.model_request_start" in public(world.events(sid)), why="request begins")
    time.sleep(0.5)
    t = time.monotonic()
    world.send(sid, {"type": "user.interrupt"}).ok()
    events = world.idle(sid)
    assert time.monotonic() - t < 3
    tail = public(events)[-5:]
    assert "user.interrupt" in public(events) and tail[-1] == "session.status_idle" and tail[-2] == "session.usage"
    end = next(e for e in events if e["type"] == "span.model_request_end")
    assert end["is_error"] and "agent.message" not in public(events)
    world.say(sid, plan(["next turn"]))
    assert public(world.idle(sid, after=1))[-1] == "session.status_idle"


def test_interrupt_answers_open_calls(world, custom):
    sid = world.session(plan([tool("lookup", q="a"), tool("lookup", q="b")], ["never"]), agent=custom)
    calls = [e for e in world.idle(sid, "requires_action") if e["type"] == "agent.custom_tool_use"]
    world.send(sid, {"type": "user.interrupt"}).ok()
    n = len(world.model.requests)
    events = world.idle(sid)
    assert len(world.model.requests) == n                                    # no model call
    closed = [e for e in events if e["type"] == "user.custom_tool_result"]
    assert {e["custom_tool_use_id"] for e in closed} == {c["id"] for c in calls} and all(e["is_error"] for e in closed)
    world.say(sid, plan(["fine"]))
    assert world.idle(sid, after=2)


def test_queued_messages_are_consumed_together(world, custom):
    sid = world.session(plan({"blocks": ["first"], "delay": 1.0}), agent=custom)
    wait_for(lambda: "span.model_request_start" in public(world.events(sid)), why="request begins")
    world.say(sid, "second")
    world.say(sid, plan(["answer to both"]))
    events = world.idle(sid, timeout=20)
    assert [e["content"][0]["text"] for e in events if e["type"] == "agent.message"] == ["first", "answer to both"]
    # replay order: a message comes after everything that was emitted before the loop consumed it
    assert public(events).index("agent.message") < [i for i, e in enumerate(events) if e["type"] == "user.message"][1]


def test_model_errors_are_retried_then_given_up(world, custom):
    sid = world.session(plan({"status": 529, "times": 2, "error": "overloaded_error", "then": ["recovered"]}), agent=custom)
    events = world.idle(sid)
    types = public(events)
    errors = [e for e in events if e["type"] == "session.error"]
    assert errors and all(e["error"]["type"] == "model_overloaded_error" and e["error"]["retry_status"]["type"] == "retrying" for e in errors)
    assert "session.status_rescheduled" in types and types.count("session.status_running") >= 2
    assert types.count("agent.message") == 1
    sid = world.session(plan({"status": 400, "times": 99, "error": "invalid_request_error"}), agent=custom)
    events = world.idle(sid, "retries_exhausted")
    error = next(e for e in events if e["type"] == "session.error")["error"]
    assert error["type"] == "model_request_failed_error" and error["retry_status"]["type"] in ("exhausted", "terminal")
    world.say(sid, plan(["alive again"]))
    assert public(world.idle(sid, after=1)).count("agent.message") == 1


def test_broken_stream_and_retry_after(world, custom):
    sid = world.session(plan({"break_after": 3, "times": 1, "then": ["whole"]}), agent=custom)
    events = world.idle(sid)
    assert [e["content"][0]["text"] for e in events if e["type"] == "agent.message"] == ["whole"]
    assert [e["is_error"] for e in events if e["type"] == "span.model_request_end"] == [True, False]
    t = time.monotonic()
    sid = world.session(plan({"status": 429, "times": 1, "error": "rate_limit_error", "headers": {"retry-after": "2"}, "then": ["patient"]}), agent=custom)
    events = world.idle(sid)
    assert time.monotonic() - t >= 2
    assert next(e for e in events if e["type"] == "session.error")["error"]["type"] == "model_rate_limited_error"


@pytest.mark.parametrize("step,reason", [
    ({"blocks": ["no"], "stop_reason": "refusal", "stop_details": {"type": "refusal", "category": "cyber", "explanation": "x"}}, "refusal"),
    ({"blocks": ["stop"], "stop_reason": "stop_sequence"}, "end_turn"),
])
def test_stop_reasons(world, custom, step, reason):
    sid = world.session(plan(step), agent=custom)
    events = world.idle(sid, reason)
    assert events[-1]["stop_reason"]["type"] == reason


def test_cut_tool_call_is_never_executed(world, custom):
    sid = world.session(plan({"blocks": ["Looking", {"type": "tool_use", "id": "toolu_cut", "name": "lookup", "input": {}}], "stop_reason": "max_tokens"}, ["moved on"]), agent=custom)
    events = world.idle(sid)
    assert "agent.custom_tool_use" not in public(events)
    assert [e["content"][0]["text"] for e in events if e["type"] == "agent.message"][-1] == "moved on"


def test_unknown_tool_is_denied_and_the_turn_goes_on(world, custom):
    sid = world.session(plan([tool("nonsense", a=1)], ["saw it"]), agent=custom)
    events = world.idle(sid)
    assert [e["content"][0]["text"] for e in events if e["type"] == "agent.message"] == ["saw it"]
    last = world.model.requests[-1]["messages"][-1]["content"][0]
    assert last["type"] == "tool_result" and last["is_error"]


def test_pause_turn_continues(world, custom):
    sid = world.session(plan({"blocks": ["part"], "stop_reason": "pause_turn"}, ["rest"]), agent=custom)
    assert [e["content"][0]["text"] for e in world.idle(sid) if e["type"] == "agent.message"] == ["part", "rest"]


def test_delete_ends_streams_and_archive_refuses(world, custom):
    sid = world.session(plan(["x"]), agent=custom)
    world.idle(sid)
    st = Stream(world.api, f"/v1/sessions/{sid}/events/stream")
    world.api.delete(f"/v1/sessions/{sid}").ok()
    st.wait(lambda e: e["type"] == "session.deleted")
    wait_for(lambda: st.ended, why="the stream ends")
    world.api.get(f"/v1/sessions/{sid}").error(404)
    sid = world.session(agent=custom)
    st = Stream(world.api, f"/v1/sessions/{sid}/events/stream")
    assert world.api.post(f"/v1/sessions/{sid}/archive").ok()["status"] == "terminated"
    st.wait(lambda e: e["type"] == "session.status_terminated")
    r = world.send(sid, {"type": "user.message", "content": [{"type": "text", "text": "x"}]})
    assert r.status in (400, 409)
    assert world.api.get(f"/v1/sessions/{sid}").ok()["archived_at"]


def test_running_sessions_are_protected(world, custom):
    sid = world.session(plan({"blocks": ["slow"], "delay": 2}), agent=custom)
    wait_for(lambda: world.api.get(f"/v1/sessions/{sid}").ok()["status"] == "running", why="running")
    world.api.post(f"/v1/sessions/{sid}/archive").error(400)
    world.api.delete(f"/v1/sessions/{sid}").error(400)
    world.idle(sid)
    world.api.delete(f"/v1/sessions/{sid}").ok()


def test_update_session(world, custom):
    sid = world.session(agent=custom, title="a", metadata={"x": "1", "y": "2"})
    st = Stream(world.api, f"/v1/sessions/{sid}/events/stream")
    got = world.api.post(f"/v1/sessions/{sid}", {"title": "b", "metadata": {"x": None, "z": "3"}}).ok()
    assert got["title"] == "b" and got["metadata"] == {"y": "2", "z": "3"}
    ev = st.wait(lambda e: e["type"] == "session.updated")[2]
    assert ev["title"] == "b" and "agent" not in ev
    st.close()


def test_prompt_prefix_is_stable_and_marked_for_the_cache(world, custom):
    sid = world.session(plan(*[[f"part {i}", tool("lookup", q=str(i))] for i in range(5)], ["end"]), agent=custom)
    start = len(world.model.requests)
    for _ in range(5):
        events = world.idle(sid, "requires_action", after=0)
        call = [e for e in events if e["type"] == "agent.custom_tool_use"][-1]
        idles = sum(e["type"] == "session.status_idle" for e in events)
        world.send(sid, result(call)).ok()
        wait_for(lambda: sum(e["type"] == "session.status_idle" for e in world.events(sid)) > idles, why="next idle")
    reqs = world.model.requests[start - 1:]

    def bare(x):
        return json.dumps([{**m, "content": [{k: v for k, v in b.items() if k != "cache_control"} for b in m["content"]]} if isinstance(m["content"], list) else m
                           for m in x["messages"]])
    mine = [r for r in reqs if len(r["messages"]) and "part 0" in json.dumps(r["messages"][0])]
    for a, b in zip(mine, mine[1:]):
        assert bare(b).startswith(bare(a)[:-1]), "an earlier message changed between two requests"
        assert json.dumps(a["tools"]) == json.dumps(b["tools"]) and json.dumps(a.get("system")) == json.dumps(b.get("system"))
        assert "cache_control" in json.dumps(b)


def test_a_hundred_subscribers_hear_the_same(world, custom):
    sid = world.session(agent=custom)
    streams = [Stream(world.api, f"/v1/sessions/{sid}/events/stream") for _ in range(100)]
    world.say(sid, plan(["to all"]))
    for st in streams:
        st.wait(lambda e: e["type"] == "session.status_idle")
    first = streams[0].events()
    assert all(st.events() == first for st in streams)
    for st in streams:
        threading.Thread(target=st.close).start()


def test_slow_reader_does_not_hold_the_session(world, custom):
    import socket
    sid = world.session(agent=custom)
    host, port = world.server.url[7:].split(":")
    s = socket.create_connection((host, int(port)))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.sendall(f"GET /v1/sessions/{sid}/events/stream?event_deltas[]=agent.message HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {world.key}\r\n"
              "anthropic-beta: managed-agents-2026-04-01\r\n\r\n".encode())
    world.say(sid, plan(["y" * 400000]))
    events = world.idle(sid)
    assert len(next(e for e in events if e["type"] == "agent.message")["content"][0]["text"]) == 400000
    s.close()


def test_typescript_client(world, custom):
    import os, shutil, subprocess
    from harness import ROOT
    out = subprocess.run([shutil.which("node"), str(ROOT / "tests/clients/ts/client.mjs"), custom, world.env_id, plan(["from typescript"])],
                         env={**os.environ, "ANTHROPIC_API_KEY": world.key, "ANTHROPIC_BASE_URL": world.server.url}, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    got = json.loads(out.stdout)
    assert got["text"] == "from typescript" and got["status"] == "idle" and got["deleted"] == "session_deleted" and got["refused"] == 400
