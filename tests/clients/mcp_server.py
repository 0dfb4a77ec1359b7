"""An MCP server made with the official SDK, for tests: `mcp_server.py PORT DIR [--json] [--stateless] [--legacy] [--sse] [--token FILE] [--more]`.

--legacy  answers the stateless revision as a server would that does not know it, so that the handshake with sessions is used
--token   asks for a bearer token, which is the current text of FILE
Every call that has begun is a line in DIR/calls; every cancelled one in DIR/cancelled; every HTTP request in DIR/requests.
"""
from __future__ import annotations

import argparse
import asyncio
import base64
import json
import socket
from pathlib import Path

import uvicorn
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="

p = argparse.ArgumentParser()
p.add_argument("port", type=int)
p.add_argument("dir", type=Path)
for flag in ("json", "stateless", "legacy", "sse", "more"):
    p.add_argument(f"--{flag}", action="store_true")
p.add_argument("--token", type=Path)
args = p.parse_args()
server = MCPServer("demo")


def note(name: str, line: str) -> None:
    with open(args.dir / name, "a") as f:
        f.write(line + "\n")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    note("calls", "add")
    return a + b


@server.tool()
def boom() -> str:
    """Fails."""
    note("calls", "boom")
    raise ValueError("boom")


@server.tool()
def picture() -> Image:
    """A picture."""
    return Image(data=base64.b64decode(PNG), format="png")


@server.tool()
def big(n: int) -> str:
    """Much text."""
    return "x" * n


async def wait(name: str) -> str:
    """Until the test makes the file DIR/go."""
    note("calls", name)
    try:
        while not (args.dir / "go").exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        note("cancelled", name)
        raise
    return f"{name} done"


@server.tool(annotations=ToolAnnotations(readOnlyHint=False))
async def change() -> str:
    """Changes something, slowly."""
    return await wait("change")


@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
async def look() -> str:
    """Looks, slowly."""
    return await wait("look")


@server.tool(name="odd.name/x")
def odd() -> str:
    """A tool whose name the Messages API does not take."""
    return "odd"


if args.more:
    @server.tool()
    def extra() -> str:
        """Only offered by a later version."""
        return "extra"

open_hosts = TransportSecuritySettings(enable_dns_rebinding_protection=False)       # behind a tunnel, Host is the tunnel's name
app = (server.sse_app(transport_security=open_hosts) if args.sse else
       server.streamable_http_app(stateless_http=args.stateless, json_response=args.json, transport_security=open_hosts))


async def front(scope, receive, send):
    async def refuse(status, headers=(), body=b""):
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain"), *headers]})
        await send({"type": "http.response.body", "body": body})

    if scope["type"] == "http":
        h = dict(scope["headers"])
        note("requests", json.dumps({"method": scope["method"], "auth": h.get(b"authorization", b"").decode(), "version": h.get(b"mcp-protocol-version", b"").decode()}))
        if args.token and h.get(b"authorization", b"").decode() != "Bearer " + args.token.read_text().strip():
            return await refuse(401, [(b"www-authenticate", b'Bearer error="invalid_token"')])
        if args.legacy and h.get(b"mcp-protocol-version") == b"2026-07-28":
            return await refuse(400, body=b"Bad Request: Unsupported protocol version")
    await app(scope, receive, send)


sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("127.0.0.1", args.port))
sock.listen(100)
uvicorn.Server(uvicorn.Config(front, log_level="warning", timeout_graceful_shutdown=0)).run([sock])
