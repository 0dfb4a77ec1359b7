"""An OAuth provider and an MCP server that asks for its tokens, in one process: /token rotates refresh tokens, /mcp/<name> takes only live access tokens."""
from __future__ import annotations

import base64
import itertools
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOOLS = [{"name": "whoami", "description": "Says which token was used.", "inputSchema": {"type": "object", "properties": {}}}]


class Provider:
    """`life`: expires_in of issued tokens. `mode`: what the token endpoint does next; see token(). `grace`: a used refresh token still works."""

    def __init__(self):
        self.lock = threading.Lock()
        self.count = itertools.count(1)
        self.refresh: set[str] = set()
        self.access: set[str] = set()
        self.secrets: set[str] = set()              # everything that must never be seen in plain text
        self.requests: list[dict] = []              # of the token endpoint
        self.calls: list[tuple[str, str, str | None]] = []      # of MCP servers: path, method, token
        self.mode, self.life, self.grace, self.rotate = "ok", 3600, False, True
        self.client = ("none", "client-1", "")
        self.mcp_status, self.mcp_body = None, b""
        self.sse = self.stateless_only = False
        self.arrived, self.go = threading.Event(), threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.go.set()
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def secret(self, kind: str) -> str:
        s = f"{kind}-plain-{next(self.count):04d}-Zq9xWv7uTs5r"
        self.secrets.add(s)
        return s

    def grant(self):
        """A fresh pair of the provider, as a client would bring it."""
        a, r = self.secret("access"), self.secret("refresh")
        with self.lock:
            self.access.add(a)
            self.refresh.add(r)
        return a, r

    # ---- /token
    def client_ok(self, headers, form) -> bool:
        how, cid, secret = self.client
        auth = headers.get("authorization")
        if how == "client_secret_basic":
            want = base64.b64encode(f"{urllib.parse.quote(cid, safe='')}:{urllib.parse.quote(secret, safe='')}".encode()).decode()
            return auth == f"Basic {want}" and "client_secret" not in form and "client_id" not in form
        return auth is None and form.get("client_id") == cid and form.get("client_secret") == (secret if how == "client_secret_post" else None)

    def token(self, headers, form):
        with self.lock:
            self.requests.append({"form": form, "content_type": headers.get("content-type")})
            mode = self.mode
        if mode == "500":
            return 500, {"error": "server_error"}
        if mode == "429":
            return 429, {"error": "slow_down"}
        if mode == "garbage":
            return 200, b"<html>welcome</html>"
        if mode == "echo":
            return 400, {"error": "invalid_grant", "error_description": f"unknown: {form.get('refresh_token')} {form.get('client_secret')}", "again": urllib.parse.quote(form["refresh_token"])}
        if not self.client_ok(headers, form):
            return 401, {"error": "invalid_client"}
        with self.lock:
            old = form.get("refresh_token")
            if form.get("grant_type") != "refresh_token" or old not in self.refresh:
                return 400, {"error": "invalid_grant", "error_description": "unknown refresh token"}
            a, r = self.secret("access"), self.secret("refresh")
            self.access.add(a)
            answer = {"access_token": a, "token_type": "Bearer", "expires_in": self.life}
            if self.rotate:
                if not self.grace:
                    self.refresh.discard(old)
                self.refresh.add(r)
                answer["refresh_token"] = r
        self.arrived.set()
        if mode == "slow":
            self.go.wait(60)
        return 200, answer

    # ---- /mcp
    def mcp(self, path, token, message, headers):
        method = message.get("method")
        with self.lock:
            self.calls.append((path, method, token))
            live = token in self.access
        if self.mcp_status:
            return self.mcp_status, {}, self.mcp_body
        if not live:
            return 401, {"www-authenticate": 'Bearer error="invalid_token"'}, json.dumps({"error": "invalid_token", "seen": token}).encode()
        stateless = "2026-07-28" in (headers.get("mcp-protocol-version") or "")
        if stateless != self.stateless_only:
            return 400, {}, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"another revision"}}'
        if method and method.startswith("notifications/"):
            return 202, {}, b""
        result = {}
        if method == "initialize":
            result = {"protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "fake", "version": "1"}}
        elif method == "tools/list":
            result = {"tools": TOOLS, **({"resultType": "complete", "ttlMs": 0, "cacheScope": "private"} if stateless else {})}
        elif method == "tools/call":
            result = {"content": [{"type": "text", "text": f"token number {token.split('-')[2]}"}], "isError": False}
        body = json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "result": result}).encode()
        extra = {"mcp-session-id": "sess-1"} if method == "initialize" else {}
        return 200, extra, body

    def handler(self):
        p = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def body(self):
                return self.rfile.read(int(self.headers.get("content-length") or 0))

            def reply(self, status, body, headers=(), kind="application/json"):
                try:
                    self.send_response(status)
                    for k, v in dict(headers).items():
                        self.send_header(k, v)
                    self.send_header("content-type", kind)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass

            def do_POST(self):
                raw = self.body()
                if self.path == "/token":
                    status, value = p.token({k.lower(): v for k, v in self.headers.items()}, dict(urllib.parse.parse_qsl(raw.decode(), keep_blank_values=True)))
                    self.reply(status, value if isinstance(value, bytes) else json.dumps(value).encode())
                    return
                auth = self.headers.get("authorization") or ""
                token = auth.removeprefix("Bearer ") if auth.startswith("Bearer ") else None
                status, extra, body = p.mcp(self.path, token, json.loads(raw), self.headers)
                if status == 200 and p.sse:
                    self.reply(status, b"event: message\r\ndata: " + body + b"\r\n\r\n", extra, "text/event-stream")
                else:
                    self.reply(status, body, extra)

            def do_GET(self):
                self.reply(405, b"")

            def do_DELETE(self):
                self.body()
                with p.lock:
                    p.calls.append((self.path, "DELETE", None))
                self.reply(200, b"{}")

        return Handler
