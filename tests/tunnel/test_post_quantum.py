"""Where the OpenSSL at run time has it, every handshake of a tunnel takes the hybrid key exchange X25519MLKEM768, and where only one end has it they agree on another.
Debian 12's has not; the one that the `psycopg-binary` wheel brings along has, and takes the place of the system's library for the programs of this test."""
from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from edge_harness import SLOW, curl_through
from gw_harness import Authority, Gateway, Upstream

DOMAIN = "t1.tunnel.example"
HYBRID = "X25519MLKEM768"


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """Environment of a program that shall use the newer OpenSSL."""
    libs = Path(sysconfig.get_paths()["purelib"]) / "psycopg_binary.libs"
    d = tmp_path_factory.mktemp("openssl")
    for f in libs.iterdir():
        (d / f.name).symlink_to(f)
        if m := re.match(r"lib(ssl|crypto)-\w+\.so\.3$", f.name):
            (d / f"lib{m[1]}.so.3").symlink_to(f)
    env = {"LD_LIBRARY_PATH": str(d), "OPENSSL_CONF": "/dev/null"}
    groups = subprocess.run(["openssl", "list", "-kem-algorithms"], env=env, capture_output=True, text=True, check=True).stdout
    assert HYBRID in groups, groups
    return env


def agrees(env, port, groups, *args):
    """Whether a handshake is possible with these groups alone."""
    r = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-groups", groups, "-verify_return_error", *args], env=env, stdin=subprocess.DEVNULL,
                       capture_output=True, text=True, timeout=30 * SLOW)
    agreed = "New, TLSv1.3" in r.stdout and "Verification: OK" in r.stdout
    assert agreed != ("handshake failure" in r.stderr), r.stdout + r.stderr
    return agreed


@pytest.fixture
def tunnel(world, tmp_path):
    made = []

    def start(edge_env, gateway_env):
        ca, up = Authority(tmp_path / "inner"), Upstream()
        cert, key = ca.leaf("gw", dns=[f"*.{DOMAIN}"])
        token = tmp_path / "token"
        token.write_text(world.token)
        token.chmod(0o600)
        edge = world.edge(passthrough=True, env=edge_env)
        g = Gateway(tmp_path, f"tunnel_domain: {DOMAIN}\ntls: {{cert_file: {cert}, key_file: {key}}}\nroutes:\n  docs: http://127.0.0.1:{up.port}\nupstream: {{allowed_ips: [127.0.0.1]}}\n"
                              f"edge: [\"127.0.0.1:{edge.gateway}\"]\nedge_ca: {world.keys.ca_crt}\nconnections: 1\ntoken_file: {token}\n", env=gateway_env)
        made.extend([g.kill, up.stop])
        return edge, g, str(ca.file)
    yield start
    for end in made:
        end()


def test_every_handshake_is_hybrid(tunnel, newer):
    edge, g, ca = tunnel(newer, newer)
    assert f"key_exchange={HYBRID}" in g.log                                                   # gateway to edge: both have it, so it is taken
    k = edge.keys
    outer, inner = ["-CAfile", k.ca_crt], ["-CAfile", ca, "-servername", f"docs.{DOMAIN}"]
    assert agrees(newer, edge.gateway, HYBRID, *outer)
    assert agrees(newer, edge.provider, HYBRID, *outer, "-cert", k.provider_crt, "-key", k.provider_key)
    assert agrees(newer, edge.plain, HYBRID, *inner)                                           # end to end, through the edge
    assert agrees(newer, edge.plain, "X25519", *inner)
    assert json.loads(curl_through(edge, ca, f"https://docs.{DOMAIN}/x").stdout)["path"] == "/x"      # an older client is served all the same


def test_one_newer_end(tunnel, newer):
    edge, g, ca = tunnel({}, newer)
    assert "key_exchange=x25519\n" in g.log.lower()
    assert not agrees(newer, edge.gateway, HYBRID, "-CAfile", edge.keys.ca_crt)
    assert agrees(newer, edge.plain, HYBRID, "-CAfile", ca, "-servername", f"docs.{DOMAIN}")         # the edge between them does not matter
