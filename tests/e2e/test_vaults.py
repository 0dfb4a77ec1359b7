"""Vaults, their credentials and OAuth refresh: the real server, the official SDK, a provider that rotates its tokens."""
import json
import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import anthropic
import pytest

from fake_oauth import Provider
from harness import BIN, ROOT, SLOW, plan, tool, wait_for

ALLOW = {"enabled": True, "permission_policy": {"type": "always_allow"}}


def soon(seconds):
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).isoformat()


@pytest.fixture
def provider():
    p = Provider()
    yield p
    p.close()


@pytest.fixture
def w(fresh, provider):
    return fresh(server_args=["--mcp-private-ok", f"127.0.0.1:{provider.port}"])


@pytest.fixture(scope="module")
def sdk(world):
    return anthropic.Anthropic(base_url=world.server.url, api_key=world.key, max_retries=0)


@pytest.fixture
def vault(world):
    v = world.api.post("/v1/vaults", {"display_name": "test"}).ok()
    yield v["id"]
    world.api.delete(f"/v1/vaults/{v['id']}")


def oauth(p, path="/mcp/a", expires=3600, auth=None, refresh=True, **more):
    a, r = p.grant()
    body = {"type": "mcp_oauth", "mcp_server_url": p.url + path, "access_token": a}
    if expires is not None:
        body["expires_at"] = soon(expires)
    if refresh:
        body["refresh"] = {"token_endpoint": p.url + "/token", "client_id": "client-1", "refresh_token": r, "token_endpoint_auth": auth or {"type": "none"}, **more}
    return body


def new_vault(w, name="v", metadata=None):
    return w.api.post("/v1/vaults", {"display_name": name, **({"metadata": metadata} if metadata else {})}).ok()["id"]


def add(w, vault_id, auth, **more):
    return w.api.post(f"/v1/vaults/{vault_id}/credentials", {"auth": auth, **more})


def expire(p):
    """What the provider does when a token's time is over."""
    with p.lock:
        p.access.clear()


def mcp_agent(w, *urls):
    return w.agent([{"type": "mcp_toolset", "mcp_server_name": f"s{i}", "default_config": ALLOW} for i in range(len(urls))],
                   mcp_servers=[{"type": "url", "name": f"s{i}", "url": u} for i, u in enumerate(urls)])


def of(events, kind):
    return [e for e in events if e["type"] == kind]


def text(event):
    return "".join(b.get("text", "") for b in event["content"])


def assert_sealed(w, p, *more):
    """No secret occurs in any file of the data directory or in any log."""
    blobs = [(str(f), f.read_bytes()) for f in w.server.data.rglob("*") if f.is_file()]
    blobs += [("log", w.server.proc.text().encode())]
    assert any(b"https" in b or b"http" in b for _, b in blobs)
    for s in [*p.secrets, *more]:
        for name, blob in blobs:
            assert s.encode() not in blob, (s, name)


# ---- vaults, by the SDK

def test_vaults_by_the_sdk(sdk, world):
    v = sdk.beta.vaults.create(display_name="mine", metadata={"team": "a"})
    assert v.id.startswith("vlt_") and v.type == "vault" and v.archived_at is None and v.metadata == {"team": "a"}
    assert sdk.beta.vaults.retrieve(v.id) == v
    u = sdk.beta.vaults.update(v.id, display_name="ours", metadata={"team": None, "x": "1"})
    assert u.display_name == "ours" and u.metadata == {"x": "1"} and u.updated_at > v.updated_at
    more = [sdk.beta.vaults.create(display_name=f"n{i}").id for i in range(5)]
    listed = [x.id for x in sdk.beta.vaults.list(limit=2)]
    assert listed[:6] == [*reversed(more), v.id]
    a = sdk.beta.vaults.archive(v.id)
    assert a.archived_at is not None and sdk.beta.vaults.archive(v.id) == a
    assert v.id not in [x.id for x in sdk.beta.vaults.list()] and v.id in [x.id for x in sdk.beta.vaults.list(include_archived=True)]
    with pytest.raises(anthropic.BadRequestError):
        sdk.beta.vaults.update(v.id, display_name="again")
    d = sdk.beta.vaults.delete(v.id)
    assert d.id == v.id and d.type == "vault_deleted"
    with pytest.raises(anthropic.NotFoundError):
        sdk.beta.vaults.retrieve(v.id)
    for i in more:
        world.api.delete(f"/v1/vaults/{i}").ok()


def test_credentials_by_the_sdk(sdk, vault):
    c = sdk.beta.vaults.credentials.create(vault, display_name="bearer", metadata={"k": "v"},
                                           auth={"type": "static_bearer", "mcp_server_url": "https://MCP.example.com:443/x/", "token": "tok-1"})
    assert c.id.startswith("vcrd_") and c.vault_id == vault and c.auth.type == "static_bearer" and c.auth.mcp_server_url == "https://MCP.example.com:443/x/"
    assert "token" not in c.auth.to_dict()
    assert sdk.beta.vaults.credentials.retrieve(c.id, vault_id=vault) == c
    u = sdk.beta.vaults.credentials.update(c.id, vault_id=vault, auth={"type": "static_bearer", "token": "tok-2"}, metadata={"k": None, "z": "y"})
    assert u.metadata == {"z": "y"} and u.display_name == "bearer" and u.updated_at > c.updated_at
    assert sdk.beta.vaults.credentials.update(c.id, vault_id=vault, display_name=None).display_name is None
    o = sdk.beta.vaults.credentials.create(vault, auth={
        "type": "mcp_oauth", "mcp_server_url": "https://o.example.com", "access_token": "acc", "expires_at": soon(100),
        "refresh": {"token_endpoint": "https://o.example.com/t", "client_id": "cid", "refresh_token": "ref", "scope": "a b", "resource": "https://o.example.com",
                    "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "sec"}}})
    assert o.auth.refresh.client_id == "cid" and o.auth.refresh.scope == "a b" and o.auth.refresh.token_endpoint_auth.type == "client_secret_post"
    e = sdk.beta.vaults.credentials.create(vault, auth={"type": "environment_variable", "secret_name": "API_KEY", "secret_value": "val",
                                                        "networking": {"type": "limited", "allowed_hosts": ["api.example.com", "*.example.org", "192.0.2.1"]}})
    assert e.auth.injection_location.body and e.auth.injection_location.header
    assert [x.id for x in sdk.beta.vaults.credentials.list(vault, limit=1)] == [e.id, o.id, c.id]
    a = sdk.beta.vaults.credentials.archive(c.id, vault_id=vault)
    assert a.archived_at and sdk.beta.vaults.credentials.archive(c.id, vault_id=vault) == a
    assert len(list(sdk.beta.vaults.credentials.list(vault))) == 2 and len(list(sdk.beta.vaults.credentials.list(vault, include_archived=True))) == 3
    assert sdk.beta.vaults.credentials.delete(o.id, vault_id=vault).type == "vault_credential_deleted"
    with pytest.raises(anthropic.NotFoundError):
        sdk.beta.vaults.credentials.retrieve(o.id, vault_id=vault)


def test_vault_rules(world, vault):
    api = world.api
    api.post("/v1/vaults", {}).error(400, "display_name")
    api.post("/v1/vaults", {"display_name": ""}).error(400, "display_name")
    api.post("/v1/vaults", {"display_name": "x" * 256}).error(400, "display_name", "255")
    api.post("/v1/vaults", {"display_name": "x", "metadata": {str(i): "" for i in range(17)}}).error(400, "metadata")
    api.get("/v1/vaults/vlt_none").error(404, "vlt_none")
    api.get("/v1/vaults", headers={"anthropic-beta": None}).error(404)
    api.get("/v1/vaults?limit=101").error(400, "limit")
    api.get(f"/v1/vaults/{vault}/credentials?page=zzz").error(400, "page")
    assert api.post(f"/v1/vaults/{vault}", {"display_name": None, "metadata": None}).ok()["display_name"] == "test"
    user = type(api)(api.url, world.server.api_key("user"), world.spec)
    user.get(f"/v1/vaults/{vault}").ok()
    user.post(f"/v1/vaults/{vault}", {"display_name": "no"}).error(403)
    user.post(f"/v1/vaults/{vault}/credentials", {}).error(403)
    api.request("PUT", f"/v1/vaults/{vault}").error(405)


BEARER = {"type": "static_bearer", "mcp_server_url": "https://a.example.com/", "token": "t"}
ENV = {"type": "environment_variable", "secret_name": "N", "secret_value": "v", "networking": {"type": "unrestricted"}}
OAUTH = {"type": "mcp_oauth", "mcp_server_url": "https://a.example.com/", "access_token": "t"}
REFRESH = {"token_endpoint": "https://a.example.com/t", "client_id": "c", "refresh_token": "r", "token_endpoint_auth": {"type": "none"}}


@pytest.mark.parametrize("auth, word", [
    ({}, "auth.type"), ({"type": "password"}, "auth.type"),
    ({**BEARER, "token": ""}, "auth.token"), ({**BEARER, "token": "a b"}, "auth.token"), ({**BEARER, "token": "a\r\nx: y"}, "auth.token"),
    ({**BEARER, "mcp_server_url": "ftp://a/"}, "auth.mcp_server_url"), ({**BEARER, "mcp_server_url": "https://u:p@a/"}, "auth.mcp_server_url"),
    ({**BEARER, "mcp_server_url": "https://a/#f"}, "auth.mcp_server_url"), ({**BEARER, "mcp_server_url": "https://a/" + "x" * 2048}, "auth.mcp_server_url"),
    ({**OAUTH, "expires_at": "2020-01-01T00:00:00Z"}, "auth.expires_at"), ({**OAUTH, "expires_at": "tomorrow"}, "auth.expires_at"),
    ({**OAUTH, "refresh": {"client_id": "c"}}, "refresh_token"), ({**OAUTH, "refresh": {**REFRESH, "token_endpoint": "nowhere"}}, "auth.refresh.token_endpoint"),
    ({**OAUTH, "refresh": {**REFRESH, "token_endpoint_auth": {"type": "client_secret_basic"}}}, "client_secret"),
    ({**ENV, "secret_name": "1X"}, "auth.secret_name"), ({**ENV, "secret_name": "A-B"}, "auth.secret_name"),
    ({**ENV, "injection_location": None}, "injection_location"), ({**ENV, "injection_location": {}}, "injection_location"),
    ({**ENV, "injection_location": {"header": False, "body": False}}, "injection_location"),
    ({**ENV, "networking": {"type": "limited", "allowed_hosts": []}}, "allowed_hosts"),
    *[({**ENV, "networking": {"type": "limited", "allowed_hosts": [h]}}, "allowed_hosts.0") for h in
      ("https://a", "a:443", "a/b", "::1", "*", "a.*.b", "*.", "-a.com", "a..b", "1.2.3.4.5", "999.1.1.1")],
    ({**ENV, "networking": {"type": "limited", "allowed_hosts": ["a"] * 17}}, "allowed_hosts"),
])
def test_what_a_credential_may_not_be(world, vault, auth, word):
    e = add(world, vault, auth).error(400, word)
    assert e["type"] == "invalid_request_error"
    assert world.api.get(f"/v1/vaults/{vault}/credentials").ok()["data"] == []


def test_malformed_bodies_are_not_quoted(world, vault):
    for raw in (b'{"auth":{"type":"static_bearer","token":"hush-hush-1"', b'{"auth":{"token": hush-hush-1}}', b'["hush-hush-1"]'):
        r = world.api.request("POST", f"/v1/vaults/{vault}/credentials", raw=raw, headers={"content-type": "application/json"})
        assert r.status == 400 and "hush" not in json.dumps(r.value)


def test_keys_are_unique_among_active_ones(world, vault):
    c = add(world, vault, BEARER).ok()
    for url in ("https://a.example.com", "HTTPS://A.example.com:443/"):
        r = add(world, vault, {**OAUTH, "mcp_server_url": url})
        assert r.error(409)["type"] == "conflict_error" and r.headers["x-should-retry"] == "false"
    add(world, vault, {**OAUTH, "mcp_server_url": "https://a.example.com/other"}).ok()
    add(world, vault, ENV).ok()
    add(world, vault, ENV).error(409, "secret_name")
    world.api.post(f"/v1/vaults/{vault}/credentials/{c['id']}/archive").ok()
    add(world, vault, BEARER).ok()


def test_twenty_active_credentials(world, vault):
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: add(world, vault, {**BEARER, "mcp_server_url": f"https://h{i}.example.com"}), range(24)))
    assert sorted(r.status for r in got) == [200] * 20 + [400] * 4
    next(r for r in got if r.status == 400).error(400, "20")
    one = next(r for r in got if r.status == 200).value["id"]
    world.api.delete(f"/v1/vaults/{vault}/credentials/{one}").ok()
    add(world, vault, {**BEARER, "mcp_server_url": "https://last.example.com"}).ok()
    add(world, vault, ENV).error(400, "20")


def test_updates(world, vault):
    c = add(world, vault, {**OAUTH, "expires_at": soon(1000), "refresh": {**REFRESH, "scope": "s", "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "x"}}}).ok()
    path = f"/v1/vaults/{vault}/credentials/{c['id']}"

    def post(auth):
        return world.api.post(path, {"auth": {"type": "mcp_oauth", **auth}})

    world.api.post(path, {"auth": BEARER}).error(400, "auth.type")
    post({"mcp_server_url": "https://other.example.com"}).error(400, "auth.mcp_server_url")
    post({"refresh": {"token_endpoint": "https://b.example.com"}}).error(400, "auth.refresh.token_endpoint")
    post({"refresh": {"client_id": "other"}}).error(400, "auth.refresh.client_id")
    post({"refresh": {"token_endpoint_auth": {"type": "client_secret_post", "client_secret": "y"}}}).error(400, "token_endpoint_auth.type")
    post({"refresh": {"token_endpoint_auth": {"type": "none"}}}).error(400, "token_endpoint_auth.type")
    post({"expires_at": "2020-01-01T00:00:00Z"}).error(400, "auth.expires_at")
    assert world.api.get(path).ok() == c                                            # nothing of all that has changed it
    assert post({"mcp_server_url": OAUTH["mcp_server_url"]}).ok() == c              # the same is no change
    u = post({"access_token": "new"}).ok()
    assert u["auth"] == c["auth"]                                                   # the old expiry is kept
    u = post({"refresh": {"scope": ""}}).ok()
    assert u["auth"]["refresh"]["scope"] is None
    u = post({"refresh": {"scope": "t", "refresh_token": "r2", "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "z"}}, "expires_at": soon(5000)}).ok()
    assert u["auth"]["refresh"]["scope"] == "t" and u["auth"]["expires_at"] > c["auth"]["expires_at"]
    n = add(world, vault, {**OAUTH, "mcp_server_url": "https://n.example.com"}).ok()
    world.api.post(f"/v1/vaults/{vault}/credentials/{n['id']}", {"auth": {"type": "mcp_oauth", "refresh": {"scope": "x"}}}).error(400, "auth.refresh")

    e = add(world, vault, {**ENV, "injection_location": {"header": True}}).ok()
    path = f"/v1/vaults/{vault}/credentials/{e['id']}"
    assert e["auth"]["injection_location"] == {"header": True, "body": False}
    world.api.post(path, {"auth": {"type": "environment_variable", "injection_location": {"header": False}}}).error(400, "injection_location")
    world.api.post(path, {"auth": {"type": "environment_variable", "injection_location": None}}).error(400, "injection_location")
    world.api.post(path, {"auth": {"type": "environment_variable", "secret_name": "OTHER"}}).error(400, "auth.secret_name")
    u = world.api.post(path, {"auth": {"type": "environment_variable", "injection_location": {"body": True}, "networking": {"type": "limited", "allowed_hosts": ["x.example.com"]}}}).ok()
    assert u["auth"]["injection_location"] == {"header": True, "body": True} and u["auth"]["networking"]["allowed_hosts"] == ["x.example.com"]
    world.api.post(path + "/archive").ok()
    world.api.post(path, {"display_name": "x"}).error(400, "archived")


def test_sessions_name_vaults(world, vault):
    old = new_vault(world)
    world.api.post(f"/v1/vaults/{old}/archive").ok()
    a = world.agent()
    body = {"agent": a, "environment_id": world.env_id}
    world.api.post("/v1/sessions", {**body, "vault_ids": [vault, "vlt_none"]}).error(404, "vault_ids.1", "vlt_none")
    world.api.post("/v1/sessions", {**body, "vault_ids": [vault, old]}).error(400, "vault_ids.1", "archived")
    world.api.post("/v1/sessions", {**body, "vault_ids": [vault] * 51}).error(400, "vault_ids")
    s = world.api.post("/v1/sessions", {**body, "vault_ids": [vault]}).ok()
    assert s["vault_ids"] == [vault] and world.api.get(f"/v1/sessions/{s['id']}").ok()["vault_ids"] == [vault]
    assert world.api.post("/v1/sessions", body).ok()["vault_ids"] == []
    e = add(world, vault, ENV).ok()
    world.api.post("/v1/sessions", {**body, "vault_ids": [vault]}).error(400, "vault_ids.0", e["id"], "self-hosted")
    world.api.post(f"/v1/vaults/{vault}/credentials/{e['id']}/archive").ok()
    world.api.post("/v1/sessions", {**body, "vault_ids": [vault]}).ok()


# ---- use in sessions

def test_static_bearer_first_vault_wins_and_rotates(w, provider):
    a, b, c = provider.grant()[0], provider.grant()[0], provider.grant()[0]
    v1, v2, v3 = new_vault(w), new_vault(w), new_vault(w)
    c1 = add(w, v2, {"type": "static_bearer", "mcp_server_url": provider.url + "/mcp/a/", "token": a}).ok()["id"]
    add(w, v3, {"type": "static_bearer", "mcp_server_url": provider.url + "/mcp/a", "token": b}).ok()
    agent = mcp_agent(w, provider.url + "/mcp/a")
    sid = w.session(plan([tool("mcp__s0__whoami")], ["Done."]), agent=agent, vault_ids=[v1, v2, v3])
    assert number(a) in text(of(w.idle(sid), "agent.mcp_tool_result")[0])
    # A new secret reaches the running session; so does the next vault when the credential is gone.
    w.api.post(f"/v1/vaults/{v2}/credentials/{c1}", {"auth": {"type": "static_bearer", "token": c}}).ok()
    w.say(sid, plan([tool("mcp__s0__whoami")], ["Done."]))
    assert number(c) in text(of(w.idle(sid, after=1), "agent.mcp_tool_result")[1])
    w.api.post(f"/v1/vaults/{v2}/archive").ok()
    w.say(sid, plan([tool("mcp__s0__whoami")], ["Done."]))
    assert number(b) in text(of(w.idle(sid, after=2), "agent.mcp_tool_result")[2])
    assert_sealed(w, provider)


def number(token):
    return f"token number {token.split('-')[2]}"


@pytest.mark.parametrize("how", ["none", "client_secret_basic", "client_secret_post"])
def test_an_expired_token_is_refreshed_once_for_all(w, provider, how):
    secret = "cs/with+odd:chars-plain-Zq9x" if how != "none" else ""
    provider.client = (how, "client-1", secret)
    auth = {"type": how, **({"client_secret": secret} if secret else {})}
    v = new_vault(w)
    c = add(w, v, oauth(provider, expires=2, auth=auth, scope="read write", resource="https://r.example.com/x?y=1")).ok()
    provider.mode = "slow"
    agent = mcp_agent(w, provider.url + "/mcp/a")
    sids = [w.session(plan([tool("mcp__s0__whoami")], ["Done."]), agent=agent, vault_ids=[v]) for _ in range(4)]
    assert provider.arrived.wait(30 * SLOW)
    provider.mode = "ok"
    provider.go.set()
    for s in sids:
        events = w.idle(s)
        assert not of(events, "session.error"), events
        assert "token number" in text(of(events, "agent.mcp_tool_result")[0])
    assert len(provider.requests) == 1
    form = provider.requests[0]["form"]
    assert form["grant_type"] == "refresh_token" and form["scope"] == "read write" and form["resource"] == "https://r.example.com/x?y=1"
    got = w.api.get(f"/v1/vaults/{v}/credentials/{c['id']}").ok()
    assert got["auth"]["expires_at"] > soon(3000)[:19] and got["updated_at"] > c["updated_at"]
    # The rotated token is the one that is used the next time.
    expire(provider)
    wait_for(lambda: w.api.post(f"/v1/vaults/{v}/credentials/{c['id']}/mcp_oauth_validate").ok()["status"] == "valid", why="valid again")
    assert len(provider.requests) == 2 and provider.requests[1]["form"]["refresh_token"] != form["refresh_token"]
    assert_sealed(w, provider, *([secret] if secret else []))


def test_a_401_refreshes_and_a_failed_refresh_lets_the_session_go_on(w, provider):
    v = new_vault(w)
    add(w, v, oauth(provider)).ok()
    agent = mcp_agent(w, provider.url + "/mcp/a")
    expire(provider)                     # before its time: the server says 401
    sid = w.session(plan([tool("mcp__s0__whoami")], ["Done."]), agent=agent, vault_ids=[v])
    events = w.idle(sid)
    assert not of(events, "session.error") and len(provider.requests) == 1
    with provider.lock:
        provider.access.clear()
        provider.refresh.clear()
    v2 = new_vault(w)
    add(w, v2, oauth(provider)).ok()
    with provider.lock:
        provider.access.clear()
        provider.refresh.clear()
    sid = w.session(plan(["Done without."]), agent=agent, vault_ids=[v2])
    events = w.idle(sid)
    error = of(events, "session.error")[0]["error"]
    assert error["type"] == "mcp_authentication_failed_error" and "invalid_grant" in error["message"], error
    assert text(of(events, "agent.message")[-1]) == "Done without."
    assert "vault_credential.refresh_failed" in w.server.proc.text()
    n = len(provider.requests)
    w.say(sid, plan(["Again."]))
    w.idle(sid, after=1)
    assert len(provider.requests) == n               # the refusal is remembered for a while
    assert_sealed(w, provider)


def test_without_a_match_the_server_is_tried_without_a_token(w, provider):
    v = new_vault(w)
    add(w, v, oauth(provider, path="/mcp/other")).ok()
    sid = w.session(plan(["Done."]), agent=mcp_agent(w, provider.url + "/mcp/a"), vault_ids=[v])
    assert of(w.idle(sid), "session.error")[0]["error"]["type"] == "mcp_authentication_failed_error"
    assert {t for p, _, t in provider.calls if p == "/mcp/a"} == {None}


# ---- validation

def validate(w, v, c):
    return w.api.post(f"/v1/vaults/{v}/credentials/{c}/mcp_oauth_validate")


def setup_one(w, p, **kw):
    v = new_vault(w)
    return v, add(w, v, oauth(p, **kw)).ok()["id"]


@pytest.mark.parametrize("flavour", ["json", "sse", "stateless"])
def test_validate_valid(w, provider, flavour):
    provider.sse, provider.stateless_only = flavour == "sse", flavour == "stateless"
    v, c = setup_one(w, provider)
    r = validate(w, v, c).ok()
    assert (r["status"], r["mcp_probe"], r["refresh"], r["has_refresh_token"]) == ("valid", None, None, True) and r["vault_id"] == v and r["credential_id"] == c
    methods = [m for _, m, _ in provider.calls]
    assert "tools/list" in methods and not provider.requests
    if flavour != "stateless":
        wait_for(lambda: ("/mcp/a", "DELETE", None) in provider.calls, why="the session is ended")


def test_validate_by_the_sdk(w, provider):
    sdk = anthropic.Anthropic(base_url=w.server.url, api_key=w.key, max_retries=0)
    v, c = setup_one(w, provider)
    r = sdk.beta.vaults.credentials.mcp_oauth_validate(c, vault_id=v)
    assert r.status == "valid" and r.type == "vault_credential_validation"


def test_typescript(w, provider):
    a, r = provider.grant()
    out = subprocess.run([shutil.which("node"), str(ROOT / "tests/clients/ts/vaults.mjs"), provider.url + "/mcp/a", provider.url + "/token", a, r],
                         env={**os.environ, "ANTHROPIC_API_KEY": w.key, "ANTHROPIC_BASE_URL": w.server.url}, capture_output=True, text=True, timeout=60 * SLOW)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) == {"status": "valid", "metadata": {"k": "v"}, "duplicate": 409, "listed": 1, "archived": True, "deleted": "vault_deleted"}


def test_validate_refreshes_on_401(w, provider):
    v, c = setup_one(w, provider)
    expire(provider)
    r = validate(w, v, c).ok()
    assert (r["status"], r["mcp_probe"], r["refresh"]) == ("valid", None, {"status": "succeeded", "http_response": None})


@pytest.mark.parametrize("mode, status, refresh, code", [
    ("gone", "invalid", "failed", 400), ("500", "unknown", "failed", 500), ("429", "unknown", "failed", 429), ("echo", "invalid", "failed", 400), ("garbage", "unknown", "failed", 200)])
def test_validate_refresh_fails(w, provider, mode, status, refresh, code):
    v, c = setup_one(w, provider)
    with provider.lock:
        provider.access.clear()
        if mode == "gone":
            provider.refresh.clear()
    provider.mode = mode
    r = validate(w, v, c).ok()
    assert (r["status"], r["refresh"]["status"], r["refresh"]["http_response"]["status_code"]) == (status, refresh, code), r
    assert r["mcp_probe"]["method"] == "initialize" and r["mcp_probe"]["http_response"]["status_code"] == 401
    whole = json.dumps(r)
    assert not [s for s in provider.secrets if s in whole] and "[redacted]" in whole
    provider.mode = "ok"
    if mode != "gone":                                 # asked anew each time, whatever was said before
        assert validate(w, v, c).ok()["status"] == "valid"
    assert_sealed(w, provider)


def test_validate_other_outcomes(w, provider):
    v, c = setup_one(w, provider, refresh=False)
    assert validate(w, v, c).ok()["has_refresh_token"] is False
    for status, verdict in ((500, "unknown"), (503, "unknown"), (429, "unknown"), (403, "invalid"), (418, "invalid")):
        provider.mcp_status, provider.mcp_body = status, b"no: " + b"y" * 9000
        r = validate(w, v, c).ok()
        assert (r["status"], r["mcp_probe"]["http_response"]["status_code"], r["refresh"]) == (verdict, status, None), r
        assert r["mcp_probe"]["http_response"]["body_truncated"] and len(r["mcp_probe"]["http_response"]["body"]) == 4096
    provider.mcp_status = None
    expire(provider)
    r = validate(w, v, c).ok()
    assert (r["status"], r["refresh"]) == ("invalid", {"status": "no_refresh_token", "http_response": None})
    # A token endpoint that is not there; a server that is not there.
    v2 = new_vault(w)
    auth = oauth(provider)
    auth["refresh"]["token_endpoint"] = "http://127.0.0.1:1/token"
    c2 = add(w, v2, auth).ok()["id"]
    expire(provider)
    validate(w, v2, c2).error(400, "token endpoint", "mcp.private-ok")       # it is not listed: refused before any dial
    c3 = add(w, v2, BEARER).ok()["id"]
    validate(w, v2, c3).error(400, "mcp_oauth")
    validate(w, v2, "vcrd_none").error(404)
    c4 = add(w, v2, {**OAUTH, "mcp_server_url": "https://elsewhere.example.com/"}).ok()["id"]
    validate(w, v2, c4).error(400, "mcp.allow")


def test_validate_unreachable(fresh, provider, tmp_path):
    w = fresh(server_args=["--mcp-private-ok", f"127.0.0.1:{provider.port}", "--mcp-private-ok", "127.0.0.1:1"])
    v = new_vault(w)
    auth = oauth(provider)
    auth["refresh"]["token_endpoint"] = "http://127.0.0.1:1/token"
    c = add(w, v, auth).ok()["id"]
    expire(provider)
    r = validate(w, v, c).ok()
    assert (r["status"], r["refresh"]) == ("unknown", {"status": "connect_error", "http_response": None})
    c = add(w, v, {**OAUTH, "mcp_server_url": "http://127.0.0.1:1/mcp"}).ok()["id"]
    r = validate(w, v, c).ok()
    assert (r["status"], r["mcp_probe"]) == ("unknown", {"method": "initialize", "http_response": None})


# ---- keys

def outwork(*args, check=True):
    r = subprocess.run([BIN, *args], capture_output=True, text=True, timeout=60 * SLOW)
    assert not check or r.returncode == 0, r.stderr
    return r


def test_key_rotation_while_the_server_runs(w, provider):
    data = str(w.server.data)
    key_file = w.server.data / "vault.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    v, c = setup_one(w, provider)
    for i in range(15):
        add(w, v, oauth(provider, path=f"/mcp/{i}")).ok()
    old = outwork("vault", "key", "list", "--data", data).stdout.split()[0]
    r = outwork("vault", "key", "add", "--data", data)
    assert old not in r.stderr
    lines = outwork("vault", "key", "list", "--data", data).stdout.splitlines()
    assert len(lines) == 2 and lines[1].startswith(old)
    assert validate(w, v, c).ok()["status"] == "valid"                 # the running server still opens the old ones
    add(w, v, oauth(provider, path="/mcp/new")).ok()                   # and seals with the new key already
    r = outwork("vault", "rewrap", "--data", data)
    assert "16 sealed anew" in r.stderr and "0 cannot be opened" in r.stderr
    assert "0 sealed anew" in outwork("vault", "rewrap", "--data", data).stderr
    assert validate(w, v, c).ok()["status"] == "valid"
    text = key_file.read_text().split("\n")
    at = next(i for i, l in enumerate(text) if l.startswith("# Seals"))
    key_file.write_text("\n".join(text[:at]) + "\n")                   # the old key is gone for good
    assert w.server.stop() == 0
    w.server.start()
    expire(provider)
    assert validate(w, v, c).ok()["status"] == "valid"
    assert_sealed(w, provider)


def test_rewrap_of_tunnel_tokens(fresh, provider):
    w = fresh(server_args=["--tunnel-domain", "tunnel.example.com"])
    headers = {"anthropic-beta": "mcp-tunnels-2026-06-22"}
    t = w.api.post("/v1/tunnels", {"display_name": "t"}, headers=headers).ok()["id"]
    token = w.api.post(f"/v1/tunnels/{t}/reveal_token", headers=headers).ok()
    outwork("vault", "key", "add", "--data", str(w.server.data))
    assert "1 sealed anew, 0 cannot be opened" in outwork("vault", "rewrap", "--data", str(w.server.data)).stderr
    key_file = w.server.data / "vault.key"
    key_file.write_text(key_file.read_text().split("# Seals")[0])
    assert w.server.stop() == 0
    w.server.start()
    assert w.api.post(f"/v1/tunnels/{t}/reveal_token", headers=headers).ok() == token


def test_rewrap_says_what_it_cannot_open(w, provider):
    data = str(w.server.data)
    v, c = setup_one(w, provider)
    (w.server.data / "vault.key").write_text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")
    r = outwork("vault", "rewrap", "--data", data, check=False)
    assert r.returncode == 1 and c in r.stderr and "1 cannot be opened" in r.stderr
    assert outwork("vault", "key", "remove", "--data", data, check=False).returncode == 2
    assert outwork("vault", "rewrap", "--data", data + "/none", check=False).returncode == 1
    w.server.stop()
    w.server.start()
    r = validate(w, v, c)
    assert r.status == 500 and "key" not in json.dumps(r.value)
    assert "AAECAwQF" not in w.server.proc.text()


def test_key_file_open_to_others_is_refused(w):
    assert w.server.stop() == 0
    (w.server.data / "vault.key").chmod(0o604)
    with pytest.raises(AssertionError, match="vault.key-file"):
        w.server.start()
    (w.server.data / "vault.key").chmod(0o600)
    w.server.start()


# ---- pulling the plug

def test_killed_around_updates(w, provider):
    """An answered update is there after a kill; the secret and what is shown of it belong together."""
    v, c = setup_one(w, provider)
    path = f"/v1/vaults/{v}/credentials/{c}"
    for round_ in range(4):
        done, stop = [], threading.Event()

        def write():
            n = 0
            while not stop.is_set():
                token = provider.grant()[0]
                try:
                    r = w.api.post(path, {"auth": {"type": "mcp_oauth", "access_token": token}, "metadata": {"n": f"{round_}-{n}", "token": number(token)}}, timeout=20)
                except OSError:
                    return
                if r.status == 200:
                    done.append((f"{round_}-{n}", token))
                n += 1

        t = threading.Thread(target=write)
        t.start()
        wait_for(lambda: len(done) > 5 + 7 * round_, why="updates")
        w.server.kill()
        stop.set()
        t.join(30)
        w.server.start()
        got = w.api.get(path).ok()["metadata"]
        last = int(done[-1][0].split("-")[1])
        assert int(got["n"].split("-")[1]) in (last, last + 1), (got, done[-1])
        assert validate(w, v, c).ok()["status"] == "valid"
        assert number(provider.calls[-1][2] or [t for _, _, t in provider.calls if t][-1]) == got["token"]
    assert_sealed(w, provider)


@pytest.mark.parametrize("grace", [True, False], ids=["provider takes the old one again", "provider does not"])
def test_killed_between_rotation_and_commit(w, provider, grace):
    """The one moment that cannot be closed: the provider has rotated, its answer is lost. The old refresh token is what we have; it is tried, and said to be
    invalid when the provider says so. A new grant mends it."""
    provider.grace = grace
    v, c = setup_one(w, provider)
    expire(provider)
    provider.mode = "slow"
    t = threading.Thread(target=lambda: pytest.raises(OSError, validate, w, v, c), daemon=True)
    t.start()
    assert provider.arrived.wait(30 * SLOW)
    w.server.kill()
    provider.mode = "ok"
    provider.go.set()
    t.join(30)
    with provider.lock:
        provider.access.clear()                       # the lost one too
    w.server.start()
    r = validate(w, v, c).ok()
    assert r["status"] == ("valid" if grace else "invalid"), r
    if not grace:
        assert r["refresh"]["status"] == "failed"
        a, ref = provider.grant()
        w.api.post(f"/v1/vaults/{v}/credentials/{c}", {"auth": {"type": "mcp_oauth", "access_token": a, "expires_at": soon(3600), "refresh": {"refresh_token": ref}}}).ok()
        assert validate(w, v, c).ok()["status"] == "valid"
    assert_sealed(w, provider)


def test_a_stop_waits_for_a_refresh(w, provider):
    v, c = setup_one(w, provider)
    expire(provider)
    provider.mode = "slow"
    got = []
    t = threading.Thread(target=lambda: got.append(validate(w, v, c)), daemon=True)
    t.start()
    assert provider.arrived.wait(30 * SLOW)
    w.server.proc.p.terminate()
    t.join(30 * SLOW)
    assert got[0].status == 503                       # the validation ends, its refresh goes on
    wait_for(lambda: "server.drain" in w.server.proc.text(), why="drain")
    assert w.server.proc.alive()
    provider.mode = "ok"
    provider.go.set()
    assert w.server.proc.p.wait(40 * SLOW) == 0
    w.server.start()
    n = len(provider.requests)
    assert validate(w, v, c).ok()["status"] == "valid" and len(provider.requests) == n      # the new token was stored
