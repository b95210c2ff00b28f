"""Shape annotations are enforced in every test: beartype checks what jaxtyping declares."""

import os
import signal

import jaxtyping
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it
if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core, whose threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
install_import_hook("openjepa", "beartype.beartype")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script; so would every process have it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Nothing that a test computes stays in the user's cache folder, and nothing that lies there is used."""
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "openjepa-cache"))


@pytest.fixture
def homeless(monkeypatch):
    """Makes this user, when it is called, one without a home folder, as a container's number that has no account."""

    def make() -> None:
        for name in ("HOME", "OPENJEPA_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)

    return make


@pytest.fixture
def only_trained(monkeypatch):
    """Runs end when they are trained: what they are judged by, and their report, is what other tests are about."""
    monkeypatch.setattr("openjepa.cli.training._finish", lambda *_: 0)


@pytest.fixture
def unjudged(monkeypatch):
    """Runs end with the report of their training, where what they are judged by is not the question."""

    def refused(*_, **__):
        from openjepa.errors import InputError

        raise InputError("not asked")

    monkeypatch.setattr("openjepa.assessment.judge", refused)


@pytest.fixture
def unmeasured(monkeypatch):
    """Plans are told what a step costs, for tests of what else they settle."""

    def told(experiment, *_, **__):
        from openjepa.costing import Cost

        return experiment.training, Cost(step=0.01, waits=0.0, batch=0.001, memory=2**30)

    monkeypatch.setattr("openjepa.planning.measure", told)


@pytest.fixture
def as_in_use():
    """Without the tests' own checks of annotations, which nobody has who uses the library."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
