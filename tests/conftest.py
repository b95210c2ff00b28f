"""Shape annotations are enforced in every test: beartype checks what jaxtyping declares."""

import os

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
install_import_hook("openjepa", "beartype.beartype")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Nothing that a test computes stays in the user's cache folder, and nothing that lies there is used."""
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "openjepa-cache"))
