"""The API as the official Python SDK sees it, and what it answers to bad input."""
import json
import subprocess

import anthropic
import pytest

from harness import MODEL, TOOLSET, Api, plan, tool


@pytest.fixture(scope="module")
def sdk(world):
    return anthropic.Anthropic(api_key=world.key, base_url=world.server.url, max_retries=0)


def test_the_documented_curl_call(world):
    out = subprocess.run(["curl", "-sS", f"{world.server.url}/v1/environments", "-H", f"x-api-key: {world.key}", "-H", "anthropic-beta: managed-agents-2026-04-01",
                          "-d", '{"name":"curl","config":{"type":"self_hosted"}}'], capture_output=True, text=True, check=True).stdout
    env = json.loads(out)
    assert env["type"] == "environment" and env["config"]["type"] == "self_hosted" and env["id"].startswith("env_")


def test_agents_by_sdk(sdk):
    a = sdk.beta.agents.create(name="a1", model=MODEL, system="Be brief.", tools=[TOOLSET], metadata={"k": "v"})
    assert a.version == 1 and a.model.id == MODEL and a.tools[0].type == TOOLSET["type"]
    assert sdk.beta.agents.update(a.id, version=1, name="a1").version == 1            # nothing changed: no new version
    b = sdk.beta.agents.update(a.id, version=1, system=None, metadata={"k": None, "n": "2"})
    assert b.version == 2 and b.metadata == {"n": "2"} and not b.system
    with pytest.raises(anthropic.ConflictError):
        sdk.beta.agents.update(a.id, version=1, name="late")
    assert sdk.beta.agents.retrieve(a.id, version=1).system == "Be brief."
    assert [v.version for v in sdk.beta.agents.versions.list(a.id)] == [2, 1]
    assert a.id in [x.id for x in sdk.beta.agents.list(limit=1)]                        # auto-paging over every page
    assert sdk.beta.agents.archive(a.id).archived_at
    with pytest.raises(anthropic.BadRequestError):
        sdk.beta.agents.update(a.id, version=2, name="x")
    assert a.id not in [x.id for x in sdk.beta.agents.list()]
    assert a.id in [x.id for x in sdk.beta.agents.list(include_archived=True)]


def test_environments_by_sdk(sdk):
    e = sdk.beta.environments.create(name="e1", config={"type": "self_hosted"}, description="d", metadata={"a": "1", "b": "2"})
    with pytest.raises(anthropic.ConflictError):
        sdk.beta.environments.create(name="e1", config={"type": "self_hosted"})
    u = sdk.beta.environments.update(e.id, metadata={"a": None, "b": "", "c": "3"}, description="")
    assert u.metadata == {"c": "3"} and not u.description and u.name == "e1"
    assert sdk.beta.environments.retrieve(e.id).id == e.id
    assert sdk.beta.environments.archive(e.id).archived_at
    sdk.beta.environments.archive(e.id)
    with pytest.raises(anthropic.BadRequestError):
        sdk.beta.environments.update(e.id, name="new")
    assert sdk.beta.environments.delete(e.id).type == "environment_deleted"
    with pytest.raises(anthropic.NotFoundError):
        sdk.beta.environments.retrieve(e.id)


def test_sessions_by_sdk(sdk, world):
    agent = world.agent([], name="plain")
    s = sdk.beta.sessions.create(agent=agent, environment_id=world.env_id, title="t", metadata={"a": "b"})
    assert s.status == "idle" and s.agent.id == agent and s.agent.version == 1
    with sdk.beta.sessions.events.stream(s.id) as stream:
        sdk.beta.sessions.events.send(s.id, events=[{"type": "user.message", "content": [{"type": "text", "text": plan(["Hello there."])}]}])
        seen = []
        for ev in stream:
            seen.append(ev.type)
            if ev.type == "session.status_idle":
                assert ev.stop_reason.type == "end_turn"
                break
    assert seen[0] == "user.message" and "session.status_running" in seen and "agent.message" in seen
    listed = [e.type for e in sdk.beta.sessions.events.list(s.id, limit=3)]
    assert listed.count("agent.message") == 1 and listed[-1] == "session.status_idle"
    assert [e.type for e in sdk.beta.sessions.events.list(s.id, types=["agent.message"])] == ["agent.message"]
    assert list(sdk.beta.sessions.events.list(s.id, order="desc"))[0].type == "session.status_idle"
    got = sdk.beta.sessions.retrieve(s.id)
    assert got.usage.output_tokens == 7 and got.usage.input_tokens == 10
    assert sdk.beta.sessions.update(s.id, title="new").title == "new"
    threads = list(sdk.beta.sessions.threads.list(s.id))
    assert len(threads) == 1 and threads[0].parent_thread_id is None
    assert [e.type for e in sdk.beta.sessions.threads.events.list(threads[0].id, session_id=s.id)][-1] == "session.updated"
    assert s.id in [x.id for x in sdk.beta.sessions.list(agent_id=agent, limit=2)]
    assert sdk.beta.sessions.archive(s.id).status == "terminated"
    with pytest.raises(anthropic.APIStatusError):
        sdk.beta.sessions.events.send(s.id, events=[{"type": "user.message", "content": [{"type": "text", "text": "x"}]}])
    assert sdk.beta.sessions.delete(s.id).type == "session_deleted"


def test_session_pages_go_both_ways(world):
    agent = world.agent([], name="pager")
    ids = [world.session(agent=agent) for _ in range(7)]
    q = f"/v1/sessions?agent_id={agent}&limit=3"
    p1 = world.api.get(q).ok()
    p2 = world.api.get(f"{q}&page={p1['next_page']}").ok()
    p3 = world.api.get(f"{q}&page={p2['next_page']}").ok()
    assert [s["id"] for p in (p1, p2, p3) for s in p["data"]] == ids[::-1]
    assert p1["prev_page"] is None and p3["next_page"] is None
    back = world.api.get(f"{q}&page={p3['prev_page']}").ok()
    assert [s["id"] for s in back["data"]] == [s["id"] for s in p2["data"]]
    world.api.get(f"/v1/sessions?agent_id={agent}&order=asc&page={p1['next_page']}").error(400)
    world.api.get(f"{q}&page=bogus").error(400)
    asc = world.api.get(f"/v1/sessions?agent_id={agent}&order=asc&limit=100").ok()
    assert [s["id"] for s in asc["data"]] == ids
    assert len(world.api.get(f"/v1/sessions?agent_id={agent}&statuses[]=idle&statuses%5B%5D=running").ok()["data"]) == 7
    assert world.api.get(f"/v1/sessions?agent_id={agent}&statuses[]=terminated").ok()["data"] == []


def test_models(sdk):
    ids = [m.id for m in sdk.models.list()]
    assert ids and sdk.models.retrieve(ids[0]).id == ids[0]


@pytest.mark.parametrize("path,body,words", [
    ("/v1/agents", {"model": MODEL}, ["name"]),
    ("/v1/agents", {"name": 5, "model": MODEL}, ["name"]),
    ("/v1/agents", {"name": "x", "model": MODEL, "tools": [{"type": "nonsense"}]}, ["tools.0"]),
    ("/v1/agents", {"name": "x", "model": MODEL, "tools": [{"type": "custom", "name": "bad name!", "description": "d", "input_schema": {"type": "object"}}]}, ["tools.0"]),
    ("/v1/agents", {"name": "x" * 257, "model": MODEL}, ["name", "256"]),
    ("/v1/agents", {"name": "x", "model": MODEL, "metadata": {"k": 1}}, ["metadata"]),
    ("/v1/environments", {"name": "x", "config": {"type": "cloud"}}, ["cloud"]),
    ("/v1/sessions", {"agent": "agent_none", "environment_id": "env_none"}, []),
])
def test_validation_names_the_path(world, path, body, words):
    r = world.api.post(path, body)
    assert r.status in (400, 404), r.value
    r.error(r.status, *words)


def test_bad_json_and_limits(world):
    world.api.request("POST", "/v1/agents", raw=b'{"name": ', headers={"content-type": "application/json"}).error(400)
    world.api.request("POST", "/v1/agents", raw=b"[" * 100000, headers={"content-type": "application/json"}).error(400)
    assert world.api.request("POST", "/v1/agents", raw=b'{"name":"' + b"x" * (33 << 20) + b'"}').status == 413


def test_credentials(world):
    assert Api(world.server.url, None).get("/v1/agents").error(401)["type"] == "authentication_error"
    assert Api(world.server.url, "ow-api-wrong").get("/v1/agents").error(401)
    assert Api(world.server.url, world.key, bearer=False).get("/v1/agents").ok()["data"] is not None
    both = world.api.get("/v1/agents", headers={"x-api-key": world.key})
    assert both.error(401)
    assert Api(world.server.url, world.env_key).get("/v1/agents").status in (401, 403)
    key = world.server.api_key("user")
    user = Api(world.server.url, key)
    user.get("/v1/agents").ok()
    assert user.post("/v1/agents", {"name": "x", "model": MODEL}).error(403)["type"] == "permission_error"
    listed = json.loads(world.server.cli("key", "list", "--data", str(world.server.data), "--json"))
    mine = next(k for k in listed if k["role"] == "user")
    world.server.cli("key", "revoke", "--data", str(world.server.data), mine["id"])
    assert user.get("/v1/agents").error(401)                                            # the very next request


def test_unserved_parts_say_so(world):
    for path in ("/v1/files", "/v1/skills", "/v1/deployments", "/v1/memory_stores"):
        r = world.api.get(path)
        assert r.status in (404, 501), (path, r.status)
        r.error(r.status)
    world.api.get("/v1/nothing").error(404)


def test_both_versions_and_query_forms(world):
    for version in ("2023-06-01", "2026-10-21", None):
        world.api.get("/v1/agents?beta=true&limit=1", headers={"anthropic-version": version}).ok()
    agent = world.agent([], name="q")
    sid = world.session(plan(["hi"]), agent=agent)
    world.idle(sid)
    for q in ("types[]=agent.message&types[]=session.status_idle", "types%5B%5D=agent.message&types%5B%5D=session.status_idle",
              "types=agent.message&types=session.status_idle"):
        assert [e["type"] for e in world.api.get(f"/v1/sessions/{sid}/events?{q}").ok()["data"]] == ["agent.message", "session.status_idle"]
    world.api.get(f"/v1/sessions/{sid}/events?limit=1001").error(400)
    world.api.get(f"/v1/sessions/{sid}/events?limit=0").error(400)


def test_health_and_metrics(world):
    api = Api(world.server.url, None)
    assert api.get("/healthz").status == 200 and api.get("/readyz").status == 200
    text = api.get("/metrics").value.decode()
    assert "# TYPE" in text and "http_requests_total" in text


def test_session_refusals(world):
    agent = world.agent([])
    base = {"agent": agent, "environment_id": world.env_id}
    world.api.post("/v1/sessions", {**base, "resources": [{"type": "file", "file_id": "file_1"}]}).error(400, "self-hosted")
    world.api.post("/v1/sessions", {**base, "initial_events": [{"type": "user.interrupt"}]}).error(400)
    world.api.post("/v1/sessions", {**base, "initial_events": [{"type": "user.message", "content": [{"type": "text", "text": "x"}]}] * 51}).error(400)
    sid = world.session(plan([tool("bash", command="sleep 1")]))
    world.api.post(f"/v1/sessions/{sid}/events", {"events": []}).error(400)
    world.api.get("/v1/sessions/sesn_none").error(404)
    world.api.delete("/v1/sessions/sesn_none").error(404)
