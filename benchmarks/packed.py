"""What packing spares: our whole step with all visible tokens, their rows one after the other, beside the same rows
filled up to the longest one.

    python benchmarks/packed.py [--sizes small vit-s] [--replicas 1] [--rounds 9] [--batch N] [--device cuda]
        [--json FILE]

"padded" computes what fills a row up like any other token, which is what padding costs at least: attention that leaves
it out would need a mask besides. "fixed" is the default, the same number of tokens for every image. All three take
turns in one process.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import contenders
from measure import compared, gemm_peaks, machine, precision
from openjepa.cli import suit_the_process
from openjepa.masking import MultiBlockMasking
from openjepa.masks import Masks, MultiBlockConfig


def masks_of(task: contenders.Task) -> dict[str, Masks]:
    """A batch's masks: packed, the same padded, and the default's."""
    size = task.size
    packed = MultiBlockMasking(size.encoder.grid, MultiBlockConfig(shape="packed"))(torch.arange(size.batch), 0)
    packed = packed.to(task.device)
    return {"packed": packed, "padded": replace(packed, context_packed=None), "fixed": task.masks}


def measured(size: contenders.Size, device: torch.device, dtype: str, replicas: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step of each, and the tokens that an image shows in it, padding included."""
    task = contenders.Task(size, device, dtype)
    calls, tokens = {}, {}
    for name, own in masks_of(task).items():
        step = contenders.trainers_step(task, replicas)
        calls[name] = lambda step=step, own=own: step(task.x, own, 0)
        tokens[name] = int(own.context_valid.sum()) / size.batch
    return {"name": size.name, "batch": size.batch, "tokens": tokens, "seconds": compared(calls, device, rounds=rounds)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ("small", "vit-s", "vit-b", "vit-s-256", "vit-b-128")
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=["small", "vit-s"])
    parser.add_argument("--replicas", type=int, default=1, help="threads of a CPU that share the batch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, help="images of a step; default: the size's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the numbers there, after every size")
    options = parser.parse_args()
    suit_the_process()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    dtype = precision(gemm_peaks(device), "auto")
    results: dict[str, Any] = {"machine": machine(device), "dtype": dtype, "replicas": options.replicas, "sizes": {}}
    print("| size | tokens shown: packed, padded, fixed | packed, ms | padded, ms | fixed, ms | padded over packed |")
    print(f"|{'---|' * 6}")
    for key in options.sizes:
        size = contenders.sized(key, options.batch)
        row = results["sizes"][key] = measured(size, device, dtype, options.replicas, options.rounds)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
        medians = {name: found["median"] for name, found in row["seconds"].items()}
        shown = "; ".join(f"{count:.1f}" for count in row["tokens"].values())
        spent = " | ".join(f"{1000 * seconds:,.0f}" for seconds in medians.values())
        print(f"| {row['name']} | {shown} | {spent} | {medians['padded'] / medians['packed']:.2f} |")


if __name__ == "__main__":
    main()
