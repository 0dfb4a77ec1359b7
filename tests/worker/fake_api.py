"""A scripted service for the worker's tests: work queue, heartbeats, session events, skills. Standard library only.

Everything that arrives is kept in `requests`; faults are set with `fail()`; a session's events are given with `Session.add()`."""
import base64
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

ENV = "env_test1"
KEY = "sk-ant-oat01-test-key"


def secret_for(token):
    return base64.urlsafe_b64encode(json.dumps({"sessions_token": token}).encode()).decode().rstrip("=")


@dataclass
class Request:
    method: str
    path: str
    query: dict
    headers: dict
    body: bytes
    at: float

    @property
    def json(self):
        return json.loads(self.body) if self.body else None

    @property
    def bearer(self):
        return self.headers.get("authorization", "").removeprefix("Bearer ")


@dataclass
class Fault:
    method: str
    pattern: re.Pattern
    status: int  # 0: close the connection without an answer
    times: int
    headers: dict
    body: object
    delay: float = 0.0


class Session:
    def __init__(self, api, sid, skills=None):
        self.api, self.id, self.skills = api, sid, skills or []
        self.events, self.streams, self.n = [], [], 0
        self.results = {}  # tool_use_id -> list of posted events
        self.stream_opens = 0
        self.page_max = 1000
        self.auto_idle = True

    def stamp(self, ev):
        self.n += 1
        ev = dict(ev)
        ev.setdefault("id", f"sevt_{self.id}_{self.n}")
        ev["processed_at"] = "2026-01-01T00:00:00.000Z"
        return ev

    def add(self, *events, live=True, listed=True):
        """Appends to the history and sends on the open streams."""
        with self.api.lock:
            for ev in events:
                ev = self.stamp(ev)
                if listed:
                    self.events.append(ev)
                if live:
                    for s in list(self.streams):
                        s.append(ev)
            self.api.changed.notify_all()
        return ev["id"]

    def tool(self, name, input, **more):
        how = {k: more.pop(k) for k in ("live", "listed") if k in more}
        return self.add({"type": "agent.tool_use", "name": name, "input": input, **more}, **how)

    def bash(self, command, **more):
        return self.tool("bash", {"command": command}, **more)

    def idle(self, reason="end_turn", **how):
        return self.add({"type": "session.status_idle", "stop_reason": {"type": reason}}, **how)

    def cut_streams(self):
        with self.api.lock:
            for s in self.streams:
                s.append(None)
            self.api.changed.notify_all()

    def text(self, tool_use_id):
        """The text of the (first) result, joined. Results are posted side by side, so a later one says nothing of this one: it is waited for."""
        return "\n".join(b.get("text", "") for b in self.api.wait_result(self, tool_use_id)["content"])

    def error(self, tool_use_id):
        return self.api.wait_result(self, tool_use_id)["is_error"]


class Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A worker that goes away, as many tests want it to, is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class FakeApi:
    def __init__(self):
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.requests, self.faults = [], []
        self.queue, self.work, self.sessions, self.skills = [], {}, {}, {}
        self.ttl = 30
        self.held = True
        self.beats = 0
        self.tokens = {}  # token -> session id
        self.skills_take_token = True
        self.closing = False
        self.n = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *a):
                pass

            def do_GET(self):
                api.handle(self)

            do_POST = do_DELETE = do_PUT = do_GET

        self.http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        with self.lock:
            self.closing = True
            self.changed.notify_all()
        self.http.shutdown()
        self.http.server_close()

    # ---- what a test says ----

    def session(self, sid=None, skills=None):
        with self.lock:
            self.n += 1
            s = Session(self, sid or f"session_{self.n}", skills)
            self.sessions[s.id] = s
            return s

    def enqueue(self, session, token=None, type="session", **more):
        with self.lock:
            self.n += 1
            wid = f"work_{self.n}"
            sid = session if isinstance(session, str) else session.id
            w = {"id": wid, "type": "work", "environment_id": ENV, "data": {"type": type, "id": sid}, "state": "queued", "metadata": {},
                 "secret": secret_for(token) if token else None, "last": None, **more}
            if token:
                self.tokens[token] = sid
            self.work[wid] = w
            self.queue.append(wid)
            self.changed.notify_all()
            return wid

    def fail(self, method, pattern, status, times=1, headers=None, body=None, delay=0.0):
        with self.lock:
            self.faults.append(Fault(method, re.compile(pattern), status, times, headers or {}, body, delay))

    def seen(self, method, pattern):
        with self.lock:
            return [r for r in self.requests if r.method == method and re.search(pattern, r.path)]

    def wait(self, what, timeout=15.0, why=""):
        end = time.monotonic() + timeout
        with self.lock:
            while not what():
                left = end - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"timed out: {why or what}; requests: " +
                                         "; ".join(f"{r.method} {r.path}" for r in self.requests[-15:]))
                self.changed.wait(min(left, 0.2))

    def wait_result(self, session, tool_use_id, timeout=15.0):
        self.wait(lambda: tool_use_id in session.results, timeout, f"result of {tool_use_id}")
        return session.results[tool_use_id][0]

    def wait_state(self, wid, state, timeout=15.0):
        self.wait(lambda: self.work[wid]["state"] == state, timeout, f"{wid} {state}, is {self.work[wid]['state']}")

    # ---- what the service does ----

    def handle(self, h):
        u = urlsplit(h.path)
        body = h.rfile.read(int(h.headers.get("content-length", 0) or 0))
        r = Request(h.command, u.path, {k: v[0] for k, v in parse_qs(u.query).items()}, {k.lower(): v for k, v in h.headers.items()}, body,
                    time.monotonic())
        with self.lock:
            self.requests.append(r)
            self.changed.notify_all()
            fault = next((f for f in self.faults if f.times > 0 and f.method == r.method and f.pattern.search(r.path)), None)
            if fault:
                fault.times -= 1
        if fault:
            time.sleep(fault.delay)
            if fault.status == 0:
                h.close_connection = True
                return
            if fault.status:
                body = fault.body if fault.body is not None else {"type": "error", "error": {"type": "test_error", "message": f"fault {fault.status}"}}
                self.reply(h, fault.status, body, fault.headers)
                return
        for method, pattern, fn in ROUTES:
            m = re.fullmatch(pattern, r.path)
            if m and method == r.method:
                if r.bearer != KEY and r.bearer not in self.tokens:
                    self.error(h, 401, "authentication_error", "no such key")
                    return
                fn(self, h, r, *m.groups())
                return
        self.error(h, 404, "not_found_error", r.path)

    def reply(self, h, status, body, headers=None):
        data = body if isinstance(body, bytes) else b"" if status == 204 else json.dumps(body).encode()
        h.send_response(status)
        h.send_header("content-type", "application/json")
        for k, v in (headers or {}).items():
            h.send_header(k, v)
        if status != 204:
            h.send_header("content-length", str(len(data)))
        h.end_headers()
        h.wfile.write(data)
        h.wfile.flush()

    def error(self, h, status, type, message, details=None):
        e = {"type": type, "message": message}
        if details:
            e["details"] = details
        self.reply(h, status, {"type": "error", "error": e, "request_id": "req_test"})

    def poll(self, h, r):
        end = time.monotonic() + int(r.query["block_ms"]) / 1000
        with self.lock:
            while not self.queue and not self.closing and time.monotonic() < end:
                self.changed.wait(max(0.001, end - time.monotonic()))
            w = self.work[self.queue.pop(0)] if self.queue else None
        item = w and {k: v for k, v in w.items() if k != "last"}
        self.reply(h, 200, item, {"outwork-poll": "held"} if self.held else {})

    def ack(self, h, r, wid):
        with self.lock:
            self.work[wid]["state"] = "starting"
            self.changed.notify_all()
        self.reply(h, 200, {**self.work[wid], "secret": None})

    def heartbeat(self, h, r, wid):
        with self.lock:
            w = self.work[wid]
            expected = r.query["expected_last_heartbeat"]
            if expected != (w["last"] or "NO_HEARTBEAT"):
                self.error(h, 412, "precondition_failed", "someone else", {"current_state": {"state": w["state"]}})
                return
            if w["state"] in ("starting", "queued"):
                w["state"] = "active"
            self.beats += 1
            w["last"] = f"2026-01-01T00:00:{self.beats:06d}+00:00"
            self.changed.notify_all()
            out = {"type": "work_heartbeat", "last_heartbeat": w["last"], "lease_extended": True, "state": w["state"], "ttl_seconds": self.ttl}
        self.reply(h, 200, out)

    def stop(self, h, r, wid):
        with self.lock:
            w = self.work[wid]
            force = (r.json or {}).get("force")
            if w["state"] == "stopped":
                self.error(h, 409, "conflict", "stopped already")
                return
            w["state"] = "stopped" if force else "stopping"
            self.changed.notify_all()
        self.reply(h, 204, b"")

    def get_session(self, h, r, sid):
        s = self.sessions[sid]
        self.reply(h, 200, {"id": sid, "type": "session", "agent": {"id": "agent_1", "skills": s.skills}, "resources": []})

    def list_events(self, h, r, sid):
        s = self.sessions[sid]
        n = min(int(r.query.get("limit", 100)), s.page_max)
        start = int(r.query.get("page", 0))
        with self.lock:
            data = s.events[start:start + n]
            more = start + n < len(s.events)
        self.reply(h, 200, {"data": data, "next_page": str(start + n) if more else None})

    def post_events(self, h, r, sid):
        s = self.sessions[sid]
        made = []
        for ev in r.json["events"]:
            with self.lock:
                s.results.setdefault(ev["tool_use_id"], []).append(ev)
                made.append(s.stamp(ev))
            s.add(ev)
        self.reply(h, 200, {"data": made})

    def stream(self, h, r, sid):
        s = self.sessions[sid]
        mine = []
        with self.lock:
            s.streams.append(mine)
            s.stream_opens += 1
            self.changed.notify_all()
        h.send_response(200)
        h.send_header("content-type", "text/event-stream")
        h.send_header("transfer-encoding", "chunked")
        h.end_headers()

        def chunk(text):
            h.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            h.wfile.flush()

        try:
            chunk(b": hello\n\n")
            while not self.closing:
                with self.lock:
                    if not mine:
                        self.changed.wait(0.2)
                    batch, mine[:] = list(mine), []
                for ev in batch:
                    if ev is None:
                        h.close_connection = True
                        return
                    chunk(f"event: {ev['type']}\ndata: {json.dumps(ev)}\n\n".encode())
        except OSError:
            pass
        finally:
            h.close_connection = True
            with self.lock:
                s.streams.remove(mine)

    def skill(self, h, r, kid, rest):
        if r.bearer != KEY and not self.skills_take_token:
            self.error(h, 403, "permission_error", "environment keys only")
            return
        k = self.skills.get(kid)
        if not k:
            self.error(h, 404, "not_found_error", kid)
        elif not rest:
            self.reply(h, 200, {"data": [{"version": v} for v in k["versions"]], "next_page": None})
        elif rest.endswith("/content"):
            self.reply(h, 200, k["archive"])
        else:
            self.reply(h, 200, {"name": k["name"], "version": rest.strip("/")})


ROUTES = [
    ("GET", rf"/v1/environments/{ENV}/work/poll", FakeApi.poll),
    ("POST", rf"/v1/environments/{ENV}/work/(\w+)/ack", FakeApi.ack),
    ("POST", rf"/v1/environments/{ENV}/work/(\w+)/heartbeat", FakeApi.heartbeat),
    ("POST", rf"/v1/environments/{ENV}/work/(\w+)/stop", FakeApi.stop),
    ("GET", r"/v1/sessions/(\w+)", FakeApi.get_session),
    ("GET", r"/v1/sessions/(\w+)/events", FakeApi.list_events),
    ("POST", r"/v1/sessions/(\w+)/events", FakeApi.post_events),
    ("GET", r"/v1/sessions/(\w+)/events/stream", FakeApi.stream),
    ("GET", r"/v1/skills/(\w+)/versions(/.*)?", FakeApi.skill),
]
