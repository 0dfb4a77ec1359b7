"""The conformance suite of MCP (npm, `@modelcontextprotocol/conformance`) against servers that we did not write, directly and through the real server's tunnel, edge and
gateway: every check must end the same either way."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_harness import curl_through
from stack import BIN, ROOT, SLOW, Stack, python_server
from typescript import NODE, TS, everything_server, node_env

SUITE = TS / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
# Some of the suite's checks write requests with http.request whatever the URL's scheme is.
TLS_TOO = ("import http from 'node:http'; import https from 'node:https'; const plain = http.request; http.request = function (o, ...a) {"
           " return o.hostname?.endsWith('.tunnel.example.com') ? https.request(o, ...a) : plain.call(http, o, ...a); };")


def suite(out: Path, url, revision, env) -> dict[str, list[tuple]]:
    """Scenario to its verdicts in order: (id, name, status, message). What the suite only writes down (INFO: its requests, events as they came) is not one."""
    r = subprocess.run([NODE, "--import", "data:text/javascript," + TLS_TOO, SUITE, "server", "--url", url, "--requirements", revision, "--timeout", str(int(30000 * SLOW)), "-o", out], env=env, capture_output=True, text=True,
                       timeout=280 * SLOW)
    assert "=== SUMMARY ===" in r.stdout, r.stdout[-3000:] + r.stderr[-3000:]
    found = {}
    for f in sorted(out.glob("server-*/checks.json")):
        name = re.sub(r"^server-|-\d{4}-\d\d-\d\dT[\d-]+Z$", "", f.parent.name)
        found[name] = [(c["id"], c["name"], c["status"], (c.get("errorMessage") or "").replace(url.rsplit("/mcp", 1)[0], "")) for c in json.loads(f.read_text()) if c["status"] != "INFO"]
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    everything = everything_server("streamableHttp")
    python = python_server()
    s = Stack(tmp_path_factory.mktemp("stack"), {"python": f"http://127.0.0.1:{python.port}", "everything": f"http://127.0.0.1:{everything.port}"})
    s.direct = {"python": f"http://127.0.0.1:{python.port}/mcp", "everything": f"http://127.0.0.1:{everything.port}/mcp"}
    yield s
    s.close()
    python.close()
    everything.close()


@pytest.mark.parametrize("server,revision,good", [("python", "2025-11-25", 70), ("python", "2026-07-28", 120), ("everything", "2025-11-25", 20)])
def test_same_verdicts(stack, tmp_path, server, revision, good):
    direct = suite(tmp_path / "direct", stack.direct[server], revision, node_env())
    before = len(stack.relay.heads)
    through = suite(tmp_path / "through", stack.url(server), revision, node_env(stack))
    assert set(stack.relay.heads[before:]) == {f"CONNECT {server}.{stack.domain}:443 HTTP/1.1"}
    # By its own words this scenario is about servers on localhost without TLS, and it fails any other URL. What it is about holds by a rule of the gateway: see below.
    local = "dns-rebinding-protection"
    assert {c[3] for c in through.pop(local)} == {"DNS rebinding tests require a localhost server URL (localhost, 127.0.0.1, or [::1])"}
    assert direct.pop(local)
    assert through == direct
    passed = sum(c[2] == "SUCCESS" for checks in through.values() for c in checks)
    assert passed >= good, f"only {passed} checks were passed: too few to show anything"


def test_another_host_is_refused(stack):
    """What the scenario about rebinding asks, of the tunnel: the name of the TLS session and Host are one name, or nothing reaches the server."""
    for headers, status in ((["Host: evil.example.com"], 421), (["Host: localhost"], 421), ([f"Host: everything.{stack.domain}"], 421), (["Origin: http://evil.example.com"], 403), ([], 400)):
        r = curl_through(stack.edge, stack.ca, "-o", os.devnull, "-w", "%{http_code}", *(a for h in headers for a in ("-H", h)), stack.url("python"))
        assert r.stdout == str(status), (headers, r.stdout)


# ---- the other way round: this server's own MCP client, in the agent loop ----

CLIENT = f"{sys.executable} {ROOT / 'tests/tunnel/conformance_client.py'}"


@pytest.mark.parametrize("scenario", ["initialize", "tools_call", "sse-retry", "request-metadata", "http-standard-headers", "http-custom-headers", "http-invalid-tool-headers",
                                      "json-schema-ref-no-deref", "json-schema-2020-12-preservation"])
def test_our_client(tmp_path, scenario):
    """Scenarios of what this client does: no OAuth of its own (credentials come from vaults), no elicitation (nobody is there to be asked)."""
    r = subprocess.run([NODE, SUITE, "client", "--command", CLIENT, "--scenario", scenario, "--timeout", str(int(60000 * SLOW)), "-o", tmp_path], capture_output=True, text=True,
                       timeout=100 * SLOW, env={**node_env(), "OUTWORK_BIN": BIN, "OUTWORK_SLOW": str(SLOW)})
    found = [json.loads(f.read_text()) for f in tmp_path.glob(f"{scenario}-*/checks.json")]
    assert len(found) == 1, r.stdout[-3000:] + r.stderr[-3000:]
    said = "\n".join(f.read_text() for f in tmp_path.glob(f"{scenario}-*/std*.txt"))
    # "slightly late" is about how busy this machine is
    bad = [c for c in found[0] if c["status"] in ("FAILURE", "WARNING") and not (c["id"] == "client-sse-retry-timing" and not c["details"]["tooEarly"])]
    assert not bad, json.dumps(bad, indent=1)[:4000] + said[-3000:]
    assert any(c["status"] == "SUCCESS" for c in found[0]) and "CLIENT EXITED WITH ERROR" not in r.stdout, r.stdout[-2000:] + said[-3000:]
