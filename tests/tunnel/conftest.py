"""Fixtures of the edge's tests. `world` makes edges, gateways and clients; everything ends with the test, and logs are shown when it fails."""
import pytest

from edge_harness import Acceptor, Backend, Control, Edge, HttpsBackend, Keys, failed
from fault_harness import Rig, own_address


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("outer"))


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory):
    """The same files of another authority."""
    return Keys(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="session")
def inner(tmp_path_factory):
    """Inner authority and leaf for hosts of tunnel t1, made like the outer ones."""
    return Keys(tmp_path_factory.mktemp("inner"), "*.t1.tunnel.example")


class World:
    def __init__(self, keys):
        self.keys, self.control, self.things = keys, Control(), []
        self.token = self.control.tunnel("t1")

    def keep(self, x):
        self.things.append(x)
        return x

    def edge(self, *args, **kw) -> Edge:
        return self.keep(Edge(self.keys, self.control, *args, **kw))

    def backend(self) -> Backend:
        return self.keep(Backend())

    def https(self, inner) -> HttpsBackend:
        return self.keep(HttpsBackend(inner))

    def accept(self, edge, to, *args, token="", **kw) -> Acceptor:
        return self.keep(Acceptor(edge, self.token if token == "" else token, to.port, *args, **kw))

    def close(self, failed):
        """Everything, also when one of the things did not end well: that is told at the end."""
        bad = []
        for x in reversed(self.things):
            if failed and hasattr(x, "text"):
                print(f"---- {x.name} ----\n{x.text()[-6000:]}")
            try:
                x.close()
            except AssertionError as e:
                bad.append(e)
        self.control.close()
        if bad:
            raise bad[0]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    out = yield
    setattr(item, "report_" + call.when, out.get_result())


@pytest.fixture
def world(keys, request):
    w = World(keys)
    yield w
    w.close(failed(request))


# ---- the real programs on an address of their own (fault_harness.py) ----

@pytest.fixture(scope="module")
def address():
    return own_address()


@pytest.fixture(scope="module")
def address_keys(tmp_path_factory, address):
    return Keys(tmp_path_factory.mktemp("outer"), f"127.0.0.1,localhost,{address}")


@pytest.fixture
def rig(tmp_path, address_keys, address, request):
    r = Rig(tmp_path, address_keys, address)
    yield r
    r.close(failed(request))
