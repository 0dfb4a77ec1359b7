"""Skills: downloaded by the worker, unpacked by a process of their own, placed in the sandbox."""
import bz2
import gzip
import io
import lzma
import os
import tarfile
import time
import zipfile

import pytest

SLOW = float(os.environ.get("OUTWORK_SLOW", "1"))


def zip_of(files):
    b = io.BytesIO()
    with zipfile.ZipFile(b, "w", zipfile.ZIP_DEFLATED) as z:
        for name, (data, mode) in files.items():
            i = zipfile.ZipInfo(name)
            i.external_attr = (0o100000 | mode) << 16
            z.writestr(i, data)
    return b.getvalue()


def tar_of(files, links=()):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode="w") as t:
        for name, (data, mode) in files.items():
            i = tarfile.TarInfo(name)
            i.size, i.mode = len(data), mode
            t.addfile(i, io.BytesIO(data))
        for name, target, kind in links:
            i = tarfile.TarInfo(name)
            i.type, i.linkname = kind, target
            t.addfile(i)
    return b.getvalue()


FILES = {"pdf/SKILL.md": (b"# pdf\n", 0o644), "pdf/bin/run.sh": (b"#!/bin/sh\necho ran\n", 0o700), "pdf/empty": (b"", 0o600)}


def serve(api, worker, skills, *args, token=None, **kw):
    refs = []
    for name, k in skills.items():
        api.skills[name] = {"versions": ["100"], "name": name, **k}
        refs.append({"type": "custom", "skill_id": name, "version": k.get("version", "latest")})
    s = api.session(skills=refs)
    s.first = s.bash("cd skills 2>/dev/null && find . -type f -printf '%P %m %s\\n' | sort; find . -type l")
    wid = api.enqueue(s, token)
    w = worker(*args, **kw)
    api.wait_result(s, s.first, 30 * SLOW)
    return s, wid, w


@pytest.mark.parametrize("pack", [zip_of, tar_of, lambda f: gzip.compress(tar_of(f)), lambda f: bz2.compress(tar_of(f)), lambda f: lzma.compress(tar_of(f))],
                         ids=["zip", "tar", "gz", "bz2", "xz"])
def test_formats(api, worker, pack):
    s, wid, w = serve(api, worker, {"pdf": {"archive": pack(FILES)}}, "--max-idle", "300ms")
    assert s.text(s.first).split("\n") == ["pdf/SKILL.md 644 6", "pdf/bin/run.sh 755 19", "pdf/empty 644 0"]
    a = s.bash("cd /workspace; skills/pdf/bin/run.sh; echo mine > skills/pdf/mine")
    api.wait_result(s, a)
    assert "ran" in s.text(a)
    s.idle()
    api.wait_state(wid, "stopped")
    api.sessions[s.id].skills = []
    api.enqueue(s)  # taken away at the end
    api.wait(lambda: s.streams, 10)
    b = s.bash("ls skills/ | wc -l")
    api.wait_result(s, b)
    assert s.text(b).strip().endswith("0")
    assert w.stop() == 0


def test_versions_and_headers(api, worker):
    s, wid, w = serve(api, worker, {"k": {"archive": tar_of(FILES), "versions": ["9", "1759178010641129", "100"]}})
    assert "k/SKILL.md" in s.text(s.first)
    paths = [r.path for r in api.seen("GET", "/v1/skills")]
    assert paths == ["/v1/skills/k/versions", "/v1/skills/k/versions/1759178010641129", "/v1/skills/k/versions/1759178010641129/content"]
    assert all(r.headers["anthropic-beta"] == "skills-2025-10-02" for r in api.seen("GET", "/v1/skills"))


def test_exact_version(api, worker):
    s, wid, w = serve(api, worker, {"k": {"archive": tar_of(FILES), "version": "42"}})
    assert [r.path for r in api.seen("GET", "/v1/skills")] == ["/v1/skills/k/versions/42", "/v1/skills/k/versions/42/content"]


def test_token_refused_for_skills(api, worker):
    api.skills_take_token = False
    s, wid, w = serve(api, worker, {"k": {"archive": tar_of(FILES)}}, token="sk-ant-req-s")
    assert "k/SKILL.md" in s.text(s.first)
    assert api.seen("GET", "/v1/skills")[0].bearer == "sk-ant-req-s"


def test_no_common_directory(api, worker):
    s, wid, w = serve(api, worker, {"k": {"archive": tar_of({"a/x": (b"1", 0o644), "b": (b"22", 0o644)})}})
    assert s.text(s.first).split("\n") == ["k/a/x 644 1", "k/b 644 2"]


def test_links_are_left_out(api, worker):
    arc = tar_of({"k/a": (b"1", 0o644)}, [("k/l", "/etc/passwd", tarfile.SYMTYPE), ("k/h", "k/a", tarfile.LNKTYPE), ("k/d", "", tarfile.CHRTYPE)])
    s, wid, w = serve(api, worker, {"k": {"archive": arc}})
    assert s.text(s.first).split("\n") == ["k/a 644 1"]


@pytest.mark.parametrize("name", ["../evil", "k/../../evil", "/abs/evil", "k/a\nb"])
def test_climbing_names(api, worker, name):
    arc = tar_of({"k/ok": (b"1", 0o644), name: (b"evil", 0o644)})
    s, wid, w = serve(api, worker, {"bad": {"archive": arc}, "good": {"archive": tar_of(FILES)}})
    assert "evil" not in s.text(s.first) and "good/SKILL.md" in s.text(s.first)
    assert "skill.failed" in w.log


@pytest.mark.parametrize("arc", [b"", b"not an archive", b"PK\x03\x04 broken", tar_of(FILES)[:700], gzip.compress(tar_of(FILES))[:60]], ids=range(5))
def test_broken_archives(api, worker, arc):
    s, wid, w = serve(api, worker, {"bad": {"archive": arc}, "good": {"archive": tar_of(FILES)}})
    assert "good/SKILL.md" in s.text(s.first)


def test_too_many_members(api, worker):
    arc = tar_of({f"k/{i}": (b"", 0o644) for i in range(10001)})
    s, wid, w = serve(api, worker, {"bad": {"archive": gzip.compress(arc)}})
    assert "10000 members" in w.log


def test_bomb(api, worker):
    arc = gzip.compress(tar_of({"k/zero": (b"\0" * (49 << 20), 0o644)}), 9)
    s, wid, w = serve(api, worker, {"bad": {"archive": arc}})
    assert "48 MiB" in w.log
    with open(f"/proc/{w.proc.pid}/status") as f:
        peak = next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
    if SLOW == 1:
        assert peak < 40 * 1024


def test_missing_skill_costs_a_warning(api, worker):
    s = api.session(skills=[{"type": "custom", "skill_id": "nowhere", "version": "latest"}, {"type": "x"}, {"skill_id": "../etc", "version": "1"}])
    a = s.bash("echo served")
    api.enqueue(s)
    w = worker()
    api.wait_result(s, a, 20 * SLOW)
    assert s.text(a).strip() == "served" and w.log.count("skill.failed") >= 2


def test_skill_name_decides_the_directory(api, worker):
    s, wid, w = serve(api, worker, {"k1": {"archive": tar_of(FILES), "name": " some/path/pretty name "}, "k2": {"archive": tar_of(FILES), "name": ".."}})
    assert "pretty name/SKILL.md" in s.text(s.first) and "k2/SKILL.md" in s.text(s.first)


def test_stop_while_skills_download(api, worker):
    api.skills["slow"] = {"versions": ["1"], "name": "slow", "archive": tar_of(FILES)}
    s = api.session(skills=[{"skill_id": "slow", "version": "1"}])
    api.fail("GET", "/content", -1, delay=5)
    api.faults[-1].status = 503
    wid = api.enqueue(s)
    w = worker()
    api.wait(lambda: api.seen("GET", "/content"), 15 * SLOW)
    t = time.monotonic()
    assert w.stop() == 0
    assert time.monotonic() - t < 5 and api.work[wid]["state"] == "stopped"
