"""Tunnel rows of make bench. One nginx worker is the upstream of everybody: plain for those that end TLS before it, TLS for the direct reference. The client is
h2load with HTTP/1.1 keep-alive and TLS. Ours: client -> edge (by server name) -> gateway, which ends the inner TLS -> nginx; the payload is encrypted end to end.
nghttpx pair: client -> nghttpx -> HTTP/2 over TLS -> nghttpx -> nginx; it is readable in both. Whoever is measured is alone at that moment."""
from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST, SECONDS, CLIENTS = "docs.t1.tunnel.example", 4, 64


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_port(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}")


def h2load(port: int, path: str, clients: int, seconds: int = 0, requests: int = 0) -> dict:
    argv = ["h2load", "--h1", "-t1", f"-c{clients}", f"--connect-to=127.0.0.1:{port}", f"https://{HOST}{path}"]
    argv += [f"-D{seconds}", "--warm-up-time=1"] if seconds else [f"-n{requests}"]
    out = subprocess.run(argv, capture_output=True, text=True, timeout=120).stdout
    rate = re.search(r"finished in .*?, ([\d.]+) req/s, ([\d.]+)([KMG]?)B/s", out)
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", out)
    if not rate or not codes or int(codes[1]) == 0 or any(int(c) for c in codes.groups()[1:]):
        raise RuntimeError(f"h2load {port} {path}:\n{out[-1500:]}")
    return {"rate": float(rate[1]), "bytes": float(rate[2]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[rate[3]]}


class Peers:
    def __init__(self, build: Path):
        sys.path.insert(0, str(ROOT / "tests/tunnel"))
        os.environ["OUTWORK_BIN"] = str(build / "outwork")
        from edge_harness import Control, Edge, Keys
        from gw_harness import Authority, Gateway
        self.dir, self.procs = Path(tempfile.mkdtemp(prefix="outwork-bench-tunnel-")), []
        self.dir.chmod(0o755)
        ca = Authority(self.dir / "inner")
        cert, key = ca.leaf("gw", dns=["*.t1.tunnel.example"])
        os.chmod(key, 0o644)
        plain, self.direct = self.nginx(cert, key)
        front, back = free_port(), free_port()
        common = ["--conf=/dev/null", "--workers=1", "--no-ocsp", "--errorlog-file=/dev/null", "--accesslog-file=/dev/null", "--insecure"]
        self.spawn(["nghttpx", *common, f"-f127.0.0.1,{back}", f"-b127.0.0.1,{plain}", key, cert])
        wait_port(back)
        self.spawn(["nghttpx", *common, f"-f127.0.0.1,{front}", f"-b127.0.0.1,{back};;proto=h2;tls;sni=docs.t1.tunnel.example", key, cert])
        wait_port(front)
        self.nghttpx = front
        self.control = Control(ttl=30)
        token = self.dir / "token"
        token.write_text(self.control.tunnel("t1"))
        token.chmod(0o600)
        keys = Keys(self.dir / "keys")
        self.edge = Edge(keys, self.control, passthrough=True)
        self.gateway = Gateway(self.dir, f"tunnel_domain: t1.tunnel.example\ntls: {{cert_file: {cert}, key_file: {key}}}\nroutes:\n  docs: http://127.0.0.1:{plain}\n"
                                         f"upstream: {{allowed_ips: [127.0.0.1]}}\nedge: [\"127.0.0.1:{self.edge.gateway}\"]\nedge_ca: {keys.ca_crt}\ntoken_file: {token}\n")
        self.gateway.wait_log("edge.connected", 4)
        self.ours = self.edge.plain

    def spawn(self, argv: list[str]) -> None:
        self.procs.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True))

    def nginx(self, cert: str, key: str) -> tuple[int, int]:
        plain, tls = free_port(), free_port()
        (self.dir / "www").mkdir()
        (self.dir / "www/1k").write_bytes(b"x" * 1024)
        (self.dir / "www/bulk").write_bytes(b"x" * (64 << 20))
        (self.dir / "nginx.conf").write_text(
            f"worker_processes 1; daemon off; pid {self.dir}/pid; error_log /dev/null;\nevents {{ worker_connections 4096; }}\nhttp {{ access_log off; keepalive_requests 100000000; sendfile on;\n"
            f"client_body_temp_path {self.dir}/t; proxy_temp_path {self.dir}/t; fastcgi_temp_path {self.dir}/t; uwsgi_temp_path {self.dir}/t; scgi_temp_path {self.dir}/t;\n"
            f"server {{ listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; ssl_protocols TLSv1.3; ssl_certificate {cert}; ssl_certificate_key {key}; root {self.dir}/www; }} }}\n")
        self.spawn(["nginx", "-c", str(self.dir / "nginx.conf")])
        wait_port(tls)
        return plain, tls

    def close(self) -> None:
        self.gateway.kill()
        self.edge.kill()
        self.control.close()
        for p in self.procs:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def bench(build: Path, rounds: int, row) -> None:
    for tool in ("h2load", "nginx", "nghttpx"):
        if not shutil.which(tool):
            raise SystemExit(f"make bench: {tool} is missing; tools/setup bench installs it")
    p = Peers(build)
    try:
        def measure(**kw):
            got: dict[str, list[dict]] = {"ours": [], "direct": [], "nghttpx": []}
            for _ in range(rounds):
                for name, port in (("direct", p.direct), ("ours", p.ours), ("nghttpx", p.nghttpx)):
                    got[name].append(h2load(port, **kw))
            return {n: {k: statistics.median(x[k] for x in v) for k in v[0]} for n, v in got.items()}
        m = measure(path="/1k", clients=CLIENTS, seconds=SECONDS)
        for ref, goal in (("direct", ">= 0.33"), ("nghttpx", "> 1")):
            row(f"tunnel, 1 KiB keep-alive, {CLIENTS} clients, inner TLS, vs {'TLS direct' if ref == 'direct' else 'nghttpx pair'}", f"{m['ours']['rate']:.0f}/s",
                f"{m[ref]['rate']:.0f}/s", m["ours"]["rate"] / m[ref]["rate"], goal)
        for n in (1, 4):
            m = measure(path="/bulk", clients=n, requests=8 * n)
            row(f"tunnel, bulk, {n} stream{'s' if n > 1 else ''}, vs nghttpx pair", f"{m['ours']['bytes'] / 2**20:.0f} MiB/s", f"{m['nghttpx']['bytes'] / 2**20:.0f} MiB/s",
                m["ours"]["bytes"] / m["nghttpx"]["bytes"], "> 1")
    finally:
        p.close()
