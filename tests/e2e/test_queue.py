"""The work queue, call by call (worker.md 2 and 11), and what each credential may reach."""
import base64
import json
import threading
import time

import pytest

from harness import Api, plan, tool, wait_for


@pytest.fixture
def q(fresh):
    w = fresh()
    w.q = f"/v1/environments/{w.env_id}/work"
    w.e = Api(w.server.url, w.env_key, w.spec)
    return w


def poll(w, **kw):
    return w.e.get(w.q + "/poll" + kw.pop("query", ""), **kw).ok()


def token_of(item):
    text = item["secret"]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))["sessions_token"]


def test_life_of_an_item(q):
    empty = q.e.get(q.q + "/poll")
    assert empty.status == 200 and empty.value is None and empty.headers["content-type"].startswith("application/json")
    sid = q.session(plan([tool("bash", command="true")], ["end"]))
    item = poll(q)
    assert item["state"] == "queued" and item["data"] == {"type": "session", "id": sid} and item["secret"]
    assert poll(q) is None                                                  # reserved
    iid = item["id"]
    ack = q.e.post(f"{q.q}/{iid}/ack").ok()
    assert ack["state"] == "starting" and ack["secret"] is None and ack["acknowledged_at"]
    assert q.e.post(f"{q.q}/{iid}/ack").ok()["state"] == "starting"
    b1 = q.e.post(f"{q.q}/{iid}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT").ok()
    assert b1["state"] == "active" and b1["lease_extended"] and b1["ttl_seconds"] >= 10
    b2 = q.e.post(f"{q.q}/{iid}/heartbeat?expected_last_heartbeat={b1['last_heartbeat']}").ok()
    assert b2["last_heartbeat"] != b1["last_heartbeat"]
    q.e.post(f"{q.q}/{iid}/heartbeat?expected_last_heartbeat={b1['last_heartbeat']}").ok()      # a retransmission within the grace time
    r = q.e.post(f"{q.q}/{iid}/heartbeat?expected_last_heartbeat=2020-01-01T00:00:00Z")
    assert r.status == 412 and r.value["error"]["details"]["current_state"]["last_heartbeat"]
    assert q.e.post(f"{q.q}/{iid}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT").status == 412
    stats = q.api.get(q.q + "/stats").ok()
    assert stats["type"] == "work_queue_stats" and stats["depth"] == 0
    graceful = q.e.post(f"{q.q}/{iid}/stop", {})
    assert graceful.status == 204 and graceful.value == b""
    assert q.e.post(f"{q.q}/{iid}/stop", {}).status == 409
    beat = q.e.post(f"{q.q}/{iid}/heartbeat?expected_last_heartbeat=whatever").ok()
    assert beat["state"] == "stopping" and not beat["lease_extended"]
    assert q.e.request("POST", f"{q.q}/{iid}/stop", {"force": True}).status == 204
    got = q.api.get(f"{q.q}/{iid}").ok()
    assert got["state"] == "stopped" and got["stopped_at"] and got["secret"] is None
    conflict = q.e.post(f"{q.q}/{iid}/stop", {"force": True})
    assert conflict.status == 409 and conflict.headers["x-should-retry"] == "false"
    # the session still waits for a worker: it is offered again without any new user event
    again = wait_for(lambda: poll(q), timeout=10, why="a new offer")
    assert again["data"]["id"] == sid and again["id"] != iid


def test_unacked_item_is_offered_again(q):
    q.session(plan([tool("bash", command="true")]))
    first = poll(q, query="?reclaim_older_than_ms=300")
    assert poll(q, query="?reclaim_older_than_ms=300") is None
    again = wait_for(lambda: poll(q, query="?reclaim_older_than_ms=300"), timeout=5, why="reclaimed")
    assert again["id"] == first["id"]


def test_lapsed_lease_is_offered_again(q):
    q.session(plan([tool("bash", command="true")]))
    item = poll(q)
    q.e.post(f"{q.q}/{item['id']}/ack").ok()
    q.e.post(f"{q.q}/{item['id']}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT&desired_ttl_seconds=10").ok()
    t = time.monotonic()
    again = wait_for(lambda: poll(q, query="?block_ms=999"), timeout=20, why="offered after the lease lapsed")
    assert again["data"] == item["data"] and time.monotonic() - t > 8
    # the old holder is told
    assert q.e.post(f"{q.q}/{item['id']}/heartbeat?expected_last_heartbeat=2020-01-01T00:00:00.000Z").status in (412, 409, 404)


@pytest.mark.parametrize("bad", ["block_ms=0", "block_ms=1000", "block_ms=-1", "block_ms=x", "reclaim_older_than_ms=x"])
def test_poll_parameters(q, bad):
    q.e.get(f"{q.q}/poll?{bad}").error(400)


def test_waiting_poll_is_woken_at_once(q):
    agent = q.agent()
    for _ in range(5):
        got = {}

        def wait():
            got["item"] = poll(q, query="?block_ms=999")
            got["at"] = time.monotonic()

        th = threading.Thread(target=wait)
        th.start()
        time.sleep(0.15)
        t = time.monotonic()
        q.session(plan([tool("bash", command="true")]), agent=agent)
        th.join()
        assert got["item"] and got["at"] - t < 0.5
        q.e.post(f"{q.q}/{got['item']['id']}/ack").ok()


def test_one_live_item_per_session(q):
    sid = q.session(plan([tool("bash", command="true")], ["a"]))
    item = poll(q)
    q.e.post(f"{q.q}/{item['id']}/ack").ok()
    wait_for(lambda: any(e["type"] == "agent.tool_use" for e in q.events(sid)), why="the call")
    live = [i for i in q.api.get(q.q + "?limit=100").ok()["data"] if i["state"] != "stopped"]
    assert len(live) == 1
    call = next(e for e in q.events(sid) if e["type"] == "agent.tool_use")
    tok = Api(q.server.url, token_of(item), q.spec)
    tok.post(f"/v1/sessions/{sid}/events", {"events": [{"type": "user.tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "done"}]}]}).ok()
    # the same result again, as a client that lost the answer would send it
    tok.post(f"/v1/sessions/{sid}/events", {"events": [{"type": "user.tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "other"}]}]}).ok()
    events = q.idle(sid)
    assert [e["content"][0]["text"] for e in events if e["type"] == "user.tool_result"] == ["done"]
    q.say(sid, plan([tool("bash", command="true")], ["b"]))
    wait_for(lambda: sum(e["type"] == "agent.tool_use" for e in q.events(sid)) == 2, why="second call")
    assert len([i for i in q.api.get(q.q + "?limit=100").ok()["data"] if i["state"] != "stopped"]) == 1


def test_metadata_and_lists(q):
    for _ in range(3):
        q.session(plan([tool("bash", command="true")]))
    page = q.e.get(q.q + "?limit=2").ok()
    assert len(page["data"]) == 2 and page["next_page"]
    rest = q.e.get(f"{q.q}?limit=2&page={page['next_page']}").ok()
    assert len(rest["data"]) == 1 and rest["next_page"] is None
    iid = page["data"][0]["id"]
    assert q.api.post(f"{q.q}/{iid}", {"metadata": {"a": "1", "b": ""}}).ok()["metadata"] == {"a": "1", "b": ""}
    assert q.api.post(f"{q.q}/{iid}", {"metadata": {"a": None}}).ok()["metadata"] == {"b": ""}
    for k in range(3):
        q.e.get(q.q + "/poll", headers={"anthropic-worker-id": f"w{k % 2}"}).ok()
    stats = q.api.get(q.q + "/stats").ok()
    assert stats["pending"] == 3 and stats["workers_polling"] == 2 and stats["oldest_queued_at"]


def test_reach_of_each_credential(q):
    other = q.api.post("/v1/environments", {"name": "other", "config": {"type": "self_hosted"}}).ok()["id"]
    other_key = q.server.environment_key(other)
    mine = q.session(plan([tool("bash", command="true")]))
    q.env_id, keep = other, q.env_id
    theirs = q.session(plan([tool("bash", command="true")]))
    q.env_id = keep
    item = poll(q)
    tok, env, foreign = Api(q.server.url, token_of(item)), q.e, Api(q.server.url, other_key)
    assert env.get(f"/v1/sessions/{mine}").status == 200 and env.get(f"/v1/sessions/{theirs}").status == 404
    assert tok.get(f"/v1/sessions/{mine}").status == 200 and tok.get(f"/v1/sessions/{theirs}").status == 404
    assert foreign.get(q.q + "/poll").status in (403, 404)
    assert foreign.post(f"{q.q}/{item['id']}/ack").status in (403, 404)
    for api in (env, tok):
        assert api.get("/v1/agents").status in (401, 403)
        assert api.post("/v1/sessions", {"agent": "x", "environment_id": q.env_id}).status in (401, 403)
        assert api.delete(f"/v1/sessions/{mine}").status in (401, 403)
    assert q.api.post("/v1/sessions/" + mine + "/events", {"events": [{"type": "user.tool_result", "tool_use_id": "x", "content": []}]}).status in (400, 403)
    key_id = json.loads(q.server.cli("environment-key", "list", "--data", str(q.server.data), q.env_id, "--json"))[0]["id"]
    q.server.cli("environment-key", "revoke", "--data", str(q.server.data), key_id)
    env.get(q.q + "/poll").error(401)
    tok.post(f"{q.q}/{item['id']}/ack").ok()                                 # the item's own token stands
