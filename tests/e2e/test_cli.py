"""The command line that others script against."""
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness import BIN, Api, Process, free_port, wait_for


def run(*args, env=None, timeout=30):
    base = {k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC_", "OUTWORK_"))}
    return subprocess.run([BIN, *args], capture_output=True, text=True, timeout=timeout, env={**base, **(env or {})})


ROOT = Path(__file__).resolve().parents[2]
COMPLETION = run("completion", "bash").stdout


def offered(*words):
    """What the shell would offer for the last of these words."""
    script = COMPLETION + "\nCOMP_WORDS=(outwork " + " ".join(f"'{w}'" for w in words) + f"); COMP_CWORD={len(words)}; _outwork; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    env = {**os.environ, "PATH": f"{Path(BIN).parent}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, timeout=60).stdout.split()


def table():
    """Every command with its verbs, by `outwork help`: {"key": ["create", "list", "revoke"], ...}."""
    found = {}
    for line in run("help").stdout.splitlines():
        if m := re.match(r"  ([a-z-]+)  +\S", line):
            found[m.group(1)] = []
        elif m := re.match(r"  +outwork ([a-z-]+) (\S+)$", line):
            found[m.group(1)] = m.group(2).split("|")
    return found


TABLE = table()
VERBS = [(c, v) for c, vs in TABLE.items() for v in vs]
NOUNS = {("tunnel", "certificate"): ["add", "list", "archive"], ("vault", "key"): ["add", "list"]}


def test_the_table_is_whole():
    assert {"server", "worker", "gateway", "edge", "dev", "key", "environment", "environment-key", "edge-key", "tunnel", "vault", "audit", "doctor"} <= set(TABLE)
    assert TABLE["gateway"] == ["check", "init", "renew"] and TABLE["edge"] == ["init"]


@pytest.mark.parametrize("command", [c for c in TABLE if c not in ("help", "version")])
def test_every_command_has_help(command):
    r = run(command, "--help")
    assert r.returncode == 0 and "Usage" in r.stdout and len(r.stdout) > 100 and not r.stderr
    assert run("help", command).stdout == r.stdout
    for verb in TABLE[command]:
        assert re.search(rf"\b{verb}\b", r.stdout), f"the help of {command} does not name {verb}"


@pytest.mark.parametrize("command,verb", VERBS)
def test_every_verb_has_help(command, verb):
    r = run(command, verb, "--help")
    assert r.returncode == 0 and f"outwork {command}" in r.stdout and not r.stderr
    assert run("help", command, verb).stdout == r.stdout


def test_completion_offers_what_there_is():
    assert sorted(offered("")) == sorted(TABLE) and sorted(offered("help", "")) == sorted(TABLE)
    for command, verbs in TABLE.items():
        if command != "help":
            assert offered(command, "") == verbs
    for (command, noun), verbs in NOUNS.items():
        assert noun in TABLE[command] and offered(command, noun, "") == verbs
    assert "--output" in offered("gateway", "init", "--o") and "--output" not in offered("gateway", "--o")
    assert offered("audit", "verify", "") == []             # then the shell offers files


def test_the_man_page_names_what_there_is():
    page = (ROOT / "packaging/outwork.1").read_text().replace("\\-", "-")
    named = set(re.findall(r"outwork ([a-z-]+(?: [a-z-]+)*)", page.split(".SH ROLES")[1].split(".SH FILES")[0]))
    want = set(TABLE) | {f"{c} {v}" for c, v in VERBS if (c, v) not in NOUNS} | {f"{c} {n} {v}" for (c, n), vs in NOUNS.items() for v in vs}
    want -= {c for c in TABLE if TABLE[c] and not run(c).returncode == 0 and c not in ("worker", "gateway", "edge")}       # commands that need a verb
    assert named == want


@pytest.mark.parametrize("unit", sorted(p.name for p in (ROOT / "packaging").glob("*.service")))
def test_units_start_what_there_is(unit, tmp_path):
    """Settings of a unit, by flag or variable, are ones that its program knows."""
    text = (ROOT / "packaging" / unit).read_text()
    words = re.search(r"^ExecStart=@PREFIX@/bin/outwork (.*)$", text, re.M).group(1).split()
    env = dict(w.replace("%d", str(tmp_path)).split("=", 1) for line in re.findall(r"^Environment=(.*)$", text, re.M) for w in line.split())
    if "EnvironmentFile=" in text:
        env["ANTHROPIC_ENVIRONMENT_ID"] = "env_1"
    config = tmp_path / "config.yaml"
    config.write_text("{}\n")
    words = [str(config) if w.endswith(".yaml") else w.replace("${CREDENTIALS_DIRECTORY}", str(tmp_path)) for w in words]
    for name in re.findall(r"^LoadCredential=([a-z-]+):", text, re.M):
        assert str(tmp_path / name) in [*env.values(), *words], f"nothing uses the credential {name}"
    r = run(*words, "--print-config", env=env)
    assert r.returncode == 0, r.stderr
    for value in env.values():
        assert value in r.stdout
    hardened = {"NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=", "SystemCallFilter=@system-service", "RestrictNamespaces=yes"}
    assert words[0] == "worker" or hardened <= set(text.splitlines())           # a worker makes namespaces and drops its rights itself


def test_usage_errors():
    assert run().returncode == 2
    r = run("sever")
    assert r.returncode == 2 and "sever" in r.stderr
    r = run("server", "--lisen", "x")
    assert r.returncode == 2 and "--listen" in r.stderr                       # names the nearest known option
    assert run("worker").returncode == 2
    assert run("key", "create", "--role", "king", "--data", "/tmp/nowhere").returncode == 2
    assert "outwork" in run("--version").stdout


def test_keys_print_the_key_and_nothing_else(tmp_path):
    data = str(tmp_path / "d")
    r = run("key", "create", "--data", data, "--role", "developer")
    assert r.returncode == 0 and len(r.stdout.split()) == 1 and r.stdout.endswith("\n")
    assert r.stdout.strip() not in run("key", "list", "--data", data).stdout
    assert oct(os.stat(data + "/outwork.db").st_mode)[-3:] == "600"
    rows = json.loads(run("key", "list", "--data", data, "--json").stdout)
    assert rows[0]["role"] == "developer"
    assert run("key", "revoke", "--data", data, "apikey_none").returncode == 1
    r = run("environment-key", "create", "--data", data, "env_none")
    assert r.returncode == 1 and "env_none" in r.stderr and not r.stdout
    blob = open(data + "/outwork.db", "rb").read()
    assert run("key", "create", "--data", data, "--role", "user").stdout.strip().encode() not in blob


def test_settings_from_file_environment_and_flag(tmp_path):
    port = free_port()
    conf = tmp_path / "server.yaml"
    conf.write_text(f"listen: 127.0.0.1:1\ndata: {tmp_path}/from-file\nmodel:\n  provider: script\n")
    p = Process([BIN, "server", "--config", str(conf), "--listen", f"127.0.0.1:{port}"], env={"OUTWORK_LOG_FORMAT": "json"}, name="server")
    try:
        line = wait_for(lambda: next((json.loads(x) for x in p.text().splitlines() if "server.ready" in x), None), why="one line when ready")
        assert str(port) in json.dumps(line) and (tmp_path / "from-file" / "outwork.db").exists()
    finally:
        assert p.stop() == 0
    conf.write_text("lisen: x\n")
    r = run("server", "--config", str(conf))
    assert r.returncode == 2 and "lisen" in r.stderr and str(conf) in r.stderr


def test_worker_refusals(tmp_path, world):
    env = {"ANTHROPIC_BASE_URL": world.server.url, "ANTHROPIC_ENVIRONMENT_ID": world.env_id, "ANTHROPIC_ENVIRONMENT_KEY": "wrong"}
    r = run("worker", "--state-dir", str(tmp_path / "w"), env=env, timeout=30)
    assert r.returncode == 3 and "environment key" in r.stderr
    r = run("worker", "--state-dir", str(tmp_path / "w"), env={k: v for k, v in env.items() if k != "ANTHROPIC_ENVIRONMENT_ID"})
    assert r.returncode == 2 and "ANTHROPIC_ENVIRONMENT_ID" in r.stderr


def test_key_is_in_no_environment_of_the_worker(world):
    w = world.worker("outwork")
    wait_for(lambda: "poll" in w.text() or world.api.get(f"/v1/environments/{world.env_id}/work/stats").ok()["workers_polling"], why="polls")
    for pid in [p for p in os.listdir("/proc") if p.isdigit()]:
        try:
            with open(f"/proc/{pid}/stat") as f:
                if os.getpgid(int(pid)) != w.p.pid:
                    continue
            for name in ("environ", "cmdline"):
                assert world.env_key.encode() not in open(f"/proc/{pid}/{name}", "rb").read()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    assert w.stop() == 0


def test_doctor():
    r = run("doctor", "--json")
    assert r.returncode in (0, 4)
    report = json.loads(r.stdout)
    assert report and "ok" in json.dumps(report)
    assert run("doctor").stdout


def test_audit_log_of_a_worker(world, tmp_path):
    from harness import plan, tool
    w = world.worker("outwork")
    sid = world.session(plan([tool("bash", command="echo secret-free"), tool("write", file_path="a", content="b"), tool("read", file_path="/etc/shadow")], ["x"]))
    world.idle(sid)
    assert w.stop() == 0
    log = next(w.workdir.rglob("audit.jsonl"))
    rows = [json.loads(x) for x in log.read_text().splitlines()]
    tools = [r for r in rows if r.get("kind") == "tool"]
    assert len(tools) == 3 and all(sid in (r.get("session"), r.get("session_id")) for r in tools)
    ok = run("audit", "verify", str(log))
    assert ok.returncode == 0 and str(len(rows)) in ok.stdout
    head = run("audit", "head", str(log)).stdout.strip()
    lines = log.read_text().splitlines(keepends=True)
    for name, bad in {"altered": lines[:1] + [lines[1].replace("a", "b", 1)] + lines[2:], "dropped": lines[:1] + lines[2:], "swapped": [lines[1], lines[0], *lines[2:]]}.items():
        f = tmp_path / name
        f.write_text("".join(bad))
        assert run("audit", "verify", str(f)).returncode == 1, name
    f = tmp_path / "cut"
    f.write_text("".join(lines[:-1]))
    assert run("audit", "verify", "--head", head, str(f)).returncode == 1
    assert run("audit", "verify", "--head", head, str(log)).returncode == 0


def test_on_work_script(world, tmp_path):
    from harness import plan, tool
    script = tmp_path / "on-work"
    script.write_text(f"#!/bin/sh\ncat > {tmp_path}/item.json\nenv | grep ^ANTHROPIC_ | sort > {tmp_path}/env\n"
                      f"ANTHROPIC_WORK_SECRET=$(python3 -c 'import json;print(json.load(open(\"{tmp_path}/item.json\"))[\"secret\"])') exec {BIN} worker run --max-idle 1s --state-dir {tmp_path}/state\n")
    script.chmod(0o755)
    w = world.worker("outwork", "--on-work", str(script))
    sid = world.session(plan([tool("bash", command="echo by script")], ["done"]))
    events = world.idle(sid, timeout=60)
    assert any(e["type"] == "user.tool_result" and "by script" in str(e) for e in events)
    item = json.loads((tmp_path / "item.json").read_text())
    assert item["data"]["id"] == sid and item["secret"]
    env = (tmp_path / "env").read_text()
    for name in ("ANTHROPIC_WORK_ID", "ANTHROPIC_ENVIRONMENT_ID", "ANTHROPIC_SESSION_ID", "ANTHROPIC_ENVIRONMENT_KEY"):
        assert name in env
    wait_for(lambda: all(i["state"] == "stopped" for i in world.api.get(f"/v1/environments/{world.env_id}/work").ok()["data"] if i["id"] == item["id"]), why="the item is stopped")
    assert w.stop() == 0


def test_dev_prints_exports_that_work(tmp_path):
    port = free_port()
    p = Process([BIN, "dev", "--data", str(tmp_path / "dev"), "--listen", f"127.0.0.1:{port}"], name="dev")
    try:
        text = wait_for(lambda: "ANTHROPIC_API_KEY=" in p.text() and p.text(), why="exports")
        key = text.split("ANTHROPIC_API_KEY=")[1].split()[0]
        api = Api(f"http://127.0.0.1:{port}", key)
        env = api.get("/v1/environments").ok()["data"][0]
        assert env["name"] == "local"
        wait_for(lambda: api.get(f"/v1/environments/{env['id']}/work/stats").ok()["workers_polling"] == 1, why="the worker polls")
        t = time.monotonic()
        os.kill(p.p.pid, signal.SIGINT)
        assert p.p.wait(30) == 0 and time.monotonic() - t < 20
    finally:
        p.kill()
