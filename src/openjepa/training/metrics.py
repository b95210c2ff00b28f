"""Numbers of a run: a line of JSON a row on disk, and a progress bar for whoever watches a terminal."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console, RenderableType
from rich.progress import Progress
from rich.text import Text

from openjepa.files import write_whole
from openjepa.progress import columns


class MetricsLog:
    """``metrics.jsonl``: one JSON object a row, appended and flushed.

    On resume the rows of steps that will be taken again are removed, so that no step stands twice.

    Attributes:
        before: the rows that stood there already and are kept.
    """

    def __init__(self, path: Path, *, start: int) -> None:
        rows = self.before = [row for row in read_rows(path) if row["step"] < start] if path.exists() else []
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._path, self._file = path, path.open("a")

    def write(self, row: Mapping[str, float | int]) -> None:
        """Append a row.

        Raises:
            OSError: the disk is full, say; it names the file, and what to do.
        """
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # which would try the same row once more
                self._file.close()
            told = f"{error.strerror}. Mend that, then go on: openjepa resume {shlex.quote(str(self._path.parent))}"
            raise OSError(error.errno, told, str(self._path)) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, float | int]]:
    """The rows of a ``metrics.jsonl``; a line that a kill or a crash has spoilt is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


def peak_memory(device: torch.device) -> int:
    """The most memory held so far, in bytes: the GPU's for CUDA, else this process' resident set; 0 where the system
    does not tell (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):  # Linux; getrusage counts what the parent held as well
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _TwoLines(Progress):
    """A progress bar with a line of numbers below it, so that eighty columns are enough for all."""

    numbers = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar and the numbers."""
        yield from super().get_renderables()
        yield Text(self.numbers, no_wrap=True, overflow="ellipsis")


class Meter:
    """A progress bar: step, ETA, loss, images/s, share of time waiting for data, the watch; silent off a terminal."""

    def __init__(self, steps: int, start: int, *, show: bool) -> None:
        self._console = console = Console(stderr=True)
        self._show = show
        self._progress = _TwoLines(*columns(), console=console, disable=not (show and console.is_terminal))
        self._task = self._progress.add_task("step", total=steps, completed=start)
        self._watch = ""

    def __enter__(self) -> "Meter":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone
            self._progress.stop()

    def step(self, done: int) -> None:
        """Show that ``done`` steps are done."""
        if not self._progress.disable:
            self._progress.update(self._task, completed=done)

    def show(self, row: Mapping[str, float | int]) -> None:
        """Show a row of metrics."""
        if "rankme" in row:
            self._watch = f"  RankMe {row['rankme']:.1f}"
        if "lidar" in row:
            self._watch += f"  LiDAR {row['lidar']:.1f}"
        if "knn" in row:
            self._watch += f"  k-NN {100 * row['knn']:.1f}%"
        numbers = f"loss {row['loss']:.4f}  {row['images_per_s']:.0f} img/s  waiting {100 * row['data_wait']:.0f}%"
        self._progress.numbers = numbers + self._watch

    def say(self, sentences: Iterable[str]) -> None:
        """Print sentences on lines of their own, above the bar where there is one; on stderr off a terminal too."""
        with contextlib.suppress(OSError):  # a terminal that is gone, for which no step is to be lost
            for sentence in sentences if self._show else ():
                self._console.print(Text(f"openjepa: {sentence}"), soft_wrap=True)
