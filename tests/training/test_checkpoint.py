"""Checkpoints are whole or refused by name."""

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch

from openjepa import files
from openjepa.errors import InputError
from openjepa.training import checkpoint as checkpoints
from openjepa.training.checkpoint import Checkpoint, DamagedCheckpoint
from openjepa.training.distributed import Processes


def write(folder, step, keep=3, seconds=1.5):
    state = {
        "objective": {"w": torch.full((50,), float(step))},
        "optimizer": {"state": {"w": {"step": torch.tensor(1.0)}}},
    }
    return checkpoints.save(folder, Checkpoint(step, state, {"seconds": seconds}), keep=keep)


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


def loaded_by_two(*folders):
    """The checkpoint and the sentences, or the error, that each of two processes gets, here in threads."""
    brought: list = [None, None]
    meeting = Barrier(2, timeout=20)

    class Together(Processes):
        def gather(self, found):
            brought[self.rank] = found
            meeting.wait()
            everyone = brought.copy()
            meeting.wait()
            return everyone

    def load(rank):
        try:
            return checkpoints.load_alike(folders[rank], Together(rank, 2, torch.device("cpu")))
        except InputError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return [*pool.map(load, range(2))]


def test_several_processes_go_on_from_what_the_first_one_chose(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        write(folder, 7)
        write(folder, 8, seconds=2.5)
    (one / "step-8").rename(one / ".before-step-8")  # mended by one process, not by both at a time
    assert [(found.step, damaged) for found, damaged in loaded_by_two(one, one)] == [(8, []), (8, [])]
    (one / "step-8" / "state.pt").write_bytes(b"")
    (first, told), (second, untold) = loaded_by_two(one, other)
    assert (first.step, second.step, untold) == (7, 7, [])
    assert "step-8" in told[0]
    for error in loaded_by_two(other, one):
        assert isinstance(error, InputError)
        assert re.search(r"number 0 has step 8 after 2\.5 seconds, number 1 has: .*step-8 is damaged", str(error))
    (one / "step-7" / "state.pt").write_bytes(b"")
    assert all("no whole checkpoint is left" in str(error) for error in loaded_by_two(one, other))
    for path in one.iterdir():
        shutil.rmtree(path)
    assert all("put back what was there, or start anew" in str(error) for error in loaded_by_two(one, other))


def test_processes_that_read_different_checkpoints_of_one_step_are_told(tmp_path):
    for name, seconds in (("one", 1.5), ("other", 1.75)):
        write(tmp_path / name, 7, seconds=seconds)
    for error in loaded_by_two(tmp_path / "one", tmp_path / "other"):
        assert isinstance(error, InputError)
        assert "number 0 has step 7 after 1.5 seconds, number 1 has: step 7 after 1.75 seconds" in str(error)
