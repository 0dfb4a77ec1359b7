"""The MCP server's place in the fault tests, as a process of its own that can be killed: python fault_upstream.py HOST PORT LOG.
It writes every request and what became of it to LOG, one line each, so that the count outlives it: `head ID PATH`, `got ID BYTES`, `done ID`, `gone ID`."""
import asyncio
import hashlib
import json
import os
import sys
from urllib.parse import parse_qs, urlsplit

BLOCK = 64 * 1024


def block(ident: str, k: int) -> bytes:
    """Block number k of the payload of a request: no two are the same, so nothing can be lost, doubled or exchanged unseen."""
    return hashlib.sha256(f"{ident}:{k}".encode()).digest() * (BLOCK // 32)


def payload(ident: str, n: int):
    for k in range((n + BLOCK - 1) // BLOCK):
        yield block(ident, k)[:min(BLOCK, n - k * BLOCK)]


def digest(ident: str, n: int) -> str:
    h = hashlib.sha256()
    for b in payload(ident, n):
        h.update(b)
    return h.hexdigest()


class Server:
    def __init__(self, log):
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, *words):
        os.write(self.log, (" ".join(map(str, words)) + "\n").encode())

    async def serve(self, r: asyncio.StreamReader, w: asyncio.StreamWriter):
        ident = "-"
        try:
            while True:
                head = await r.readuntil(b"\r\n\r\n")
                line, *rest = head.decode().split("\r\n")
                method, target, _ = line.split()
                fields = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in rest)}
                u = urlsplit(target)
                q = {k: v[0] for k, v in parse_qs(u.query).items()}
                ident = q.get("id", "-")
                self.note("head", ident, u.path)
                body = await self.body(r, ident, int(fields.get("content-length", 0)))
                await getattr(self, u.path.strip("/"))(r, w, ident, q, body)
                self.note("done", ident)
        except (OSError, asyncio.IncompleteReadError):
            if ident != "-":
                self.note("gone", ident)
        finally:
            w.close()

    async def body(self, r, ident, n):
        h, got, told = hashlib.sha256(), 0, 0
        while got < n:
            part = await r.read(min(n - got, 1 << 20))
            if not part:
                raise ConnectionResetError
            h.update(part)
            got += len(part)
            if got - told >= 1000 and got < n:
                self.note("got", ident, got)
                told = got
        return {"n": n, "sha": h.hexdigest()}

    async def echo(self, r, w, ident, q, body):
        doc = json.dumps({"id": ident, **body}).encode()
        w.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(doc), doc))
        await w.drain()

    async def blob(self, r, w, ident, q, body):
        n = int(q["n"])
        w.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % n)
        for b in payload(ident, n):
            w.write(b)
            await w.drain()

    async def sse(self, r, w, ident, q, body):
        """`n` numbered events, `ms` apart."""
        w.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(int(q["n"])):
            piece = f"data: {ident}/{i}\n\n".encode()
            w.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await w.drain()
            await asyncio.sleep(int(q["ms"]) / 1000)
        w.write(b"0\r\n\r\n")
        await w.drain()

    async def hang(self, r, w, ident, q, body):
        """Says nothing until the other side goes."""
        if not await r.read(1):
            raise ConnectionResetError


async def main(host, port, log):
    s = Server(log)
    server = await asyncio.start_server(s.serve, host, int(port), backlog=1024)
    s.note("listening", server.sockets[0].getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
