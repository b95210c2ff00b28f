"""The script `run` on a machine that is not quite as it should be."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def project(tmp_path) -> Path:
    """The script with a python that only notes what it is asked for, and no other on the path."""
    for name in ("run", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name in ("bash", "cat", "cksum", "dirname", "env", "ls", "sh"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    return tmp_path


def setup(project: Path) -> tuple[str, str]:
    """What the script says, and what it asks python for."""
    ended = subprocess.run(
        [project / "run", "setup"], capture_output=True, text=True, check=False, env={"PATH": str(project / "bin")}
    )
    assert ended.returncode == 1
    asked = project / "asked"
    return ended.stderr, asked.read_text() if asked.exists() else ""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_an_environment_that_was_half_made_is_made_anew_and_a_users_own_is_left_alone(project):
    program(project / "bin" / "python3", f'[ "$1" = -c ] && exit 0; echo "$*" >> {project}/asked; exit 1')
    made = project / ".venv" / "lib" / "python3.11" / "site-packages"
    made.mkdir(parents=True)
    # As where Debian has no python3-venv: there is no pip.
    program(project / ".venv" / "bin" / "python", '[ "$1" = -c ] && exit 0; exit 1')
    (project / ".venv" / "pyvenv.cfg").write_text("")
    said, asked = setup(project)
    assert (asked, "apt-get install python3-venv" in said) == ("-m venv --clear .venv\n", True)
    (project / "asked").unlink()
    (made / "mine.py").write_text("mine")
    said, asked = setup(project)
    assert (asked, "has no pip" in said) == ("", True)
    (project / ".venv" / "bin" / "python").unlink()
    (project / ".venv" / "bin" / "python").symlink_to("python3.9")  # which an upgrade has removed
    said, asked = setup(project)
    assert (asked, "does not start: delete it" in said) == ("", True)
    (made / "mine.py").rename(project / ".venv" / "mine.py")
    assert setup(project) == (said, "")
    (project / ".venv" / "mine.py").unlink()
    assert setup(project)[1] == "-m venv --clear .venv\n"
    (project / "asked").unlink()
    (project / ".venv" / "pyvenv.cfg").unlink()
    said, asked = setup(project)
    assert (asked, "is no virtual environment: name another" in said) == ("", True)


def test_without_a_python_the_script_says_so_and_ends(project):
    said, _ = setup(project)
    assert "needs Python 3.11 or newer" in said
    assert len(said.splitlines()) == 1
