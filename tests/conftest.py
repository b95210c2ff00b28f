"""Shape annotations are enforced in every test: beartype checks what jaxtyping declares."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it
if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core, whose threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
install_import_hook("openjepa", "beartype.beartype")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Nothing that a test computes stays in the user's cache folder, and nothing that lies there is used."""
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "openjepa-cache"))


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A saved experiment for grey images of 16x16 px whose encoder takes next to no time."""
    from openjepa.recipes.small import small

    made = small(signal=(16, 16), patch=(4, 4), mean=(0.5,), std=(0.25,))
    narrow = replace(made.encoder, width=24, depth=4, heads=2, channels=1)
    made = replace(made, encoder=narrow, training=replace(made.training, batch=15))
    (tmp_path / "tiny.json").write_text(made.to_json())
    return tmp_path / "tiny.json"
