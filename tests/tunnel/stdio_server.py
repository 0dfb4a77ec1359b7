"""A stdio server of the official Python SDK."""
import asyncio
import os
import sys

from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel

server = MCPServer("py-stdio")


class Colour(BaseModel):
    colour: str


@server.tool()
def add(a: int, b: int) -> int:
    """adds"""
    return a + b


@server.tool()
def pid() -> int:
    """process id"""
    return os.getpid()


@server.tool()
def env() -> str:
    """names of variables"""
    return " ".join(sorted(os.environ))


@server.tool()
def die() -> int:
    """ends the process"""
    os._exit(3)


@server.tool()
async def count(n: int, ctx: Context) -> str:
    """reports progress"""
    for i in range(1, n + 1):
        await ctx.report_progress(i, n)
    return "counted"


@server.tool()
async def hang(path: str) -> str:
    """waits until it is cancelled; leaves a trace in a file"""
    open(path, "a").write("begun\n")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        open(path, "a").write("cancelled\n")
        raise
    return "?"


@server.tool()
async def ask(ctx: Context) -> str:
    """asks the client for something"""
    r = await ctx.elicit("Which colour?", Colour)
    return r.data.colour


print("py server is up", file=sys.stderr, flush=True)
server.run("stdio")
