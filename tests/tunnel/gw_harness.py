"""Processes of the gateway's tests: keys, the small edge, the gateway, and an HTTP/1.1 upstream that does what its path says. Loopback only."""
from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT = Path(__file__).resolve().parents[2]
BIN = os.environ.get("OUTWORK_BIN", str(ROOT / "build" / "outwork"))
MINI_EDGE = str(Path(BIN).resolve().parent / "tests" / "tunnel" / "mini_edge")
SLOW = float(os.environ.get("OUTWORK_SLOW", "1"))
DOMAIN = "a1b2c3.tunnel.example"


def wait_for(what, timeout=20.0, why="condition"):
    end = time.monotonic() + timeout * SLOW
    while True:
        got = what()
        if got:
            return got
        assert time.monotonic() < end, f"{why}: not within {timeout * SLOW:.0f} s"
        time.sleep(0.02)


# ---- keys ----

def _name(cn):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)])


def _pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


class Authority:
    def __init__(self, path: Path, cn="test authority"):
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.key, self.cn = path, ec.generate_private_key(ec.SECP256R1()), cn
        now = datetime.datetime.now(datetime.timezone.utc)
        self.cert = (x509.CertificateBuilder().subject_name(_name(cn)).issuer_name(_name(cn)).public_key(self.key.public_key())
                     .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
                     .not_valid_after(now + datetime.timedelta(days=30)).add_extension(x509.BasicConstraints(True, None), True)
                     .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), False)
                     .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), True).sign(self.key, hashes.SHA256()))
        self.file = path / "ca.pem"
        self.file.write_bytes(self.cert.public_bytes(serialization.Encoding.PEM))

    def leaf(self, name, dns=(), ips=(), days=10.0, client=False):
        """Writes NAME.pem and NAME.key; replacing them is atomic, like a renewal."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.timezone.utc)
        end = now + datetime.timedelta(days=days)
        san = [x509.DNSName(d) for d in dns] + [x509.IPAddress(ipaddress.ip_address(i)) for i in ips]
        use = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        cert = (x509.CertificateBuilder().subject_name(_name(name)).issuer_name(_name(self.cn)).public_key(key.public_key())
                .serial_number(x509.random_serial_number()).not_valid_before(min(now, end) - datetime.timedelta(hours=1)).not_valid_after(end)
                .add_extension(x509.SubjectAlternativeName(san or [x509.DNSName(name)]), False)
                .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
                .add_extension(x509.ExtendedKeyUsage([use]), False).sign(self.key, hashes.SHA256()))
        for suffix, data in ((".pem", cert.public_bytes(serialization.Encoding.PEM)), (".key", _pem(key))):
            tmp = self.path / (name + suffix + ".new")
            tmp.write_bytes(data)
            tmp.rename(self.path / (name + suffix))
        return str(self.path / f"{name}.pem"), str(self.path / f"{name}.key")


def token(secret="s" * 43, tunnel="tnl_test", endpoint=None):
    t = {"a": "acct", "s": base64.b64encode(secret.encode()).decode(), "t": tunnel}
    if endpoint:
        t["e"] = endpoint
    return base64.b64encode(json.dumps(t).encode()).decode()


# ---- processes ----

class MiniEdge:
    def __init__(self, ca: Authority):
        cert, key = ca.leaf("edge", dns=["localhost"], ips=["127.0.0.1"])
        self.p = subprocess.Popen([MINI_EDGE, cert, key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines, self.cv = [], threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.gateways = int(self.wait("gateways ").split()[1])
        self.clients = int(self.wait("clients ").split()[1])

    def _read(self):
        for line in self.p.stdout:
            with self.cv:
                self.lines.append(line.strip())
                self.cv.notify_all()

    def count(self, text):
        with self.cv:
            return sum(text in x for x in self.lines)

    def wait(self, text, times=1, timeout=20):
        with self.cv:
            ok = self.cv.wait_for(lambda: sum(text in x for x in self.lines) >= times, timeout * SLOW)
            assert ok, f"'{text}' x{times} not seen: {self.lines}"
            return next(x for x in self.lines if text in x)

    def say(self, command):
        n = self.count("done")
        self.p.stdin.write(command + "\n")
        self.p.stdin.flush()
        self.wait("done", n + 1)

    def stop(self):
        self.p.kill()
        self.p.wait()
        self.reader.join(10)         # its pipe has ended
        self.p.stdin.close()
        self.p.stdout.close()


class Gateway:
    def __init__(self, path: Path, config: str, *args, env=None, wait=True, wrap=()):
        """`wrap`: a command that runs it, such as nsenter."""
        self.path, self.config = path, path / "gateway.yaml"
        self.log_file = path / "gateway.log"
        self.write(config)
        base = {k: v for k, v in os.environ.items() if not k.startswith(("OUTWORK_", "TUNNEL_")) and k.lower() not in ("http_proxy", "https_proxy", "no_proxy")}
        self.p = subprocess.Popen([*wrap, BIN, "gateway", "--config", str(self.config), "--log-level", "debug", *args], env={**base, **(env or {})},
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(self.log_file, "ab"))
        if wait:
            self.wait_log("edge.connected")

    def write(self, config):
        tmp = self.path / "gateway.yaml.new"
        tmp.write_text(config)
        tmp.rename(self.config)

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    def wait_log(self, text, times=1, timeout=20):
        wait_for(lambda: self.log.count(text) >= times or (self.p.poll() is not None and self._died(text)), timeout, f"'{text}' in the gateway's log:\n{self.log}")

    def _died(self, text):
        raise AssertionError(f"the gateway ended ({self.p.returncode}) before '{text}':\n{self.log}")

    def reload(self, config, expect="gateway.reload"):
        n = self.log.count(expect)
        self.write(config)
        self.p.send_signal(signal.SIGHUP)
        self.wait_log(expect, n + 1)

    def stop(self, sig=signal.SIGTERM, timeout=40):
        if self.p.poll() is None:
            self.p.send_signal(sig)
        return self.p.wait(timeout * SLOW)

    def kill(self):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()

    def end(self):
        """Ends at once, and in good order: a sanitizer build looks for leaks then. Its status; None when it was killed before."""
        if self.p.poll() is not None:
            return None if self.p.returncode == -signal.SIGKILL else self.p.returncode
        self.p.send_signal(signal.SIGTERM)
        self.p.send_signal(signal.SIGINT)
        try:
            return self.p.wait(40 * SLOW)
        except subprocess.TimeoutExpired:
            self.kill()
            return "no end on SIGTERM and SIGINT"


# ---- an upstream ----

class Upstream:
    """HTTP/1.1 on a raw socket, so that it can misbehave: the path chooses. Every request's head is kept."""

    def __init__(self, ca: Authority | None = None, client_ca=None, family=socket.AF_INET, unix=None):
        self.heads, self.bodies, self.gone, self.conns = [], [], [], 0
        self.release = threading.Event()
        self.open = set()
        up = self

        class Handler(socketserver.StreamRequestHandler):
            timeout = 120

            def handle(self):
                up.conns += 1
                me = up.conns
                up.open.add(self.connection)
                if up.tls:
                    try:
                        self.request = up.tls.wrap_socket(self.request, server_side=True)
                    except OSError:
                        return
                    self.rfile, self.wfile = self.request.makefile("rb", -1), self.request.makefile("wb", 0)
                try:
                    while up.one(self, me):
                        pass
                except (OSError, ValueError):
                    up.gone.append(getattr(self, "path", "?"))

        base = socketserver.UnixStreamServer if unix else socketserver.TCPServer

        class Server(socketserver.ThreadingMixIn, base):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128
            address_family = socket.AF_UNIX if unix else family

        self.tls = None
        if ca:
            cert, key = ca.leaf("upstream", dns=["localhost"], ips=["127.0.0.1"])
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(cert, key)
            if client_ca:
                self.tls.verify_mode = ssl.CERT_REQUIRED
                self.tls.load_verify_locations(client_ca)
        self.server = Server(unix or ("127.0.0.1" if family == socket.AF_INET else "::1", 0), Handler)
        self.port = None if unix else self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()

    def stop(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        for s in list(self.open):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    @staticmethod
    def body(h, rfile):
        if h.get("transfer-encoding") == "chunked":
            data = b""
            while True:
                n = int(rfile.readline().split(b";")[0], 16)
                data += rfile.read(n)
                rfile.readline()
                if n == 0:
                    return data
        return rfile.read(int(h.get("content-length", 0)))

    def one(self, c, conn):
        line = c.rfile.readline()
        if not line:
            return False
        method, path, _ = line.decode().split()
        c.path = path
        raw = []
        while (x := c.rfile.readline()) not in (b"\r\n", b""):
            raw.append(x.decode().rstrip("\r\n"))
        h = {k.lower(): v.strip() for k, v in (x.split(":", 1) for x in raw)}
        self.heads.append((method, path, raw))
        if path.startswith("/early"):       # answers before it has read the body
            c.wfile.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nWWW-Authenticate: Bearer x=\"y\"\r\n\r\nno")
            c.connection.shutdown(socket.SHUT_WR)
            while c.rfile.read(65536):
                pass
            return False
        if path.startswith("/never"):       # reads nothing until it is told to
            self.release.wait(60)
        body = self.body(h, c.rfile)
        self.bodies.append(body)
        out = c.wfile
        if path.startswith("/sse"):
            out.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            i = 0
            while True:
                piece = f": keep-alive {i}\n\n" if i % 2 else f"data: {i}\n\n"
                out.write(b"%x\r\n%s\r\n" % (len(piece), piece.encode()))
                i += 1
                time.sleep(0.05)
        if path.startswith("/stuck"):       # a head, then silence until the other side goes
            out.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n: hi\n\r\n")
            c.connection.settimeout(60)
            if not c.rfile.read(1):
                self.gone.append(path)
            return False
        if path.startswith("/big"):
            n = int(path.split("=")[1])
            out.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % n)
            block = bytes(range(256)) * 1024
            while n > 0:
                out.write(block[:n])
                n -= len(block)
            return True
        if path.startswith("/chunks"):
            n = int(path.split("=")[1])
            out.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for i in range(n):
                piece = bytes([i % 256]) * (1 + i * 37 % 5000)
                out.write(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece))
            out.write(b"0\r\nTrailer-X: y\r\n\r\n")
            return True
        if path.startswith("/untilclose"):
            out.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")
            return False
        if path.startswith("/half"):
            out.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
            return False
        if path.startswith("/garbage"):
            out.write(b"this is not HTTP\r\n\r\n")
            return False
        if path.startswith("/drop"):
            return False
        if path.startswith("/sticky"):
            out.write(b"HTTP/1.1 200 OK\r\nMcp-Session-Id: %s\r\nContent-Length: 5\r\n\r\n%05d" % (h.get("mcp-session-id", f"s{self.port}-{len(self.heads)}").encode(), self.port % 100000))
            return True
        if path.startswith("/204"):
            out.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            return True
        data = json.dumps({"method": method, "path": path, "conn": conn, "port": self.port, "n": len(body), "headers": raw}).encode()
        extra = b"Connection: close\r\n" if "close" in path else b""
        out.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Up: 1\r\n%sContent-Length: %d\r\n\r\n%s" % (extra, len(data), b"" if method == "HEAD" else data))
        return not extra
