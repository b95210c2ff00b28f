"""Where the time of a training step goes: data, masks, target encoder, context encoder, predictor, backward, optimiser,
EMA.

    python benchmarks/stages.py [--sizes small vit-s vit-b clip] [--replicas 2] [--rounds 9] [--batch N] [--json FILE]

Our step, each replica with one thread. The first two stages are done beforehand by loader processes, so they count only
where these cannot keep up: "data" is what one such process takes for a batch (decoding JPEG files of random size
between 1 and 1.5 times the input, crop, resize; not of clips, which no loader reads). "Loss" is all of the forward
pass that is none of the three networks. "Sharing" is what replicas do for each other: copies of the weights renewed,
gradients added up. Networks, loss and backward are means over the replicas; where one waits for another counts as
"other", as the gradient's norm does.
"""

import argparse
import io
import json
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

import contenders
from measure import gemm_peaks, machine, precision
from openjepa.cli import suit_the_process
from openjepa.data.augmentation import Augmentation, Preprocessing
from openjepa.data.loader import training_batches
from openjepa.data.sources import open_data
from openjepa.encoder import EncoderConfig
from openjepa.masking import MultiBlockMasking
from openjepa.objectives.base import Objective
from openjepa.training.step import Step

BESIDE = ("data", "masks")
NETWORKS = ("target encoder", "context encoder", "predictor")
STAGES = (*BESIDE, *NETWORKS, "loss", "backward", "sharing", "optimiser", "EMA", "other")
# What every replica goes through in a thread of its own, "forward" being the whole of it.
IN_REPLICAS = (*NETWORKS, "forward", "backward")


class Clock:
    """Seconds by stage, and how often each was entered, over all threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.entered: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count what happens inside."""
        begin = time.perf_counter()
        yield
        spent = time.perf_counter() - begin
        with self._lock:
            self.seconds[stage] += spent
            self.entered[stage] += 1

    def counted(self, whole: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The same function, every call of which counts."""

        def counted(*args: Any, **options: Any) -> Any:
            with self(stage):
                return whole(*args, **options)

        return counted

    def wrap(self, owner: object, name: str, stage: str) -> None:
        """Count every call of a method."""
        whole = getattr(owner, name, None)
        if whole is None:
            raise SystemExit(
                f"a {type(owner).__name__} has no {name!r}, of which the stage {stage!r} was made: say in "
                f"benchmarks/stages.py what it is called now"
            )
        setattr(owner, name, self.counted(whole, stage))


def watch(step: Step, clock: Clock) -> None:
    """Count the stages of a step but for the backward pass, which belongs to no object of ours."""

    def networks(replica: Objective, place: int) -> None:
        for stage in NETWORKS:
            clock.wrap(replica.get_submodule(stage.replace(" ", "_")), "forward", stage)
        clock.wrap(replica, "forward", "forward")

    step.replicas(networks)
    clock.wrap(step.replicas, "renew", "sharing")
    clock.wrap(step.replicas, "gather", "sharing")
    clock.wrap(step, "_optimise", "optimiser")
    clock.wrap(step.objective, "after_step", "EMA")


def network(task: contenders.Task, replicas: int, rounds: int) -> list[dict[str, float]]:
    """Seconds of the stages of some steps."""
    clock, step = Clock(), contenders.trainers_step(task, replicas)
    watch(step, clock)
    masking, found = MultiBlockMasking(task.size.encoder.grid), []
    with mock.patch.object(torch.Tensor, "backward", clock.counted(torch.Tensor.backward, "backward")):
        for number in range(rounds + 2):
            clock.seconds.clear()
            clock.entered.clear()
            with clock("masks"):
                masking(torch.arange(task.size.batch), number)
            with clock("whole"):
                step(task.x, task.masks, number)
            found.append(stages(clock, replicas))
    return found[2:]


def stages(clock: Clock, replicas: int) -> dict[str, float]:
    """The seconds of a step by stage, of what replicas do the mean over them.

    Raises:
        SystemExit: a stage was not entered, by every replica where it is theirs.
    """
    expected = {"sharing": 1, "optimiser": 1, "EMA": 1} | dict.fromkeys(IN_REPLICAS, replicas)
    missed = [stage for stage, times in expected.items() if clock.entered[stage] < times]
    if missed:
        raise SystemExit(
            f"the step never came to {', '.join(missed)}: what was timed under that name is not called any more; say "
            f"in benchmarks/stages.py what is"
        )
    spent = {name: seconds / (replicas if name in IN_REPLICAS else 1) for name, seconds in clock.seconds.items()}
    spent["loss"] = spent.pop("forward") - sum(spent[stage] for stage in NETWORKS)
    whole = spent.pop("whole")
    spent["other"] = whole - sum(seconds for stage, seconds in spent.items() if stage not in BESIDE)
    return spent


def loading(encoder: EncoderConfig, batch: int, batches: int) -> float:
    """Seconds that one process takes from JPEG files to a batch."""
    random, side = np.random.default_rng(0), encoder.signal[0]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(4 * batch):
            height, width = random.integers(side, side + side // 2, 2)
            noise = [random.normal(0, 20, (2**k, 2**k)).astype(np.float32) for k in range(1, 9)]
            # As much at every scale, as photographs have.
            photo = sum(np.asarray(Image.fromarray(scale).resize((width, height))) for scale in noise)
            colours = np.stack([photo + 128, photo + 110, photo + 90], -1).clip(0, 255).astype(np.uint8)
            content = io.BytesIO()
            Image.fromarray(colours).save(content, "JPEG", quality=90)
            (Path(folder) / f"{number}.jpg").write_bytes(content.getvalue())
        source = open_data(folder).train
        fit = Preprocessing(size=(side, side), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
        taken = training_batches(source, fit, Augmentation(), None, batch=batch, seed=0, workers=0)
        next(taken)
        begin = time.perf_counter()
        for _ in range(batches):
            next(taken)
        return (time.perf_counter() - begin) / batches


def show(sizes: dict[str, dict[str, Any]]) -> None:
    """Print a table as Markdown."""
    heading = ["stage", *(row["name"] for row in sizes.values())]
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
    for stage in STAGES:
        cells = []
        for row in sizes.values():
            seconds = row["seconds"]
            whole = sum(value for name, value in seconds.items() if name not in BESIDE)
            spent = seconds.get(stage)
            cells.append("" if spent is None else f"{1000 * spent:,.0f} ms, {spent / whole:.0%}")
        print(f"| {stage}{' (beforehand)' if stage in BESIDE else ''} | {' | '.join(cells)} |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ("small", "vit-s", "vit-b", "clip")
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=list(sizes))
    parser.add_argument("--replicas", type=int, default=1, help="threads that share the batch, as the command has them")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, help="images of a step; default: the size's own")
    parser.add_argument("--json", type=Path, help="write the numbers there, after every size")
    options = parser.parse_args()
    chosen = {key: contenders.sized(key, options.batch) for key in options.sizes}
    for size in chosen.values():
        if options.replicas < 1 or size.batch % options.replicas:
            parser.error(f"--replicas {options.replicas} cannot share a batch of {size.batch} evenly")
    suit_the_process()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    peaks = gemm_peaks(cpu)
    dtype = precision(peaks, "auto")
    results: dict[str, Any] = {"machine": machine(cpu), "peaks": peaks, "dtype": dtype, "replicas": options.replicas}
    results["sizes"] = {}
    for key, size in chosen.items():
        rounds = network(contenders.Task(size, cpu, dtype), options.replicas, options.rounds)
        spent = {stage: statistics.median(found[stage] for found in rounds) for stage in STAGES if stage != "data"}
        if len(size.encoder.signal) == 2:
            spent["data"] = loading(size.encoder, size.batch, 4)
        results["sizes"][key] = {"name": size.name, "batch": size.batch, "seconds": spent}
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    show(results["sizes"])


if __name__ == "__main__":
    main()
