"""Where the time of a training step goes: data, masks, teacher, context encoder, predictor, backward, optimiser, EMA.

    python benchmarks/stages.py [--sizes small vit-s vit-b] [--rounds 9] [--json FILE]

Our step, one replica and one thread. The first two stages are done beforehand by loader processes, so they count only
where these cannot keep up: "data" is what one such process takes for a batch (decoding JPEG files of random size
between 1 and 1.5 times the input, crop, resize). "Loss" is all of the forward pass that is none of the three networks.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import contenders
from measure import gemm_peak, machine, precision
from openjepa.cli import suit_the_process
from openjepa.data.augmentation import Augmentation, Preprocessing
from openjepa.data.loader import training_batches
from openjepa.data.sources import open_data
from openjepa.encoder import EncoderConfig
from openjepa.masking import MultiBlockMasking
from openjepa.objectives.ijepa import IJEPA
from openjepa.training.distributed import Processes
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import Step, TrainingConfig

STAGES = ("data", "masks", "teacher", "context encoder", "predictor", "loss", "backward", "optimiser", "EMA", "other")
BESIDE = STAGES[:2]


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count what happens inside."""
        begin = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - begin

    def wrap(self, owner: object, name: str, stage: str) -> None:
        """Count every call of a method."""
        whole = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            with self(stage):
                return whole(*args, **options)

        setattr(owner, name, counted)


def network(size: contenders.Size, dtype: str, rounds: int) -> list[dict[str, float]]:
    """Seconds of the stages of some steps."""
    task, clock = contenders.Task(size, torch.device("cpu"), dtype), Clock()
    objective = IJEPA(size.encoder, size.predictor)
    step = Step(
        objective,
        schedule=ScheduleConfig(),
        optimizer=OptimizerConfig(),
        training=TrainingConfig(batch=size.batch, precision="bf16" if dtype == "bfloat16" else "float32"),
        processes=Processes(0, 1, task.device),
    )
    clock.wrap(objective, "targets", "teacher")
    clock.wrap(objective.context_encoder, "forward", "context encoder")
    clock.wrap(objective.predictor, "forward", "predictor")
    clock.wrap(objective, "forward", "forward")
    clock.wrap(step, "backward", "forward and backward")
    clock.wrap(step.optimizer, "step", "optimiser")
    clock.wrap(objective, "after_step", "EMA")
    masking, found = MultiBlockMasking(size.encoder.grid), []
    for number in range(rounds + 2):
        clock.seconds.clear()
        with clock("masks"):
            masking(torch.arange(size.batch), number)
        with clock("whole"):
            step(task.x, task.masks, number)
        spent = dict(clock.seconds)
        spent["loss"] = spent["forward"] - spent["teacher"] - spent["context encoder"] - spent["predictor"]
        spent["backward"] = spent.pop("forward and backward") - spent.pop("forward")
        spent["other"] = spent["whole"] - sum(spent.get(stage, 0.0) for stage in STAGES[2:])
        found.append(spent)
    return found[2:]


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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("small", "vit-s", "vit-b"), default=["small", "vit-s", "vit-b"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    suit_the_process()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    peaks = {name: gemm_peak(getattr(torch, name), cpu) for name in ("bfloat16", "float32")}
    dtype = precision(peaks, "auto")
    results: dict[str, Any] = {"machine": machine(cpu), "peaks": peaks, "dtype": dtype, "sizes": {}}
    for key in options.sizes:
        size = contenders.SIZES[key]
        rounds = network(size, dtype, options.rounds)
        stages = {stage: statistics.median(spent.get(stage, 0.0) for spent in rounds) for stage in STAGES}
        stages["data"] = loading(size.encoder, size.batch, 4)
        results["sizes"][key] = {"batch": size.batch, "seconds": stages}
    heading = ["stage", *(contenders.SIZES[key].name for key in options.sizes)]
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
    for stage in STAGES:
        cells = []
        for key in options.sizes:
            seconds = results["sizes"][key]["seconds"]
            whole = sum(value for name, value in seconds.items() if name not in BESIDE)
            cells.append(f"{1000 * seconds[stage]:,.0f} ms, {seconds[stage] / whole:.0%}")
        print(f"| {stage}{' (beforehand)' if stage in BESIDE else ''} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
