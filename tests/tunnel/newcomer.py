"""Follows the pages word for word, on a machine of its own: namespaces of mounts and network in which edge.example.com, agents.example.com and 10.0.0.5 are here, /etc/outwork,
/var/lib/outwork and the home directory are empty, and the ports of the pages are free. Usage: newcomer.py WORK; inside `unshare --net --mount --pid --fork`, as root there.

A command is taken from its page and must be known here (`KNOWN`), so that a page that changes changes this. What a reader fills in is filled in: "..." and names like tnl_01..."""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

work = Path(sys.argv[1])
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
import certs  # noqa: E402
from harness import BIN, ROOT, SLOW  # noqa: E402

DOCS = ROOT / "docs"
background: list[tuple[str, subprocess.Popen, Path]] = []
env = {"PATH": f"{work}/bin:{os.environ['PATH']}", "HOME": str(work / "home"), "EDITOR": str(work / "bin/editor")}


def sh(command, cwd, check=True):
    print(f"$ {command}", flush=True)
    if command == "umask 077":               # of the reader's shell: for all that follows
        os.umask(0o077)
    # The shell of one block goes on with what an earlier line has exported.
    r = subprocess.run(["bash", "-c", f"set -a; [ ! -f {work}/exported ] || . {work}/exported; set +a\n{command}\nstatus=$?; export -p | grep -E ' (ANTHROPIC|API)_' > {work}/exported\nexit $status"],
                       cwd=cwd, env=env, capture_output=True, text=True, timeout=120 * SLOW)
    print(r.stdout + r.stderr, flush=True)
    assert not check or r.returncode == 0, f"status {r.returncode}: {command}"
    return r


def start(name, command, cwd):
    print(f"$ {command} &", flush=True)
    log = work / f"{name}.log"
    p = subprocess.Popen(["bash", "-c", "exec env " + command if re.match(r"[A-Z_]+=", command) else "exec " + command], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=log.open("ab"),
                         stderr=subprocess.STDOUT)
    background.append((name, p, log))
    return log


def wait(log, text, times=1):
    end = time.monotonic() + 40 * SLOW
    while log.read_text().count(text) < times:
        assert all(p.poll() is None for _, p, _ in background), "\n".join(f"---- {n} ----\n{f.read_text()[-3000:]}" for n, _, f in background)
        assert time.monotonic() < end, f"no '{text}':\n{log.read_text()[-3000:]}"
        time.sleep(0.02)


def stop(*names):
    for entry in [b for b in background if b[0] in names]:
        background.remove(entry)
        entry[1].terminate()
        if entry[0] == "edge":
            entry[1].send_signal(signal.SIGINT)          # at once: the server keeps a connection for later, and there is none
        assert entry[1].wait(60 * SLOW) == 0, entry[2].read_text()[-3000:]


def commands(page, heading=None):
    """The commands of a page's shell blocks, below a heading: continued lines joined, comments at the end taken off, empty lines left out."""
    text = (DOCS / page).read_text()
    if heading:
        text = text[text.index(f"## {heading}\n"):]
        text = text[:text.index("\n## ", 4)] if "\n## " in text[4:] else text
    out = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#.*$|^#.*$", "", line).strip()
            if line:
                out.append(re.sub(r"\s+", " ", line))
    return out


def take(have, *beginnings):
    """The commands, which must be these: one beginning for each."""
    assert len(have) == len(beginnings) and all(h.startswith(b) for h, b in zip(have, beginnings)), "the page's commands have changed:\n" + "\n".join(have)
    return have


def mount():
    run = lambda *a: subprocess.run(a, check=True)
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", "10.0.0.5/32", "dev", "lo")
    run("mount", "--make-rprivate", "/")
    over = work / "over"
    over.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", str(over))
    for d in ("etc", "var", "opt"):          # what is written there stays here
        (over / d).mkdir()
        (over / f"{d}.work").mkdir()
        run("mount", "-t", "overlay", "-o", f"lowerdir=/{d},upperdir={over}/{d},workdir={over}/{d}.work", "overlay", f"/{d}")
    for d in ("/etc/outwork", "/var/lib/outwork", "/var/log/outwork"):
        shutil.rmtree(d, ignore_errors=True)
        Path(d).mkdir(parents=True)
    server = Path("/opt/mcp-files/mcp-files")            # of docs/gateway.md
    server.parent.mkdir(parents=True)
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    hosts = work / "hosts"
    hosts.write_text("127.0.0.1 localhost edge.example.com agents.example.com\n")
    run("mount", "--bind", str(hosts), "/etc/hosts")
    ca = certs.ca("public authority")
    certs.leaf(ca, "agents.example.com").write(work / "server.pem")
    certs.leaf(ca, "edge.example.com").write(work / "public-edge.pem")
    bundle = work / "bundle.pem"
    bundle.write_text(ca.pem)
    run("mount", "--bind", str(bundle), "/etc/ssl/certs/ca-certificates.crt")
    (work / "bin").mkdir()
    (work / "home").mkdir()
    (work / "bin/outwork").symlink_to(BIN)
    (work / "bin/editor").write_text("#!/bin/sh\nexec sh -c \"$EDIT\" edit \"$1\"\n")
    (work / "bin/editor").chmod(0o755)


def ask(key, url):
    """Through the server, with the official SDK."""
    import anthropic
    c = anthropic.Anthropic(base_url="https://agents.example.com", api_key=key, max_retries=0, timeout=60 * SLOW)
    m = c.beta.messages.create(model="script-1", max_tokens=9, messages=[{"role": "user", "content": "go"}], betas=["mcp-client-2025-11-20"],
                               tools=[{"type": "mcp_toolset", "mcp_server_name": "docs"}], mcp_servers=[{"type": "url", "name": "docs", "url": url}])
    assert m.content[-1].text == "It said hello.", m


def docs_tunnels(key, machine):
    """docs/tunnels.md, the set-up of all three."""
    umask, init, edge_key, edge, server, gw_init, edit, gateway = take(
        commands("tunnels.md", "Set up"), "umask 077", "outwork edge init", "outwork edge-key create", "outwork edge --server", "outwork server ...", "API_TOKEN=ow-api-... outwork gateway init", "$EDITOR",
        "outwork gateway --config")
    for c in (umask, init, edge_key):
        sh(c, machine)
    edge_log = start("edge", edge, machine)
    log = start("server", server.replace("...", f"--listen 127.0.0.1:443 --tls-cert {work}/server.pem --tls-key {work}/server.pem --data /var/lib/outwork --model-provider script "
                                                f"--script-file {work}/script.json"), machine)
    wait(log, "server.ready")
    wait(edge_log, "edge.ready")
    shutil.copy(machine / "keys/ca.crt", machine / "ca.crt")            # "4. Give ca.crt to those who run gateways", as `edge init` says
    sh(gw_init.replace("ow-api-...", key), machine)
    env["EDIT"] = "grep -q '^  docs: http://10.0.0.5:8080$' \"$1\""       # the starter has the page's route already
    sh(edit, machine)
    gw_log = start("gateway", gateway, work)                            # from another directory: the paths in the file are whole
    wait(gw_log, "edge.connected", 4)
    domain = Path("/etc/outwork/gateway/tunnel-domain").read_text().strip()
    ask(key, f"https://docs.{domain}/mcp")
    return domain


def docs_edge(machine, domain):
    """docs/edge.md: the way of curl; and an edge set up by that page alone."""
    init, run, curl = take(commands("edge.md", "Set up"), "outwork edge init", "OUTWORK_EDGE_KEY=... outwork edge", "curl --proxy")
    shutil.copy("/etc/outwork/gateway/ca.crt", machine / "keys/inner-ca.crt")
    got = sh(curl.replace("docs.abc.tunnel.example.com", f"docs.{domain}") + " -sS", machine / "keys")
    assert "jsonrpc" in got.stdout
    stop("edge")
    sh(init, machine)
    edge_key = sh("outwork edge-key create --data /var/lib/outwork", machine).stdout.strip()
    log = start("edge", run.replace("OUTWORK_EDGE_KEY=...", f"OUTWORK_EDGE_KEY={edge_key}"), Path("/etc/outwork/edge"))
    wait(log, "edge.ready", 2)
    stop("edge")


def docs_gateway_setup(key, machine):
    """docs/gateway-setup.md, where the edge's certificate is one of a public authority, and the tunnel another one."""
    stop("gateway")
    shutil.rmtree("/etc/outwork/gateway")
    export, init, unset, edit, gateway, _, _, hosted, renew = take(
        commands("gateway-setup.md"), "export API_TOKEN=...", "outwork gateway init", "unset API_TOKEN", "$EDITOR", "outwork gateway --config", "export ANTHROPIC_FEDERATION_RULE_ID",
        "export ANTHROPIC_IDENTITY_TOKEN_FILE", "outwork gateway init", "outwork gateway renew")
    assert "https://api.anthropic.com" in hosted         # of the hosted service; test_init.py has a stand-in of it
    log = start("edge", f"outwork edge --server https://agents.example.com --key-file edge-key --tls-cert {work}/public-edge.pem --tls-key {work}/public-edge.pem --provider-client-ca keys/ca.crt",
                machine)
    wait(log, "edge.ready", 3)
    sh(export.replace("...", key), machine)
    said = sh(init, machine).stdout
    assert "/etc/outwork/gateway" in said
    sh(unset, machine)
    env["EDIT"] = "sed -i 's|^routes:|routes:\\n  more: http://10.0.0.5:8080|' \"$1\""
    sh(edit, machine)
    gw = start("gateway", gateway, work)
    wait(gw, "edge.connected", 8)
    before = Path("/etc/outwork/gateway/tls.crt").read_text()
    sh(renew.replace("/where/ca.key/is", "/etc/outwork/gateway"), machine)
    assert Path("/etc/outwork/gateway/tls.crt").read_text() != before
    wait(gw, "gateway.reload")
    return Path("/etc/outwork/gateway/tunnel-domain").read_text().strip()


def docs_tunnels_api(key, machine):
    """docs/tunnels-api.md, the commands of an operator; the authority is made as the page says."""
    _, umask, export, create, add, reveal, listing, openssl = take(commands("tunnels-api.md"), "outwork server ...", "umask 077", "export ANTHROPIC_BASE_URL=", "outwork tunnel create", "outwork tunnel certificate add",
                                                                "outwork tunnel reveal-token", "outwork tunnel list", "openssl req -x509")
    sh(umask, machine)
    sh(export.replace("ow-api-...", key), machine)
    tid = re.search(r"tnl_\w+", sh(create, machine).stdout)[0]
    sh(openssl, machine)
    mine = lambda c: c.replace("tnl_01...", tid)
    sh(mine(add), machine)
    sh(mine(reveal), machine)
    assert (machine / "tunnel-token").read_text().startswith("eyJ")
    assert tid in sh(listing, machine).stdout
    # What `outwork tunnel --help` shows as examples.
    examples = [x.strip().split("   ")[0] for x in sh("outwork tunnel --help", machine).stdout.split("Examples:\n")[1].splitlines() if x.startswith("  outwork")]
    assert len(examples) == 6
    for e in examples:
        sh(mine(e), machine, check="certificate add" not in e)          # it has that one already: said in words
    return tid


def docs_gateway(machine):
    """docs/gateway.md: its whole configuration is taken by `gateway check`."""
    check, _ = take(commands("gateway.md"), "outwork gateway check", "outwork gateway --config")
    (machine / "config.yaml").write_text(re.search(r"^```yaml\n(.*?)^```", (DOCS / "gateway.md").read_text(), re.S | re.M)[1])
    key = Path("/etc/outwork/gateway/build-key")
    key.write_text("secret\n")
    key.chmod(0o600)
    shutil.copy(machine / "ca.pem", "/etc/outwork/gateway/internal-ca.pem")
    assert "https://docs.a1b2c3.tunnel.example -> http://10.0.0.5:8080" in sh(check, machine).stdout


def docs_vaults(machine):
    add, rewrap, listing = take(commands("vaults.md"), "outwork vault key add", "outwork vault rewrap", "outwork vault key list")
    here = lambda c: c.replace("--data DATA", "--data /var/lib/outwork")
    sh(here(add), machine)
    sh(here(rewrap), machine)
    again = sh(here(rewrap), machine)
    assert "0 sealed anew" in again.stdout + again.stderr
    assert len(sh(here(listing), machine).stdout.strip().splitlines()) >= 2


def main():
    mount()
    machine = work / "machine"
    machine.mkdir()
    (work / "script.json").write_text(json.dumps({"models": ["script-1"], "scenarios": [{"turns": [
        {"text": "I ask.", "tool_use": [{"name": "mcp__docs__echo", "input": {"value": "hello"}}]}, {"text": "It said ${result}."}]}]}))
    mcp = start("mcp", f"{sys.executable} {Path(__file__).parent / 'everything.py'} --listen 10.0.0.5:8080", work)
    wait(mcp, "port 8080")
    os.environ["SSL_CERT_FILE"] = "/etc/ssl/certs/ca-certificates.crt"
    key = sh("outwork key create --data /var/lib/outwork --role admin", machine).stdout.strip()
    domain = docs_tunnels(key, machine)
    docs_edge(machine, domain)
    second = docs_gateway_setup(key, machine)
    assert second != domain
    docs_tunnels_api(key, machine)
    docs_gateway(machine)
    docs_vaults(machine)
    stop("gateway", "edge", "server")
    print("followed every page")


try:
    main()
finally:
    for n, p, f in background:
        p.kill()
        p.wait()
        print(f"---- {n} ----\n{f.read_text()[-2500:]}")
