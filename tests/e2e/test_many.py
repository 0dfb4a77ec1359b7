"""Many sessions at once, and workers that die in the middle."""
import time
from concurrent.futures import ThreadPoolExecutor

from harness import plan, tool, wait_for


def check_answers(events):
    uses = [e["id"] for e in events if e["type"] == "agent.tool_use"]
    answered = [e["tool_use_id"] for e in events if e["type"] == "user.tool_result"]
    assert sorted(uses) == sorted(answered), "a call has no result, or two"


def test_fifty_sessions_in_parallel(fresh):
    w = fresh()
    worker = w.worker("outwork", "--max-sessions", "64")
    agent = w.agent()
    with ThreadPoolExecutor(16) as pool:
        sids = list(pool.map(lambda i: w.session(plan(
            [tool("bash", command=f"echo session {i} > me; sleep 0.{i % 5}; cat me")],
            [tool("read", file_path="me"), tool("bash", command="ls")], [f"end {i}"]), agent=agent), range(50)))
        logs = list(pool.map(lambda s: w.idle(s, timeout=120), sids))
    for i, events in enumerate(logs):
        check_answers(events)
        results = {e["tool_use_id"]: "".join(b.get("text", "") for b in e["content"]) for e in events if e["type"] == "user.tool_result"}
        out = [results[e["id"]] for e in events if e["type"] == "agent.tool_use"]  # two posts may overtake one another
        assert out[0].strip() == f"session {i}" and out[1].strip() == f"session {i}" and out[2].strip() == "me"
        assert [e["content"][0]["text"] for e in events if e["type"] == "agent.message"] == [f"end {i}"]
    assert worker.stop() == 0, worker.text()[-3000:]


def test_worker_killed_in_mid_call_another_takes_over(fresh):
    w = fresh(server_args=["--lease", "10s"])
    first = w.worker("outwork")
    sids = [w.session(plan([tool("bash", command="echo before")], [tool("bash", command="sleep 4; echo after")], ["end"])) for _ in range(4)]
    wait_for(lambda: all(sum(e["type"] == "agent.tool_use" for e in w.events(s)) == 2 for s in sids), timeout=30, why="second calls are out")
    time.sleep(0.5)
    first.kill()
    second = w.worker("outwork")
    for sid in sids:
        events = w.idle(sid, timeout=90)
        check_answers(events)
        assert [e["content"][0]["text"].strip() for e in events if e["type"] == "user.tool_result"] == ["before", "after"]
    assert second.stop() == 0


def test_sigterm_posts_what_is_done_and_gives_items_back(fresh):
    w = fresh()
    first = w.worker("outwork")
    sid = w.session(plan([tool("bash", command="echo partial; sleep 30")], ["end"]))
    wait_for(lambda: any(e["type"] == "agent.tool_use" for e in w.events(sid)), why="the call")
    time.sleep(1)
    t = time.monotonic()
    assert first.stop() == 0, first.text()[-3000:]
    assert time.monotonic() - t < 30
    events = w.idle(sid)
    check_answers(events)
    result = next(e for e in events if e["type"] == "user.tool_result")
    assert result["is_error"]
    items = w.api.get(f"/v1/environments/{w.env_id}/work").ok()["data"]
    assert all(i["state"] == "stopped" for i in items)


def test_no_worker_the_session_waits(fresh):
    w = fresh()
    sid = w.session(plan([tool("bash", command="echo late")], ["end"]))
    w.idle(sid, "requires_action")
    time.sleep(1)
    w.worker("outwork")
    check_answers(w.idle(sid))
