"""Our training step on one GPU: as it comes, recorded (CUDA graphs), compiled, and both.

    python benchmarks/gpu.py [--sizes sample cifar cifar-mae vit-s vit-s-packed vit-b] [--compiled] [--json FILE]

Whole steps of the recipes on drawn images that lie on the GPU, masks ready made; milliseconds of the fastest and the
slowest of three runs of 10 steps, after the steps in which a way gets ready, whose seconds are told too.
"""

import argparse
import gc
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from measure import machine, seconds
from openjepa.cli import suit_the_process
from openjepa.experiment import Experiment
from openjepa.masks import Masks, MultiBlockConfig
from openjepa.recipes.baselines import baseline
from openjepa.recipes.small import small
from openjepa.recipes.standard import standard
from openjepa.training.distributed import Processes
from openjepa.training.step import Step

_COLOURS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
_READY = 6


def sizes() -> dict[str, Experiment]:
    """What is measured, by name."""
    sample = small(signal=(28, 28), patch=(7, 7), mean=(0.286,), std=(0.353,))
    cifar = small(signal=(32, 32), patch=(4, 4), **_COLOURS)
    vit_s = standard(signal=(224, 224), patch=(16, 16), **_COLOURS)
    wide = replace(vit_s.encoder, width=768, heads=12), replace(vit_s.predictor, width=384, heads=12)
    return {
        "sample": sample,
        "cifar": cifar,
        "cifar-mae": baseline(cifar, "mae"),
        "vit-s": vit_s,
        "vit-s-packed": replace(vit_s, masks=MultiBlockConfig(shape="packed")),
        "vit-b": replace(vit_s, encoder=wide[0], predictor=wide[1]),
    }


def measure(experiment: Experiment, device: torch.device, *, record: bool, compiled: bool) -> dict[str, Any]:
    """Seconds of a step and until it was ready, bytes of peak memory, and whether it was recorded."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    training = replace(experiment.training, steps=10**6, record=record)
    step = Step(
        experiment.objective().to(device).train(),
        schedule=experiment.schedule,
        optimizer=experiment.optimizer,
        training=training,
        processes=Processes(0, 1, device),
    )
    if compiled:
        step.call.compile()
    masking, shape = experiment.masking(), (experiment.encoder.channels, *experiment.encoder.signal)
    batches: list[tuple[torch.Tensor, Masks]] = []
    for number in range(4):
        masks = masking(torch.arange(training.batch) + number * training.batch, 0)
        batches.append((torch.randn(training.batch, *shape, device=device), masks.to(device)))
    begin = time.perf_counter()
    for number in range(_READY):
        step(*batches[number % 4], number)
    torch.cuda.synchronize(device)
    ready = time.perf_counter() - begin
    turns = [seconds(lambda: [step(*batches[number % 4], number) for number in range(10)], device) for _ in range(3)]
    memory = torch.cuda.max_memory_allocated(device)
    recorded = step.recording is not None and step.recording.made
    spent = {"fastest": min(turns) / 10, "slowest": max(turns) / 10, "ready": ready}
    return {**spent, "memory": memory, "recorded": recorded}


def main() -> None:
    """The command line."""
    known = sizes()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(known), default=list(known), metavar="SIZE")
    parser.add_argument("--compiled", action="store_true", help="with torch.compile as well, which takes its time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here")
    suit_the_process()
    device = torch.device("cuda", torch.cuda.current_device())
    results: dict[str, Any] = {"machine": machine(device), "rows": []}
    print("| size | batch | way | ms a step | ready after | peak memory |\n|---|---|---|---|---|---|")
    for name in options.sizes:
        for compiled in (False, True) if options.compiled else (False,):
            for record in (False, True):
                found = measure(known[name], device, record=record, compiled=compiled)
                way = " and ".join([*["recorded"] * found["recorded"], *["compiled"] * compiled]) or "as it comes"
                batch = known[name].training.batch
                results["rows"].append({"size": name, "batch": batch, "way": way, **found})
                print(
                    f"| {name} | {batch} | {way} | {1000 * found['fastest']:.1f} to {1000 * found['slowest']:.1f} "
                    f"| {found['ready']:.1f} s | {found['memory'] / 2**30:.2f} GiB |",
                    flush=True,
                )
                if options.json:
                    options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
