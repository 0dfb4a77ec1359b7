"""kill -9 of the server at every step of a turn, then a restart: nothing acknowledged is lost, nothing committed is repeated."""
import threading
import time

import pytest

from harness import plan, tool, wait_for

CUSTOM = {"type": "custom", "name": "lookup", "description": "d", "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}}}
STEPS = plan([{"thinking": "t"}, "First I look.", tool("lookup", q="a"), tool("lookup", q="b")], ["Then I ", tool("lookup", q="c")], ["The end."])
RECOVERY = {"session.error", "session.status_rescheduled", "session.thread_status_rescheduled"}


def shape(events):
    """The public log without what recovery may add: extra request spans that ended in error, rescheduling, repeated running."""
    out, failed = [], {e["model_request_start_id"] for e in events if e["type"] == "span.model_request_end" and e["is_error"]}
    for e in events:
        t = e["type"]
        if t in RECOVERY or (t == "span.model_request_start" and e["id"] in failed) or (t == "span.model_request_end" and e["is_error"]):
            continue
        text = "".join(b.get("text", "") for b in e.get("content", []) if isinstance(b, dict)) if t in ("agent.message", "user.message", "user.custom_tool_result") else ""
        out.append((t, text or str(e.get("input", ""))))
    # after a recovery the session says again that it runs
    return [x for i, x in enumerate(out) if not (x[0] in ("session.status_running", "session.thread_status_running") and i and
                                                (x in out[max(0, i - 1):i] or out[i - 1][0] not in ("session.status_idle", "user.custom_tool_result", "session.status_running", "user.message")))]


def drive(w, sid, kill_when=None, seen=None):
    """Plays the client: answers custom calls until the end. Restarts the server whenever it was killed."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if not w.server.proc.alive():
                w.server.start()
            events = w.events(sid)
            answered = {e["custom_tool_use_id"] for e in events if e["type"] == "user.custom_tool_result"}
            status = [e for e in events if e["type"].startswith("session.status_")]
            if status and status[-1]["type"] == "session.status_idle":
                if status[-1]["stop_reason"]["type"] == "end_turn":
                    return events
                assert status[-1]["stop_reason"]["type"] == "requires_action", status[-1]
                for e in [e for e in events if e["type"] == "agent.custom_tool_use" and e["id"] not in answered][:1]:
                    w.send(sid, {"type": "user.custom_tool_result", "custom_tool_use_id": e["id"], "content": [{"type": "text", "text": "r " + e["input"]["q"]}]}).ok()
                    if seen is not None:
                        seen.append(e["id"])
        except (OSError, ConnectionError):
            pass
        time.sleep(0.01)
    raise AssertionError([e["type"] for e in w.events(sid)])


@pytest.fixture
def w(fresh):
    return fresh()


def reference(w, agent):
    sid = w.session(STEPS, agent=agent)
    return shape(drive(w, sid))


def test_kill_at_every_point_of_the_model_stream(w):
    agent = w.agent([CUSTOM])
    want = reference(w, agent)
    requests = len(w.model.requests)
    points = [("request", k, None) for k in range(requests)] + [("event", k, n) for k in range(requests) for n in (0, 1, 4, 9)]
    for kind, k, n in points:
        base, done = len(w.model.requests), threading.Event()

        def kill_on_request(index, body, k=k, base=base, done=done):
            if index - base == k and not done.is_set():
                done.set()
                w.server.proc.p.kill()

        def kill_on_event(index, at, k=k, n=n, base=base, done=done):
            if index - base == k and at == n and not done.is_set():
                done.set()
                w.server.proc.p.kill()

        w.model.on_request = kill_on_request if kind == "request" else None
        w.model.on_event = kill_on_event if kind == "event" else None
        sid = w.session(STEPS, agent=agent)
        events = drive(w, sid)
        w.model.on_request = w.model.on_event = None
        assert [x for x in shape(events) if "running" not in x[0]] == [x for x in want if "running" not in x[0]], (kind, k, n)
        ids = [e["id"] for e in events]
        assert len(ids) == len(set(ids))


def test_kill_at_random_moments(w):
    """Acknowledged events survive; every call has exactly one result; the order of the log never changes."""
    agent = w.agent([CUSTOM])
    want = [x for x in reference(w, agent) if "running" not in x[0]]
    for i in range(25):
        sid = w.session(STEPS, agent=agent)
        timer = threading.Timer(0.002 * i, w.server.proc.p.kill)
        timer.start()
        before = []
        events = drive(w, sid, seen=before)
        timer.join()
        answered = [e["custom_tool_use_id"] for e in events if e["type"] == "user.custom_tool_result"]
        assert len(answered) == len(set(answered)) == 3 and set(before) <= set(answered)
        assert [x for x in shape(events) if "running" not in x[0]] == want, i
        wait_for(lambda: w.server.proc.alive() and w.server.ready() if w.server.proc.alive() else w.server.start(), why="restart")


def test_sigterm_drains(w):
    agent = w.agent([CUSTOM])
    sid = w.session(plan({"blocks": ["finished before the end"], "delay": 1.0}), agent=agent)
    wait_for(lambda: any(e["type"] == "span.model_request_start" for e in w.events(sid)), why="the request")
    assert w.server.stop() == 0, w.server.proc.text()
    w.server.start()
    events = w.idle(sid)
    assert [e["content"][0]["text"] for e in events if e["type"] == "agent.message"] == ["finished before the end"]
    assert "session.status_rescheduled" not in [e["type"] for e in events]


def test_second_server_on_the_same_data_is_refused(w):
    import subprocess
    from harness import BIN, free_port
    r = subprocess.run([BIN, "server", "--listen", f"127.0.0.1:{free_port()}", "--data", str(w.server.data), "--model-provider", "script"], capture_output=True, text=True, timeout=20)
    assert r.returncode != 0 and str(w.server.data) in r.stderr
