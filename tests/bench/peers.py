"""Who is measured in the tunnel rows of make bench, each with its processes: ours, and tunnels by others in a configuration that encrypts between its two halves.
A contender offers a port that carries plain HTTP to the upstream (`plain`), and one behind which the client's own TLS goes through to its end (`tls`)."""
from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache/peers"
DOMAIN = "t1.tunnel.example"
HOST = f"docs.{DOMAIN}"
BULK = 256 << 20


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_port(port: int, who: str) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError(f"{who}: nothing listens on port {port}")


def missing(name: str) -> str | None:
    """None when tools/bench-peers has built it, else why not."""
    if (CACHE / f"{name}.version").exists():
        return None
    try:
        return " ".join((CACHE / f"{name}.missing").read_text().split())
    except OSError:
        return "not built; tools/setup bench does that"


class Field:
    """All contenders, the upstream, and `absent`: {name: why}."""

    def __init__(self, build: Path):
        sys.path.insert(0, str(ROOT / "tests/tunnel"))
        os.environ["OUTWORK_BIN"] = str(build / "outwork")
        from gw_harness import Authority
        self.build, self.procs, self.closers, self.absent = build, [], [], {}
        self.dir = Path(tempfile.mkdtemp(prefix="outwork-bench-tunnel-"))
        self.dir.chmod(0o755)
        ca = Authority(self.dir / "keys")
        self.ca = ca.file
        self.cert, self.key = ca.leaf("gw", dns=[f"*.{DOMAIN}", "localhost"], ips=["127.0.0.1"])
        # Of peers whose halves check each other.
        self.server_pair, self.client_pair = ca.leaf("server", dns=["localhost"], ips=["127.0.0.1"]), ca.leaf("client", dns=["localhost"], client=True)
        self.plain, self.tls = {}, {}
        try:
            self.nginx()
            self.tls["TLS direct"] = self.tls_upstream
            self.ours()
            self.ours_transport()
            self.nghttpx()
            self.stunnel()
            for name in ("ghostunnel", "frp", "rathole", "chisel"):
                why = missing(name)
                if why:
                    self.absent[name] = why
                else:
                    getattr(self, name)()
            for ports in (self.plain, self.tls):
                for name, port in ports.items():
                    wait_port(port, name)
        except BaseException:
            self.close()
            raise

    def spawn(self, *argv, **kw) -> subprocess.Popen:
        with open(self.dir / f"{Path(argv[0]).name}.log", "ab") as log:
            p = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, **{"stdout": log, **kw}, stderr=log, start_new_session=True, cwd=self.dir)
        self.procs.append(p)
        return p

    def file(self, name: str, text: str) -> Path:
        (self.dir / name).write_text(text)
        return self.dir / name

    def close(self) -> None:
        for f in self.closers:
            f()
        for p in self.procs:
            try:
                os.killpg(p.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            p.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    # ---- the upstream ----

    def nginx(self) -> None:
        (self.dir / "www").mkdir()
        (self.dir / "www/1k").write_bytes(b"x" * 1024)
        with open(self.dir / "www/bulk", "wb") as f:
            f.truncate(BULK)
        self.upstream, self.tls_upstream, _ = self.web("nginx")

    def web(self, name: str) -> tuple[int, int, int]:
        """A new nginx with one worker: its plain port, its TLS port, the worker's process."""
        plain, tls = free_port(), free_port()
        conf = self.file(f"{name}.conf", f"""worker_processes 1; daemon off; pid {self.dir}/{name}.pid; error_log /dev/null; events {{ worker_connections 16384; }}
http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600; sendfile on; root {self.dir}/www; open_file_cache max=10;
client_body_temp_path {self.dir}/t; proxy_temp_path {self.dir}/t; fastcgi_temp_path {self.dir}/t; uwsgi_temp_path {self.dir}/t; scgi_temp_path {self.dir}/t;
server {{ listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; ssl_protocols TLSv1.3; ssl_certificate {self.cert}; ssl_certificate_key {self.key}; }} }}
""")
        p = self.spawn("nginx", "-c", conf)
        wait_port(tls, "nginx")
        return plain, tls, int(Path(f"/proc/{p.pid}/task/{p.pid}/children").read_text().split()[0])

    # ---- ours ----

    def ours(self) -> None:
        self.edge, self.gateway = self.product()
        self.tls["ours"] = self.edge.plain

    def product(self):
        """A new edge with a new gateway. They end with the field, or by kill()."""
        from edge_harness import Control, Edge, Keys
        from gw_harness import Gateway
        at = Path(tempfile.mkdtemp(prefix="product-", dir=self.dir))
        control = Control(ttl=30)
        self.closers.append(control.close)
        token = at / "token"
        token.write_text(control.tunnel("t1"))
        token.chmod(0o600)
        keys = Keys(at / "edge-keys")
        # All clients come from one address here.
        edge = Edge(keys, control, "--max-connections-per-source", "20000", "--max-handshakes-per-source", "4000", "--max-handshakes", "4000", "--log-level", "info", passthrough=True)
        self.closers.insert(0, edge.kill)
        gateway = Gateway(at, f"tunnel_domain: {DOMAIN}\ntls: {{cert_file: {self.cert}, key_file: {self.key}}}\nroutes:\n  docs: http://127.0.0.1:{self.upstream}\n"
                              f"upstream: {{allowed_ips: [127.0.0.1]}}\nedge: [\"127.0.0.1:{edge.gateway}\"]\nedge_ca: {keys.ca_crt}\ntoken_file: {token}\n", "--log-level", "info")
        self.closers.insert(0, gateway.kill)
        gateway.wait_log("edge.connected", 4)
        return edge, gateway

    def ours_transport(self) -> None:
        self.plain["ours"], *_ = self.transport()

    def transport(self) -> tuple[int, int, int]:
        """A new tunnel_pair: its port, and the processes."""
        program = self.build / "tests/bench/tunnel_pair"
        front = self.spawn(program, "front", *self.server_pair, "4", stdout=subprocess.PIPE)
        port, link = front.stdout.readline().split()
        back = self.spawn(program, "back", link.decode(), self.ca, self.upstream, "4")
        if front.stdout.readline() != b"ready\n":
            raise RuntimeError("tunnel_pair did not come up")
        return int(port), front.pid, back.pid

    # ---- others ----

    def nghttpx(self) -> None:
        """HTTP/1.1 in, HTTP/2 over TLS between, HTTP/1.1 out. It ends the client's TLS at its first half, and so reads everything in both."""
        common = ["nghttpx", "--conf=/dev/null", "--workers=1", "--no-ocsp", "--errorlog-file=/dev/null", "--accesslog-file=/dev/null", "--insecure"]
        back, plain, tls = free_port(), free_port(), free_port()
        self.spawn(*common, f"-f127.0.0.1,{back}", f"-b127.0.0.1,{self.upstream}", self.key, self.cert)
        wait_port(back, "nghttpx")
        to = f"-b127.0.0.1,{back};;proto=h2;tls;sni={HOST}"
        self.spawn(*common, f"-f127.0.0.1,{plain};no-tls", f"-f127.0.0.1,{tls}", to, self.key, self.cert)
        self.plain["nghttpx pair"], self.tls["nghttpx pair"] = plain, tls

    def both(self, name: str) -> list[tuple[int, int]]:
        """(port of the contender, port of the upstream) for a tunnel that carries any TCP."""
        self.plain[name], self.tls[name] = free_port(), free_port()
        return [(self.plain[name], self.upstream), (self.tls[name], self.tls_upstream)]

    def stunnel(self) -> None:
        common = f"foreground = yes\nsyslog = no\ndebug = 3\npid =\nCAfile = {self.ca}\nverifyChain = yes\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
        client, server = (f"{common}cert = {cert}\nkey = {key}\n" for cert, key in (self.client_pair, self.server_pair))
        for i, (port, to) in enumerate(self.both("stunnel pair")):
            back = free_port()
            client += f"[c{i}]\nclient = yes\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{back}\n"
            server += f"[s{i}]\naccept = 127.0.0.1:{back}\nconnect = 127.0.0.1:{to}\n"
        self.spawn("stunnel", self.file("stunnel-server.conf", server))
        self.spawn("stunnel", self.file("stunnel-client.conf", client))

    def ghostunnel(self) -> None:
        client, server = (["--cert", cert, "--key", key, "--cacert", self.ca, "--quiet=conns"] for cert, key in (self.client_pair, self.server_pair))
        for port, to in self.both("ghostunnel pair"):
            back = free_port()
            self.spawn(CACHE / "bin/ghostunnel", "server", "--listen", f"127.0.0.1:{back}", "--target", f"127.0.0.1:{to}", "--allow-all", *server)
            self.spawn(CACHE / "bin/ghostunnel", "client", "--listen", f"127.0.0.1:{port}", "--target", f"localhost:{back}", *client)

    def frp(self) -> None:
        """Its defaults: multiplexed over one TCP connection, in TLS."""
        at = free_port()
        proxies = "".join(f'[[proxies]]\nname = "p{i}"\ntype = "tcp"\nlocalIP = "127.0.0.1"\nlocalPort = {to}\nremotePort = {port}\n' for i, (port, to) in enumerate(self.both("frp")))
        common = 'auth.token = "bench"\nlog.level = "error"\n'
        self.spawn(CACHE / "bin/frps", "-c", self.file("frps.toml", f'bindAddr = "127.0.0.1"\nbindPort = {at}\nproxyBindAddr = "127.0.0.1"\n{common}'))
        wait_port(at, "frps")
        self.spawn(CACHE / "bin/frpc", "-c", self.file("frpc.toml", f'serverAddr = "127.0.0.1"\nserverPort = {at}\n{common}{proxies}'))

    def rathole(self) -> None:
        """One TCP connection for each client, with the Noise protocol in it."""
        at, program = free_port(), CACHE / "bin/rathole"
        made = subprocess.run([program, "--genkey"], capture_output=True, text=True, check=True).stdout.split()
        private, public = made[2], made[5]      # "Private Key: X Public Key: Y"
        services = self.both("rathole")
        self.spawn(program, "--server", self.file("rathole-server.toml", f'[server]\nbind_addr = "127.0.0.1:{at}"\ndefault_token = "bench"\n[server.transport]\ntype = "noise"\n'
                   f'[server.transport.noise]\nlocal_private_key = "{private}"\n' + "".join(f'[server.services.s{i}]\nbind_addr = "127.0.0.1:{p}"\n' for i, (p, _) in enumerate(services))))
        wait_port(at, "rathole")
        self.spawn(program, "--client", self.file("rathole-client.toml", f'[client]\nremote_addr = "127.0.0.1:{at}"\ndefault_token = "bench"\n[client.transport]\ntype = "noise"\n'
                   f'[client.transport.noise]\nremote_public_key = "{public}"\n' + "".join(f'[client.services.s{i}]\nlocal_addr = "127.0.0.1:{to}"\n' for i, (_, to) in enumerate(services))))

    def chisel(self) -> None:
        """SSH in a WebSocket, one connection for all."""
        at, program = free_port(), CACHE / "bin/chisel"
        self.spawn(program, "server", "--host", "127.0.0.1", "--port", at, "--reverse")
        wait_port(at, "chisel")
        self.spawn(program, "client", f"http://127.0.0.1:{at}", *[f"R:127.0.0.1:{port}:127.0.0.1:{to}" for port, to in self.both("chisel")])
