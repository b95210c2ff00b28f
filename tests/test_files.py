"""A file is there whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from openjepa import files
from openjepa.errors import InputError
from openjepa.files import cache_folder, check_room, locked, sweep_drafts, sync, whole_file, write_whole


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="loader processes are forked where there is fork")
def test_a_lock_ends_with_its_holder_whoever_was_forked_meanwhile(tmp_path):
    script = f"""if True:
        import os, sys, time
        from pathlib import Path
        from openjepa.files import locked
        lock = Path({str(tmp_path / "lock")!r})
        with locked(lock) as free:
            assert free
            if os.fork() == 0:
                with locked(lock) as mine:  # its parent's
                    print(mine, flush=True)
                time.sleep(60)
            sys.stdout.flush()
            input()
            os._exit(0)  # as a kill would end it
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, start_new_session=True, **pipes) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdin is not None
            assert holder.stdout.readline() == "False\n"
            holder.stdin.write("\n")
            holder.stdin.flush()
            holder.wait(30)
            with locked(tmp_path / "lock") as free:
                assert free
        finally:
            os.killpg(holder.pid, signal.SIGKILL)


def test_a_lock_is_given_up_while_a_copy_of_its_file_is_open(tmp_path):
    with locked(tmp_path / "lock") as free:
        assert free
        copy = os.dup(next(iter(files._HELD.values())).fileno())
    try:
        with locked(tmp_path / "lock") as free:
            assert free
    finally:
        os.close(copy)


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


def test_without_a_home_the_cache_folder_is_asked_for(homeless, monkeypatch, tmp_path):
    homeless()
    with pytest.raises(InputError, match=r"no home folder .* set OPENJEPA_CACHE"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "openjepa"
    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"


def test_drafts_that_a_kill_left_go_after_a_day_and_no_others(tmp_path):
    script = f"""if True:
        import os, signal
        from pathlib import Path
        from openjepa.files import whole_file
        with whole_file(Path({str(tmp_path / "large.npy")!r})) as draft:
            draft.write_text("half of it")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", script], check=False)
    (left,) = tmp_path.iterdir()
    mine = tmp_path / ".mine.part"
    mine.write_text("no draft of these")
    os.utime(mine, (1, 1))
    with whole_file(tmp_path / "large.npy") as living:
        living.write_text("being written")
        sweep_drafts(tmp_path)
        assert {*tmp_path.iterdir()} == {left, mine, living}, "none is a day old"
        os.utime(left, (time.time() - 90_000,) * 2)
        sweep_drafts(tmp_path, "other.*")
        assert left.exists()
        sweep_drafts(tmp_path)
        assert {*tmp_path.iterdir()} == {mine, living}


def test_a_lock_is_waited_for(tmp_path):
    script = f"""if True:
        import time
        from pathlib import Path
        from openjepa.files import locked
        with locked(Path({str(tmp_path / "lock")!r})):
            print("held", flush=True)
            time.sleep(1)
            Path({str(tmp_path / "done")!r}).touch()
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with locked(tmp_path / "lock", wait=True) as free:
            assert free
            assert (tmp_path / "done").exists() or os.name == "nt"


def test_a_drive_that_flushes_no_folders_is_written_to_all_the_same(tmp_path, monkeypatch):
    def refuses(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuses)
    sync(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")
