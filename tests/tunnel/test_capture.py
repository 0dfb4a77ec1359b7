"""What somebody sees who records every packet on both sides of the edge: not what is asked, not what is answered. `test_the_edge_never_holds_a_payload` (test_through_edge.py)
looks into its memory."""
from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import struct
import subprocess
import tempfile
import urllib.request
from collections import defaultdict
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from gw_harness import Upstream
from stack import SLOW, Stack, python_server, wait_for


class Capture:
    """tcpdump on the loopback device, for some ports."""

    def __init__(self, path: Path, ports):
        self.file, self.said = path, tempfile.TemporaryFile()
        which = " or ".join(f"tcp port {p}" for p in ports)
        self.p = subprocess.Popen(["tcpdump", "-i", "lo", "-n", "-U", "-s", "0", "-B", "65536", "-w", str(path), which], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                  stderr=self.said)
        wait_for(lambda: b"listening on" in self.text(), 30, why=f"tcpdump records: {self.text()}")

    def text(self):
        self.said.seek(0)
        return self.said.read()

    def stop(self):
        self.p.terminate()
        self.p.wait(30 * SLOW)
        assert re.search(rb"\n0 packets dropped by kernel", self.text()), self.text()

    def kill(self):
        self.p.kill()
        self.p.wait()
        self.said.close()

    def streams(self) -> dict[tuple[int, int], bytes]:
        """(source port, destination port) to everything that was sent, in order."""
        data, at, parts = self.file.read_bytes(), 24, defaultdict(dict)
        order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
        assert struct.unpack(order + "I", data[20:24])[0] == 1, "Ethernet, as the loopback device has it"
        while at + 16 <= len(data):
            n = struct.unpack(order + "I", data[at + 8:at + 12])[0]
            frame = data[at + 16:at + 16 + n]
            at += 16 + n
            assert frame[12:14] == b"\x08\x00" and frame[23] == 6
            ip = frame[14:14 + struct.unpack(">H", frame[16:18])[0]] if frame[16:18] != b"\0\0" else frame[14:]      # 0: larger than a header can say
            tcp = ip[(ip[0] & 15) * 4:]
            src, dst, seq = struct.unpack(">HHI", tcp[:8])
            body = tcp[(tcp[12] >> 4) * 4:]
            if body:
                known = parts[src, dst].get(seq, b"")
                parts[src, dst][seq] = max(known, body, key=len)
        out = {}
        for key, pieces in parts.items():
            first = min(pieces)
            whole = bytearray()
            for seq in sorted(pieces, key=lambda s: (s - first) & 0xFFFFFFFF):
                skip = len(whole) - ((seq - first) & 0xFFFFFFFF)
                whole += pieces[seq][max(skip, 0):]
            out[key] = bytes(whole)
        return out


@pytest.fixture
def stack(tmp_path):
    mcp, plain = python_server(), Upstream()
    s = Stack(tmp_path, {"docs": f"http://127.0.0.1:{mcp.port}", "plain": f"http://127.0.0.1:{plain.port}"})
    s.plain, s.inside = plain, (mcp.port, plain.port)
    yield s
    s.close()
    mcp.close()
    plain.stop()


def forms(text: str):
    """A text as it may stand on a wire: as it is, and inside base64 at each of the three places."""
    raw = text.encode()
    yield raw
    for pad in range(3):
        yield base64.b64encode(b"\0" * pad + raw)[4 if pad else 0:len(raw) // 3 * 4 - 4]


def test_no_payload_on_either_side_of_the_edge(stack, tmp_path):
    mark = {w: f"{w}-{secrets.token_hex(16)}" for w in ("path", "header", "bearer", "request", "tool", "answer", "message")}      # "message" is the model's: it never goes this way
    control, tail = f"control-{secrets.token_hex(16)}", f"tail-{secrets.token_hex(16)}"
    cap = Capture(tmp_path / "edge.pcap", [stack.edge.provider, stack.edge.gateway, stack.edge.admin, stack.relay.port, *stack.inside])
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{stack.edge.admin}/healthz?{control}", timeout=20).read()

        # 1. The server itself: a session's call with the markers as arguments and result.
        m = stack.sdk.beta.messages.create(
            model="claude-opus-4-6", max_tokens=10, betas=["mcp-client-2025-11-20"], tools=[{"type": "mcp_toolset", "mcp_server_name": "docs"}],
            mcp_servers=[{"type": "url", "name": "docs", "url": stack.url("docs"), "authorization_token": mark["bearer"]}],
            messages=[{"role": "user", "content": "PLAN " + json.dumps([[{"tool": "mcp__docs__echo", "input": {"value": mark["tool"] * 2000}}], [mark["message"]]])}])
        assert m.content[1].content[0].text == mark["tool"] * 2000

        # 2. Clients through the relay, which takes the outer TLS off and on: what passes it is what the edge sees of the provider's side.
        async def through():
            async with httpx2.AsyncClient(verify=stack.tls(), proxy=stack.relay.url, timeout=60 * SLOW) as h:
                r = await h.post(f"https://plain.{stack.domain}/{mark['path']}", headers={"X-Mark": mark["header"], "Authorization": "Bearer " + mark["bearer"]},
                                 content=mark["request"] * 5000)
                assert mark["path"] in r.json()["path"]
                async with Client(streamable_http_client(stack.url("docs"), http_client=h)) as c:
                    assert (await c.call_tool("echo", {"value": mark["answer"] * 2000})).content[0].text == mark["answer"] * 2000
        asyncio.run(through())
        _, path, lines = stack.plain.heads[-1]
        assert mark["path"] in path and f"X-Mark: {mark['header']}".lower() in "\n".join(lines).lower() and mark["bearer"] in "\n".join(lines)
        assert stack.plain.bodies[-1] == (mark["request"] * 5000).encode()

        urllib.request.urlopen(f"http://127.0.0.1:{stack.edge.admin}/healthz?{tail}", timeout=20).read()
        wait_for(lambda: tail.encode() in cap.file.read_bytes(), 30, why="everything until now is recorded")
        cap.stop()
        streams = cap.streams()
    finally:
        cap.kill()

    def sent(port):
        return [b for (src, dst), b in streams.items() if port in (src, dst)]

    # The recording is whole and sees text where there is text: the control on a plain port; the hosts, which an edge may know, where its outer TLS has been taken off.
    assert any(control.encode() in b for b in sent(stack.edge.admin))
    relay = b"".join(sent(stack.relay.port))
    for host in (f"docs.{stack.domain}", f"plain.{stack.domain}"):
        assert relay.count(f"CONNECT {host}:443".encode()) >= 1 and re.search(rb"\x16\x03\x01.{0,400}?" + re.escape(host.encode()), relay, re.S), "the inner hello's server name"
    size = len(mark["request"]) * 5000
    for port in (stack.edge.provider, stack.edge.gateway, stack.relay.port):
        assert sum(map(len, sent(port))) > size, f"port {port}: the payload did cross it"
    # Behind the gateway the same search finds every mark.
    behind = b"".join(b for port in stack.inside for b in sent(port))
    assert [w for w in mark if w != "message" and mark[w].encode() not in behind] == []
    # Outside, not even the hosts.
    for port in (stack.edge.provider, stack.edge.gateway):
        assert not any(stack.domain.encode() in b for b in sent(port)), "outer TLS hides the hosts"
    for what, text in mark.items():
        for form in forms(text):
            assert not any(form in b for key, b in streams.items() if not set(key) & set(stack.inside)), f"the {what} can be read on the wire"
