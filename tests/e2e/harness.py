"""Processes and clients of the whole-program tests: real binaries on loopback, official SDKs, nothing mocked but the model."""
from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = os.environ.get("OUTWORK_BIN", str(ROOT / "build" / "outwork"))
SLOW = float(os.environ.get("OUTWORK_SLOW", "1"))       # sanitizer builds: time-outs are multiplied by this
BETA = "managed-agents-2026-04-01"
MODEL = "claude-opus-4-6"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, timeout=20.0, step=0.02, why="condition"):
    end = time.monotonic() + timeout * SLOW
    while True:
        got = what()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"{why}: not within {timeout * SLOW:.0f} s")
        time.sleep(step)


class Process:
    """A child with its log kept; the log is shown when a test fails."""

    def __init__(self, argv, env=None, name="process", cwd=None):
        self.name = name
        self.log = tempfile.NamedTemporaryFile(prefix=f"outwork-{name}-", suffix=".log", delete=False)
        base = {k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC_", "OUTWORK_"))}
        self.p = subprocess.Popen(argv, env={**base, **(env or {})}, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, cwd=cwd,
                                  start_new_session=True)

    def text(self) -> str:
        return Path(self.log.name).read_text(errors="replace")

    def alive(self) -> bool:
        return self.p.poll() is None

    def stop(self, timeout=40.0) -> int:
        if self.alive():
            self.p.send_signal(signal.SIGTERM)
        try:
            return self.p.wait(timeout * SLOW)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end on SIGTERM:\n{self.text()[-3000:]}") from None

    def kill(self) -> None:
        if self.alive():
            self.p.kill()
        self.p.wait()


class Server:
    def __init__(self, data: Path, *args: str, model_url: str | None = None, env=None):
        self.data, self.args, self.model_url, self.env = Path(data), list(args), model_url, env or {}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.proc: Process | None = None

    def start(self) -> "Server":
        argv = [BIN, "server", "--listen", f"127.0.0.1:{self.port}", "--data", str(self.data)]
        if self.model_url:
            key = self.data.parent / "model-key"
            key.write_text("sk-test-model-key\n")
            key.chmod(0o600)
            argv += ["--model-url", self.model_url, "--model-key-file", str(key)]
        self.proc = Process(argv + self.args, env=self.env, name="server")
        wait_for(self.ready, why="server ready")
        return self

    def ready(self) -> bool:
        if not self.proc.alive():
            raise AssertionError(f"the server ended:\n{self.proc.text()[-4000:]}")
        try:
            with urllib.request.urlopen(self.url + "/readyz", timeout=2) as r:
                return r.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> int:
        return self.proc.stop()

    def kill(self) -> None:
        self.proc.kill()

    def cli(self, *args: str, check=True) -> str:
        r = subprocess.run([BIN, *args], capture_output=True, text=True, timeout=30 * SLOW)
        if check and r.returncode:
            raise AssertionError(f"outwork {' '.join(args)}: status {r.returncode}: {r.stderr}")
        return r.stdout.strip()

    def api_key(self, role="admin") -> str:
        return self.cli("key", "create", "--data", str(self.data), "--role", role)

    def environment_key(self, env_id: str) -> str:
        return self.cli("environment-key", "create", "--data", str(self.data), env_id)


class Api:
    """Plain HTTP with every response kept; `spec` (see schema.py) checks each against the API document."""

    def __init__(self, url: str, key: str | None, spec=None, bearer=True):
        self.url, self.key, self.spec, self.bearer = url, key, spec, bearer

    def request(self, method, path, body=None, headers=None, raw=None, timeout=30):
        h = {"anthropic-version": "2023-06-01", "anthropic-beta": BETA}
        if self.key:
            h.update({"authorization": f"Bearer {self.key}"} if self.bearer else {"x-api-key": self.key})
        data = raw
        if body is not None:
            data = json.dumps(body).encode()
            h["content-type"] = "application/json"
        h.update(headers or {})
        h = {k: v for k, v in h.items() if v is not None}
        req = urllib.request.Request(self.url + path, data=data, method=method, headers=h)
        try:
            with urllib.request.urlopen(req, timeout=timeout * SLOW) as r:
                status, text, hs = r.status, r.read(), r.headers
        except urllib.error.HTTPError as e:
            status, text, hs = e.code, e.read(), e.headers
        value = json.loads(text) if text and "json" in (hs.get("content-type") or "") else text
        if self.spec:
            self.spec.check(method, path.split("?")[0], status, value)
        return Response(status, value, hs)

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def post(self, path, body=None, **kw):
        return self.request("POST", path, body, **kw)

    def delete(self, path, **kw):
        return self.request("DELETE", path, **kw)


class Response:
    def __init__(self, status, value, headers):
        self.status, self.value, self.headers = status, value, headers

    def ok(self, status=200):
        assert self.status == status, (self.status, self.value)
        return self.value

    def error(self, status, *words):
        assert self.status == status, (self.status, self.value)
        assert self.value["type"] == "error" and self.value["request_id"] == self.headers["request-id"], self.value
        for w in words:
            assert w in self.value["error"]["message"], self.value
        return self.value["error"]


class Stream:
    """An SSE reader on its own thread: frames as (id, event, data)."""

    def __init__(self, api: Api, path: str, headers=None):
        h = {"anthropic-version": "2023-06-01", "anthropic-beta": BETA, "authorization": f"Bearer {api.key}", **(headers or {})}
        self.r = urllib.request.urlopen(urllib.request.Request(api.url + path, headers=h), timeout=300)
        assert self.r.headers["content-type"].startswith("text/event-stream"), self.r.headers["content-type"]
        self.frames, self.ended = [], False
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        fid = event = data = None
        try:
            for line in self.r:
                line = line.decode().rstrip("\n")
                if not line:
                    if data is not None:
                        self.frames.append((fid, event, json.loads(data)))
                    event = data = None
                elif line.startswith("id:"):
                    fid = line[3:].strip()
                elif line.startswith("event:"):
                    event = line[6:].strip()
                elif line.startswith("data:"):
                    assert data is None, "data in more than one line"
                    data = line[5:].strip()
        except (OSError, ValueError, AttributeError):
            pass
        self.ended = True

    def events(self):
        return [f for f in list(self.frames) if f[1] != "ping"]

    def types(self):
        return [f[1] for f in self.events()]

    def wait(self, test, timeout=20.0):
        return wait_for(lambda: next((f for f in self.events() if test(f[2])), None), timeout, why=f"event; seen {self.types()}")

    def close(self):
        try:
            self.r.fp.raw._sock.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            pass
        self.thread.join(5)


def plan(*steps) -> str:
    return "PLAN " + json.dumps(list(steps))


def tool(name, **inp):
    return {"tool": name, "input": inp}


TOOLSET = {"type": "agent_toolset_20260401"}


class World:
    """A server with a fake or real model behind it, an admin API, one self-hosted environment with its key."""

    def __init__(self, tmp: Path, spec=None, model=None, server_args=(), script=None):
        self.tmp, self.model, self.spec = Path(tmp), model, spec
        args = list(server_args)
        if script:
            args += ["--model-provider", "script", "--script-file", str(script)]
        self.server = Server(self.tmp / "data", *args, model_url=model.url if model else None).start()
        self.key = self.server.api_key()
        self.api = Api(self.server.url, self.key, spec)
        self.env_id = self.api.post("/v1/environments", {"name": "local", "config": {"type": "self_hosted"}}).ok()["id"]
        self.env_key = self.server.environment_key(self.env_id)
        self.workers: list[Process] = []
        self.agents: dict[str, str] = {}

    def agent(self, tools=None, name="tester", **more) -> str:
        return self.api.post("/v1/agents", {"name": name, "model": MODEL, "system": "You are a test.", "tools": tools if tools is not None else [TOOLSET], **more}).ok()["id"]

    def session(self, text=None, agent=None, **more) -> str:
        if agent is None:
            agent = self.agents.setdefault("default", None) or self.agent()
            self.agents["default"] = agent
        body = {"agent": agent, "environment_id": self.env_id, **more}
        if text is not None:
            body["initial_events"] = [{"type": "user.message", "content": [{"type": "text", "text": text}]}]
        return self.api.post("/v1/sessions", body).ok()["id"]

    def send(self, sid, *events):
        return self.api.post(f"/v1/sessions/{sid}/events", {"events": list(events)})

    def say(self, sid, text):
        return self.send(sid, {"type": "user.message", "content": [{"type": "text", "text": text}]}).ok()

    def events(self, sid, query=""):
        out, page = [], None
        while True:
            r = self.api.get(f"/v1/sessions/{sid}/events?limit=1000{query}" + (f"&page={page}" if page else "")).ok()
            out += r["data"]
            page = r["next_page"]
            if not page:
                return out

    def idle(self, sid, reason="end_turn", timeout=30.0, after=0):
        """Waits until the log's last status event is idle with that reason (and at least `after` idles came before)."""
        def look():
            evs = self.events(sid)
            st = [e for e in evs if e["type"].startswith("session.status_")]
            ok = st and st[-1]["type"] == "session.status_idle" and st[-1]["stop_reason"]["type"] == reason
            ok = ok and sum(e["type"] == "session.status_idle" for e in evs) > after
            # queued messages must have been consumed
            return evs if ok and all(e["processed_at"] for e in evs) else None
        try:
            return wait_for(look, timeout, 0.05, why=f"session idle {reason}")
        except AssertionError as e:
            raise AssertionError(f"{e}; log: {json.dumps(self.events(sid), indent=1)[-6000:]}\nserver: {self.server.proc.text()[-3000:]}") from None

    def worker(self, kind="outwork", *args, user=None, key=None, max_idle=None, env=None) -> Process:
        n = len(self.workers)
        work = self.tmp / f"work-{kind}-{n}"
        work.mkdir()
        e = {"ANTHROPIC_BASE_URL": self.server.url, "ANTHROPIC_ENVIRONMENT_ID": self.env_id, "ANTHROPIC_ENVIRONMENT_KEY": key or self.env_key, **(env or {})}
        if kind == "outwork":
            argv = [BIN, "worker", "--state-dir", str(work), *args]
            if user is not None:
                os.chown(work, user, user)
                for d in [self.tmp, *self.tmp.parents]:
                    if d == Path("/tmp") or d == Path("/"):
                        break
                    d.chmod(d.stat().st_mode | 0o711)
                argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *argv]
                e["HOME"] = str(work)
        elif kind == "python":
            argv = [sys.executable, str(ROOT / "tests/clients/worker.py"), str(work)]
        elif kind == "typescript":
            argv = [shutil.which("node"), str(ROOT / "tests/clients/ts/worker.mjs"), str(work)]
        else:
            argv = [str(ROOT / ".cache/go-worker"), str(work)]
        w = Process(argv, env=e, name=f"worker-{kind}")
        w.workdir = work
        self.workers.append(w)
        return w

    def close(self):
        for w in self.workers:
            w.kill()
        if self.server.proc.alive():
            assert self.server.stop() == 0, self.server.proc.text()[-3000:]
        if self.model:
            assert not self.model.violations, self.model.violations[:5]
