"""make bench: side-by-side figures in one run on one machine, each a ratio to a named reference. Usage: run.py BUILD_DIR [row ...]

Absolute times mean little on a shared machine; the ratios are what to read. Every comparison alternates its candidates and takes medians of three, of five for tunnels.
Environment: BENCH_ROUNDS; BENCH_TUNNEL picks parts of the tunnel rows: keepalive,bulk,stalled,connections,memory."""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(sys.argv[1]).resolve()
BIN = str(BUILD / "outwork")
WIRE = str(BUILD / "tests/bench/wire_bench")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
TUNNEL_ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
rows: list[tuple[str, str, str, str, str]] = []


def clean_env(**more):
    return {**{k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC_", "OUTWORK_", "WIRE_"))}, **more}


def worker_argv(kind: str, work: str, sessions: int) -> list[str]:
    if kind == "outwork":
        return [BIN, "worker", "--state-dir", work, "--log-level", "warn", "--max-sessions", str(max(sessions, 4))]
    if kind == "python":
        return [sys.executable, str(ROOT / "tests/clients/worker.py"), work]
    if kind == "typescript":
        return [shutil.which("node"), str(ROOT / "tests/clients/ts/worker.mjs"), work]
    return [str(ROOT / ".cache/go-worker"), work]


def descendants(pid: int) -> list[int]:
    out, todo = [], [pid]
    children: dict[int, list[int]] = {}
    for p in os.listdir("/proc"):
        if p.isdigit():
            try:
                ppid = int(open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()[1])
                children.setdefault(ppid, []).append(int(p))
            except (OSError, IndexError):
                pass
    while todo:
        p = todo.pop()
        out.append(p)
        todo += children.get(p, [])
    return out


def cpu_seconds(pid: int) -> float:
    total = 0.0
    for p in descendants(pid):
        try:
            f = open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()
            total += (int(f[11]) + int(f[12]) + int(f[13]) + int(f[14])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass
    return total


def memory_kib(pid: int, tree: bool) -> int:
    """Resident size; of the whole tree as proportional set size, so that shared pages count once."""
    if not tree:
        return int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read()).group(1))
    total = 0
    for p in descendants(pid):
        try:
            total += int(re.search(r"^Pss:\s+(\d+)", open(f"/proc/{p}/smaps_rollup").read(), re.M).group(1))
        except (OSError, AttributeError):
            pass
    return total


def stop(p: subprocess.Popen) -> None:
    p.send_signal(signal.SIGTERM)
    try:
        p.wait(3)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()


def wire(kind: str, calls: int, tool: str, inp: dict, sessions: int = 1, warmup: int = 20, first: str | None = None, expect: str | None = None) -> dict:
    """One worker against the wire bench. Adds cpu_per_1000 (seconds of the worker's whole tree). `first`: a bash command before anything is measured;
    `expect`: what each measured result must hold."""
    work = tempfile.mkdtemp(prefix="outwork-bench-")
    os.chmod(work, 0o755)
    more = {k: v for k, v in (("WIRE_FIRST", first), ("WIRE_EXPECT", expect)) if v}
    bench = subprocess.Popen([WIRE, str(calls), str(warmup), tool, json.dumps(inp)], stdout=subprocess.PIPE, text=True, env=clean_env(WIRE_SESSIONS=str(sessions), **more))
    port = bench.stdout.readline().split()[1]
    env = clean_env(ANTHROPIC_BASE_URL=f"http://127.0.0.1:{port}", ANTHROPIC_ENVIRONMENT_ID="env_bench", ANTHROPIC_ENVIRONMENT_KEY="ow-env-bench", PATH=os.environ["PATH"])
    log = tempfile.TemporaryFile("w+")
    w = subprocess.Popen(worker_argv(kind, work, sessions), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
    try:
        line = bench.stdout.readline()
        if not line:
            log.seek(0)
            raise RuntimeError(f"{kind}: no figures; " + log.read()[-2000:])
        figures = json.loads(line)
        figures["cpu_per_1000"] = cpu_seconds(w.pid) / (calls + warmup) / sessions * 1000
        return figures
    finally:
        bench.kill()
        stop(w)
        shutil.rmtree(work, ignore_errors=True)


def compare(kinds: list[str], **kw) -> dict[str, dict]:
    """Median of each figure over ROUNDS alternated rounds."""
    got: dict[str, list[dict]] = {k: [] for k in kinds}
    for _ in range(ROUNDS):
        for k in kinds:
            got[k].append(wire(k, **kw))
    return {k: {f: statistics.median(r[f] for r in v) for f in v[0]} for k, v in got.items()}


def row(what: str, ours: str, reference: str, ratio: float, goal: str) -> None:
    rows.append((what, ours, reference, f"{ratio:.3f}x", goal))
    print(f"{what:<68} {ours:>12} {reference:>26} {ratio:>9.3f}x   goal {goal}", flush=True)


def bench_bash() -> None:
    r = compare(["outwork", "python", "typescript", "go"], calls=400, tool="bash", inp={"command": "true"})
    for ref in ("typescript", "python", "go"):
        row(f"bash `true`, wire to wire, median, vs {ref}", f"{r['outwork']['median_us']:.0f} us", f"{r[ref]['median_us']:.0f} us", r["outwork"]["median_us"] / r[ref]["median_us"], "<= 0.25")
        row(f"bash `true`, wire to wire, p99, vs {ref}", f"{r['outwork']['p99_us']:.0f} us", f"{r[ref]['p99_us']:.0f} us", r["outwork"]["p99_us"] / r[ref]["p99_us"], "<= 0.25")
        row(f"worker CPU per 1,000 calls, vs {ref}", f"{r['outwork']['cpu_per_1000']:.2f} s", f"{r[ref]['cpu_per_1000']:.2f} s", r["outwork"]["cpu_per_1000"] / max(r[ref]["cpu_per_1000"], 0.001), "<= 0.15")
    row("offer to first result, vs typescript", f"{r['outwork']['offer_to_first_result_us'] / 1000:.1f} ms", f"{r['typescript']['offer_to_first_result_us'] / 1000:.1f} ms",
        r["outwork"]["offer_to_first_result_us"] / r["typescript"]["offer_to_first_result_us"], "<= 0.3")


def bench_files() -> None:
    """The Python worker for glob: the TypeScript one's needs a newer Node than Debian 12 has."""
    files = "for d in $(seq 0 19); do mkdir d$d; done; for i in $(seq 0 999); do { echo line one of $i; echo needle $i; yes filler text | head -20; } > d$((i % 20))/f$i.txt; done"
    for tool, inp, expect, ref, goal in (("glob", {"pattern": "**/*7.txt"}, "f997.txt", "python", "<= 0.05"), ("grep", {"pattern": "needle 99"}, "f999.txt:2:needle 999", "typescript", "<= 0.3")):
        r = compare(["outwork", ref], calls=30, warmup=3, tool=tool, inp=inp, first=files, expect=expect)
        row(f"{tool} over 1,000 files, median, vs {ref}", f"{r['outwork']['median_us'] / 1000:.2f} ms", f"{r[ref]['median_us'] / 1000:.2f} ms",
            r["outwork"]["median_us"] / r[ref]["median_us"], goal)


def bench_sessions() -> None:
    ours = compare(["outwork"], calls=200, tool="bash", inp={"command": "true"}, sessions=16)["outwork"]
    one = compare(["typescript"], calls=400, tool="bash", inp={"command": "true"})["typescript"]
    row("calls per second, 16 sessions in one worker, vs typescript (1)", f"{ours['per_second']:.0f}/s", f"{one['per_second']:.0f}/s", ours["per_second"] / one["per_second"], ">= 4")


def bench_memory() -> None:
    """Idle: polling an empty queue. The official workers hold no sandbox; ours keeps its warm ones: shown apart."""
    figures = {}
    for kind in ("outwork", "python", "typescript", "go"):
        work = tempfile.mkdtemp(prefix="outwork-bench-")
        bench = subprocess.Popen([WIRE, "1", "0", "bash", "{}"], stdout=subprocess.PIPE, text=True, env=clean_env(WIRE_SESSIONS="1"))
        port = bench.stdout.readline().split()[1]
        env = clean_env(ANTHROPIC_BASE_URL=f"http://127.0.0.1:{port}", ANTHROPIC_ENVIRONMENT_ID="env_bench", ANTHROPIC_ENVIRONMENT_KEY="ow-env-bench")
        bench.send_signal(signal.SIGSTOP)
        w = subprocess.Popen(worker_argv(kind, work, 1), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(3)
        figures[kind] = (memory_kib(w.pid, False), memory_kib(w.pid, True))
        bench.kill()
        stop(w)
        shutil.rmtree(work, ignore_errors=True)
    for ref in ("typescript", "python", "go"):
        row(f"worker resident memory idle, vs {ref}", f"{figures['outwork'][0] / 1024:.1f} MiB", f"{figures[ref][0] / 1024:.1f} MiB", figures["outwork"][0] / figures[ref][0], "<= 6 MiB")
    row("the same with zygote and warm sandboxes (PSS), vs typescript", f"{figures['outwork'][1] / 1024:.1f} MiB", f"{figures['typescript'][1] / 1024:.1f} MiB", figures["outwork"][1] / figures["typescript"][1], "-")


def bench_server() -> None:
    """The server under load from fifty sessions, each with a reader; then a hundred work items to a waiting poll."""
    sys.path.insert(0, str(ROOT / "tests/e2e"))
    os.environ["OUTWORK_BIN"] = BIN
    from harness import MODEL, TOOLSET, World
    tmp = Path(tempfile.mkdtemp(prefix="outwork-bench-"))
    script = tmp / "script.json"
    script.write_text(json.dumps({"models": [MODEL], "default": "Said.", "scenarios": []}))
    w = World(tmp, script=script)
    try:
        agent = w.agent([TOOLSET])
        external("server_bench", "50", "6", BENCH_URL=w.server.url, BENCH_KEY=w.key, BENCH_AGENT=agent, BENCH_ENV=w.env_id, BENCH_ENV_KEY=w.env_key)
    finally:
        w.close()
        shutil.rmtree(tmp, ignore_errors=True)


def external(program: str, *args: str, **env: str) -> None:
    """A bench program that prints lines "what | ours | reference | ratio | goal"."""
    path = BUILD / "tests/bench" / program
    if not path.exists():
        return
    out = subprocess.run([str(path), *args], capture_output=True, text=True, timeout=300, env=clean_env(OUTWORK_BIN=BIN, **env))
    if out.returncode:
        print(f"{program}: status {out.returncode}: {out.stderr[-500:]}")
        raise SystemExit(1)
    for line in out.stdout.splitlines():
        p = [x.strip() for x in line.split("|")]
        if len(p) == 5:
            row(p[0], p[1], p[2], float(p[3].rstrip("x")), p[4])


def bench_tunnel() -> None:
    sys.path.insert(0, str(ROOT / "tests/bench"))
    import tunnel
    parts = [p for p in os.environ.get("BENCH_TUNNEL", "").split(",") if p]
    tunnel.bench(BUILD, TUNNEL_ROUNDS, row, parts or tunnel.PARTS)


BENCHES = {"bash": bench_bash, "files": bench_files, "sessions": bench_sessions, "memory": bench_memory,
           "sandbox": lambda: external("sbx_bench"), "server": bench_server, "tunnel": bench_tunnel}


def main() -> None:
    wanted = sys.argv[2:] or list(BENCHES)
    print(f"{'what':<68} {'ours':>12} {'reference':>26} {'ratio':>10}", flush=True)
    for name in wanted:
        BENCHES[name]()
    print(f"\n{len(rows)} rows, alternated rounds, medians; load {os.getloadavg()[0]:.1f}")


main()
