"""From the official Anthropic SDKs to MCP servers of the official MCP SDK, over a tunnel made with the same SDKs: Messages requests and sessions, vaults, confirmations,
and what is said when a part of the way is missing."""
from __future__ import annotations

import json
import shutil
import subprocess

import anthropic
import pytest

from stack import MODEL, ROOT, SLOW, Stack, command, plan, python_server, tool

BETA = "mcp-client-2025-11-20"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("stack")
    token = tmp / "token"
    token.write_text("first-bearer\n")
    docs, safe = python_server(), python_server("--token", token)
    s = Stack(tmp, {"docs": f"http://127.0.0.1:{docs.port}", "safe": f"http://127.0.0.1:{safe.port}"})
    s.token, s.bearers = token, lambda: (tmp / "token.seen").read_text().split("\n")[:-1] if (tmp / "token.seen").exists() else []
    yield s
    s.close()
    docs.close()
    safe.close()


def ask(stack, steps, *, name="docs", url=None, stream=False, **server):
    kw = {"model": MODEL, "max_tokens": 100, "betas": [BETA], "messages": [{"role": "user", "content": plan(*steps)}], "tools": [{"type": "mcp_toolset", "mcp_server_name": name}],
          "mcp_servers": [{"type": "url", "name": name, "url": url or stack.url(name), **server}]}
    if not stream:
        return stack.sdk.beta.messages.create(**kw)
    with stack.sdk.beta.messages.stream(**kw) as s:
        return s.get_final_message()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_messages(stack, stream):
    assert [c.archived_at for c in stack.sdk.beta.tunnels.certificates.list(stack.tunnel.id)] == [None]
    m = ask(stack, [["I ask.", tool("mcp__docs__echo", value="through the tunnel")], [tool("mcp__docs__test_tool_with_progress"), tool("mcp__docs__test_error_handling")], ["Done."]],
            stream=stream)
    assert [b.type for b in m.content] == ["text", "mcp_tool_use", "mcp_tool_result", "mcp_tool_use", "mcp_tool_use", "mcp_tool_result", "mcp_tool_result", "text"]
    use, result = m.content[1:3]
    assert (use.name, use.server_name, result.tool_use_id, result.is_error, result.content[0].text) == ("echo", "docs", use.id, False, "through the tunnel")
    assert [b.is_error for b in m.content[5:7]] == [False, True] and m.content[-1].text == "Done." and m.stop_reason == "end_turn"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_messages_with_a_token(stack, stream):
    before = len(stack.bearers())
    m = ask(stack, [[tool("mcp__safe__echo", value="x")], ["Done."]], name="safe", stream=stream, authorization_token="first-bearer")
    assert m.content[1].content[0].text == "x" and set(stack.bearers()[before:]) == {"Bearer first-bearer"}
    with pytest.raises(anthropic.BadRequestError, match="Authentication with MCP server .*safe.* failed: the server refused the credential"):
        ask(stack, [["Never."]], name="safe", stream=stream, authorization_token="other-bearer")
    assert "first-bearer" not in stack.server.proc.text() + stack.gateway.log + stack.edge.text()


def test_messages_by_the_typescript_sdk(stack):
    r = subprocess.run([shutil.which("node"), str(ROOT / "tests/clients/ts/messages_mcp.mjs"), plan([tool("mcp__demo__echo", value="by typescript")], ["Done."]), stack.url("docs")],
                       text=True, capture_output=True, timeout=60 * SLOW, env={"PATH": "/usr/bin:/bin", "ANTHROPIC_BASE_URL": stack.server.url, "ANTHROPIC_API_KEY": stack.key})
    assert r.returncode == 0, r.stderr
    out = json.loads(r.stdout)
    for blocks in (out["create"], out["stream"]):
        assert [b["type"] for b in blocks] == ["mcp_tool_use", "mcp_tool_result", "text"] and blocks[1]["content"][0]["text"] == "by typescript"


def test_messages_to_what_is_not_there(stack):
    other = stack.domain.split(".", 1)[1]
    for url, words in [(stack.url("none"), "No route configured for host"), (f"https://docs.unknown.{other}/mcp", "no tunnel of this workspace"), (stack.url("docs", "/wrong"), "404")]:
        with pytest.raises(anthropic.BadRequestError) as e:
            ask(stack, [["Never."]], url=url)
        assert words in e.value.body["error"]["message"] and e.value.body["error"]["type"] == "invalid_request_error"


# ---- sessions -------------------------------------------------------------------------------------------------------

class Talk:
    """A session by the SDK."""

    def __init__(self, stack, name, policy=None, vaults=()):
        c, self.stack = stack.sdk, stack
        toolset = {"type": "mcp_toolset", "mcp_server_name": name, **({"default_config": {"permission_policy": {"type": policy}}} if policy else {})}
        agent = c.beta.agents.create(name="whole way", model=MODEL, tools=[toolset], mcp_servers=[{"type": "url", "name": name, "url": stack.url(name)}])
        self.id = c.beta.sessions.create(agent=agent.id, environment_id=stack.env_id, vault_ids=list(vaults)).id

    def turn(self, *steps, confirm=None):
        """Says something and follows the stream to the end of the turn."""
        events, seen = self.stack.sdk.beta.sessions.events, []
        with events.stream(self.id) as stream:
            events.send(self.id, events=[{"type": "user.message", "content": [{"type": "text", "text": plan(*steps)}]}])
            for e in stream:
                seen.append(e)
                if e.type == "session.status_idle" and e.stop_reason.type == "requires_action":
                    events.send(self.id, events=[{"type": "user.tool_confirmation", "tool_use_id": i, **confirm} for i in e.stop_reason.event_ids])
                elif e.type == "session.status_idle":
                    return seen


def of(events, kind):
    return [e for e in events if e.type == kind]


def said(events):
    return [e.content[0].text for e in of(events, "agent.mcp_tool_result")]


def test_session_asks_before_a_call(stack):
    t = Talk(stack, "docs")                  # without a policy: always_ask
    seen = t.turn([tool("mcp__docs__echo", value="allowed")], ["Done."], confirm={"result": "allow"})
    assert [e.evaluated_permission for e in of(seen, "agent.mcp_tool_use")] == ["ask"] and said(seen) == ["allowed"]
    seen = t.turn([tool("mcp__docs__echo", value="denied")], ["Done."], confirm={"result": "deny", "deny_message": "not today"})
    assert "not today" in said(seen)[0] and of(seen, "agent.mcp_tool_result")[0].is_error and not of(seen, "session.error")


def test_session_with_a_vault(stack):
    c = stack.sdk
    vault = c.beta.vaults.create(display_name="whole way")
    credential = c.beta.vaults.credentials.create(vault.id, auth={"type": "static_bearer", "mcp_server_url": stack.url("safe"), "token": "first-bearer"})
    before = len(stack.bearers())
    t = Talk(stack, "safe", "always_allow", [vault.id])
    seen = t.turn([tool("mcp__safe__echo", value="with a bearer")], ["Done."])
    assert said(seen) == ["with a bearer"] and not of(seen, "session.error") and set(stack.bearers()[before:]) == {"Bearer first-bearer"}
    # The server takes another token from now on: 401. The session says so, and goes on without the server's tools.
    stack.token.write_text("second-bearer\n")
    seen = t.turn(["Without tools."])
    e = of(seen, "session.error")[0].error
    assert (e.type, e.mcp_server_name, e.retry_status.type) == ("mcp_authentication_failed_error", "safe", "retrying") and "refused the credential" in e.message
    assert of(seen, "agent.message")[0].content[0].text == "Without tools."
    # The vault learns the new one, and the next turn has the tools again.
    c.beta.vaults.credentials.update(credential.id, vault_id=vault.id, auth={"type": "static_bearer", "token": "second-bearer"})
    seen = t.turn([tool("mcp__safe__echo", value="again")], ["Done."])
    assert said(seen) == ["again"] and not of(seen, "session.error")
    stack.token.write_text("first-bearer\n")
    everywhere = stack.server.proc.text() + stack.gateway.log + stack.edge.text() + json.dumps(stack.events(t.id)) + json.dumps(stack.model.requests)
    assert "first-bearer" not in everywhere and "second-bearer" not in everywhere


def test_session_without_a_gateway(stack):
    t = Talk(stack, "docs", "always_allow")
    assert stack.gateway.stop() == 0
    seen = t.turn(["Nothing there."])
    e = of(seen, "session.error")[0].error
    assert e.type == "mcp_connection_failed_error" and "no gateway of the tunnel is connected" in e.message and of(seen, "agent.message")
    stack.gateway = stack.start_gateway(json.loads(stack.gateway.config.read_text())["routes"])
    seen = t.turn([tool("mcp__docs__echo", value="back")], ["Done."])
    assert said(seen) == ["back"] and not of(seen, "session.error")


def test_revoked_and_registered_again(stack):
    t = Talk(stack, "docs", "always_allow")
    assert said(t.turn([tool("mcp__docs__echo", value="before")], ["Done."])) == ["before"]
    for c in stack.sdk.beta.tunnels.certificates.list(stack.tunnel.id):
        stack.sdk.beta.tunnels.certificates.archive(c.id, tunnel_id=stack.tunnel.id)
    seen = t.turn(["Revoked."])
    assert "no certificate authority" in of(seen, "session.error")[0].error.message and of(seen, "agent.message")
    assert "registered the authority" in command("gateway", "init", "--api-url", stack.server.url, "--output", f"dir:{stack.gw_dir}", env={"API_TOKEN": stack.key})
    seen = t.turn([tool("mcp__docs__echo", value="after")], ["Done."])
    assert said(seen) == ["after"] and not of(seen, "session.error")


def test_rotated_token(stack):
    """Open connections go on; a gateway that starts anew needs the new token."""
    t = Talk(stack, "docs", "always_allow")
    token = stack.sdk.beta.tunnels.rotate_token(stack.tunnel.id, reason="test").tunnel_token
    assert said(t.turn([tool("mcp__docs__echo", value="still open")], ["Done."])) == ["still open"]
    routes = json.loads(stack.gateway.config.read_text())["routes"]
    stack.gateway.stop()
    stack.gateway = stack.start_gateway(routes, wait=False)
    stack.gateway.wait_log("refuses the token (401)")
    assert "edge.connected" not in stack.gateway.log
    (stack.gw_dir / "tunnel-token").write_text(token)     # read for each new connection
    stack.gateway.wait_log("edge.connected", 2)
    assert said(t.turn([tool("mcp__docs__echo", value="new token")], ["Done."])) == ["new token"]
