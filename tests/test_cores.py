"""The cores that a process may use."""

import os

import pytest

from openjepa import cores as module
from openjepa.cores import cores


@pytest.mark.parametrize(
    ("share", "processes", "own", "all_of_them"),
    [("max 100000", "1", 8, 8), ("250000 100000", "1", 3, 3), ("max 100000", "4", 2, 8), ("50000 100000", "4", 1, 1)],
)
def test_cores_are_those_that_the_system_lets_a_process_have(share, processes, own, all_of_them, monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text(f"{share}\n")
    monkeypatch.setattr(module, "_SHARE", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert (cores(), cores(alone=True)) == (own, all_of_them)


def test_without_a_container_the_machine_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_SHARE", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for found, told in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda found=found: found)
        assert cores() == told
