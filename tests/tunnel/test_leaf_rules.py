"""The rules for a gateway's certificate (tunnels.md 3.2), each broken by one certificate that the openssl command made, at the inner TLS of a real tunnel: what the server says
and what the gateway says; and what `openssl s_client` sees there."""
from __future__ import annotations

import datetime
import json
import re
import subprocess
from pathlib import Path

import anthropic
import pytest

from edge_harness import curl_through
from stack import BIN, MODEL, SLOW, Stack, command, plan, python_server, tool


def openssl(*args, check=True, **kw):
    r = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, timeout=60 * SLOW, **kw)
    assert not check or r.returncode == 0, r.stderr
    return r


NOW = datetime.datetime.now(datetime.timezone.utc)


class Maker:
    """Authorities and leaves by `openssl req`, `openssl ca`."""

    def __init__(self, d: Path, domain):
        self.d, self.domain, self.n = d, domain, 0
        d.mkdir()

    def key(self, kind):
        self.n += 1
        out = self.d / f"{self.n}.key"
        alg = {"rsa": ["RSA", "-pkeyopt", f"rsa_keygen_bits:{kind[3:]}"], "ed2": ["ED25519"]}.get(kind[:3]) or ["EC", "-pkeyopt", f"ec_paramgen_curve:{kind}", "-pkeyopt", "ec_param_enc:named_curve"]
        openssl("genpkey", "-algorithm", *alg, "-out", out)
        return out

    def authority(self, name, signed_by=None, kind="P-256"):
        key = self.key(kind)
        return self.sign(name, key, signed_by or (None, key), "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign", "subjectKeyIdentifier=hash"), key

    def sign(self, name, key, by, *extensions, start=-1, days=30, digest="sha256"):
        """`by`: (certificate or None for itself, key)."""
        self.n += 1
        d = self.d / f"ca{self.n}"
        d.mkdir()
        (d / "index").write_text("")
        conf, csr, out = d / "conf", d / "csr", d / "cert.pem"
        conf.write_text(f"[ca]\ndefault_ca=x\n[x]\ndatabase={d}/index\nrand_serial=yes\nnew_certs_dir={d}\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n[req]\n"
                        "distinguished_name=n\n[n]\n[e]\n" + "\n".join(e.replace("=", " = ", 1) for e in extensions) + "\n")
        openssl("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", csr, "-config", conf)
        time = lambda days: (NOW + datetime.timedelta(days=days)).strftime("%Y%m%d%H%M%SZ")
        cert, signer = by
        issuer = ["-selfsign", "-keyfile", signer] if cert is None else ["-cert", cert, "-keyfile", signer]
        openssl("ca", "-batch", "-notext", "-config", conf, *issuer, "-in", csr, "-out", out, "-extensions", "e", "-startdate", time(start), "-enddate", time(start + days), "-md", digest)
        return out

    def leaf(self, by, *more, kind="P-256", san="DNS:*.{domain}", aki="authorityKeyIdentifier=keyid:always", eku="extendedKeyUsage=serverAuth", cn="gateway", **kw):
        key = self.key(kind)
        extensions = ["basicConstraints=critical,CA:FALSE", aki, eku, san and "subjectAltName=" + san.format(domain=self.domain), *more]
        keys = {e.split("=")[0]: e for e in extensions if e}             # of two the later counts
        return self.sign(cn.format(domain=self.domain), key, by, *keys.values(), **kw), key


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("stack")
    mcp = python_server()
    s = Stack(tmp, {"docs": f"http://127.0.0.1:{mcp.port}"}, passthrough=True)
    (s.gw_dir / "ca.key").unlink()           # so that it does not put things right by renewing
    s.routes = {"docs": f"http://127.0.0.1:{mcp.port}"}
    s.maker = Maker(tmp / "made", s.domain)
    s.good = s.maker.authority("registered authority")
    s.sdk.beta.tunnels.certificates.create(s.tunnel.id, ca_certificate_pem=s.good[0].read_text())
    yield s
    s.close()
    mcp.close()


def use(stack, cert, key, *chain):
    """A gateway that shows these. A new one: connections of the one before are not kept. Its log."""
    stack.gateway.stop()
    for name, parts in (("tls.key", [key]), ("tls.crt", [cert, *chain])):
        (stack.gw_dir / name).write_text("".join(p.read_text() for p in parts))
        (stack.gw_dir / name).chmod(0o600)
    stack.gateway = stack.start_gateway(stack.routes)
    return lambda: stack.gateway.log


def ask(stack):
    m = stack.sdk.beta.messages.create(model=MODEL, max_tokens=10, betas=["mcp-client-2025-11-20"], messages=[{"role": "user", "content": plan([tool("mcp__docs__echo", value="heard")], ["Done."])}],
                                       mcp_servers=[{"type": "url", "name": "docs", "url": stack.url("docs")}], tools=[{"type": "mcp_toolset", "mcp_server_name": "docs"}])
    return m.content[1].content[0].text


def refusal(stack):
    with pytest.raises(anthropic.BadRequestError) as e:
        ask(stack)
    return e.value.body["error"]["message"]


FOREIGN = "it is not signed directly by an authority that is registered on the tunnel"
BROKEN = {
    "another authority": (lambda m, g: m.leaf(m.authority("stranger")), FOREIGN, None),
    "the same name, another key": (lambda m, g: m.leaf(m.authority("registered authority")), FOREIGN, None),
    "itself": (lambda m, g: (lambda k: (m.sign("self", k, (None, k), "subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid:always", f"subjectAltName=DNS:*.{m.domain}"), k))(m.key("P-256")),
               FOREIGN, None),
    "an intermediate": (lambda m, g: (lambda i: (*m.leaf(i), i[0]))(m.authority("between", g)), FOREIGN, None),
    "expired": (lambda m, g: m.leaf(g, start=-10, days=9), "it expired at", "expired="),
    "not yet valid": (lambda m, g: m.leaf(g, start=1), "it is not valid before", "it is not valid before"),
    "another name": (lambda m, g: m.leaf(g, san="DNS:*.other.tunnel.example.com"), "certificate", "no name for this host"),
    "a name two labels below": (lambda m, g: m.leaf(g, san="DNS:a.docs.{domain}"), "certificate", "no name for this host"),
    "the tunnel's name alone": (lambda m, g: m.leaf(g, san="DNS:{domain}"), "certificate", "no name for this host"),
    "a name as common name only": (lambda m, g: m.leaf(g, san=None, cn="docs.{domain}"[:60]), "SubjectAltName is missing", "SubjectAltName is missing"),
    "no DNS name": (lambda m, g: m.leaf(g, san="IP:127.0.0.1"), "its SubjectAltName holds no DNS name", "no name for this host"),
    "no key identifier": (lambda m, g: m.leaf(g, aki="authorityKeyIdentifier=none"), "AuthorityKeyIdentifier is missing", "AuthorityKeyIdentifier is missing"),
    "for clients": (lambda m, g: m.leaf(g, eku="extendedKeyUsage=clientAuth"), "ExtendedKeyUsage does not include serverAuth", "ExtendedKeyUsage does not include serverAuth"),
    "for anything but servers": (lambda m, g: m.leaf(g, eku="extendedKeyUsage=anyExtendedKeyUsage"), "ExtendedKeyUsage does not include serverAuth", "does not include serverAuth"),
    "an authority itself": (lambda m, g: m.leaf(g, "basicConstraints=critical,CA:TRUE"), "it is an authority (CA:TRUE)", "it is an authority (CA:TRUE)"),
    "not for signatures": (lambda m, g: m.leaf(g, "keyUsage=keyEncipherment", kind="rsa2048"), "KeyUsage does not include digitalSignature", "does not include digitalSignature"),
    "an unknown critical extension": (lambda m, g: m.leaf(g, "1.2.3.4.5=critical,ASN1:UTF8String:x"), "critical extension that nobody here understands", "critical extension that nobody"),
    # TLS 1.3 has no signature with these, so the handshake does not come as far as the certificate; the gateway knows what it is about.
    "a small curve": (lambda m, g: m.leaf(g, kind="P-224"), "alert", "its ECDSA key is on the curve"),
    "another curve": (lambda m, g: m.leaf(g, kind="secp256k1"), "alert", "its ECDSA key is on the curve secp256k1; use P-256, P-384 or P-521"),
    "another kind of key": (lambda m, g: m.leaf(g, kind="ed25519"), "its key is of the type ED25519", "its key is of the type ED25519"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_refused(stack, what):
    make, words, gateways = BROKEN[what]
    log = use(stack, *make(stack.maker, stack.good))
    said = refusal(stack)
    assert words in said and "docs" in said, said
    if gateways:                             # its own log says it as well: the customer need not ask the server's operator
        assert gateways in log(), log()


@pytest.mark.parametrize("what,make", {
    "a wildcard": lambda m, g: m.leaf(g), "one name": lambda m, g: m.leaf(g, san="DNS:docs.{domain}"), "several names": lambda m, g: m.leaf(g, san="DNS:x.example,DNS:*.{domain},IP:127.0.0.1"),
    "RSA": lambda m, g: m.leaf(g, kind="rsa2048"), "P-384 and SHA-512": lambda m, g: m.leaf(g, kind="P-384", digest="sha512"), "P-521": lambda m, g: m.leaf(g, kind="P-521"),
    "no ExtendedKeyUsage": lambda m, g: m.leaf(g, eku=None), "KeyUsage": lambda m, g: m.leaf(g, "keyUsage=critical,digitalSignature"),
    "both uses": lambda m, g: m.leaf(g, eku="extendedKeyUsage=clientAuth,serverAuth")}.items(), ids=lambda x: x if isinstance(x, str) else "")
def test_taken(stack, what, make):
    log = use(stack, *make(stack.maker, stack.good))
    assert ask(stack) == "heard" and "gateway.certificate " not in log()


def test_an_authority_that_another_one_issued(stack):
    """It may be registered, and is the end of trust: neither its issuer nor its other children count."""
    sdk, root = stack.sdk.beta.tunnels.certificates, stack.maker.authority("root")
    under, sister = stack.maker.authority("under", root), stack.maker.authority("sister", root)
    old = [c for c in sdk.list(stack.tunnel.id) if c.fingerprint not in openssl("x509", "-in", stack.good[0], "-noout", "-fingerprint", "-sha256").stdout.replace(":", "").lower()]
    for c in old:
        sdk.archive(c.id, tunnel_id=stack.tunnel.id)
    mine = sdk.create(stack.tunnel.id, ca_certificate_pem=under[0].read_text())
    use(stack, *stack.maker.leaf(under))
    assert ask(stack) == "heard"
    for other in (root, sister):
        use(stack, *stack.maker.leaf(other))
        assert FOREIGN in refusal(stack)
    sdk.archive(mine.id, tunnel_id=stack.tunnel.id)
    use(stack, *stack.maker.leaf(under))
    assert FOREIGN in refusal(stack)         # revoked: the next request knows


def s_client(stack, *args, host=None, ca=None):
    """Through the edge as a proxy, like curl."""
    host = host or f"docs.{stack.domain}"
    return openssl("s_client", "-proxy", f"127.0.0.1:{stack.relay.port}", "-connect", f"{host}:443", "-servername", host, "-verify_hostname", host, "-CAfile", ca or stack.good[0],
                   "-partial_chain", "-verify_return_error", *args, check=False, input=f"GET /mcp HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")


def test_s_client(stack):
    cert, key = stack.maker.leaf(stack.good)
    use(stack, cert, key)
    r = s_client(stack, "-ign_eof")
    assert r.returncode == 0 and "Verification: OK" in r.stdout and "New, TLSv1.3" in r.stdout and "HTTP/1.1 406" in r.stdout, r.stdout + r.stderr
    shown = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", r.stdout, re.S)[0]
    assert shown == re.search(r"-----BEGIN.*", cert.read_text(), re.S)[0]        # the gateway's own, not one of the edge
    assert "Server Temp Key: X25519" in r.stdout or "Negotiated TLS1.3 group" in r.stdout
    assert s_client(stack, "-tls1_2").returncode != 0
    stranger = stack.maker.authority("a stranger")[0]
    r = s_client(stack, ca=stranger)
    assert r.returncode != 0 and re.search(r"verify error:num=(20|21):", r.stderr)
    assert s_client(stack, "-alpn", "h2,http/1.1", "-ign_eof").stdout.count("ALPN protocol: http/1.1") == 1
    # The passthrough listener carries the same session for clients that speak TLS themselves.
    host = f"docs.{stack.domain}"
    r = openssl("s_client", "-connect", f"127.0.0.1:{stack.edge.plain}", "-servername", host, "-verify_hostname", host, "-CAfile", stack.good[0], "-partial_chain", "-verify_return_error",
                "-ign_eof", check=False, input=f"GET /mcp HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert r.returncode == 0 and "Verification: OK" in r.stdout and "HTTP/1.1 406" in r.stdout, r.stdout + r.stderr


def test_curl(stack):
    """As docs/edge.md has it."""
    use(stack, *stack.maker.leaf(stack.good))
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "curl", "version": "1"}}})
    args = ["-H", "content-type: application/json", "-H", "accept: application/json, text/event-stream", "-d", body, stack.url("docs")]
    assert '"name":"everything"' in curl_through(stack.edge, str(stack.good[0]), *args).stdout
    for cert, words in ((None, "alert"), ("edge", "alert"), ("peer", "alert")):
        r = curl_through(stack.edge, str(stack.good[0]), *args, cert=cert, check=False)
        assert r.returncode in (35, 56) and words in r.stderr, r.stderr
    r = curl_through(stack.edge, stack.keys.ca_crt, *args, check=False)          # the outer authority is none for the inner session
    assert r.returncode in (35, 60), r.stderr            # 35 without words: curl 7 loses them inside an HTTPS proxy


@pytest.mark.parametrize("kw,words", [({"kind": "rsa1536"}, "ee key too small"), ({"digest": "sha1"}, "ca md too weak")])
def test_what_no_gateway_shows(stack, kw, words):
    """The OpenSSL of the gateway does not load these. (What a server says to a short key: test_certificates_that_are_refused in test_mcp_tunnel.py.)"""
    cert, key = stack.maker.leaf(stack.good, **kw)
    config = json.loads(stack.gateway.config.read_text())
    config["tls"] = {"cert_file": str(cert), "key_file": str(key)}
    (stack.maker.d / "weak.yaml").write_text(json.dumps(config))
    r = subprocess.run([BIN, "gateway", "check", "--config", str(stack.maker.d / "weak.yaml")], capture_output=True, text=True)
    assert r.returncode != 0 and words in r.stderr and str(cert) in r.stderr, r.stderr


def test_gateway_check_knows_nothing_of_authorities(stack):
    """A certificate that is no leaf for this tunnel loads: what is refused is refused by the caller, with words; `gateway.certificate` warns."""
    config = stack.gateway.config
    assert f"https://docs.{stack.domain}" in command("gateway", "check", "--config", config)
