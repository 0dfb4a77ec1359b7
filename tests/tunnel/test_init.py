"""`outwork gateway init` and `renew` (tunnels.md 3.3), against a small stand-in of the tunnels API that can misbehave, and against the real server."""
import os
import re
import socket
import ssl
import stat
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import anthropic
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
from fake_tunnels import FakeTunnels  # noqa: E402
from harness import Server, wait_for  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BIN = os.environ.get("OUTWORK_BIN", str(ROOT / "build" / "outwork"))
FILES = ["ca.crt", "ca.key", "config.yaml", "tls.crt", "tls.key", "tunnel-domain", "tunnel-id", "tunnel-token"]


def run(verb, *args, key="ow-api-test", env=None, code=0):
    base = {k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC_", "OUTWORK_", "API_")) and not k.lower().endswith("_proxy")}
    if key:
        base["ANTHROPIC_API_KEY"] = key
    r = subprocess.run([BIN, "gateway", verb, *args], env={**base, **(env or {})}, capture_output=True, text=True, timeout=120)
    assert r.returncode == code, f"status {r.returncode}\n{r.stdout}\n{r.stderr}"
    assert key is None or key not in r.stdout + r.stderr
    return r.stdout + r.stderr


@pytest.fixture
def api():
    a = FakeTunnels()
    yield a
    a.close()


def text(d, name):
    return (d / name).read_text()


def cert(d, name="tls.crt"):
    return x509.load_pem_x509_certificate((d / name).read_bytes())


def snapshot(d):
    return {p.name: p.read_bytes() for p in d.iterdir()}


def test_creates_everything(api, tmp_path):
    d = tmp_path / "gw"
    out = run("init", "--api-url", api.url, "--output", f"dir:{d}", "--display-name", "Office", "--edge", "edge.example:7443")
    t = next(iter(api.tunnels.values()))
    assert t["tunnel"]["display_name"] == "Office"
    assert sorted(p.name for p in d.iterdir() if p.name != ".lock") == FILES
    assert stat.S_IMODE(d.stat().st_mode) == 0o700
    for name in FILES:
        assert stat.S_IMODE((d / name).stat().st_mode) == 0o600, name
        assert b"ow-api-test" not in (d / name).read_bytes(), "the credential is stored nowhere"
    domain = t["tunnel"]["domain"]
    assert text(d, "tunnel-id").strip() == t["tunnel"]["id"] and text(d, "tunnel-domain").strip() == domain
    assert text(d, "tunnel-token").strip() == t["token"]
    ca, leaf = cert(d, "ca.crt"), cert(d)
    leaf.verify_directly_issued_by(ca)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert sorted(names) == sorted([f"*.{domain}", domain])
    assert ExtendedKeyUsageOID.SERVER_AUTH in leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    ski = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == ski
    key = serialization.load_pem_private_key((d / "tls.key").read_bytes(), None)
    assert isinstance(key.curve, ec.SECP256R1) and key.public_key() == leaf.public_key()
    assert timedelta(days=89) < leaf.not_valid_after_utc - datetime.now(timezone.utc) < timedelta(days=91)
    assert len(t["certs"]) == 1
    assert f"outwork gateway --config {d}/config.yaml" in out and t["token"] not in out
    assert '"edge.example:7443"' in text(d, "config.yaml") and domain in text(d, "config.yaml")
    assert f"https://docs.{domain} -> http://10.0.0.5:8080" in run("check", "--config", f"{d}/config.yaml")
    r = subprocess.run(["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", f"docs.{domain}", "-CAfile", d / "ca.crt", d / "tls.crt"],
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr


def test_second_run_changes_nothing(api, tmp_path):
    args = ["--api-url", api.url, "--output", str(tmp_path / "gw"), "--token-version", "1"]
    run("init", *args)
    before = snapshot(tmp_path / "gw")
    (tmp_path / "gw" / "config.yaml").write_text("mine: 1\n")
    out = run("init", *args)
    after = snapshot(tmp_path / "gw")
    assert after.pop("config.yaml") == b"mine: 1\n" and before.pop("config.yaml")
    assert after == before
    assert len(api.tunnels) == 1 and len(next(iter(api.tunnels.values()))["certs"]) == 1
    assert "kept the leaf" in out and "is registered" in out


def test_token_version_rotates(api, tmp_path):
    d = tmp_path / "gw"
    run("init", "--api-url", api.url, "--output", str(d), "--token-version", "1")
    first = text(d, "tunnel-token")
    assert "rotated" in run("init", "--api-url", api.url, "--output", str(d), "--token-version", "2")
    assert text(d, "tunnel-token") != first and text(d, "token-version") == "2\n"
    assert "fetched" in run("init", "--api-url", api.url, "--output", str(d), "--token-version", "2")
    assert sum(p.endswith("rotate_token") for _, p, _, _ in api.requests) == 1


def test_attaches_by_id_and_follows_another(api, tmp_path):
    a, b = api.add(), api.add()
    d = tmp_path / "gw"
    assert "attached" in run("init", "--output", str(d), "--tunnel-id", a["id"], env={"API_URL": api.url})
    ca = text(d, "ca.crt")
    run("init", "--output", str(d), env={"API_URL": api.url, "TUNNEL_ID": b["id"]})
    assert text(d, "tunnel-id").strip() == b["id"] and text(d, "ca.crt") != ca
    cert(d).verify_directly_issued_by(cert(d, "ca.crt"))
    assert b["domain"] in str(cert(d).extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    assert len(api.tunnels) == 2


def test_goes_on_after_a_failure(api, tmp_path):
    d = tmp_path / "gw"
    api.fail_next = ("certificates", 503)
    assert "HTTP 503" in run("init", "--api-url", api.url, "--output", str(d), code=1)
    run("init", "--api-url", api.url, "--output", str(d))
    assert len(api.tunnels) == 1, "the tunnel of the first run is used"
    assert len(next(iter(api.tunnels.values()))["certs"]) == 1


def test_refusals(api, tmp_path):
    d = str(tmp_path / "gw")
    assert "unknown, expired or revoked" in run("init", "--api-url", api.url, "--output", d, key="wrong", code=3)
    assert "no credential" in run("init", "--api-url", api.url, "--output", d, key=None, code=3)
    assert "--api-url" in run("init", "--output", d, code=2)
    assert "does not exist" in run("init", "--api-url", api.url, "--output", d, "--tunnel-id", "tnl_none", code=1)
    assert "no tunnel id" in run("init", "--api-url", api.url, "--output", d, "--tunnel-id", "../x", code=1)
    assert "not taken from the command line" in run("init", "--api-url", api.url, "--api-key", "x", code=2)
    assert "kubectl" in run("init", "--api-url", api.url, "--output", "k8s-secret:x", code=1)
    t = api.add()
    t["archived_at"] = "2026-07-02T00:00:00Z"
    assert "archived" in run("init", "--api-url", api.url, "--output", d, "--tunnel-id", t["id"], code=1)
    full = api.add()
    api.tunnels[full["id"]]["certs"] = [{"fingerprint": "00", "archived_at": None}, {"fingerprint": "11", "archived_at": None}]
    assert "at most two" in run("init", "--api-url", api.url, "--output", str(tmp_path / "full"), "--tunnel-id", full["id"], code=1)
    loose = tmp_path / "key"
    loose.write_text("ow-api-test")
    loose.chmod(0o644)
    run("init", "--api-url", api.url, "--output", d, "--key-file", str(loose), code=3)


def test_whole_paths(api, tmp_path, monkeypatch):
    """The configuration works from any directory; a file that is not there is said before anything is made."""
    monkeypatch.chdir(tmp_path)
    assert "--edge-ca" in run("init", "--api-url", api.url, "--output", "dir:gw", "--edge", "e:1", "--edge-ca", "ca.crt", code=2) and not (tmp_path / "gw").exists()
    (tmp_path / "ca.crt").write_text("")
    run("init", "--api-url", api.url, "--output", "dir:gw", "--edge", "e:1", "--edge-ca", "ca.crt")
    config = text(tmp_path / "gw", "config.yaml")
    assert f'edge_ca: "{tmp_path}/ca.crt"' in config and f'token_file: "{tmp_path}/gw/tunnel-token"' in config and f'cert_file: "{tmp_path}/gw/tls.crt"' in config


def test_key_file(api, tmp_path):
    key = tmp_path / "key"
    key.write_text("ow-api-test\n")
    key.chmod(0o600)
    run("init", "--api-url", api.url, "--output", str(tmp_path / "gw"), "--key-file", str(key), key=None)


def test_renew(api, tmp_path):
    d = tmp_path / "gw"
    run("init", "--api-url", api.url, "--output", str(d))
    n = len(api.requests)
    ca, first = text(d, "ca.crt"), cert(d)
    assert "kept" in run("renew", "--output", f"dir:{d}", "--renew-before", "720h", key=None)
    assert cert(d) == first
    run("renew", "--output", f"dir:{d}", "--cert-duration", "24h", key=None)
    second = cert(d)
    assert second != first and second.serial_number != first.serial_number
    second.verify_directly_issued_by(cert(d, "ca.crt"))
    assert second.not_valid_after_utc - datetime.now(timezone.utc) < timedelta(hours=25)
    assert "expires soon" in run("renew", "--output", f"dir:{d}", "--renew-before", "720h", key=None)
    (d / "tls.key").write_bytes((d / "ca.key").read_bytes())              # a pair that does not fit is never due "later"
    assert "do not fit" in run("renew", "--output", f"dir:{d}", "--renew-before", "1h", key=None)
    (d / "ca.key").rename(tmp_path / "elsewhere")
    assert "has no ca.key" in run("renew", "--output", f"dir:{d}", key=None, code=1)
    assert text(d, "ca.crt") == ca and len(api.requests) == n, "renewing asks no server"
    assert "tunnel-domain" in run("renew", "--output", str(tmp_path / "empty"), key=None, code=1)


def test_with_the_real_server(tmp_path):
    server = Server(tmp_path / "data", "--model-provider", "script", "--tunnel-domain", "tunnel.example.com").start()
    try:
        d, key = tmp_path / "gw", server.api_key()
        args = ["--api-url", server.url, "--output", str(d)]
        run("init", *args, "--display-name", "Office", "--token-version", "1", key=key)
        client = anthropic.Anthropic(base_url=server.url, api_key=None, auth_token=key)
        t = client.beta.tunnels.retrieve(text(d, "tunnel-id").strip())
        assert t.display_name == "Office" and t.domain == text(d, "tunnel-domain").strip() and t.domain.endswith(".tunnel.example.com")
        mine = list(client.beta.tunnels.certificates.list(t.id))
        assert [c.fingerprint for c in mine] == [cert(d, "ca.crt").fingerprint(hashes.SHA256()).hex()]
        assert client.beta.tunnels.reveal_token(t.id).tunnel_token == text(d, "tunnel-token").strip()
        before = snapshot(d)
        assert "is registered" in run("init", *args, "--token-version", "1", key=key)
        assert snapshot(d) == before and len(list(client.beta.tunnels.list())) == 1
        run("init", *args, "--token-version", "2", key=key)
        assert (d / "tunnel-token").read_bytes() != before["tunnel-token"]
        assert client.beta.tunnels.reveal_token(t.id).tunnel_token == text(d, "tunnel-token").strip()
        client.beta.tunnels.certificates.archive(mine[0].id, tunnel_id=t.id)
        assert "registered the authority" in run("init", *args, key=key), "a revoked authority is registered again"
        run("init", *args, key="ow-api-wrong", code=3)
        client.beta.tunnels.archive(t.id)
        assert "archived" in run("init", *args, key=key, code=1)
    finally:
        server.stop()


def test_a_running_gateway_renews_by_itself(api, tmp_path):
    d = tmp_path / "gw"
    run("init", "--api-url", api.url, "--output", str(d), "--cert-duration", "24h")
    first = cert(d)
    with (d / "config.yaml").open("a") as f:
        f.write("listen_addr: 127.0.0.1:0\n")
    log = tmp_path / "log"
    with log.open("wb") as out:
        p = subprocess.Popen([BIN, "gateway", "--behind-cloudflared", "--config", str(d / "config.yaml")], stderr=out, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: "a new certificate was made" in log.read_text(), why="the gateway renews")
        wait_for(lambda: "gateway.reload" in log.read_text(), why="and loads what it made")
        port = int(re.search(r"listen=127\.0\.0\.1:(\d+)", log.read_text()).group(1))
        domain = text(d, "tunnel-domain").strip()
        tls = ssl.create_default_context(cafile=str(d / "ca.crt"))
        with socket.create_connection(("127.0.0.1", port)) as s, tls.wrap_socket(s, server_hostname=f"docs.{domain}") as t:
            assert t.getpeercert(True) == cert(d).public_bytes(serialization.Encoding.DER)
    finally:
        p.terminate()
        p.wait(60)
    assert cert(d) != first and cert(d).not_valid_after_utc - datetime.now(timezone.utc) > timedelta(days=80)


# ---- workload identity (tunnels.md 2.5) ----

RULE = {"ANTHROPIC_FEDERATION_RULE_ID": "fdrl_1", "ANTHROPIC_ORGANIZATION_ID": "0d6f0d52-3c44-4f29-9f3e-5a1f7f3c2b11"}
ASSERTION = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQifQ.c2lnbmF0dXJl"


def identity(**more):
    return {"assertion": ASSERTION, "federation_rule_id": "fdrl_1", "organization_id": RULE["ANTHROPIC_ORGANIZATION_ID"], **more}


@pytest.mark.parametrize("how", ["file", "variable"])
def test_an_identity_token_is_exchanged(api, tmp_path, how):
    api.credential, api.identity = "sk-ant-oat01-minted", identity()
    token = tmp_path / "token"
    token.write_text(ASSERTION + "\n")
    token.chmod(0o644)                                          # as Kubernetes projects it
    env = {**RULE, "ANTHROPIC_IDENTITY_TOKEN_FILE": str(token)} if how == "file" else {**RULE, "ANTHROPIC_IDENTITY_TOKEN": ASSERTION}
    d = tmp_path / "gw"
    out = run("init", "--api-url", api.url, "--output", str(d), key=None, env=env)
    assert set(FILES) <= {p.name for p in d.iterdir()}
    assert [p for _, p, _, _ in api.requests].count("/v1/oauth/token") == 1
    everything = out + "".join(p.read_text() for p in d.iterdir())
    assert ASSERTION not in everything and "sk-ant-oat01-minted" not in everything


def test_identity_with_workspace_and_service_account(api, tmp_path):
    api.credential, api.identity = "sk-ant-oat01-minted", identity(workspace_id="default", service_account_id="svac_1")
    env = {**RULE, "ANTHROPIC_IDENTITY_TOKEN": ASSERTION, "ANTHROPIC_WORKSPACE_ID": "default", "ANTHROPIC_SERVICE_ACCOUNT_ID": "svac_1"}
    run("init", "--api-url", api.url, "--output", str(tmp_path / "gw"), key=None, env=env)


def test_an_identity_that_is_refused(api, tmp_path):
    api.identity = identity(workspace_id="default")
    out = run("init", "--api-url", api.url, "--output", str(tmp_path / "gw"), key=None, env={**RULE, "ANTHROPIC_IDENTITY_TOKEN": ASSERTION}, code=3)
    assert "HTTP 401" in out and "federation rule does not match" in out and "ANTHROPIC_WORKSPACE_ID" in out and ASSERTION not in out
    assert [p for _, p, _, _ in api.requests] == ["/v1/oauth/token"]


@pytest.mark.parametrize("env, says", [
    ({"ANTHROPIC_FEDERATION_RULE_ID": "fdrl_1", "ANTHROPIC_IDENTITY_TOKEN": ASSERTION}, "ANTHROPIC_ORGANIZATION_ID"),
    (RULE, "exactly one of ANTHROPIC_IDENTITY_TOKEN_FILE and ANTHROPIC_IDENTITY_TOKEN"),
    ({**RULE, "ANTHROPIC_IDENTITY_TOKEN": ASSERTION, "ANTHROPIC_IDENTITY_TOKEN_FILE": "/x"}, "exactly one of"),
    ({**RULE, "ANTHROPIC_IDENTITY_TOKEN": ASSERTION, "API_TOKEN": "ow-api-x"}, "both a credential and a federation rule"),
])
def test_an_identity_that_is_not_clear(api, tmp_path, env, says):
    assert says in run("init", "--api-url", api.url, "--output", str(tmp_path / "gw"), key=None, env=env, code=2)
    assert api.requests == []


def test_an_identity_token_never_crosses_in_the_clear(tmp_path):
    env = {**RULE, "ANTHROPIC_IDENTITY_TOKEN": ASSERTION}
    for url in ("http://agents.example.com", "http://localhost.example.com", "http://127.0.0.1.example.com:80"):
        out = run("init", "--api-url", url, "--output", str(tmp_path / "gw"), key=None, env=env, code=3)
        assert "in the clear" in out
    (tmp_path / "token").write_text(ASSERTION)
    (tmp_path / "token").chmod(0o666)
    out = run("init", "--api-url", "https://127.0.0.1:1", "--output", str(tmp_path / "gw"), key=None,
              env={**RULE, "ANTHROPIC_IDENTITY_TOKEN_FILE": str(tmp_path / "token")}, code=3)
    assert "written by every user" in out
