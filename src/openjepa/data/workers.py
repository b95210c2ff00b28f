"""Processes that read ahead, and what they do with signals and errors."""

import multiprocessing.process
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from openjepa.errors import InputError

T = TypeVar("T")
_ENDING = (signal.SIGINT, signal.SIGTERM)


class LoaderError(RuntimeError):
    """A worker process of the loader ended without being asked to."""


def iterate(
    dataset: Dataset[T | InputError], order: Iterable[int], workers: int, pin: bool
) -> Generator[T, None, None]:
    """The items of ``dataset`` in ``order``, read by ``workers`` processes that end with the iterator.

    Raises:
        InputError: what ``dataset`` gave instead of an item.
        LoaderError: a worker was killed.
    """
    with warnings.catch_warnings(), _signals_held():
        # How many workers are too many is for the caller to say.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=order,
            num_workers=workers,
            worker_init_fn=_start_worker if workers else None,
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            prefetch_factor=None if not workers else 4 if workers <= 4 else 2,
            pin_memory=pin,
        )
        items = iter(loader)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not workers or not _says_worker_died(error):
                raise
            raise LoaderError(
                f"a loader process was killed, perhaps because memory ran out ({error}); try fewer workers"
            ) from error
        if isinstance(item, InputError):
            raise item
        yield item


def _says_worker_died(error: Exception) -> bool:
    """Whether the pipe to a worker broke, and not code in the worker, whose errors begin with Caught."""
    message = str(error)
    return "DataLoader worker (pid" in message or not (message.startswith("Caught") or isinstance(error, RuntimeError))


@contextmanager
def _signals_held() -> Iterator[None]:
    """While workers start: they get no signal before they know what to do, and the handling of dead ones stays ours.

    torch's own handler would raise wherever this process is when a worker dies, perhaps amid the writing of a
    checkpoint. Without it, the next batch says so, within five seconds.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(number: int) -> None:
    """One thread, and no part in signals that are meant for the main process (Ctrl-C, or SIGTERM to a whole group)."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_end_when_parent_says, args=(os.getppid(), _sockets()), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _sockets() -> str | None:
    """The folder that multiprocessing has made for the sockets of this process, or of the one it was forked from."""
    return multiprocessing.process.current_process()._config.get("tempdir")  # type: ignore[attr-defined]


def _end_when_parent_says(parent: int, inherited: str | None) -> None:
    # SIGTERM is blocked since _signals_held, and waits here.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    if (own := _sockets()) not in (None, inherited):  # it goes in the exit that is passed over here
        shutil.rmtree(own, ignore_errors=True)
    os._exit(0)
