"""Tunnels, tokens, certificates and the control API of edges: official SDKs, curl, the command line, and kill -9 in between."""
import base64
import datetime as dt
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import anthropic
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

import certs
from fake_model import FakeModel
from harness import BIN, ROOT, SLOW, Api, World, wait_for

DOMAIN = "tunnel.example.com"
NEW, OLD = "mcp-tunnels-2026-06-22", "mcp-tunnels-2026-05-19"


class TunnelApi(Api):
    """Calls with the tunnels' beta header."""

    def request(self, method, path, body=None, headers=None, **kw):
        beta = OLD if path.startswith("/v1/organizations/") else NEW
        return super().request(method, path, body, headers={"anthropic-beta": beta, **(headers or {})}, **kw)


@pytest.fixture(scope="module")
def w(tmp_path_factory, spec):
    w = World(tmp_path_factory.mktemp("tunnels"), spec, FakeModel(), server_args=["--tunnel-domain", DOMAIN])
    yield w
    w.close()


@pytest.fixture(scope="module")
def api(w, spec):
    return TunnelApi(w.server.url, w.key, spec)


@pytest.fixture(scope="module")
def sdk(w):
    return anthropic.Anthropic(base_url=w.server.url, auth_token=w.key, api_key=None, max_retries=0)


@pytest.fixture(scope="module")
def edge(w):
    return Api(w.server.url, w.server.cli("edge-key", "create", "--data", str(w.server.data), "--name", "edge 1"))


@pytest.fixture
def tunnel(api):
    t = api.post("/v1/tunnels", {"display_name": "test"}).ok()
    yield t
    api.post(f"/v1/tunnels/{t['id']}/archive").ok()


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


def ask(edge, tunnel_id, token):
    return edge.post("/outwork/v1/edges/authenticate", {"tunnel_id": tunnel_id, "token_sha256": digest(token)})


def add(api, tunnel_id, pem):
    return api.post(f"/v1/tunnels/{tunnel_id}/certificates", {"ca_certificate_pem": pem})


def reveal(api, tunnel_id):
    return api.post(f"/v1/tunnels/{tunnel_id}/reveal_token").ok()


def log_lines(w, event):
    return [json.loads(x) for x in w.server.proc.text().splitlines() if f'"{event}"' in x]


def test_life_of_a_tunnel_by_the_sdk(sdk, w):
    tunnels = sdk.beta.tunnels
    t = tunnels.create(display_name="näme")
    assert re.fullmatch(r"tnl_01\w{22}", t.id) and re.fullmatch(r"[a-z0-9]{8}\." + re.escape(DOMAIN), t.domain)
    assert t.type == "tunnel" and t.display_name == "näme" and t.archived_at is None and t.created_at
    assert not hasattr(t, "workspace_id")
    assert tunnels.retrieve(t.id) == t
    assert [x.id for x in tunnels.list()][0] == t.id                              # newest first
    k = tunnels.reveal_token(t.id)
    assert tunnels.reveal_token(t.id) == k and k.type == "tunnel_token"           # the same until it is rotated
    inside = json.loads(base64.b64decode(k.tunnel_token))
    assert k.tunnel_token.startswith("eyJ") and inside["t"] == t.id and len(base64.b64decode(inside["s"])) == 32
    rotated = tunnels.rotate_token(t.id, reason="a \"reason\"\nin two lines")
    assert rotated.id != k.id and rotated.tunnel_token != k.tunnel_token and tunnels.reveal_token(t.id) == rotated
    line = log_lines(w, "audit.tunnel_token_rotated")[-1]
    assert line["reason"] == "a \"reason\"\nin two lines" and line["tunnel_id"] == t.id and line["key_id"].startswith("apikey_")

    a, b = certs.ca("one"), certs.ca("two")
    c = tunnels.certificates.create(t.id, ca_certificate_pem=a.pem)
    assert re.fullmatch(r"tcrt_01\w{22}", c.id) and c.tunnel_id == t.id and c.archived_at is None
    assert c.fingerprint == a.cert.fingerprint(hashes.SHA256()).hex()
    assert c.expires_at == a.cert.not_valid_after_utc
    d = tunnels.certificates.create(t.id, ca_certificate_pem=b.pem)
    assert [x.id for x in tunnels.certificates.list(t.id, limit=1)] == [d.id, c.id]
    assert tunnels.certificates.retrieve(c.id, tunnel_id=t.id) == c
    gone = tunnels.certificates.archive(c.id, tunnel_id=t.id)
    assert gone.archived_at and tunnels.certificates.archive(c.id, tunnel_id=t.id) == gone
    assert [x.id for x in tunnels.certificates.list(t.id)] == [d.id]
    assert [x.id for x in tunnels.certificates.list(t.id, include_archived=True)] == [d.id, c.id]

    end = tunnels.archive(t.id)
    assert end.archived_at and tunnels.archive(t.id) == end == tunnels.retrieve(t.id)                # again: unchanged
    assert tunnels.certificates.retrieve(d.id, tunnel_id=t.id).archived_at == end.archived_at        # in the same operation
    assert tunnels.certificates.retrieve(c.id, tunnel_id=t.id) == gone
    assert t.id not in [x.id for x in tunnels.list()] and t.id in [x.id for x in tunnels.list(include_archived=True)]
    for call in (lambda: tunnels.reveal_token(t.id), lambda: tunnels.rotate_token(t.id), lambda: tunnels.certificates.create(t.id, ca_certificate_pem=a.pem)):
        with pytest.raises(anthropic.BadRequestError, match="is archived"):
            call()


def test_typescript_sdk(w, tmp_path):
    a = certs.ca()
    (tmp_path / "ca.pem").write_text(a.pem)
    r = subprocess.run([shutil.which("node"), str(ROOT / "tests/clients/ts/tunnels.mjs"), str(tmp_path / "ca.pem")], capture_output=True, text=True, timeout=60 * SLOW,
                       env={**os.environ, "ANTHROPIC_BASE_URL": w.server.url, "ANTHROPIC_API_KEY": w.key})
    assert r.returncode == 0, r.stderr
    assert json.loads(r.stdout) == {"stable": True, "rotated": True, "fingerprint": a.cert.fingerprint(hashes.SHA256()).hex(), "duplicate": 409, "listed": True,
                                    "removed": True, "archived": True}


def test_plain_curl_and_the_older_path(w, api):
    def curl(path, *args, beta=None, key=w.key):
        r = subprocess.run(["curl", "-sS", "-w", "\n%{http_code}", w.server.url + path, "-H", f"authorization: Bearer {key}", "-H", "anthropic-version: 2023-06-01",
                            *(["-H", f"anthropic-beta: {beta}"] if beta else []), *args], capture_output=True, text=True, check=True)
        body, status = r.stdout.rsplit("\n", 1)
        return int(status), json.loads(body)

    status, t = curl("/v1/tunnels?beta=true", "-X", "POST", beta=NEW)
    assert status == 200 and t["display_name"] is None and "workspace_id" not in t
    status, old = curl(f"/v1/organizations/tunnels/{t['id']}", beta=OLD)
    assert status == 200 and old == {**t, "workspace_id": "wrkspc_default"}
    status, e = curl("/v1/tunnels")
    assert status == 404 and NEW in e["error"]["message"]                         # names the header that is missing
    status, e = curl("/v1/organizations/tunnels", beta="managed-agents-2026-04-01")
    assert status == 404 and OLD in e["error"]["message"]
    status, end = curl(f"/v1/organizations/tunnels/{t['id']}/archive", "-X", "POST", "-H", "content-type: application/json", "-d", "{}", beta=OLD)
    assert status == 200 and end["archived_at"] and end["workspace_id"]
    assert set(api.get("/v1/tunnels").ok()) == {"data", "next_page"}


def test_pages(api):
    made = [api.post("/v1/tunnels", {"display_name": str(i)}).ok()["id"] for i in range(3)]
    page, seen = None, []
    while True:
        r = api.get("/v1/tunnels?limit=2" + (f"&page={page}" if page else "")).ok()
        seen += [t["id"] for t in r["data"]]
        page = r["next_page"]
        if not page:
            break
    assert seen[:3] == made[::-1] and len(seen) == len(set(seen))
    first = api.get("/v1/tunnels?limit=1").ok()["next_page"]
    api.get(f"/v1/tunnels/{made[0]}/certificates?page={first}").error(400, "page")            # of another list
    for q in ("limit=0", "limit=1001", "limit=x", "page=bogus", "include_archived=perhaps"):
        api.get(f"/v1/tunnels?{q}").error(400, q.split("=")[0])
    for t in made:
        api.post(f"/v1/tunnels/{t}/archive").ok()


# ---- refusals (tunnels.md 2.4) ----

def test_at_most_ten_tunnels(fresh, spec):
    w = fresh(server_args=["--tunnel-domain", DOMAIN])
    api = TunnelApi(w.server.url, w.key, spec)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: api.post("/v1/tunnels", {}), range(16)))
    made = [r.value["id"] for r in answers if r.status == 200]
    assert len(made) == 10 and len({r.value["domain"] for r in answers if r.status == 200}) == 10
    for r in answers:
        if r.status != 200:
            assert r.error(400)["type"] == "invalid_request_error"
            assert r.value["error"]["message"] == "Organization already has the maximum of 10 non-archived Tunnels"
    api.post(f"/v1/tunnels/{made[0]}/archive").ok()
    api.post("/v1/tunnels", {}).ok()
    api.post("/v1/tunnels", {}).error(400, "maximum of 10")


def test_without_a_domain_the_setting_is_named(world, spec):
    r = TunnelApi(world.server.url, world.key, spec).post("/v1/tunnels", {})
    assert r.error(501, "tunnel.domain", "--tunnel-domain")["type"] == "api_error" and r.headers["x-should-retry"] == "false"
    assert TunnelApi(world.server.url, world.key, spec).get("/v1/tunnels").ok()["data"] == []
    r = subprocess.run([BIN, "server", "--data", str(world.tmp / "bad"), "--listen", "127.0.0.1:0", "--model-provider", "script", "--tunnel-domain", "Bad_Name."], capture_output=True, text=True, timeout=30 * SLOW)
    assert r.returncode == 1 and "tunnel.domain" in r.stderr and "Bad_Name." in r.stderr


@pytest.mark.parametrize("body,words", [
    ({"display_name": ""}, ["display_name"]), ({"display_name": "x" * 256}, ["display_name", "255"]), ({"display_name": 5}, ["display_name"]),
])
def test_names(api, body, words):
    api.post("/v1/tunnels", body).error(400, *words)


def test_unknown_ids(api, tunnel):
    for method, path in [("GET", ""), ("POST", "/archive"), ("POST", "/reveal_token"), ("POST", "/rotate_token"), ("GET", "/certificates"), ("GET", "/certificates/tcrt_none")]:
        assert api.request(method, "/v1/tunnels/tnl_none" + path).error(404)["type"] == "not_found_error"
    assert add(api, "tnl_none", certs.ca().pem).error(404, "tnl_none")
    api.get(f"/v1/tunnels/{tunnel['id']}/certificates/tcrt_none").error(404, "tcrt_none")
    api.post(f"/v1/tunnels/{tunnel['id']}/certificates/tcrt_none/archive").error(404, "tcrt_none")
    other = api.post("/v1/tunnels", {}).ok()
    c = add(api, other["id"], certs.ca().pem).ok()
    api.get(f"/v1/tunnels/{tunnel['id']}/certificates/{c['id']}").error(404)                  # of another tunnel
    api.post(f"/v1/tunnels/{tunnel['id']}/certificates/{c['id']}/archive").error(404)
    api.post(f"/v1/tunnels/{other['id']}/archive").ok()


def test_roles(w, api, tunnel, spec, edge):
    tid = tunnel["id"]
    c = add(api, tid, certs.ca().pem).ok()
    changing = [("/v1/tunnels", {}), (f"/v1/tunnels/{tid}/archive", None), (f"/v1/tunnels/{tid}/reveal_token", None), (f"/v1/tunnels/{tid}/rotate_token", {}),
                (f"/v1/tunnels/{tid}/certificates", {"ca_certificate_pem": "x"}), (f"/v1/tunnels/{tid}/certificates/{c['id']}/archive", None)]
    reading = ["/v1/tunnels", f"/v1/tunnels/{tid}", f"/v1/tunnels/{tid}/certificates", f"/v1/tunnels/{tid}/certificates/{c['id']}",
               "/outwork/v1/tunnels", f"/outwork/v1/tunnels/{tid}", f"/outwork/v1/tunnels/{tid}/connectors"]
    for role in ("user", "developer"):
        who = TunnelApi(w.server.url, w.server.api_key(role), spec)
        for path in reading:
            who.get(path).ok()
        for path, body in changing:
            assert who.post(path, body).error(403, role, "admin")["type"] == "permission_error"
    nobody = TunnelApi(w.server.url, None, spec)
    for key in (w.env_key, edge.key):
        stranger = TunnelApi(w.server.url, key, spec)
        for path in reading:
            stranger.get(path).error(403)
            nobody.get(path).error(401)
        for path, body in changing:
            stranger.post(path, body).error(403)
            nobody.post(path, body).error(401)
    assert TunnelApi(w.server.url, "ow-api-" + "x" * 43, spec).get("/v1/tunnels").error(401)["type"] == "authentication_error"
    assert api.get(f"/v1/tunnels/{tid}").ok()["archived_at"] is None


def test_certificates_limit_and_duplicates(api, tunnel):
    tid, a, b = tunnel["id"], certs.ca("a"), certs.ca("b")
    first = add(api, tid, a.pem).ok()
    r = add(api, tid, a.pem)
    assert r.error(409, "registered")["type"] == "conflict_error" and r.headers["x-should-retry"] == "false"
    add(api, tid, b.pem).ok()
    assert add(api, tid, certs.ca("c").pem).error(400, "maximum of 2 active certificates")["type"] == "invalid_request_error"
    api.post(f"/v1/tunnels/{tid}/certificates/{first['id']}/archive").ok()
    again = add(api, tid, a.pem).ok()                                             # free again, a new record
    assert again["id"] != first["id"] and again["fingerprint"] == first["fingerprint"]
    add(api, tid, certs.ca("d").pem).error(400, "maximum of 2")


def expired():
    key = ec.generate_private_key(ec.SECP256R1())
    now, name = dt.datetime.now(dt.timezone.utc), x509.Name([])
    c = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1).not_valid_before(now - dt.timedelta(days=2))
         .not_valid_after(now - dt.timedelta(days=1)).add_extension(x509.BasicConstraints(True, None), critical=True))
    return certs.Cert(c.sign(key, hashes.SHA256()), key).pem


def openssl(tmp_path, *args):
    out = tmp_path / "c.pem"
    subprocess.run(["openssl", "req", "-x509", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=x", "-days", "90", "-out", str(out), *args], check=True, capture_output=True)
    return out.read_text()


def test_every_rule_of_a_certificate(api, tunnel, tmp_path):
    """tunnels.md 3.2, with certificates of two tools that are not ours."""
    a = certs.ca()
    rsa = ["-newkey", "rsa:2048", "-addext", "keyUsage=critical,keyCertSign"]
    cases = [
        (a.pem + certs.ca("b").pem, ["2 certificates"]), (a.key_pem, ["private key"]), (a.pem + a.key_pem, ["private key"]), (a.pem + "x", ["text after"]),
        ("note\n" + a.pem, ["text before"]), ("", ["empty"]), ("nonsense", ["BEGIN CERTIFICATE"]), (a.pem + "\n" * 8192, ["8192"]), (expired(), ["expired at"]),
        (certs.leaf(a, "*." + tunnel["domain"]).pem, ["BasicConstraints is missing"]), (a.pem.replace("M", "\u00e9", 1), ["base64"]),
        (openssl(tmp_path, "-newkey", "rsa:1024", "-addext", "keyUsage=keyCertSign"), ["1024 bits", "2048"]),
        (openssl(tmp_path, *rsa, "-sha1"), ["SHA1", "SHA-256"]),
        (openssl(tmp_path, "-newkey", "rsa:2048"), ["KeyUsage is missing"]),
        (openssl(tmp_path, "-newkey", "rsa:2048", "-addext", "keyUsage=digitalSignature"), ["keyCertSign"]),
        (openssl(tmp_path, "-newkey", "ed25519", "-addext", "keyUsage=keyCertSign"), ["ED25519"]),
        (openssl(tmp_path, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp192k1", "-addext", "keyUsage=keyCertSign"), ["secp192k1", "P-256"]),
    ]
    for pem, words in cases:
        r = add(api, tunnel["id"], pem)
        assert r.error(400, "ca_certificate_pem", *words)["type"] == "invalid_request_error"
    api.post(f"/v1/tunnels/{tunnel['id']}/certificates", {}).error(400, "ca_certificate_pem")
    api.post(f"/v1/tunnels/{tunnel['id']}/certificates", {"ca_certificate_pem": 7}).error(400, "ca_certificate_pem")
    assert api.get(f"/v1/tunnels/{tunnel['id']}/certificates?include_archived=true").ok()["data"] == []
    add(api, tunnel["id"], openssl(tmp_path, *rsa)).ok()
    add(api, tunnel["id"], "\n" + a.pem + "\n").ok()


def test_foreign_operations_need_no_body(api, tunnel):
    """The SDKs send an empty object or nothing; what the document does not name is dropped."""
    tid = tunnel["id"]
    for body in (None, {}, {"reason": None}, {"reason": None, "overlap_seconds": None, "other": 1}):
        api.post(f"/v1/tunnels/{tid}/rotate_token", body).ok()
    for body, word in [({"reason": "x" * 1001}, "reason"), ({"overlap_seconds": -1}, "overlap_seconds"), ({"overlap_seconds": 86401}, "overlap_seconds"), ({"overlap_seconds": "1"}, "overlap_seconds")]:
        api.post(f"/v1/tunnels/{tid}/rotate_token", body).error(400, word)


# ---- edges ----

def beat(edge, connectors, edge_id="edge_1", draining=False, address="10.0.0.1:8445"):
    return edge.post(f"/outwork/v1/edges/{edge_id}/heartbeat", {"address": address, "version": "1.0", "draining": draining, "connectors": connectors}).ok()


def connector(tunnel_id, token_id, n=2, gateway="gw_1"):
    return {"id": gateway, "tunnel_id": tunnel_id, "token_id": token_id, "connections": n, "version": "0.1", "remote_address": "192.0.2.1:999",
            "connected_at": "2026-01-01T00:00:00Z"}


def test_edge_authenticates_a_token(api, edge, tunnel):
    tid, k = tunnel["id"], reveal(api, tunnel["id"])
    assert ask(edge, tid, k["tunnel_token"]).ok() == {"tunnel_id": tid, "domain": tunnel["domain"], "token_id": k["id"], "workspace_id": "wrkspc_default", "state": "needs_certificate"}
    c = add(api, tid, certs.ca().pem).ok()
    assert ask(edge, tid, k["tunnel_token"]).ok()["state"] == "active"
    e = ask(edge, tid, k["tunnel_token"] + "x").error(401)
    assert e["details"]["error_code"] == "token_refused" and "edge key" not in e["message"]
    ask(edge, "tnl_none", k["tunnel_token"]).error(401)
    api.post(f"/v1/tunnels/{tid}/certificates/{c['id']}/archive").ok()
    assert ask(edge, tid, k["tunnel_token"]).ok()["state"] == "needs_certificate"              # at once
    for body in ({}, {"tunnel_id": tid}, {"tunnel_id": tid, "token_sha256": "zz" * 32}, {"tunnel_id": tid, "token_sha256": "aa"}, {"tunnel_id": "a b", "token_sha256": "aa" * 32}):
        edge.post("/outwork/v1/edges/authenticate", body).error(400)


def test_rotation_with_and_without_overlap(api, edge, tunnel):
    tid = tunnel["id"]
    one = reveal(api, tid)
    two = api.post(f"/v1/tunnels/{tid}/rotate_token", {"overlap_seconds": 3600}).ok()
    assert ask(edge, tid, one["tunnel_token"]).ok()["token_id"] == one["id"] and ask(edge, tid, two["tunnel_token"]).ok()["token_id"] == two["id"]
    assert reveal(api, tid) == two
    three = api.post(f"/v1/tunnels/{tid}/rotate_token", {}).ok()                               # none: every older one ends at once
    assert ask(edge, tid, three["tunnel_token"]).status == 200
    for old in (one, two):
        ask(edge, tid, old["tunnel_token"]).error(401)
    four = api.post(f"/v1/tunnels/{tid}/rotate_token", {"overlap_seconds": 1}).ok()
    wait_for(lambda: ask(edge, tid, three["tunnel_token"]).status == 401, why="the end of an overlap")
    assert ask(edge, tid, four["tunnel_token"]).status == 200


def test_an_archived_tunnel_is_told(api, edge):
    t = api.post("/v1/tunnels", {}).ok()
    k = reveal(api, t["id"])
    beat(edge, [connector(t["id"], k["id"])], "edge_arch")
    api.post(f"/v1/tunnels/{t['id']}/archive").ok()
    assert ask(edge, t["id"], k["tunnel_token"]).ok()["state"] == "archived"
    ask(edge, t["id"], "wrong").error(401)
    assert beat(edge, [connector(t["id"], k["id"])], "edge_arch")["tunnels"] == [{"id": t["id"], "state": "archived"}]
    r = edge.get(f"/outwork/v1/edges/route?host=x.{t['domain']}&from=edge_z").ok()
    assert r["state"] == "archived" and r["edges"] == []


def test_heartbeat_and_route(api, edge, tunnel, w):
    tid, k = tunnel["id"], reveal(api, tunnel["id"])
    two = [connector(tid, k["id"], 4), connector(tid, k["id"], 1, "gw_2"), connector("tnl_none", "ttok_none", 1, "gw_3")]
    r = beat(edge, two, "edge_a")
    assert r["ttl_seconds"] == 30 and sorted(x["state"] for x in r["tunnels"]) == ["archived", "needs_certificate"]       # an unknown one is to be cut
    beat(edge, [connector(tid, k["id"], 1)], "edge_b", address="[2001:db8::1]:8445")
    host = f"docs.{tunnel['domain']}"
    route = lambda frm="", h=host: edge.get(f"/outwork/v1/edges/route?host={h}&from={frm}")
    assert route().ok() == {"tunnel_id": tid, "domain": tunnel["domain"], "state": "needs_certificate",
                            "edges": [{"id": "edge_a", "address": "10.0.0.1:8445"}, {"id": "edge_b", "address": "[2001:db8::1]:8445"}]}
    assert [e["id"] for e in route("edge_a").ok()["edges"]] == ["edge_b"]                       # the asker knows its own
    for h in (host.upper(), host + ".", host + "%3A443", tunnel["domain"], "a.b." + tunnel["domain"]):
        assert route(h=h).ok()["tunnel_id"] == tid
    for h in ("x" + tunnel["domain"], "docs." + DOMAIN, DOMAIN, "example.com", "docs.zzzzzzzz." + DOMAIN):
        route(h=h).error(404)
    for h in ("", "a%20b", "a/b", "%00", "x" * 300):
        route(h=h).error(400, "host")
    beat(edge, two[:1], "edge_a", draining=True)
    assert [e["id"] for e in route().ok()["edges"]] == ["edge_b", "edge_a"]                     # a draining one last

    listed = api.get(f"/outwork/v1/tunnels/{tid}/connectors").ok()["data"]
    by = {(c["id"], c["edge_id"]): c for c in listed}
    assert by["gw_1", "edge_a"]["connected"] and by["gw_1", "edge_a"]["connections"] == 4 and by["gw_1", "edge_a"]["token_id"] == k["id"]
    assert not by["gw_2", "edge_a"]["connected"] and by["gw_2", "edge_a"]["last_seen_at"]       # gone, and still known
    assert by["gw_1", "edge_b"]["remote_address"] == "192.0.2.1:999" and by["gw_1", "edge_b"]["connected_at"].startswith("2026-01-01T00:00:00")
    s = api.get(f"/outwork/v1/tunnels/{tid}").ok()
    assert s["connectors"] == 2 and s["connections"] == 5 and s["state"] == "needs_certificate" and s["last_seen_at"]
    edges = {e["id"]: e for e in w.api.get("/outwork/v1/edges").ok()["data"]}
    assert edges["edge_a"]["draining"] and edges["edge_a"]["alive"] and edges["edge_b"]["address"] == "[2001:db8::1]:8445"
    metrics = urllib.request.urlopen(w.server.url + "/metrics").read().decode()
    assert f'outwork_tunnel_connectors{{tunnel_id="{tid}"}} 2' in metrics
    beat(edge, [], "edge_a")
    beat(edge, [], "edge_b")
    assert route().ok()["edges"] == [] and api.get(f"/outwork/v1/tunnels/{tid}").ok()["connectors"] == 0


@pytest.mark.parametrize("change,words", [
    ({"address": None}, ["address"]), ({"address": "no port"}, ["address"]), ({"version": ""}, ["version"]), ({"connectors": {}}, ["connectors"]),
    ({"connectors": [{}]}, ["connectors.0"]), ({"connectors": [{"id": "g", "tunnel_id": "t", "token_id": "k", "connections": -1}]}, ["connectors.0.connections"]),
    ({"connectors": [{"id": "g", "tunnel_id": "t", "token_id": "k", "connections": 1, "connected_at": "today"}]}, ["connected_at"]),
])
def test_heartbeats_are_checked(edge, change, words):
    body = {"address": "h:1", "version": "1", "draining": False, "connectors": [], **change}
    edge.post("/outwork/v1/edges/edge_1/heartbeat", body).error(400, *words)
    edge.post("/outwork/v1/edges/a%20b/heartbeat", {**body, "address": "h:1"}).error(400, "edge_id")


def test_an_edge_id_stays_with_its_key(w, edge):
    """Whoever has one edge key cannot speak for the edges of another."""
    other = w.api.post("/outwork/v1/edge-keys", {"name": "other"}).ok()
    thief = Api(w.server.url, other["key"])
    body = {"address": "thief:1", "version": "1", "draining": False, "connectors": []}
    beat(edge, [], "edge_held", address="10.0.0.9:8445")
    thief.post("/outwork/v1/edges/edge_held/heartbeat", body).error(409, "edge_held", "another edge key")
    assert {e["id"]: e["address"] for e in w.api.get("/outwork/v1/edges").ok()["data"]}["edge_held"] == "10.0.0.9:8445"
    beat(edge, [], "edge_held", address="10.0.0.9:8445")
    beat(thief, [], "edge_other")
    edge.post("/outwork/v1/edges/edge_other/heartbeat", body).error(409)
    w.api.delete(f"/outwork/v1/edge-keys/{other['id']}").ok()
    beat(edge, [], "edge_other", address="10.0.0.9:8446")                    # a revoked key holds nothing


def test_edge_keys(w, api, spec):
    made = w.api.post("/outwork/v1/edge-keys", {"name": "by api"}).ok()
    assert made["type"] == "edge_key" and made["key"].startswith("ow-edge-") and made["id"].startswith("edgekey_") and "role" not in made and "environment_id" not in made
    edge = Api(w.server.url, made["key"])
    edge.get("/outwork/v1/edges/route?host=x.example.com").error(404)
    for path in ("/v1/agents", "/v1/sessions", "/outwork/v1/keys", "/outwork/v1/edge-keys", "/outwork/v1/edges"):
        edge.get(path).error(403, "edge key")
    for key in (w.key, w.env_key):                                                # nobody else may ask what edges ask
        Api(w.server.url, key).get("/outwork/v1/edges/route?host=x.example.com").error(403)
    assert made["id"] in [k["id"] for k in w.api.get("/outwork/v1/edge-keys").ok()["data"]] and "key" not in w.api.get(f"/outwork/v1/edge-keys/{made['id']}").ok()
    assert made["id"] not in [k["id"] for k in w.api.get("/outwork/v1/keys").ok()["data"]]
    w.api.delete(f"/outwork/v1/keys/{made['id']}").error(404)
    assert w.api.delete(f"/outwork/v1/edge-keys/{made['id']}").ok()["type"] == "edge_key_deleted"
    e = edge.get("/outwork/v1/edges/route?host=x.example.com").error(401, "edge key")
    assert e["details"]["error_code"] == "edge_key_refused"                       # told apart from a refused token
    data = str(w.server.data)
    text = w.server.cli("edge-key", "create", "--data", data, "--name", "by command")
    rows = json.loads(w.server.cli("edge-key", "list", "--data", data, "--json"))
    mine = next(k for k in rows if k["name"] == "by command")
    assert text.startswith("ow-edge-") and text[-4:] == mine["hint"] and "by command" in w.server.cli("edge-key", "list", "--data", data)
    Api(w.server.url, text).get("/outwork/v1/edges/route?host=x.example.com").error(404)
    w.server.cli("edge-key", "revoke", "--data", data, mine["id"])
    Api(w.server.url, text).get("/outwork/v1/edges/route?host=x.example.com").error(401)


# ---- at rest, expiry, command line ----

def test_tokens_are_sealed_at_rest(w, api, tunnel):
    k = reveal(api, tunnel["id"])
    secret = json.loads(base64.b64decode(k["tunnel_token"]))["s"]
    for f in w.server.data.iterdir():
        blob = f.read_bytes()
        assert k["tunnel_token"].encode() not in blob and secret.encode() not in blob and base64.b64decode(secret) not in blob, f
    assert k["tunnel_token"] not in w.server.proc.text()
    assert log_lines(w, "audit.tunnel_token_revealed")[-1]["token_id"] == k["id"]


def test_another_sealing_key(fresh, spec):
    """Re-wrapping leaves every token as it was; one of an archived tunnel has no text any more and is no hindrance."""
    w = fresh(server_args=["--tunnel-domain", DOMAIN])
    api = TunnelApi(w.server.url, w.key, spec)
    live, gone = api.post("/v1/tunnels", {}).ok(), api.post("/v1/tunnels", {}).ok()
    k = reveal(api, live["id"])
    api.post(f"/v1/tunnels/{gone['id']}/archive").ok()
    w.server.cli("vault", "key", "add", "--data", str(w.server.data))
    w.server.cli("vault", "rewrap", "--data", str(w.server.data))
    key = w.server.data / "vault.key"
    lines = [x for x in key.read_text().splitlines() if x and not x.startswith("#")]
    assert len(lines) == 2
    key.write_text(lines[0] + "\n")                                               # the old key goes
    assert reveal(api, live["id"]) == k


def test_a_lost_key_file_is_said(fresh, spec):
    w = fresh(server_args=["--tunnel-domain", DOMAIN])
    api = TunnelApi(w.server.url, w.key, spec)
    t = api.post("/v1/tunnels", {}).ok()
    k = reveal(api, t["id"])
    assert w.server.stop() == 0
    key = w.server.data / "vault.key"
    assert oct(key.stat().st_mode)[-3:] == "600"
    kept = key.read_bytes()
    key.unlink()
    w.server.start()
    api.post(f"/v1/tunnels/{t['id']}/reveal_token").error(412, "vault.key-file", "rotate")
    edge = Api(w.server.url, w.server.cli("edge-key", "create", "--data", str(w.server.data)))
    assert ask(edge, t["id"], k["tunnel_token"]).status == 200                    # gateways do not notice
    fresh_token = api.post(f"/v1/tunnels/{t['id']}/rotate_token").ok()
    assert reveal(api, t["id"]) == fresh_token
    key.write_bytes(kept)


def test_expiring_certificates_are_said(fresh, spec):
    w = fresh(server_args=["--tunnel-domain", DOMAIN])
    api = TunnelApi(w.server.url, w.key, spec)
    t, soon, late = api.post("/v1/tunnels", {"display_name": "office"}).ok(), certs.ca(), certs.ca()
    c = add(api, t["id"], soon.pem).ok()                                          # one day
    line = log_lines(w, "tunnel.certificate_expires")[-1]
    assert line["certificate_id"] == c["id"] and line["level"] == "warn"
    metrics = urllib.request.urlopen(w.server.url + "/metrics").read().decode()
    at = int(soon.cert.not_valid_after_utc.timestamp())
    assert f'outwork_tunnel_certificate_expires_timestamp_seconds{{tunnel_id="{t["id"]}",certificate_id="{c["id"]}"}} {at}' in metrics
    assert w.server.stop() == 0
    w.server.start()                                                              # the watch looks at the start, too
    wait_for(lambda: [x for x in log_lines(w, "tunnel.certificate_expires") if x["certificate_id"] == c["id"] and x["expires_at"] == c["expires_at"]], why="the warning")
    env = {"ANTHROPIC_BASE_URL": w.server.url, "ANTHROPIC_API_KEY": w.key}
    assert "days!" in cli(env, "list").stdout and "days!" in cli(env, "certificate", "list", t["id"]).stdout
    api.post(f"/v1/tunnels/{t['id']}/certificates/{c['id']}/archive").ok()
    assert c["id"] not in urllib.request.urlopen(w.server.url + "/metrics").read().decode()
    assert late


def cli(env, *args, stdin=None):
    base = {k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC_", "OUTWORK_"))}
    return subprocess.run([BIN, "tunnel", *args], capture_output=True, text=True, timeout=60 * SLOW, env={**base, **env}, input=stdin)


def test_command_line(w, api, edge, tmp_path):
    env = {"ANTHROPIC_BASE_URL": w.server.url + "/", "ANTHROPIC_API_KEY": w.key}
    def ok(*args, **kw):
        r = cli(env, *args, **kw)
        assert r.returncode == 0, (args, r.stderr)
        return r.stdout
    t = json.loads(ok("create", "--name", "a\u001bname", "--json"))
    token = ok("reveal-token", t["id"])
    assert token == reveal(api, t["id"])["tunnel_token"] + "\n"                   # alone on stdout
    rotated = ok("rotate-token", t["id"], "--overlap", "1h", "--reason", "test")
    assert rotated != token and rotated.count("\n") == 1
    assert ask(edge, t["id"], token.strip()).status == 200
    ca = tmp_path / "ca.pem"
    ca.write_text(certs.ca().pem)
    one = json.loads(ok("certificate", "add", t["id"], str(ca), "--json"))
    ok("certificate", "add", t["id"], "-", stdin=certs.ca("b").pem)
    r = cli(env, "certificate", "add", t["id"], str(ca))
    assert r.returncode == 1 and "registered" in r.stderr and not r.stdout
    k = reveal(api, t["id"])
    beat(edge, [connector(t["id"], k["id"], 3)], "edge_cli")
    row = next(x for x in ok("list").splitlines() if x.startswith(t["id"]))
    assert "active" in row and t["domain"] in row and "a?name" in row and "\u001b" not in row
    assert len(json.loads(ok("certificate", "list", t["id"], "--json"))) == 2
    ok("certificate", "archive", t["id"], one["id"])
    assert len(json.loads(ok("certificate", "list", t["id"], "--json"))) == 1 and len(json.loads(ok("certificate", "list", t["id"], "--archived", "--json"))) == 2
    assert "edge_cli" in ok("connectors", t["id"]) and json.loads(ok("connectors", t["id"], "--json"))[0]["connections"] == 3
    assert f"state                   active\n" in ok("get", t["id"])
    ok("archive", t["id"])
    assert t["id"] not in ok("list") and t["id"] in ok("list", "--archived")
    r = cli(env, "reveal-token", t["id"])
    assert r.returncode == 1 and "archived" in r.stderr and not r.stdout
    assert cli(env, "get", "tnl_none").returncode == 1
    for args in ([], ["frob"], ["get"], ["get", "a/b"], ["certificate"], ["certificate", "add", t["id"]], ["create", "x"], ["list", "--overlap", "25h"], ["--api-key", "x"]):
        assert cli(env, *args).returncode == 2, args
    assert cli({**env, "ANTHROPIC_API_KEY": ""}, "list").returncode == 2
    assert cli({**env, "ANTHROPIC_API_KEY": "ow-api-" + "x" * 43}, "list").returncode == 3
    assert cli({**env, "ANTHROPIC_API_KEY": w.server.api_key("user")}, "create").returncode == 3
    assert cli({**env, "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}, "list").returncode == 1
    file = tmp_path / "key"
    file.write_text(w.key + "\n")
    file.chmod(0o600)
    assert cli({"ANTHROPIC_BASE_URL": w.server.url}, "list", "--key-file", str(file)).returncode == 0
    file.chmod(0o604)
    assert cli({"ANTHROPIC_BASE_URL": w.server.url}, "list", "--key-file", str(file)).returncode == 2
    words = subprocess.run([BIN, "completion", "bash"], capture_output=True, text=True).stdout
    assert "tunnel" in words and "edge-key" in words and "reveal-token" in words


# ---- kill -9 ----

def test_nothing_acknowledged_is_lost(fresh, spec):
    """The server is killed around create, rotate, certificates and archive; what was answered before is there after."""
    w = fresh(server_args=["--tunnel-domain", DOMAIN])
    api = TunnelApi(w.server.url, w.key, spec)
    edge = Api(w.server.url, w.server.cli("edge-key", "create", "--data", str(w.server.data)))
    known, domains = {}, {}                      # tunnel id -> last acknowledged token
    for i in range(12):
        timer = threading.Timer(0.004 * i, w.server.proc.p.kill)
        timer.start()
        last = None
        try:
            while True:
                live = [t for t in known if known[t]]
                if len(live) >= 8:
                    last = ("archive", live[0])
                    api.post(f"/v1/tunnels/{live[0]}/archive").ok()
                    known[live[0]] = None
                else:
                    last = ("create", None)
                    t = api.post("/v1/tunnels", {}).ok()
                    assert t["domain"] not in domains
                    domains[t["domain"]] = t["id"]
                    last = ("reveal", t["id"])
                    known[t["id"]] = reveal(api, t["id"])
                tid = next(t for t in reversed(known) if known[t])
                last = ("rotate", tid)
                known[tid] = api.post(f"/v1/tunnels/{tid}/rotate_token", {}).ok()
        except (OSError, ConnectionError, ValueError):
            pass
        timer.join()
        w.server.proc.p.wait()
        w.server.start()
        listed = {t["id"]: t for t in api.get("/v1/tunnels?limit=1000&include_archived=true").ok()["data"]}
        assert set(domains.values()) <= set(listed)
        for tid, k in known.items():
            if last and last[1] == tid:
                continue                         # in flight: either outcome is right, checked below
            if k is None:
                assert listed[tid]["archived_at"]
            else:
                assert reveal(api, tid) == k and ask(edge, tid, k["tunnel_token"]).ok()["token_id"] == k["id"]
        for tid, t in list(listed.items()):      # and every unfinished change is whole: a live tunnel has a token that is accepted
            if t["archived_at"]:
                known[tid] = None
                continue
            k = reveal(api, tid)
            assert ask(edge, tid, k["tunnel_token"]).ok()["token_id"] == k["id"]
            known[tid] = k
