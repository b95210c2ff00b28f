"""A file is there whole or not at all."""

import subprocess
import sys

import pytest

from openjepa.errors import InputError
from openjepa.files import check_room, locked, whole_file, write_whole


def test_one_process_at_a_time_holds_a_lock(tmp_path):
    script = f"""if True:
        from pathlib import Path
        from openjepa.files import locked
        with locked(Path({str(tmp_path / "lock")!r})) as free:
            print(free)
    """

    def other() -> str:
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()

    with locked(tmp_path / "lock") as free:
        assert free
        with locked(tmp_path / "lock") as again:
            assert again, "for the process that holds it"
        assert other() == "False"
    assert other() == "True"


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "notes.txt"
    write_whole(path, "first\n")
    with whole_file(path) as draft:
        draft.write_text("second\n")
        assert path.read_text() == "first\n"
    assert path.read_text() == "second\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_stopped_writer_changes_and_leaves_nothing(tmp_path, stop):
    path = tmp_path / "notes.txt"
    path.write_text("before")

    def write():
        with whole_file(path) as draft:
            draft.write_text("half of what")
            raise stop

    with pytest.raises(stop):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "notes.txt", "x")


def test_a_full_disk_is_said_before_anything_is_written(tmp_path):
    folder = tmp_path / "not" / "yet"
    check_room(10, folder, what="little")
    with pytest.raises(InputError, match=r"much would take about 1000000000\.0 GB in .*yet, .* are free .*, or wait$"):
        check_room(10**18, folder, what="much", instead="wait")
    assert not (tmp_path / "not").exists()
