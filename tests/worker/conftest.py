import os
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

from fake_api import ENV, KEY, FakeApi

BIN = os.environ.get("OUTWORK_BIN", "outwork")


@pytest.fixture
def api():
    a = FakeApi()
    yield a
    a.close()


class Worker:
    """The built worker as a process, with its own state directory."""

    def __init__(self, api, *args, env=None, sub=(), key=KEY, state=None):
        self.api = api
        self.state = state or tempfile.mkdtemp(prefix="ow-worker-")
        self.log_path = os.path.join(self.state, "log")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("ANTHROPIC_") and k.lower() not in ("http_proxy", "https_proxy", "no_proxy")}
        self.env.update({"ANTHROPIC_BASE_URL": api.url, "ANTHROPIC_ENVIRONMENT_ID": ENV})
        if key:
            self.env["ANTHROPIC_ENVIRONMENT_KEY"] = key
        self.env.update(env or {})
        argv = [BIN, "worker", *sub, "--state-dir", self.state, "--log-level", "debug", *args]
        self.proc = subprocess.Popen(argv, env=self.env, stderr=open(self.log_path, "wb"), stdout=subprocess.PIPE)

    @property
    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def wait_log(self, text, timeout=15):
        end = time.monotonic() + timeout
        while text not in self.log:
            assert time.monotonic() < end, f"'{text}' not in the log:\n{self.log}"
            time.sleep(0.02)

    def stop(self, sig=signal.SIGTERM, timeout=30):
        if self.proc.poll() is None:
            self.proc.send_signal(sig)
        return self.proc.wait(timeout)

    def wait(self, timeout=20):
        return self.proc.wait(timeout)


@pytest.fixture
def worker(api):
    made = []

    def start(*args, **kw):
        w = Worker(kw.pop("api", api), *args, **kw)
        made.append(w)
        return w

    yield start
    for w in made:
        if w.proc.poll() is None:
            w.proc.kill()
            w.proc.wait()
        w.proc.stdout.close()
        assert "ERROR: AddressSanitizer" not in w.log and "runtime error:" not in w.log and "LeakSanitizer" not in w.log, w.log
    for w in made:
        shutil.rmtree(w.state, ignore_errors=True)
