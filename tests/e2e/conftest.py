import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import FakeModel  # noqa: E402
from harness import World  # noqa: E402
from schema import Spec  # noqa: E402


@pytest.fixture(scope="session")
def spec():
    return Spec()


@pytest.fixture(scope="module")
def world(tmp_path_factory, spec):
    """One server for a test module: fake Messages API behind the real provider `anthropic`."""
    w = World(tmp_path_factory.mktemp("world"), spec, FakeModel())
    yield w
    w.close()


@pytest.fixture
def fresh(tmp_path, spec):
    """A server of the test's own, which it may kill."""
    made = []

    def make(**kw):
        w = World(tmp_path, spec, FakeModel(), **kw)
        made.append(w)
        return w

    yield make
    for w in made:
        w.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """On a failure, the ends of the process logs belong to the report."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for name, value in item.funcargs.items():
            w = value if isinstance(value, World) else None
            if w:
                for p in [w.server.proc, *w.workers]:
                    report.sections.append((f"log of {p.name}", p.text()[-4000:]))
