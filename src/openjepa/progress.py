"""Progress bars with the time left for whoever watches a terminal, and nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

# Told that so many of so many pieces are done.
Advance = Callable[[int, int], None]


def columns() -> "tuple[ProgressColumn, ...]":
    """What every bar shows: what is done, a bar, how many of how many, the time so far and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    words, bar = TextColumn("{task.description}", markup=False), BarColumn(bar_width=24)
    return words, bar, MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn()


def tell(sentence: str) -> None:
    """A line for whoever waits at a terminal; nothing elsewhere."""
    if sys.stderr.isatty():
        print(sentence, file=sys.stderr, flush=True)


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(*columns(), console=console, disable=not console.is_terminal, transient=True)


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """A bar called ``what``, on the terminal's standard error; silent where that is no terminal."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str, float, float], None]]:
    """As :func:`progress`, for work of several stages: told what is being done, and how much of how much."""
    with _bar() as bar:
        task, end = bar.add_task("", total=None), None

        def show(doing: str, done: float, total: float) -> None:
            nonlocal task, end
            if total != end:  # another stage, whose speed says nothing of the last one's
                bar.remove_task(task)
                task, end = bar.add_task(doing, total=total), total
            bar.update(task, description=doing, completed=done)

        yield show
