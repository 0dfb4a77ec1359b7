"""What of npm the tests use: a Node that is new enough for it, the official "everything" server, clients that go through the edge."""
from __future__ import annotations

import os

from stack import ROOT, Upstream

TS = ROOT / "tests/tunnel/ts"
NODE = next(TS.glob("node_modules/node-linux-*/bin/node"), "node")      # the suite needs a newer one than Debian has
SHOW_PORT = ("import http from 'node:http'; const listen = http.Server.prototype.listen; http.Server.prototype.listen = function (...a) {"
             " this.once('listening', () => console.log('port', this.address().port)); return listen.apply(this, a); };")


def node_env(stack=None):
    """`stack`: names below the tunnel's domain are reached by the edge, and only the registered authority is trusted for them."""
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return {**env, "NODE_USE_ENV_PROXY": "1", "HTTPS_PROXY": stack.relay.url, "NODE_EXTRA_CA_CERTS": stack.ca} if stack else env


def everything_server(transport) -> Upstream:
    return Upstream([NODE, "--import", "data:text/javascript," + SHOW_PORT, TS / "node_modules/@modelcontextprotocol/server-everything/dist/index.js", transport],
                    name=f"typescript-everything-{transport}", env={"PORT": "0"})
