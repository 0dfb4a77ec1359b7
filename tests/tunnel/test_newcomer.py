"""The pages' commands, word for word: see newcomer.py."""
import os
import subprocess
import sys
from pathlib import Path

from stack import BIN, SLOW


def test_pages(tmp_path):
    who = [] if os.getuid() == 0 else ["--map-root-user", "--user"]
    env = {**{k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC_", "OUTWORK_", "API_", "TUNNEL_")) and not k.lower().endswith("_proxy")}, "OUTWORK_BIN": str(Path(BIN).resolve()),
           "OUTWORK_SLOW": str(SLOW)}
    p = subprocess.Popen(["unshare", *who, "--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child", sys.executable, str(Path(__file__).with_name("newcomer.py")), str(tmp_path)], env=env,
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = p.communicate(timeout=250 * SLOW)
    finally:
        p.kill()
        p.wait()
    assert p.returncode == 0 and "followed every page" in said, said[-12000:]
