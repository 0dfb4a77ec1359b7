"""A Messages API on loopback for tests: strict about what it is sent, deterministic in what it answers.

The newest user text that starts with ``PLAN `` holds a JSON list of steps; the n-th model request after it answers with
step n. A step is a list of content blocks, or an object::

    {"blocks": [...], "stop_reason": "...", "usage": {...}, "delay": seconds, "chunk_delay": seconds, "piece": characters}
    {"status": 529, "times": 2, "headers": {...}, "error": "overloaded_error", "then": STEP}
    {"break_after": n, "times": 1, "then": STEP}      # the stream is cut after n events
    {"blocks": [...], "error_after": n, "error": T}   # after n events an `error` event, and the end
    {"raw": "...", "type": "text/event-stream"}       # these bytes, whatever they are

A block is ``"some text"``, ``{"tool": name, "input": {...}}``, ``{"thinking": "..."}`` or a raw content block.
"""
from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Broken(Exception):
    pass


def check_request(body: dict) -> list[str]:
    """What the real Messages API would refuse (service.md 3.4 B, 4.1)."""
    bad = []
    open_ids: list[str] = []
    last_role = None
    for i, m in enumerate(body["messages"]):
        content = m["content"] if isinstance(m["content"], list) else [{"type": "text", "text": m["content"]}]
        if not content:
            bad.append(f"messages.{i}: empty content")
        if m["role"] == last_role == "assistant":
            bad.append(f"messages.{i}: two assistant messages in a row")
        last_role = m["role"]
        if m["role"] == "user":
            answered = [b["tool_use_id"] for b in content if b["type"] == "tool_result"]
            kinds = [b["type"] == "tool_result" for b in content]
            if kinds != sorted(kinds, reverse=True):
                bad.append(f"messages.{i}: tool results are not first")
            if sorted(answered) != sorted(open_ids):
                bad.append(f"messages.{i}: answers {answered}, open {open_ids}")
            open_ids = []
        elif m["role"] == "assistant":
            open_ids = [b["id"] for b in content if b["type"] == "tool_use"]
        for b in content:
            if b["type"] == "text" and not b["text"]:
                bad.append(f"messages.{i}: empty text block")
    if open_ids:
        bad.append(f"open calls at the end: {open_ids}")
    breakpoints = json.dumps(body).count('"cache_control"')
    if breakpoints > 4:
        bad.append(f"{breakpoints} cache breakpoints")
    return bad


class FakeModel:
    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.violations: list[str] = []
        self.failures: dict[str, int] = {}
        self.lock = threading.Lock()
        self.on_request = None      # called with (index, body) before the answer begins
        self.on_event = None        # called with (request index, event index) before each stream event
        self.raw: list[bytes] = []  # bodies and paths as they came
        self.paths: list[str] = []
        self.unstreamed = False     # answers without "stream": true are expected
        self.cut = threading.Event()    # set when a stream could not be written any more
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["content-length"]))
                body = json.loads(raw)
                with fake.lock:
                    fake.raw.append(raw)
                    fake.paths.append(self.path)
                try:
                    fake.answer(self, body)
                except (BrokenPipeError, ConnectionResetError):
                    fake.cut.set()
                    self.close_connection = True
                except Broken:
                    self.close_connection = True
                    self.connection.shutdown(2)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    # -- choosing the step ------------------------------------------------------------------------------------------
    @staticmethod
    def _texts(message: dict) -> list[str]:
        content = message["content"]
        return [content] if isinstance(content, str) else [b["text"] for b in content if b["type"] == "text"]

    def choose(self, body: dict) -> tuple[object, str]:
        plan, at = None, 0
        for i, m in enumerate(body["messages"]):
            if m["role"] == "user":
                for t in self._texts(m):
                    if t.startswith("PLAN "):
                        plan, at = t, i
        if plan is None:
            return ["No plan was given."], "none"
        steps = json.loads(plan[5:])
        n = sum(1 for m in body["messages"][at + 1:] if m["role"] == "assistant")
        return (steps[n] if n < len(steps) else ["The plan is done."]), hashlib.sha256(f"{plan} {n}".encode()).hexdigest()

    def answer(self, h: BaseHTTPRequestHandler, body: dict) -> None:
        with self.lock:
            index = len(self.requests)
            self.requests.append(body)
            self.headers.append(dict(h.headers.items()))
            self.violations += check_request(body)
        if self.on_request:
            self.on_request(index, body)
        if h.path.split("?")[0].endswith("/count_tokens"):
            return self.whole(h, {"input_tokens": 10 + len(body["messages"]), **({"context_management": None} if "context_management" in body else {})}, "count")
        step, key = self.choose(body)
        if body["messages"][-1]["role"] != "user" and "pause_turn" not in json.dumps(body["messages"][0]):
            self.violations.append("the last message is not the user's, and nothing was paused")
        if isinstance(step, dict) and ("status" in step or "break_after" in step):
            with self.lock:
                used = self.failures.get(key, 0)
                self.failures[key] = used + 1
            if used < step.get("times", 1):
                if "status" in step:
                    return self.fail(h, step)
                return self.stream(h, body, step.get("then", ["x" * 50]), key, index, cut=step["break_after"])
            step = step.get("then", ["recovered"])
        self.stream(h, body, step, key, index)

    def fail(self, h, step) -> None:
        data = json.dumps({"type": "error", "error": {"type": step.get("error", "api_error"), "message": step.get("message", "injected")},
                           "request_id": "req_fake"}).encode()
        h.send_response(step["status"])
        h.send_header("content-type", "application/json")
        for k, v in step.get("headers", {}).items():
            h.send_header(k, v)
        h.send_header("content-length", str(len(data)))
        h.end_headers()
        h.wfile.write(data)

    def whole(self, h, value, key, kind="application/json") -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        h.send_response(200)
        h.send_header("content-type", kind)
        h.send_header("request-id", "req_" + key[:12])
        h.send_header("anthropic-ratelimit-requests-remaining", "99")
        h.send_header("anthropic-organization-id", "org_of_the_provider")
        h.send_header("content-length", str(len(data)))
        h.end_headers()
        h.wfile.write(data)

    def message(self, body, step, key) -> dict:
        m: dict = {}
        for name, data in self.events(body, step, key):
            if name == "message_start":
                m = data["message"]
            elif name == "content_block_start":
                m["content"].append(dict(data["content_block"]))
                partial = ""
            elif name == "content_block_delta":
                b, d = m["content"][-1], data["delta"]
                if d["type"] == "input_json_delta":
                    partial += d["partial_json"]
                    b["input"] = None
                else:
                    k = d["type"].removesuffix("_delta")
                    b[k] = b.get(k, "") + d[k]
            elif name == "content_block_stop" and partial:
                m["content"][-1]["input"] = json.loads(partial)
            elif name == "message_delta":
                m.update(data["delta"])
                m["usage"].update(data["usage"])
        return m

    # -- the stream -------------------------------------------------------------------------------------------------
    def events(self, body, step, key):
        opts = step if isinstance(step, dict) else {"blocks": step}
        blocks = opts["blocks"]
        usage = {"input_tokens": 10, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1, **opts.get("usage", {})}
        yield "message_start", {"message": {"id": "msg_" + key[:8], "type": "message", "role": "assistant", "model": body["model"], "content": [],
                                            "stop_reason": None, "stop_sequence": None, "usage": usage}}
        tools = False
        for i, b in enumerate(blocks):
            if isinstance(b, str):
                yield "content_block_start", {"index": i, "content_block": {"type": "text", "text": ""}}
                piece = opts.get("piece", 16)
                for k in range(0, len(b), piece):
                    yield "content_block_delta", {"index": i, "delta": {"type": "text_delta", "text": b[k:k + piece]}}
            elif "tool" in b:
                tools = True
                yield "content_block_start", {"index": i, "content_block": {"type": "tool_use", "id": f"toolu_{key[:12]}_{i}", "name": b["tool"], "input": {}}}
                text = json.dumps(b["input"])
                for k in range(0, len(text), 20):
                    yield "content_block_delta", {"index": i, "delta": {"type": "input_json_delta", "partial_json": text[k:k + 20]}}
            elif "thinking" in b:
                yield "content_block_start", {"index": i, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}
                yield "content_block_delta", {"index": i, "delta": {"type": "thinking_delta", "thinking": b["thinking"]}}
                yield "content_block_delta", {"index": i, "delta": {"type": "signature_delta", "signature": "c2ln" + key[:8]}}
            else:
                yield "content_block_start", {"index": i, "content_block": b}
            yield "content_block_stop", {"index": i}
        stop = opts.get("stop_reason") or ("tool_use" if tools else "end_turn")
        yield "message_delta", {"delta": {"stop_reason": stop, "stop_sequence": None, **({"stop_details": opts["stop_details"]} if "stop_details" in opts else {})},
                                "usage": {"output_tokens": opts.get("usage", {}).get("output_tokens", 7)}}
        yield "message_stop", {}

    def stream(self, h, body, step, key, index, cut=None) -> None:
        opts = step if isinstance(step, dict) else {}
        if opts.get("delay"):
            time.sleep(opts["delay"])
        if "raw" in opts:
            return self.whole(h, opts["raw"], key, opts.get("type", "application/json"))
        if not body.get("stream"):
            if not self.unstreamed:
                raise AssertionError("the server asked for an unstreamed answer")
            if cut is not None:
                raise Broken
            return self.whole(h, self.message(body, step, key), key)
        h.send_response(200)
        h.send_header("content-type", "text/event-stream")
        h.send_header("request-id", "req_" + key[:12])
        h.send_header("anthropic-ratelimit-requests-remaining", "99")
        h.send_header("transfer-encoding", "chunked")
        h.end_headers()
        for n, (name, data) in enumerate(self.events(body, step, key)):
            if cut is not None and n >= cut:
                raise Broken
            if opts.get("error_after") == n:
                name, data = "error", {"error": {"type": opts["error"], "message": "injected in the stream"}}
            if self.on_event:
                self.on_event(index, n)
            if opts.get("chunk_delay"):
                time.sleep(opts["chunk_delay"])
            frame = f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()
            h.wfile.write(b"%x\r\n%s\r\n" % (len(frame), frame))
            h.wfile.flush()
            if name == "error":
                break
        h.wfile.write(b"0\r\n\r\n")
