"""The worker as a whole program against a scripted service (fake_api.py). The sandbox is the real one."""
import hashlib
import json
import os
import signal
import stat
import time
import urllib.error
import urllib.request

import pytest

from fake_api import ENV, KEY

SLOW = float(os.environ.get("OUTWORK_SLOW", "1"))


def served(api, worker, *args, token=None, skills=None, before=None, **kw):
    """A session that is claimed and being served."""
    s = api.session(skills=skills)
    if before:
        before(s)
    wid = api.enqueue(s, token)
    w = worker(*args, **kw)
    api.wait(lambda: s.streams, 20 * SLOW, "stream")
    return s, wid, w


def audit(w):
    with open(os.path.join(w.state, "audit.jsonl")) as f:
        return [json.loads(line) for line in f]


# ---- the ordinary way ----

def test_calls_and_results(api, worker):
    s, wid, w = served(api, worker)
    a = s.bash("echo hello; echo $((6*7))")
    assert "hello\n42" in str(s.text(a) if api.wait_result(s, a) else "")
    assert not s.error(a)
    b = s.bash("cd /tmp && export X=1; false")
    api.wait_result(s, b)
    assert s.error(b)
    c = s.bash("echo $PWD $X")  # the shell lives on
    api.wait_result(s, c)
    assert s.text(c).strip() == "/tmp 1"
    d = s.tool("write", {"file_path": "notes/a.txt", "content": "one\ntwo\n"})
    api.wait_result(s, d)
    e = s.tool("grep", {"pattern": "tw", "path": "notes"})
    api.wait_result(s, e)
    assert "two" in s.text(e)
    f = s.tool("read", {"file_path": "/etc/shadow"})
    api.wait_result(s, f)
    assert s.error(f)
    g = s.tool("edit", {"file_path": "notes/a.txt"})  # input that the tool refuses
    api.wait_result(s, g)
    assert s.error(g) and "edit" in s.text(g)
    assert all(len(v) == 1 for v in s.results.values())
    for ev in (v[0] for v in s.results.values()):
        assert ev["type"] == "user.tool_result" and all(blk.get("text", "x") for blk in ev["content"])
    assert w.stop() == 0


@pytest.mark.parametrize("ending, status", [
    ("echo bye; exit 3", 3),
    ("echo bye; exec sh -c 'exit 4'", 4),
    ("echo bye; yes >/dev/null & exit 5", 5),
    ("echo bye; (while echo on; do :; done) & exit 6", 6),  # its output never pauses
])
def test_a_command_that_ends_the_shell(api, worker, ending, status):
    s, wid, w = served(api, worker)
    a = s.bash(ending)
    api.wait_result(s, a, 20 * SLOW)  # far below the command's own limit
    assert s.error(a) and f"exit code: {status}" in s.text(a)
    b = s.tool("bash", {"command": "echo back", "restart": True})
    api.wait_result(s, b)
    assert "back" in s.text(b) and not s.error(b)
    assert w.stop() == 0


def test_requests_and_headers(api, worker):
    s, wid, w = served(api, worker, "--worker-id", "tester-1")
    a = s.bash("true")
    api.wait_result(s, a)
    assert w.stop() == 0
    for r in api.requests:
        assert r.headers["anthropic-version"] == "2023-06-01", r.path
        assert r.headers["anthropic-beta"] == "managed-agents-2026-04-01", r.path
        assert r.bearer == KEY and "x-api-key" not in r.headers
    poll = api.seen("GET", "work/poll")[0]
    assert poll.query["block_ms"] == "999" and poll.headers["anthropic-worker-id"] == "tester-1"
    beat = api.seen("POST", "heartbeat")[0]
    assert beat.query["expected_last_heartbeat"] == "NO_HEARTBEAT"
    assert api.work[wid]["state"] == "stopped"
    order = [r.path.rsplit("/", 1)[1] for r in api.requests if wid in r.path]
    assert order[:2] == ["ack", "heartbeat"] and order[-1] == "stop"
    # the stream is open before the history is listed
    stream = next(i for i, r in enumerate(api.requests) if r.path.endswith("/events/stream"))
    listed = next(i for i, r in enumerate(api.requests) if r.path.endswith("/events") and r.method == "GET")
    assert stream < listed


def test_token_is_used_for_the_session(api, worker):
    s, wid, w = served(api, worker, token="sk-ant-req-one")
    a = s.bash("true")
    api.wait_result(s, a)
    assert w.stop() == 0
    for r in api.requests:
        mine = "/poll" in r.path or "/ack" in r.path
        assert r.bearer == (KEY if mine else "sk-ant-req-one"), r.path
    assert "sk-ant" not in w.log and KEY not in w.log


def test_broken_secret_falls_back_to_the_key(api, worker):
    s = api.session()
    api.enqueue(s, secret="!!not base64!!")
    w = worker()
    a = s.bash("true")
    api.wait_result(s, a)
    assert "work.secret" in w.log and "!!not" not in w.log
    assert api.seen("POST", "heartbeat")[0].bearer == KEY


def test_environment_is_clean_inside(api, worker):
    s, wid, w = served(api, worker, "--sandbox-env", "COLOUR=blue", token="sk-ant-req-env",
                       env={"ANTHROPIC_API_KEY": "sk-ant-api-x", "SECRET_OF_HOST": "yes"})
    a = s.bash("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; echo; echo $COLOUR")
    api.wait_result(s, a)
    out = s.text(a)
    assert "ANTHROPIC" not in out and "sk-ant" not in out and "SECRET_OF_HOST" not in out and "blue" in out
    # nor does any of our own processes show it
    pids = [w.proc.pid] + [int(p) for p in os.listdir("/proc") if p.isdigit() and parent(int(p)) == w.proc.pid]
    for pid in pids:
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                assert b"sk-ant" not in f.read(), pid
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            pass


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return int(f.read().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_audit_lines(api, worker):
    s, wid, w = served(api, worker)
    a = s.bash("echo secret-content; (exit 3)")
    b = s.tool("write", {"file_path": "x", "content": "very private"})
    api.wait_result(s, a)
    api.wait_result(s, b)
    assert w.stop() == 0
    lines = audit(w)
    tools = {line["tool_use"]: line for line in lines if line["kind"] == "tool"}
    assert tools[a]["tool"] == "bash" and tools[a]["exit"] == 3 and tools[a]["session"] == s.id and tools[a]["error"] is True
    assert tools[a]["asked"]["command_sha256"] == hashlib.sha256(b"echo secret-content; (exit 3)").hexdigest()
    assert tools[b]["tool"] == "write" and "very private" not in json.dumps(lines)
    changes = [(line["kind"], line["change"]) for line in lines if line["kind"] in ("lease", "session")]
    assert ("session", "begin") in changes and ("lease", "held") in changes and ("session", "end") in changes and ("lease", "released") in changes
    assert [line["seq"] for line in lines] == list(range(lines[0]["seq"], lines[0]["seq"] + len(lines)))
    for before, after in zip(lines, lines[1:]):
        assert len(after["prev"]) == 64
    assert stat.S_IMODE(os.stat(os.path.join(w.state, "audit.jsonl")).st_mode) == 0o600


# ---- routing ----

def test_history_first(api, worker):
    ids = {}

    def before(s):
        ids["done"] = s.bash("echo never > /workspace/never")
        s.add({"type": "user.tool_result", "tool_use_id": ids["done"], "content": []})
        ids["one"] = s.bash("echo 1 >> order")
        ids["two"] = s.bash("echo 2 >> order; ls")
        s.idle("requires_action")

    s, wid, w = served(api, worker, before=before)
    three = s.bash("echo 3 >> order; cat order")
    api.wait_result(s, three)
    assert s.text(three).split() == ["1", "2", "3"]
    assert "never" not in s.text(ids["two"]) and ids["done"] not in s.results


def test_paged_history(api, worker):
    def before(s):
        s.page_max = 3
        for i in range(10):
            s.add({"type": "agent.message", "content": []})
        s.last = s.bash("echo paged")
    s, wid, w = served(api, worker, before=before)
    api.wait_result(s, s.last)
    assert len(api.seen("GET", "/events$")) == 4


def test_ask_is_held_until_allowed(api, worker):
    s, wid, w = served(api, worker)
    a = s.bash("echo a", evaluated_permission="ask")
    b = s.bash("echo b", evaluated_permission="ask")
    c = s.bash("echo c")
    api.wait_result(s, c)
    assert a not in s.results and b not in s.results
    s.add({"type": "user.tool_confirmation", "tool_use_id": b, "result": "deny"})
    s.add({"type": "user.tool_confirmation", "tool_use_id": a, "result": "allow"})
    api.wait_result(s, a)
    time.sleep(0.3)
    assert b not in s.results


def test_foreign_tools_are_left_alone(api, worker):
    s, wid, w = served(api, worker)
    a = s.tool("deploy_to_production", {})
    b = s.add({"type": "agent.custom_tool_use", "name": "bash", "input": {"command": "echo no"}})
    c = s.bash("true")
    api.wait_result(s, c)
    assert a not in s.results and b not in s.results


def test_reconnect_runs_nothing_twice(api, worker):
    s, wid, w = served(api, worker)
    a = s.bash("echo x >> count")
    api.wait_result(s, a)
    for _ in range(2):
        n = s.stream_opens
        s.cut_streams()
        api.wait(lambda: s.stream_opens > n and s.streams, 10, "reconnect")
    missed = s.bash("echo y >> count", live=False)  # only in the history
    n = s.stream_opens
    s.cut_streams()
    api.wait_result(s, missed)
    b = s.bash("cat count")
    api.wait_result(s, b)
    assert s.text(b).split() == ["x", "y"]
    assert all(len(v) == 1 for v in s.results.values())


def test_failed_posts_are_repeated_but_calls_are_not(api, worker):
    s, wid, w = served(api, worker)
    api.fail("POST", f"/v1/sessions/{s.id}/events", 503, times=2)
    api.fail("POST", f"/v1/sessions/{s.id}/events", 0, times=1)
    a = s.bash("echo x >> count; wc -l < count")
    api.wait_result(s, a, 20)
    assert s.text(a).strip() == "1"
    posts = api.seen("POST", "/events$")
    assert len(posts) >= 4 and len({p.body for p in posts}) == 1
    b = s.bash("wc -l < count")
    api.wait_result(s, b)
    assert s.text(b).strip() == "1"


def test_refused_post_is_dropped(api, worker):
    s, wid, w = served(api, worker)
    api.fail("POST", f"/v1/sessions/{s.id}/events", 400)
    a = s.bash("echo x >> count")
    b = s.bash("cat count")
    api.wait_result(s, b)
    s.cut_streams()
    n = s.stream_opens
    api.wait(lambda: s.stream_opens > n, 10)
    time.sleep(0.5)
    c = s.bash("cat count")
    api.wait_result(s, c)
    assert a not in s.results and s.text(c).split() == ["x"]


def test_interrupt(api, worker):
    s, wid, w = served(api, worker)
    a = s.bash("echo begun; sleep 60; echo not reached")
    b = s.bash("echo queued")
    time.sleep(0.5)
    t = time.monotonic()
    i = s.add({"type": "user.interrupt"})
    api.wait_result(s, a)
    api.wait_result(s, b)
    assert time.monotonic() - t < 3
    assert s.error(a) and "interrupted" in s.text(a) and "begun" in s.text(a) and "not reached" not in s.text(a)
    assert s.error(b) and "not run" in s.text(b)
    c = s.bash("echo again")
    s.add({"type": "user.interrupt", "id": i})  # the same one, told again
    api.wait_result(s, c)
    assert s.text(c).strip().endswith("again") and not s.error(c)


# ---- the end of a session ----

def test_idle_ends_the_session(api, worker):
    s, wid, w = served(api, worker, "--max-idle", "500ms")
    a = s.bash("true")
    api.wait_result(s, a)
    t = time.monotonic()
    s.idle()
    api.wait_state(wid, "stopped")
    assert 0.4 < time.monotonic() - t < 5
    # and it comes back with its files
    wid2 = api.enqueue(s)
    api.wait(lambda: s.streams, 10)
    b = s.bash("ls -A | wc -l; echo kept > f")
    api.wait_result(s, b)
    s.idle()
    api.wait_state(wid2, "stopped")
    api.enqueue(s)
    api.wait(lambda: s.streams, 10)
    c = s.bash("cat f")
    api.wait_result(s, c)
    assert s.text(c).strip() == "kept"
    assert w.stop() == 0


def test_requires_action_does_not_end_it(api, worker):
    s, wid, w = served(api, worker, "--max-idle", "200ms")
    s.idle("requires_action")
    time.sleep(0.8)
    assert api.work[wid]["state"] == "active"


@pytest.mark.parametrize("kind", ["session.status_terminated", "session.deleted"])
def test_terminated(api, worker, kind):
    s, wid, w = served(api, worker)
    s.add({"type": kind})
    api.wait_state(wid, "stopped")


def test_control_plane_stop(api, worker):
    api.ttl = 2
    s, wid, w = served(api, worker)
    a = s.bash("sleep 60")
    time.sleep(0.3)
    api.work[wid]["state"] = "stopping"
    api.wait_state(wid, "stopped", 20)
    assert len(s.results.get(a, [])) == 1 and s.error(a)        # posted before the stop


def test_lost_lease_posts_nothing_and_stops_nothing(api, worker):
    api.ttl = 2
    s, wid, w = served(api, worker)
    a = s.bash("sleep 3; echo late")
    time.sleep(0.3)
    api.work[wid]["last"] = "someone else"
    w.wait_log("lease.lost")
    time.sleep(3.5)
    assert a not in s.results and not api.seen("POST", f"{wid}/stop")
    s2 = api.session()
    api.enqueue(s2)  # the worker itself goes on
    b = s2.bash("true")
    api.wait_result(s2, b)
    assert w.stop() == 0


def test_heartbeats_survive_faults_and_blocked_tools(api, worker):
    api.ttl = 4
    s, wid, w = served(api, worker)
    api.wait_state(wid, "active")
    api.fail("POST", "heartbeat", 500, times=1)
    a = s.bash("sleep 9")
    api.wait_result(s, a, 20)
    assert not s.error(a)
    beats = [r.at for r in api.seen("POST", "heartbeat")]
    gaps = [b - a for a, b in zip(beats, beats[1:])]
    assert len(beats) >= 4 and max(gaps) < 2.8 * SLOW, gaps
    assert api.work[wid]["state"] == "active"


def test_assumed_lost(api, worker):
    api.ttl = 2
    s, wid, w = served(api, worker)
    api.wait_state(wid, "active")      # the first beat has told how long the lease lasts
    api.fail("POST", "heartbeat", 503, times=100)
    w.wait_log("session.end", 15)
    assert not api.seen("POST", f"{wid}/stop")


def test_first_beat_says_stopping(api, worker):
    s = api.session()
    wid = api.enqueue(s)
    orig = api.work[wid]
    api.fail("POST", "heartbeat", 200, body={"type": "work_heartbeat", "last_heartbeat": "x", "lease_extended": True, "state": "stopping", "ttl_seconds": 60})
    w = worker()
    api.wait_state(wid, "stopped")
    assert "lease.stopped_at_once" in w.log and orig["state"] == "stopped"


def test_session_that_cannot_be_read(api, worker):
    s = api.session()
    wid = api.enqueue(s)
    api.fail("GET", f"/v1/sessions/{s.id}$", 404, times=10)
    w = worker()
    api.wait_state(wid, "stopped")
    assert "session.get_failed" in w.log


def test_other_work_types(api, worker):
    a = api.enqueue("hc_1", type="healthcheck")
    b = api.enqueue("x_1", type="unheard_of")
    worker()
    api.wait_state(a, "stopped")
    api.wait_state(b, "stopped")


# ---- many sessions ----

def test_sessions_run_side_by_side(api, worker):
    ss = [api.session() for _ in range(4)]
    for s in ss:
        api.enqueue(s)
    w = worker("--warm", "4")
    api.wait(lambda: all(s.streams for s in ss), 20 * SLOW)
    t = time.monotonic()
    ids = [s.bash("sleep 1; hostname >/dev/null; echo done") for s in ss]
    for s, i in zip(ss, ids):
        api.wait_result(s, i)
    assert time.monotonic() - t < 2.5 * SLOW
    assert w.stop() == 0
    assert all(x["state"] == "stopped" for x in api.work.values())


def test_max_sessions(api, worker):
    a, b = api.session(), api.session()
    wa, wb = api.enqueue(a), api.enqueue(b)
    w = worker("--max-sessions", "1", "--max-idle", "200ms")
    api.wait(lambda: a.streams, 10 * SLOW)
    time.sleep(1)
    assert api.work[wb]["state"] == "queued" and len(api.seen("GET", "poll")) == 1
    a.idle()
    api.wait_state(wa, "stopped")
    api.wait_state(wb, "active")


# ---- polling ----

def test_held_polls_follow_at_once(api, worker):
    w = worker()
    time.sleep(3.5)
    polls = [r.at for r in api.seen("GET", "poll")]
    assert len(polls) >= 3
    s = api.session()
    t = time.monotonic()
    api.enqueue(s)
    api.wait(lambda: s.streams, 5)
    assert time.monotonic() - t < 0.5 * SLOW


def test_other_services_are_polled_with_pauses(api, worker):
    api.held = False
    worker()
    time.sleep(5)
    polls = [r.at for r in api.seen("GET", "poll")]
    gaps = [b - a for a, b in zip(polls, polls[1:])]
    assert gaps and all(1.9 < g < 4.5 for g in gaps), gaps


def test_a_false_held_header_is_no_busy_loop(api, worker):
    api.fail("GET", "poll", 200, times=1000, headers={"outwork-poll": "held"}, body=None)
    for f in api.faults:
        f.body = b"null"
    worker()
    time.sleep(2)
    assert len(api.seen("GET", "poll")) <= 3


def test_poll_backs_off_and_recovers(api, worker):
    api.fail("GET", "poll", 529, times=1, headers={"retry-after": "1"})
    api.fail("GET", "poll", 0, times=1)
    w = worker()
    s = api.session()
    api.enqueue(s)
    api.wait(lambda: s.streams, 20)
    assert "poll.retry" in w.log


@pytest.mark.parametrize("status,code", [(401, 3), (403, 3), (404, 1), (400, 1)])
def test_fatal_poll(api, worker, status, code):
    api.fail("GET", "poll", status, times=10)
    w = worker()
    assert w.wait(10 * SLOW) == code
    assert "poll.refused" in w.log


def test_wrong_key(api, worker):
    w = worker(key="sk-ant-oat01-wrong")
    assert w.wait(10 * SLOW) == 3


def test_ack_failures(api, worker):
    s = api.session()
    wid = api.enqueue(s)
    api.fail("POST", f"{wid}/ack", 404)
    w = worker()
    api.wait_state(wid, "stopped")
    s2 = api.session()
    w2 = api.enqueue(s2)
    api.fail("POST", f"{w2}/ack", 503)
    w.wait_log("work.ack_failed")
    api.wait(lambda: api.seen("POST", f"{w2}/ack"), 10)
    time.sleep(0.5)
    assert api.work[w2]["state"] == "queued" and not api.seen("POST", f"{w2}/(stop|heartbeat)")


# ---- shutdown ----

@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_shutdown(api, worker, sig):
    s, wid, w = served(api, worker)
    a = s.bash("echo begun; sleep 60")
    b = s.bash("echo queued")
    time.sleep(0.6)
    t = time.monotonic()
    assert w.stop(sig) == 0
    assert time.monotonic() - t < 10
    assert s.error(a) and "begun" in s.text(a) and s.error(b)
    assert api.work[wid]["state"] == "stopped"


def test_shutdown_while_the_service_hangs(api, worker):
    s, wid, w = served(api, worker)
    a = s.bash("sleep 60")
    time.sleep(0.3)
    api.fail("POST", "", 503, times=1000)
    t = time.monotonic()
    code = w.stop(timeout=40)
    assert time.monotonic() - t < 30 and code in (0, 1)


def test_second_signal(api, worker):
    s, wid, w = served(api, worker)
    s.bash("trap '' INT TERM; sleep 60")
    time.sleep(0.3)
    api.fail("POST", "", 503, times=1000)
    w.proc.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    t = time.monotonic()
    assert w.stop() == 1
    assert time.monotonic() - t < 3


def test_idle_worker_ends_at_once(api, worker):
    w = worker()
    api.wait(lambda: api.seen("GET", "poll"), 10 * SLOW)
    t = time.monotonic()
    assert w.stop() == 0
    assert time.monotonic() - t < 2 * SLOW


# ---- limits of the sandbox ----

def test_a_killed_sandbox_says_so_and_a_new_one_follows(api, worker):
    s, wid, w = served(api, worker, "--sandbox-memory", "128MiB")
    a = s.bash("echo kept > f; x=1; python3 -c 'b = bytearray(1); l = []\nwhile True: l.append(bytearray(50_000_000))' || true; echo after")
    api.wait_result(s, a, 60)
    b = s.bash("cat f")
    api.wait_result(s, b)
    assert "kept" in s.text(b)
    if "sandbox was killed" in s.text(a):
        assert s.error(a) and "restarted" in s.text(b)


def test_call_time_limit(api, worker):
    s, wid, w = served(api, worker, "--sandbox-call", "1s")
    a = s.bash("echo part; sleep 30", live=True)
    api.wait_result(s, a, 20)
    assert s.error(a)
    b = s.bash("echo alive")
    api.wait_result(s, b)
    assert "alive" in s.text(b)


def test_output_is_bounded(api, worker):
    s, wid, w = served(api, worker)
    a = s.bash("head -c 3000000 /dev/zero | tr '\\0' x; echo END")
    api.wait_result(s, a)
    assert len(s.text(a)) < 110_000 and s.text(a).rstrip().endswith("END")


# ---- health ----

def test_health_and_metrics(api, worker):
    import socket
    with socket.socket() as k:
        k.bind(("127.0.0.1", 0))
        port = k.getsockname()[1]
    s, wid, w = served(api, worker, "--health-listen", f"127.0.0.1:{port}")
    a = s.bash("true")
    api.wait_result(s, a)
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz").read() == b"ok\n"
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    assert "outwork_worker_call_seconds_count 1" in text and "outwork_worker_sessions 1" in text
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/other")
    assert e.value.code == 404
    assert w.stop() == 0


def test_idle_memory(api, worker):
    w = worker()
    time.sleep(2.5)
    with open(f"/proc/{w.proc.pid}/status") as f:
        rss = next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
    print(f"idle RSS {rss} KiB")
    if SLOW == 1:
        assert rss < 8 * 1024


# ---- run, on-work ----

def test_run(api, worker):
    s = api.session()
    wid = api.enqueue(s, "sk-ant-req-run")
    api.queue.clear()
    secret = api.work[wid]["secret"]
    w = worker(sub=["run"], key=None, env={"ANTHROPIC_WORK_ID": wid, "ANTHROPIC_SESSION_ID": s.id, "ANTHROPIC_WORK_SECRET": secret})
    api.wait(lambda: s.streams, 10 * SLOW)
    a = s.bash("echo ran")
    api.wait_result(s, a)
    s.add({"type": "session.status_terminated"})
    assert w.wait() == 0
    assert api.work[wid]["state"] == "stopped"
    assert not api.seen("GET", "poll") and not api.seen("POST", "ack")
    assert all(r.bearer == "sk-ant-req-run" for r in api.requests)


def test_run_wants_its_item(api, worker):
    w = worker(sub=["run"], env={"ANTHROPIC_SESSION_ID": "session_1"})
    assert w.wait() == 2
    assert "ANTHROPIC_WORK_ID" in w.log


def test_run_lost_lease(api, worker):
    s = api.session()
    wid = api.enqueue(s)
    api.queue.clear()
    api.work[wid]["last"] = "someone else's"
    w = worker(sub=["run", "--session-id", s.id, "--work-id", wid])
    assert w.wait() == 1
    assert not api.seen("POST", "stop")


def script(tmp_path, text):
    p = tmp_path / "on-work.sh"
    p.write_text("#!/bin/bash\n" + text)
    p.chmod(0o755)
    return str(p)


def test_on_work(api, worker, tmp_path):
    s = api.session()
    wid = api.enqueue(s, "sk-ant-req-onwork")
    w = worker("--on-work", script(tmp_path, f"cat > {tmp_path}/item; env > {tmp_path}/env; echo to-stderr; exit 3"))
    api.wait_state(wid, "stopping")
    item = json.loads((tmp_path / "item").read_text())
    assert item["id"] == wid and item["secret"]
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert env["ANTHROPIC_WORK_ID"] == wid and env["ANTHROPIC_SESSION_ID"] == s.id and env["ANTHROPIC_ENVIRONMENT_ID"] == ENV
    assert env["ANTHROPIC_ENVIRONMENT_KEY"] == KEY and "ANTHROPIC_WORK_SECRET" not in env
    assert "to-stderr" in w.log and "on_work.failed" in w.log
    assert not api.seen("POST", "heartbeat")
    assert api.seen("POST", "stop")[0].json == {}
    assert w.stop() == 0


def test_on_work_owns_stop(api, worker, tmp_path):
    wid = api.enqueue(api.session())
    w = worker("--on-work", script(tmp_path, "exit 0"), "--on-work-owns-stop")
    w.wait_log("on_work.done")
    time.sleep(0.5)
    assert not api.seen("POST", "stop") and api.work[wid]["state"] == "starting"


def test_on_work_is_serial_and_stops(api, worker, tmp_path):
    a, b = api.enqueue(api.session()), api.enqueue(api.session())
    w = worker("--on-work", script(tmp_path, "trap 'echo got-term; exit 0' TERM; sleep 60 & wait"))
    w.wait_log("on_work.started")
    time.sleep(0.5)
    assert api.work[b]["state"] == "queued"
    assert w.stop() == 0
    assert "got-term" in w.log


def test_on_work_script_missing(api, worker):
    w = worker("--on-work", "/nonexistent/script")
    assert w.wait() == 1


# ---- settings ----

@pytest.mark.parametrize("args,env,text", [
    (["--environment-id", "env/../x"], {}, "environment-id"),
    (["--base-url", "ftp://x"], {}, "base-url"),
    (["--sandbox-weak", "everything"], {}, "sandbox-weak"),
    (["--sandbox-env", "NOVALUE"], {}, "sandbox-env"),
    (["--sandbox-env", "ANTHROPIC_X=1"], {}, "sandbox-env"),
    (["--sandbox-ro", "relative"], {}, "sandbox-ro"),
    (["--no-such-flag"], {}, "no-such-flag"),
    (["--environment-key", "sk-x"], {}, "environment-key"),
    (["--max-sessions", "0"], {}, "max-sessions"),
])
def test_usage_errors(api, worker, args, env, text):
    w = worker(*args, env=env)
    assert w.wait() == 2
    assert text in w.log


def test_key_file(api, worker, tmp_path):
    f = tmp_path / "key"
    f.write_text(KEY + "\n")
    f.chmod(0o604)
    w = worker("--environment-key-file", str(f), key=None)
    assert w.wait() == 2
    f.chmod(0o600)
    s = api.session()
    api.enqueue(s)
    w = worker("--environment-key-file", str(f), key=None)
    api.wait(lambda: s.streams, 10 * SLOW)
    assert w.stop() == 0


def test_one_writer_of_the_audit_log(api, worker):
    w = worker()
    api.wait(lambda: api.seen("GET", "poll"), 10 * SLOW)
    w2 = worker(state=w.state)
    assert w2.wait() == 1
    assert "--state-dir" in w2.log
    assert w.stop() == 0


def test_old_sessions_are_forgotten(api, worker):
    s, wid, w = served(api, worker, "--max-idle", "100ms")
    a = s.bash("mkdir -p d/e; echo x > d/e/f")
    api.wait_result(s, a)
    s.idle()
    api.wait_state(wid, "stopped")
    assert w.stop() == 0
    d = os.path.join(w.state, "sessions", s.id)
    assert os.path.isdir(d)
    old = time.time() - 7200
    os.utime(d, (old, old))
    w = worker("--keep-sessions", "1h", state=w.state)
    end = time.monotonic() + 30
    while os.path.exists(d) and time.monotonic() < end:
        time.sleep(0.2)
    assert not os.path.exists(d)
    assert w.stop() == 0
