"""Checkpoints are whole or refused by name."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from openjepa import files
from openjepa.errors import InputError
from openjepa.training import checkpoint as checkpoints
from openjepa.training.checkpoint import Checkpoint, DamagedCheckpoint


def write(folder, step, keep=3):
    state = {
        "objective": {"w": torch.full((50,), float(step))},
        "optimizer": {"state": {"w": {"step": torch.tensor(1.0)}}},
    }
    return checkpoints.save(folder, Checkpoint(step, state, {"seconds": 1.5}), keep=keep)


def test_round_trip_and_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 20, 100):
        write(tmp_path, step, keep=2)
    assert checkpoints.steps(tmp_path) == [20, 100]
    found, damaged = checkpoints.load_newest(tmp_path)
    assert (found.step, found.progress, damaged) == (100, {"seconds": 1.5}, [])
    assert torch.equal(found.state["objective"]["w"], torch.full((50,), 100.0))
    assert not list(tmp_path.glob(".writing*"))


def test_what_is_saved_after_a_damaged_one_was_passed_over_stays(tmp_path):
    write(tmp_path, 10, keep=1)
    (write(tmp_path, 22, keep=2) / "state.pt").write_bytes(b"")
    assert checkpoints.load_newest(tmp_path)[0].step == 10
    write(tmp_path, 15, keep=1)
    assert checkpoints.steps(tmp_path) == [15]
    assert checkpoints.load_newest(tmp_path)[0].step == 15


@pytest.mark.parametrize("name", ["state.pt", "progress.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_one_is_named_and_the_last_good_one_used(tmp_path, name, harm):
    write(tmp_path, 1)
    path = write(tmp_path, 2) / name
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(content if harm == "flip" else content[: len(content) // 2])
    if (name, harm) != ("manifest.json", "flip"):  # a flipped bit of the manifest may fall on a space
        with pytest.raises(DamagedCheckpoint, match="step-2"):
            checkpoints.load(tmp_path / "step-2")
        found, damaged = checkpoints.load_newest(tmp_path)
        assert found.step == 1
        assert "step-2" in damaged[0]


def test_nothing_starts_from_zero_silently(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoints.load_newest(tmp_path / "nowhere")
    path = write(tmp_path, 1)
    (path / "state.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"no whole checkpoint is left.*step-1.*state\.pt"):
        checkpoints.load_newest(tmp_path)


def test_a_half_written_one_is_not_seen_and_does_not_stand_in_the_way(tmp_path):
    write(tmp_path, 1)
    aside = tmp_path / ".writing-step-2"
    aside.mkdir()
    (aside / "state.pt").write_bytes(b"half")
    assert checkpoints.load_newest(tmp_path)[0].step == 1
    write(tmp_path, 2)
    assert checkpoints.load_newest(tmp_path)[0].step == 2


def test_a_kill_while_a_step_is_saved_again_loses_nothing(tmp_path):
    write(tmp_path, 7)
    (tmp_path / "step-7").rename(tmp_path / ".before-step-7")  # as far as it came
    assert checkpoints.load_newest(tmp_path)[0].step == 7
    write(tmp_path, 7)
    write(tmp_path, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["step-7"]


def test_what_a_killed_writer_left_goes_with_the_next_save(tmp_path):
    write(tmp_path, 1)
    for name in (".writing-step-7", ".before-step-1", ".before-step-9"):
        (tmp_path / name).mkdir()
    write(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-1", "step-2", ".before-step-9"}


def test_where_folders_cannot_be_opened_a_checkpoint_is_saved_all_the_same(tmp_path, monkeypatch):
    def refuses(path, *rest):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return os.open(path, *rest)

    windows = SimpleNamespace(**{**vars(os), "name": "nt", "open": refuses})
    for module in (files, checkpoints):
        monkeypatch.setattr(module, "os", windows, raising=False)
    write(tmp_path, 1)
    assert checkpoints.load_newest(tmp_path)[0].step == 1


def test_an_old_one_that_cannot_be_removed_costs_no_new_one(tmp_path, monkeypatch):
    write(tmp_path, 1, keep=1)
    remove = shutil.rmtree

    def refuses(path, ignore_errors=False):
        if path.name == "step-1" and not ignore_errors:
            raise PermissionError(13, "Permission denied", str(path))
        remove(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", refuses)
    write(tmp_path, 2, keep=1)
    assert checkpoints.load_newest(tmp_path)[0].step == 2


def test_a_manifest_that_lists_too_little_is_refused(tmp_path):
    path = write(tmp_path, 1)
    (path / "manifest.json").write_text(json.dumps({"files": {}}))
    with pytest.raises(DamagedCheckpoint, match="manifest"):
        checkpoints.load(path)
