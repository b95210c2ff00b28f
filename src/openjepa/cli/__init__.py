"""The command line. Each verb parses its arguments, calls the library, and prints what a person needs."""

import atexit
import contextlib
import ctypes
import errno
import importlib
import io
import os
import select
import signal
import sys
from typing import NoReturn

from openjepa._version import __version__
from openjepa.errors import InputError
from openjepa.signals import ENDING

_HELP = f"""openjepa {__version__}: train a vision encoder on your own unlabelled images, and know how good it is.

  openjepa pretrain DATA --out RUN          train; DATA is a folder of images, Parquet, fashion-mnist, a hub id,
                                            or nothing for the bundled sample
  openjepa resume RUN                       go on with a run
  openjepa report RUN                       write RUN/report.html
  openjepa evaluate RUN|ENCODER [DATA]      k-NN and linear probe, beside a random encoder and raw pixels;
                                            --suite full for all the probes; ENCODER may be another library's
  openjepa compare [DATA] [--out FOLDER]    I-JEPA, MAE and denoising with equal compute, side by side on one page
  openjepa import CHECKPOINT --out DIR      turn a published I-JEPA or MAE checkpoint into files to load

Every verb explains itself with --help.
"""

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
# Of Linux' madvise.
_MADV_HUGEPAGE = 14
_MOST_ROOM = 2**34
_HUGE_PAGE = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
# What a disk, its owner or a network drive says, and no program can mend; and a name that no file can have.
_REFUSED = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
}
# Verb, and the file that holds the function of its name.
_VERBS = {
    "pretrain": "training",
    "resume": "training",
    "evaluate": "evaluation",
    "compare": "comparison",
    "report": "files",
    "import": "files",
}


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point; exits with 0, 1 (training cannot go on), 2 (unusable input) or 128 + signal."""
    for name in ("stdout", "stderr"):  # a service may have none, and libraries ask them whether they are terminals
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no Unicode
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:
        if not _unheard():
            raise
        code = 128 + signal.SIGPIPE
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _end_at_once(code)
    sys.exit(code)


def _main(arguments: list[str]) -> int:
    suit_the_process()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if arguments else 2
    if arguments[0] in ("--version", "version"):
        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in _VERBS:
        print(f"openjepa: there is no verb {verb!r}; choose from {', '.join(_VERBS)}", file=sys.stderr)
        return 2
    before = {
        number: signal.signal(number, _terminated)
        for number in set(ENDING) - {signal.SIGINT}
        if signal.getsignal(number) is not signal.SIG_IGN  # by nohup, say
    }
    try:
        code = _run(verb, rest)
        sys.stdout.flush()
        return code
    except InputError as error:
        _complain(verb, str(error))
        return 2
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _complain(verb, f"cannot write or read{where}: {error.strerror}")
        return 2
    except RuntimeError as error:
        from openjepa.data.workers import LoaderError  # not above: it takes PyTorch

        if not isinstance(error, LoaderError):
            raise
        _complain(verb, str(error))
        return 1
    except SystemExit as end:  # after --help, or a mistake that is told already
        return int(end.code or 0)
    except KeyboardInterrupt as stop:
        print(f"openjepa {verb}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return exit_code(stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complain(verb: str, message: str) -> None:
    """Say what went wrong; names of files in it may hold what steers a terminal."""
    from openjepa.data.base import printable  # not above: it takes NumPy

    print(f"openjepa {verb}:", "\n".join(map(printable, message.split("\n"))), file=sys.stderr)


def _unheard() -> bool:
    """Whether nobody reads what is printed, as after ``openjepa --help | head -1``; then nothing more is printed."""
    if not hasattr(select, "poll"):
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter would try once more, and fail
    return True


def _end_at_once(code: int) -> NoReturn:
    """End one process of several without taking the interpreter down.

    The threads of PyTorch's gloo outlive ``destroy_process_group`` for as long as anything (FSDP's modules) knows the
    group, and one that lets go of a tensor after the interpreter is gone aborts the process (pytorch#179291).
    """
    atexit._run_exitfuncs()  # the loader's processes, temporary files
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def suit_the_process() -> None:
    """What every verb asks of OpenMP and of the allocator; to be called before PyTorch is imported."""
    # OpenMP's threads spin while they wait, and starve the loader and each other as soon as anything else runs: a step
    # took ten times as long on two cores with one other process (LOG.md). It is read when PyTorch is first imported.
    # Threads that sleep cost a step of small matrices more than they bring, so `pretrain` measures how many to take.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # glibc gives every large block back to the kernel when it is freed, and a training step, which frees and asks for
    # the same blocks over and over, spends up to a sixth of its time on new pages (benchmarks/README.md). It may keep
    # them. Pages of 2 MiB spare the processor walks through the page table: 2 to 4% of a step on a calm machine, and a
    # fifth where neighbours crowd its caches (LOG.md).
    with contextlib.suppress(OSError, AttributeError, TypeError, ImportError):  # another C library or system
        allocator = ctypes.CDLL(None)
        allocator.gnu_get_libc_version  # noqa: B018
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
            allocator.mallopt(parameter, value)
        _huge_pages(allocator)


def _huge_pages(allocator: ctypes.CDLL) -> None:
    """Ask the kernel for huge pages in the room that glibc's main heap is to grow into, which costs nothing until then.

    Other threads keep heaps of their own, in small pages: one heap for all had two replicas wait for each other.
    glibc 2.35 does it for all under ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1``, which it reads before Python starts.
    """
    if not _room_is_free():
        return
    page = os.sysconf("SC_PAGE_SIZE")
    room = min(_MOST_ROOM, page * (os.sysconf("SC_PHYS_PAGES") // 2))
    allocator.malloc.restype = ctypes.c_void_p
    allocator.malloc.argtypes = [ctypes.c_size_t]
    allocator.free.argtypes = [ctypes.c_void_p]
    allocator.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = allocator.malloc(room)
    if block is None:
        return
    first = -(-block // page) * page
    allocator.madvise(first, block + room - first, _MADV_HUGEPAGE)
    allocator.free(block)


def _room_is_free() -> bool:
    """Whether room in the heap costs nothing until it is used, and huge pages are small enough to be used up."""
    import resource  # not everywhere

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):  # which the room would take from libraries
        return False
    # Which has malloc write over all that it gives.
    if "MALLOC_PERTURB_" in os.environ or "perturb" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    with open("/proc/sys/vm/overcommit_memory") as overcommit, open(_HUGE_PAGE) as size:
        return overcommit.read().strip() != "2" and int(size.read()) == 2**21  # 512 MiB on some


def _run(verb: str, arguments: list[str]) -> int:
    module = importlib.import_module(f"openjepa.cli.{_VERBS[verb]}")
    return getattr(module, f"{verb}_verb")(arguments)


def _terminated(number: int, _frame: object) -> None:
    # Outside the training loop, which saves first, SIGTERM and SIGHUP end what is done as Ctrl-C does.
    raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the number of the signal that stopped what was done, as a shell has it."""
    return 128 + getattr(signal, str(stop).removeprefix("stopped by "), signal.SIGINT)
