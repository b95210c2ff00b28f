"""Processes that read ahead, and what they do with signals and errors."""

import errno
import multiprocessing.process
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from openjepa.errors import InputError
from openjepa.signals import ENDING

# What the system and PyTorch say of a full memory.
_NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(errno.ENOMEM), "unable to allocate", "unable to write")


@runtime_checkable
class Shareable(Protocol):
    """What a worker can hand over: its tensors go to memory that other processes see."""

    def share_memory_(self) -> Any: ...


T = TypeVar("T", bound=Shareable)


class LoaderError(RuntimeError):
    """A worker process of the loader cannot go on, or ended without being asked to."""


class NoSharedMemory(LoaderError):
    """There is no room in the memory through which a worker hands over what it has read, or no file for it."""


class _Shared(Dataset[T | InputError | NoSharedMemory]):
    """The items, in shared memory before the queue has them.

    The queue would put them there in a thread of its own, which prints an error and drops the item, so that the main
    process would wait for it without end.
    """

    def __init__(self, items: Dataset[T | InputError]) -> None:
        self.items = items

    def __getitem__(self, number: int) -> T | InputError | NoSharedMemory:
        item = self.items[number]
        if isinstance(item, InputError):
            return item
        try:
            return item.share_memory_()
        except (RuntimeError, OSError) as error:
            if os.strerror(errno.EMFILE) in str(error):
                return NoSharedMemory(
                    f"a loader process may open no more files, which it needs to hand over images ({error}): allow "
                    f"more (ulimit -n 65536), or take fewer such processes (--workers)"
                )
            if not any(words in str(error) for words in _NO_ROOM):
                raise
            return NoSharedMemory(
                f"a loader process found no room in the shared memory (/dev/shm) through which it hands over images "
                f"({error}): give it more (in Docker: docker run --shm-size=2g), or read without such processes "
                f"(--workers 0)"
            )


def iterate(
    dataset: Dataset[T | InputError], order: Iterable[int], workers: int, pin: bool
) -> Generator[T, None, None]:
    """The items of ``dataset`` in ``order``, read by ``workers`` processes that end with the iterator.

    Raises:
        InputError: what ``dataset`` gave instead of an item.
        NoSharedMemory: a worker could not hand over an item.
        LoaderError: a worker was killed.
    """
    with warnings.catch_warnings(), _signals_held():
        # How many workers are too many is for the caller to say.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            _Shared(dataset) if workers else dataset,
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
                f"a loader process was killed, perhaps because memory, or shared memory (/dev/shm), ran out ({error}); "
                "try fewer workers"
            ) from error
        if isinstance(item, (InputError, NoSharedMemory)):
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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_: int) -> None:
    """One thread, and no part in signals that are meant for the main process (Ctrl-C, a terminal that is closed, or
    SIGTERM to a whole group)."""
    torch.set_num_threads(1)
    for number in set(ENDING) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_end_when_parent_says, args=(os.getppid(), _sockets()), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


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
