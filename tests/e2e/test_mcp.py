"""MCP servers in the agent loop: servers of the official SDK on loopback, called by the real server."""
import json
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anthropic
import pytest

from harness import MODEL, ROOT, TOOLSET, Process, free_port, plan, tool, wait_for

ALLOW = {"enabled": True, "permission_policy": {"type": "always_allow"}}


class McpServer:
    def __init__(self, tmp, *flags):
        self.dir, self.flags, self.port, self.proc = tmp / f"mcp-{free_port()}", flags, free_port(), None
        self.dir.mkdir()
        self.path = "/sse" if "--sse" in flags else "/mcp"

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}{self.path}"

    def start(self, *more):
        self.proc = Process([sys.executable, str(ROOT / "tests/clients/mcp_server.py"), str(self.port), str(self.dir), *self.flags, *more], name="mcp")
        wait_for(self.up, why="MCP server up")
        return self

    def up(self):
        assert self.proc.alive(), self.proc.text()[-3000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/none", timeout=2)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def stop(self):
        if self.proc:
            self.proc.kill()
            self.proc = None

    def lines(self, name):
        f = self.dir / name
        return f.read_text().split("\n")[:-1] if f.exists() else []

    def go(self):
        (self.dir / "go").write_text("")


@pytest.fixture
def rig(fresh, tmp_path):
    """A server that may call the MCP servers made here; `start=False` leaves one down."""
    made = []

    def make(*flags, start=True, n=1, args=()):
        servers = [McpServer(tmp_path, *flags) for _ in range(n)]
        made.extend(servers)
        for m in servers:
            if start:
                m.start()
        w = fresh(server_args=[*(a for m in servers for a in ("--mcp-private-ok", f"127.0.0.1:{m.port}")), *args])
        return (w, *servers)

    yield make
    for m in made:
        m.stop()


def agent(w, *servers, policy=ALLOW, configs=(), tools=(), names=None, **more):
    names = names or ["demo", *(f"demo{i}" for i in range(2, 20))]
    pairs = list(zip(names, servers))
    return w.agent([{"type": "mcp_toolset", "mcp_server_name": n, **({"default_config": policy} if policy else {}), "configs": list(configs)} for n, _ in pairs] + list(tools),
                   mcp_servers=[{"type": "url", "name": n, "url": s.url if hasattr(s, "url") else s} for n, s in pairs], **more)


def of(events, kind):
    return [e for e in events if e["type"] == kind]


def text(event):
    return "".join(b.get("text", "") for b in event["content"])


def offered(w, request=-1):
    return [t["name"] for t in w.model.requests[request].get("tools", [])]


@pytest.mark.parametrize("flags", [(), ("--json",), ("--stateless",), ("--legacy",), ("--legacy", "--json"), ("--legacy", "--stateless"), ("--legacy", "--stateless", "--json"), ("--sse",)],
                         ids=lambda f: "+".join(x[2:] for x in f) or "newest")
def test_every_transport(rig, flags):
    w, m = rig(*flags)
    sid = w.session(plan([tool("mcp__demo__add", a=19, b=23), tool("mcp__demo__boom")], [tool("mcp__demo__picture")], ["Done."]), agent=agent(w, m))
    events = w.idle(sid)
    uses, results = of(events, "agent.mcp_tool_use"), of(events, "agent.mcp_tool_result")
    assert [(u["mcp_server_name"], u["name"], u["evaluated_permission"]) for u in uses] == [("demo", "add", "allow"), ("demo", "boom", "allow"), ("demo", "picture", "allow")]
    by_use = {r["mcp_tool_use_id"]: r for r in results}
    assert len(by_use) == len(results) == 3
    assert text(by_use[uses[0]["id"]]) == "42" and by_use[uses[0]["id"]]["is_error"] is False
    assert "boom" in text(by_use[uses[1]["id"]]) and by_use[uses[1]["id"]]["is_error"] is True
    assert by_use[uses[2]["id"]]["content"][0]["source"]["media_type"] == "image/png"
    assert not of(events, "session.error")
    last = w.model.requests[-1]["messages"][-1]["content"]
    assert last[0]["type"] == "tool_result" and last[0]["content"][0]["type"] == "image"
    # Equal prefixes: the tools of every request are the same bytes, and legal names.
    assert len({json.dumps(r["tools"], sort_keys=False).replace(', "cache_control": {"type": "ephemeral"}', "") for r in w.model.requests}) == 1
    names = offered(w)
    assert len(names) == len(set(names)) == 7 and all(len(n) <= 128 and n.replace("_", "a").replace("-", "a").isalnum() for n in names)


def test_names_map_back(rig):
    w, m = rig()
    a = agent(w, m)
    sid = w.session(plan(["Nothing."]), agent=a)
    w.idle(sid)
    odd = next(n for n in offered(w) if "odd" in n)
    sid = w.session(plan([tool(odd)], ["Done."]), agent=a)
    events = w.idle(sid)
    assert of(events, "agent.mcp_tool_use")[0]["name"] == "odd.name/x"
    assert text(of(events, "agent.mcp_tool_result")[0]) == "odd"


def test_output_is_cut_in_words(rig):
    w, m = rig()
    sid = w.session(plan([tool("mcp__demo__big", n=123456)], ["Done."]), agent=agent(w, m))
    r = of(w.idle(sid), "agent.mcp_tool_result")[0]
    assert r["content"][0]["text"] == "x" * 100000
    assert "23456 more were left out" in r["content"][1]["text"]


def test_ask_then_allow_and_deny(rig):
    w, m = rig()
    # The default of MCP toolsets is to ask.
    sid = w.session(plan([tool("mcp__demo__add", a=1, b=2), tool("mcp__demo__add", a=3, b=4)], ["Done."]), agent=agent(w, m, policy=None))
    events = w.idle(sid, "requires_action")
    uses = of(events, "agent.mcp_tool_use")
    assert [u["evaluated_permission"] for u in uses] == ["ask", "ask"] and uses[0]["evaluation"] == {"type": "always_ask"}
    assert of(events, "session.status_idle")[-1]["stop_reason"]["event_ids"] == [u["id"] for u in uses]
    assert m.lines("calls") == []
    w.send(sid, {"type": "user.tool_confirmation", "tool_use_id": uses[0]["id"], "result": "allow"}).ok()
    events = w.idle(sid, "requires_action", after=1)
    assert of(events, "session.status_idle")[-1]["stop_reason"]["event_ids"] == [uses[1]["id"]]
    assert [text(r) for r in of(events, "agent.mcp_tool_result")] == ["3"]
    w.send(sid, {"type": "user.tool_confirmation", "tool_use_id": uses[1]["id"], "result": "deny", "deny_message": "not today"}).ok()
    events = w.idle(sid)
    denied = of(events, "agent.mcp_tool_result")[1]
    assert denied["is_error"] and "not today" in text(denied) and denied["mcp_tool_use_id"] == uses[1]["id"]
    assert m.lines("calls") == ["add"]
    assert not of(events, "session.error") and not of(events, "user.tool_result")


def test_both_confirmed_at_once(rig):
    w, m = rig()
    sid = w.session(plan([tool("mcp__demo__add", a=1, b=2), tool("mcp__demo__add", a=3, b=4)], ["Done."]), agent=agent(w, m, policy=None))
    uses = of(w.idle(sid, "requires_action"), "agent.mcp_tool_use")
    w.send(sid, {"type": "user.tool_confirmation", "tool_use_id": uses[0]["id"], "result": "deny"}, {"type": "user.tool_confirmation", "tool_use_id": uses[1]["id"], "result": "allow"}).ok()
    events = w.idle(sid)
    assert [r["is_error"] for r in of(events, "agent.mcp_tool_result")] == [True, False]
    assert sum(e["stop_reason"]["type"] == "requires_action" for e in of(events, "session.status_idle")) == 1


def test_disabled_tools_are_not_offered(rig):
    w, m = rig()
    a = agent(w, m, configs=[{"name": "boom", "enabled": False}, {"name": "add", "permission_policy": {"type": "always_ask"}}])
    sid = w.session(plan([tool("mcp__demo__boom"), tool("mcp__demo__nothing")], ["Done."]), agent=a)
    events = w.idle(sid)
    assert "mcp__demo__boom" not in offered(w) and "mcp__demo__add" in offered(w)
    use = of(events, "agent.mcp_tool_use")[0]
    assert use["evaluated_permission"] == "deny" and "evaluation" not in use
    assert all(r["is_error"] for r in of(events, "agent.mcp_tool_result") + of(events, "agent.tool_result"))
    assert m.lines("calls") == []


def test_down_then_up_at_the_next_turn(rig):
    w, up, down = rig(n=2)
    down.stop()
    sid = w.session(plan(["First."]), agent=agent(w, up, down))
    events = w.idle(sid)
    errors = of(events, "session.error")
    assert len(errors) == 1
    e = errors[0]["error"]
    assert (e["type"], e["mcp_server_name"], e["retry_status"]) == ("mcp_connection_failed_error", "demo2", {"type": "retrying"}) and e["message"]
    assert not [n for n in offered(w) if "demo2" in n] and "mcp__demo__add" in offered(w)
    assert text(of(events, "agent.message")[-1]) == "First."
    down.start()
    w.say(sid, plan([tool("mcp__demo2__add", a=2, b=2)], ["Second."]))
    events = w.idle(sid, after=1)
    assert text(of(events, "agent.mcp_tool_result")[0]) == "4" and len(of(events, "session.error")) == 1


def test_a_failed_server_is_asked_again_after_a_stop(rig):
    """requires_action -> running is a transition too: what failed is asked again, what answered is not."""
    w, up, down = rig(n=2)
    down.stop()
    sid = w.session(plan([tool("mcp__demo__add", a=1, b=1)], [tool("mcp__demo2__add", a=2, b=2)], ["End."]),
                    agent=agent(w, up, down, policy=None, configs=[]))
    use = of(w.idle(sid, "requires_action"), "agent.mcp_tool_use")[0]
    down.start()
    w.send(sid, {"type": "user.tool_confirmation", "tool_use_id": use["id"], "result": "allow"}).ok()
    events = w.idle(sid, "requires_action", after=1)
    assert of(events, "agent.mcp_tool_use")[1]["mcp_server_name"] == "demo2"
    assert "mcp__demo2__add" in offered(w, 1) and "mcp__demo2__add" not in offered(w, 0)


def test_new_tools_appear_at_the_next_turn(rig):
    w, m = rig()
    sid = w.session(plan(["One."]), agent=agent(w, m))
    w.idle(sid)
    m.stop()
    m.start("--more")
    w.say(sid, plan(["Two."]))
    w.idle(sid, after=1)
    assert "mcp__demo__extra" not in offered(w, 0) and "mcp__demo__extra" in offered(w, 1)


@pytest.mark.parametrize("flags", [(), ("--legacy",), ("--sse",)], ids=["newest", "legacy", "sse"])
def test_interrupt_cancels_the_call(rig, flags):
    w, m = rig(*flags)
    sid = w.session(plan([tool("mcp__demo__change"), tool("mcp__demo__add", a=1, b=1)]), agent=agent(w, m))
    wait_for(lambda: "change" in m.lines("calls") and of(w.events(sid), "agent.mcp_tool_result"), why="one call runs, one is done")
    w.send(sid, {"type": "user.interrupt"}).ok()
    events = w.idle(sid)
    results = of(events, "agent.mcp_tool_result")
    assert len(results) == 2 and results[1]["is_error"] and "interrupted" in text(results[1])
    wait_for(lambda: m.lines("cancelled") == ["change"], why="the server is told")
    w.say(sid, plan([tool("mcp__demo__add", a=5, b=5)], ["Again."]))
    assert text(of(w.idle(sid, after=1), "agent.mcp_tool_result")[-1]) == "10"


def test_with_custom_and_worker_calls(rig, tmp_path):
    w, m = rig()
    custom = {"type": "custom", "name": "lookup", "description": "d", "input_schema": {"type": "object"}}
    w.worker()
    m.go()
    sid = w.session(plan([tool("mcp__demo__look"), tool("lookup"), tool("bash", command="echo hands")], ["Done."]), agent=agent(w, m, tools=[custom, TOOLSET]))
    events = wait_for(lambda: (lambda ev: ev if of(ev, "agent.mcp_tool_result") and of(ev, "user.tool_result") else None)(w.events(sid)), 60, why="both server and worker answered")
    assert "hands" in text(of(events, "user.tool_result")[0])
    use = of(events, "agent.custom_tool_use")[0]
    w.idle(sid, "requires_action")
    w.send(sid, {"type": "user.custom_tool_result", "custom_tool_use_id": use["id"], "content": [{"type": "text", "text": "mine"}]}).ok()
    w.idle(sid)
    assert len(w.model.requests) == 2 and [b["type"] for b in w.model.requests[1]["messages"][-1]["content"]] == ["tool_result"] * 3


def kill_during(w, m, sid, name):
    wait_for(lambda: name in m.lines("calls"), why="the call runs")
    w.server.kill()
    w.server.start()


def test_kill_during_a_changing_call(rig):
    w, m = rig()
    sid = w.session(plan([tool("mcp__demo__change")], ["Done."]), agent=agent(w, m))
    kill_during(w, m, sid, "change")
    events = w.idle(sid)
    results = of(events, "agent.mcp_tool_result")
    assert len(results) == 1 and results[0]["is_error"] and "not known" in text(results[0])
    assert m.lines("calls") == ["change"]
    ids = [e["id"] for e in events]
    assert len(ids) == len(set(ids)) and events[-1]["type"] == "session.status_idle"


def test_kill_during_a_reading_call(rig):
    w, m = rig()
    sid = w.session(plan([tool("mcp__demo__look")], ["Done."]), agent=agent(w, m))
    kill_during(w, m, sid, "look")
    wait_for(lambda: m.lines("calls") == ["look", "look"], why="made again")
    m.go()
    results = of(w.idle(sid), "agent.mcp_tool_result")
    assert [(text(r), r["is_error"]) for r in results] == [("look done", False)]


def test_kill_while_listing_and_thinking(rig):
    """The prompt after a crash has the same tools, though the server offers others by then."""
    w, m = rig()
    killed = threading.Event()

    def kill(index, body):
        if not killed.is_set():
            killed.set()
            w.server.kill()

    w.model.on_request = kill
    sid = w.session(plan([tool("mcp__demo__add", a=1, b=2)], ["Done."]), agent=agent(w, m))
    wait_for(killed.is_set, why="killed in the first request")
    m.stop()
    m.start("--more")
    w.server.start()
    events = w.idle(sid)
    assert text(of(events, "agent.mcp_tool_result")[0]) == "3"
    assert offered(w, 0) == offered(w, 1) == offered(w, 2)


def test_sigterm_lets_a_call_finish(rig):
    w, m = rig()
    sid = w.session(plan([tool("mcp__demo__change")], ["Done."]), agent=agent(w, m))
    wait_for(lambda: "change" in m.lines("calls"), why="the call runs")
    done = []
    t = threading.Thread(target=lambda: done.append(w.server.stop()))
    t.start()
    wait_for(lambda: "server.drain" in w.server.proc.text(), why="draining")
    m.go()
    t.join(60)
    assert done == [0]
    w.server.start()
    assert [text(r) for r in of(w.idle(sid), "agent.mcp_tool_result")] == ["change done"]
    assert m.lines("calls") == ["change"]


def test_refused_before_any_dial(rig):
    w, m = rig()
    hits = len(m.lines("requests"))
    other = f"http://localhost:{m.port}/mcp"                   # not the spelling that is allowed
    sid = w.session(plan(["Alone."]), agent=agent(w, other, "https://mcp.example.com/x"))
    errors = [e["error"] for e in of(w.idle(sid), "session.error")]
    assert [e["type"] for e in errors] == ["mcp_connection_failed_error"] * 2
    assert "https://" in errors[0]["message"] and "mcp.allow" in errors[1]["message"]
    assert len(m.lines("requests")) == hits


def test_allowed_names_with_private_addresses_are_refused(rig):
    w, m = rig(args=["--mcp-allow", "*"])
    sid = w.session(plan(["Alone."]), agent=agent(w, f"https://localhost:{m.port}/mcp", "https://169.254.169.254/latest", "https://[::ffff:10.0.0.1]/"))
    errors = [e["error"]["message"] for e in of(w.idle(sid), "session.error")]
    assert "loopback" in errors[0] and "link-local" in errors[1] and "private" in errors[2]


def test_no_credential(rig, tmp_path):
    token = tmp_path / "token"
    token.write_text("t1")
    w, m = rig("--token", str(token))
    sid = w.session(plan(["Alone."]), agent=agent(w, m))
    e = of(w.idle(sid), "session.error")[0]["error"]
    assert e["type"] == "mcp_authentication_failed_error" and "authorization" in e["message"]


def test_lost_session_is_begun_anew(rig):
    """A restarted server knows no session of before: 404, and the call is made in a new one."""
    w, m = rig("--legacy")
    step = threading.Event()

    def restart(index, body):
        if index == 1 and not step.is_set():
            step.set()
            m.stop()
            m.start()

    w.model.on_request = restart
    sid = w.session(plan([tool("mcp__demo__add", a=1, b=1)], [tool("mcp__demo__add", a=2, b=2)], ["Done."]), agent=agent(w, m))
    assert [text(r) for r in of(w.idle(sid), "agent.mcp_tool_result")] == ["2", "4"]


def test_agents_are_checked(rig):
    w, m = rig()
    srv = {"type": "url", "name": "demo", "url": m.url}
    kit = {"type": "mcp_toolset", "mcp_server_name": "demo"}

    def bad(words, tools=(kit,), servers=(srv,)):
        w.api.post("/v1/agents", {"name": "a", "model": MODEL, "tools": list(tools), "mcp_servers": list(servers)}).error(400, *words)

    bad(["mcp_servers.0", "no mcp_toolset"], tools=())
    bad(["tools.0.mcp_server_name", "no entry"], servers=())
    bad(["used twice"], servers=(srv, srv))
    bad(["has a toolset already"], tools=(kit, kit))
    bad(["configured twice"], tools=({**kit, "configs": [{"name": "x"}, {"name": "x"}]},))
    bad(["mcp_servers.0.url"], servers=({**srv, "url": "ftp://x/"},))
    bad(["kept for the tools of MCP servers"], tools=(kit, {"type": "custom", "name": "mcp__demo__add", "description": "", "input_schema": {"type": "object"}}))
    got = w.api.post("/v1/agents", {"name": "a", "model": MODEL, "tools": [{**kit, "configs": [{"name": "add", "permission_policy": {"type": "always_allow"}}]}], "mcp_servers": [srv]}).ok()
    ask = {"type": "always_ask"}
    assert got["tools"][0] == {"type": "mcp_toolset", "mcp_server_name": "demo", "default_config": {"enabled": True, "permission_policy": ask},
                               "configs": [{"name": "add", "enabled": True, "permission_policy": {"type": "always_allow"}}]}
    assert got["mcp_servers"] == [srv]
    w.api.post(f"/v1/agents/{got['id']}", {"mcp_servers": []}).error(400, "no entry")


def test_the_official_client(rig):
    w, m = rig()
    client = anthropic.Anthropic(base_url=w.server.url, api_key=w.key)
    a = client.beta.agents.create(name="sdk", model=MODEL, tools=[{"type": "mcp_toolset", "mcp_server_name": "docs"}],
                                  mcp_servers=[{"type": "url", "name": "docs", "url": m.url}])
    assert a.tools[0].default_config.permission_policy.type == "always_ask"
    s = client.beta.sessions.create(agent=a.id, environment_id=w.env_id)
    seen = []
    with client.beta.sessions.events.stream(s.id) as stream:
        client.beta.sessions.events.send(s.id, events=[{"type": "user.message", "content": [{"type": "text", "text": plan([tool("mcp__docs__add", a=20, b=1)], ["The end."])}]}])
        for e in stream:
            seen.append(e)
            if e.type == "session.status_idle" and e.stop_reason.type == "requires_action":
                client.beta.sessions.events.send(s.id, events=[{"type": "user.tool_confirmation", "tool_use_id": e.stop_reason.event_ids[0], "result": "allow"}])
            elif e.type == "session.status_idle":
                break
    use = next(e for e in seen if e.type == "agent.mcp_tool_use")
    result = next(e for e in seen if e.type == "agent.mcp_tool_result")
    assert (use.mcp_server_name, use.name, use.evaluated_permission) == ("docs", "add", "ask")
    assert result.mcp_tool_use_id == use.id and result.content[0].text == "21" and not result.is_error


class TokenEndpoint:
    """Gives `tokens` out, one a refresh; what it was asked is in `asked`."""

    def __init__(self, *tokens):
        self.tokens, self.asked, endpoint = list(tokens), [], self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                endpoint.asked.append(urllib.parse.parse_qs(self.rfile.read(int(self.headers["content-length"])).decode()))
                ok = bool(endpoint.tokens)
                data = json.dumps({"access_token": endpoint.tokens.pop(0), "token_type": "Bearer", "expires_in": 3600} if ok else {"error": "invalid_grant"}).encode()
                self.send_response(200 if ok else 400)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def credential(self, url, access):
        return {"type": "mcp_oauth", "mcp_server_url": url, "access_token": access,
                "refresh": {"token_endpoint": f"http://127.0.0.1:{self.port}/token", "client_id": "c", "refresh_token": "r1", "token_endpoint_auth": {"type": "none"}}}


@pytest.fixture
def tokens():
    made = []

    def make(*values):
        made.append(TokenEndpoint(*values))
        return made[-1]

    yield make
    for t in made:
        t.server.shutdown()
        t.server.server_close()


def vault(w, auth):
    v = w.api.post("/v1/vaults", {"display_name": "v"}).ok()
    w.api.post(f"/v1/vaults/{v['id']}/credentials", {"display_name": "c", "auth": auth}).ok()
    return v["id"]


def test_a_token_of_the_sessions_vault(rig, tmp_path):
    (tmp_path / "token").write_text("secret-1")
    w, m = rig("--token", str(tmp_path / "token"))
    v = vault(w, {"type": "static_bearer", "mcp_server_url": m.url, "token": "secret-1"})
    sid = w.session(plan([tool("mcp__demo__add", a=1, b=2)], ["Done."]), agent=agent(w, m), vault_ids=[v])
    events = w.idle(sid)
    assert text(of(events, "agent.mcp_tool_result")[0]) == "3"
    assert "secret-1" not in w.server.proc.text() and "secret-1" not in json.dumps(events) + json.dumps(w.model.requests)
    (tmp_path / "token").write_text("secret-2")
    w.say(sid, plan(["Without."]))
    e = of(w.idle(sid, after=1), "session.error")[0]["error"]
    assert e["type"] == "mcp_authentication_failed_error" and "refused the credential" in e["message"]


def test_an_oauth_token_is_refreshed(rig, tmp_path, tokens):
    (tmp_path / "token").write_text("t2")
    t = tokens("t2")
    w, m = rig("--token", str(tmp_path / "token"), args=["--mcp-private-ok", f"127.0.0.1:{t.port}"])
    v = vault(w, t.credential(m.url, "t1"))
    sid = w.session(plan([tool("mcp__demo__add", a=1, b=2)], ["First."]), agent=agent(w, m), vault_ids=[v])
    events = w.idle(sid)
    assert text(of(events, "agent.mcp_tool_result")[0]) == "3" and not of(events, "session.error")
    assert [a["refresh_token"] for a in t.asked] == [["r1"]] and t.asked[0]["grant_type"] == ["refresh_token"]
    assert m.lines("calls") == ["add"]


def test_a_refresh_that_fails(rig, tmp_path, tokens):
    (tmp_path / "token").write_text("right")
    t = tokens()
    w, m = rig("--token", str(tmp_path / "token"), args=["--mcp-private-ok", f"127.0.0.1:{t.port}"])
    sid = w.session(plan(["Alone."]), agent=agent(w, m), vault_ids=[vault(w, t.credential(m.url, "wrong"))])
    e = of(w.idle(sid), "session.error")[0]["error"]
    assert e["type"] == "mcp_authentication_failed_error" and e["mcp_server_name"] == "demo"
