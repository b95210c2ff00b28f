"""What the benchmarks share: interleaved timing, the peak of matrix products, and the facts of the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def seconds(call: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds that one ``call`` takes, over ``repeats`` of them, waiting for a GPU to finish."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def alternate(
    calls: dict[str, Callable[[], object]], device: torch.device, *, rounds: int, warmup: int = 2, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call in each round. Calls take turns, each first in every other round, so that what else runs on
    the machine meets all of them alike: only ratios within a run mean anything on a shared one."""
    for _ in range(warmup):
        for call in calls.values():
            seconds(call, device)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(seconds(calls[name], device, repeats))
    return found


def compared(
    calls: dict[str, Callable[[], object]], device: torch.device, *, rounds: int
) -> dict[str, dict[str, float]]:
    """Calls that take turns as in :func:`alternate`, each with the :func:`spread` of its times."""
    return {name: spread(times) for name, times in alternate(calls, device, rounds=rounds).items()}


def spread(times: list[float]) -> dict[str, float]:
    """The median of some times (seconds), and their quartiles."""
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"median": median, "low": low, "high": high}


def gemm_peak(dtype: torch.dtype, device: torch.device) -> float:
    """The best FLOP/s of square matrix products of several sizes, of half a second of each: of a few products the best
    is below the peak where other work meets them.

    A processor that is very slow at the small ones is not asked for more, as with bfloat16 without instructions for it.
    """
    best = 0.0
    for size in (512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        times = [seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device)]
        if times[0] > 0.2:
            return max(best, 2 * size**3 / times[0])
        begin = time.perf_counter()
        while len(times) < 8 or time.perf_counter() - begin < 0.5:
            times.append(seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device))
        best = max(best, 2 * size**3 / min(times))
    return best


def gemm_peaks(device: torch.device) -> dict[str, float]:
    """:func:`gemm_peak` in bfloat16 and float32, by name."""
    return {name: gemm_peak(getattr(torch, name), device) for name in ("bfloat16", "float32")}


def precision(peaks: dict[str, float], wanted: str) -> str:
    """``bfloat16`` (autocast) or ``float32``: the one wanted, or for ``auto`` that with the faster matrix products."""
    return max(peaks, key=peaks.__getitem__) if wanted == "auto" else wanted


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, threads, load and versions; no names of hosts."""
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "lightly", "timm")},
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    wide = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if any(flag in line.split() for line in lines)
    ]
    return f"{name} ({', '.join(wide)})" if wide else name


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
