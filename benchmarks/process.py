"""What the threads' waiting, replicas and the allocator make of a training step: every combination in a process of its
own.

    python benchmarks/process.py [--width 192] [--depth 6] [--tokens 8] [--batch 64] [--busy] [--json FILE]

``--busy`` keeps one core busy beside it, as another program would. Times are medians over the rounds; the processes of
a round run one after another, so that what the machine does meanwhile meets them alike.
"""

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openjepa.cli import suit_the_process

# name: environment, replicas and threads of each (0: as many as PyTorch takes), whether the process is suited as the
# command line does it ("small pages": without the kernel's huge ones)
WAYS: dict[str, tuple[dict[str, str], int, int, bool]] = {
    "as PyTorch comes": ({}, 1, 0, False),
    "one thread": ({}, 1, 1, False),
    "passive waiting": ({"OMP_WAIT_POLICY": "PASSIVE"}, 1, 0, False),
    "short spinning": ({"GOMP_SPINCOUNT": "3000"}, 1, 0, False),
    "the command line, all threads": ({}, 1, 0, True),
    "the command line, one thread": ({}, 1, 1, True),
    "the command line, replicas": ({}, 0, 1, True),
    "one thread, small pages": ({}, 1, 1, True),
    "replicas, small pages": ({}, 0, 1, True),
}
_PR_SET_THP_DISABLE = 41  # of Linux' prctl


def measure(options: argparse.Namespace) -> None:
    """In a process of its own: the seconds of a step, and the machine, as JSON."""
    _, replicas, threads, suited = WAYS[options.way]
    if options.way.endswith("small pages"):
        ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    if suited:
        suit_the_process()
    import torch

    from measure import gemm_peaks, machine, precision
    from openjepa.encoder import EncoderConfig, PredictorConfig
    from openjepa.masking import MultiBlockMasking
    from openjepa.masks import MultiBlockConfig
    from openjepa.objectives.ijepa import IJEPA, IJEPAConfig
    from openjepa.training.distributed import Processes
    from openjepa.training.optimizer import OptimizerConfig
    from openjepa.training.schedules import ScheduleConfig
    from openjepa.training.step import Step, TrainingConfig

    cpu = torch.device("cpu")
    most = torch.get_num_threads()
    replicas = replicas or max(count for count in range(1, most + 1) if options.batch % count == 0)
    torch.set_num_threads(threads or most)
    kind = precision(gemm_peaks(cpu), "auto")
    encoder = EncoderConfig(
        signal=(4 * options.tokens,) * 2,
        patch=(4, 4),
        width=options.width,
        depth=options.depth,
        heads=options.width // 64,
    )
    objective = IJEPA(encoder, PredictorConfig(width=128, depth=1, heads=4), IJEPAConfig()).train()
    step = Step(
        objective,
        schedule=ScheduleConfig(),
        optimizer=OptimizerConfig(),
        training=TrainingConfig(
            batch=options.batch, precision="bf16" if kind == "bfloat16" else "float32", replicas=replicas
        ),
        processes=Processes(0, 1, cpu),
    )
    x = torch.randn(options.batch, 3, *encoder.signal)
    masks = MultiBlockMasking(encoder.grid, MultiBlockConfig(context_share=0.25))(torch.arange(options.batch), 0)
    seconds = []
    while len(seconds) < 30 or sum(seconds) < 3:
        begin = time.perf_counter()
        step(x, masks, len(seconds))
        seconds.append(time.perf_counter() - begin)
    facts = {name: value for name, value in machine(cpu).items() if name != "threads"}  # each way has its own
    print(json.dumps({"seconds": statistics.median(seconds[10:]), "machine": facts | {"precision": kind}}))


@contextlib.contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """One other process that computes, where ``wanted``."""
    if not wanted:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 192), ("depth", 6), ("tokens", 8), ("batch", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--busy", action="store_true", help="keep one core busy beside it")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way is not None:
        measure(options)
        return
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    machine: dict[str, Any] = {}
    with busy_core(options.busy):
        for _ in range(options.rounds):
            for way, (environment, *_) in WAYS.items():
                settings = {
                    name: value
                    for name, value in os.environ.items()
                    if not name.startswith(("OMP_", "GOMP_", "MALLOC_"))
                }
                command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
                told = subprocess.run(command, env=settings | environment, check=True, capture_output=True, text=True)
                one = json.loads(told.stdout.splitlines()[-1])
                found[way].append(one["seconds"])
                machine = one["machine"]
    for way, seconds in found.items():
        print(f"{way:32s} {1000 * statistics.median(seconds):7.1f} ms a step")
    if options.json is not None:
        shown = {name: value for name, value in vars(options).items() if name not in ("json", "way")}
        options.json.write_text(json.dumps({"options": shown, "machine": machine, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
