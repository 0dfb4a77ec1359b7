"""The client that the conformance suite runs: this server's own MCP client, in the agent loop. Usage: conformance_client.py URL

An agent gets the suite's server as its MCP server; the first turn lists, the next ones call: what the scenario asks for, else each tool once."""
import json
import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from fake_model import FakeModel  # noqa: E402
from harness import World, plan, tool  # noqa: E402

url = sys.argv[1]
context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
scenario = os.environ["MCP_CONFORMANCE_SCENARIO"]


def filled(schema):
    """Arguments that a schema asks for."""
    kinds = {"number": 3, "integer": 3, "boolean": True, "array": [], "object": {}}
    return {k: v.get("default", kinds.get(v.get("type"), "text")) for k, v in schema.get("properties", {}).items() if k in schema.get("required", [])}


with tempfile.TemporaryDirectory() as d:
    world = World(Path(d), model=FakeModel(), server_args=["--mcp-private-ok", urlsplit(url).netloc])
    try:
        agent = world.agent([{"type": "mcp_toolset", "mcp_server_name": "suite", "default_config": {"permission_policy": {"type": "always_allow"}}}],
                            mcp_servers=[{"type": "url", "name": "suite", "url": url}])
        sid = world.session(plan(["What is there?"]), agent=agent)
        world.idle(sid)
        offered = {t["name"].removeprefix("mcp__suite__"): t.get("input_schema", {}) for t in world.model.requests[-1].get("tools", [])}
        if scenario == "json-schema-2020-12-preservation":
            calls = [("json_schema_echo", {"schema": offered["json_schema_2020_12_tool"]})]
        else:
            calls = [(c["name"], c["arguments"]) for c in context.get("toolCalls", [])] or [(n, filled(s)) for n, s in offered.items()]
        if calls:
            world.say(sid, plan([{"tool": f"mcp__suite__{n}", "input": a} for n, a in calls], ["Done."]))
            world.idle(sid, after=1)
        print(json.dumps([e for e in world.events(sid) if e["type"] in ("session.error", "agent.mcp_tool_use", "agent.mcp_tool_result")], indent=1))
    finally:
        world.close()
