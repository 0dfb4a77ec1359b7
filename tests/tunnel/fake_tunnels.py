"""The tunnels API (tunnels.md 2) as far as setting up a gateway uses it, with every request kept. Certificates are judged by the `cryptography` package."""
from __future__ import annotations

import base64
import json
import re
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes


class FakeTunnels:
    def __init__(self, credential="ow-api-test"):
        self.credential, self.tunnels, self.certs, self.requests = credential, {}, {}, []
        self.fail_next: tuple[str, int] | None = None          # (part of a path, status)
        self.identity: dict | None = None                      # what an exchange (tunnels.md 2.5) must say; its answer is then the credential
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                n = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(n)) if n else None
                path = self.path.split("?")[0]
                fake.requests.append((self.command, path, dict(self.headers), body))
                status, out = fake.handle(self.command, path, self.headers, body)
                if status >= 400:
                    out = {"type": "error", "error": {"type": "x_error", "message": out}, "request_id": "req_1"}
                raw = json.dumps(out).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = answer

            def log_message(self, *a):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @staticmethod
    def token() -> str:
        return base64.b64encode(json.dumps({"a": "acct", "s": secrets.token_urlsafe(24), "t": "t"}).encode()).decode()

    def add(self) -> dict:
        t = {"id": "tnl_" + secrets.token_hex(8), "type": "tunnel", "display_name": None, "domain": secrets.token_hex(4) + ".tunnel.example.com",
             "created_at": "2026-07-01T00:00:00Z", "archived_at": None}
        self.tunnels[t["id"]] = {"tunnel": t, "token": self.token(), "certs": []}
        return t

    def exchange(self, headers, body):
        if "authorization" in headers or headers.get("anthropic-beta") != "oauth-2025-04-20,oidc-federation-2026-04-01":
            return 400, "wrong headers"
        if body != {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", **(self.identity or {})}:
            return 401, "the rule does not match"
        return 200, {"access_token": self.credential, "token_type": "Bearer", "expires_in": 3600}

    def handle(self, method, path, headers, body):
        if (method, path) == ("POST", "/v1/oauth/token"):
            return self.exchange(headers, body)
        betas = ("oauth-2025-04-20," if self.identity else "") + "mcp-tunnels-2026-06-22"
        if headers.get("authorization") != f"Bearer {self.credential}":
            return 401, "invalid bearer token"
        if headers.get("anthropic-version") != "2023-06-01" or headers.get("anthropic-beta") != betas:
            return 400, "missing headers"
        if self.fail_next and self.fail_next[0] in path:
            status, self.fail_next = self.fail_next[1], None
            return status, "as the test wants it"
        if (method, path) == ("POST", "/v1/tunnels"):
            t = self.add()
            t["display_name"] = (body or {}).get("display_name")
            return 200, t
        m = re.fullmatch(r"/v1/tunnels/([\w-]+)(/certificates|/reveal_token|/rotate_token)?", path)
        t = self.tunnels.get(m.group(1)) if m else None
        if not t:
            return 404, "no such tunnel"
        what = m.group(2)
        if not what:
            return 200, t["tunnel"]
        if what == "/certificates" and method == "GET":
            return 200, {"data": t["certs"], "next_page": None}
        if what == "/certificates":
            live = [c for c in t["certs"] if not c["archived_at"]]
            if len(live) == 2:
                return 400, "Tunnel already has the maximum of 2 active certificates"
            cert = x509.load_pem_x509_certificate(body["ca_certificate_pem"].encode())
            assert cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            c = {"id": "tcrt_1", "type": "tunnel_certificate", "tunnel_id": t["tunnel"]["id"], "fingerprint": cert.fingerprint(hashes.SHA256()).hex(),
                 "created_at": "2026-07-01T00:00:00Z", "expires_at": None, "archived_at": None}
            t["certs"].append(c)
            return 200, c
        if what == "/rotate_token":
            t["token"] = self.token()
        return 200, {"id": "ttok_1", "type": "tunnel_token", "tunnel_token": t["token"]}
