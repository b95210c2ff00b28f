"""A whole training step side by side: openjepa's against lightly's I-JEPA, same shapes, images, masks and precision.

    python benchmarks/step.py [--json FILE] [--rounds N] [--quick] [--device cuda] [--precision float32]

Teacher, context encoder, predictor, loss, backward, AdamW and EMA, masks handed over ready made to both, under bfloat16
autocast or, where the processor has no instructions for that, in float32. Ours goes through
``openjepa.training.trainer.Step``, which also takes the gradient norm and refuses numbers that are not finite. The two
take turns within one run; medians are compared.
"""

import argparse
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from measure import alternate, gemm_peak, machine, precision, spread
from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.masking import Masks, MultiBlockMasking
from openjepa.objectives.ijepa import IJEPA
from openjepa.training.distributed import Processes
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.trainer import Step, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Size:
    """One thing to measure."""

    name: str
    encoder: EncoderConfig
    predictor: PredictorConfig
    batch: int


SIZES = (
    Size(
        name="ViT-S/16 224 px batch 16",
        encoder=EncoderConfig(signal=(224, 224), patch=(16, 16), width=384, depth=12, heads=6),
        predictor=PredictorConfig(width=192, depth=6, heads=6),
        batch=16,
    ),
    Size(
        name="ViT 192x6 8x8 tokens batch 256",
        encoder=EncoderConfig(signal=(32, 32), patch=(4, 4), width=192, depth=6, heads=3),
        predictor=PredictorConfig(width=96, depth=4, heads=3),
        batch=256,
    ),
)


class OpenJepaStep:
    """Our step, as the trainer takes it."""

    def __init__(self, size: Size, device: torch.device, dtype: str) -> None:
        self.objective = IJEPA(size.encoder, size.predictor).to(device)
        self.step = Step(
            self.objective,
            schedule=ScheduleConfig(),
            optimizer=OptimizerConfig(),
            training=TrainingConfig(
                steps=100_000, batch=size.batch, precision="bf16" if dtype == "bfloat16" else "float32"
            ),
            processes=Processes(0, 1, device),
        )
        self.done = 0

    def __call__(self, x: torch.Tensor, masks: Masks) -> dict[str, float]:
        """Take one step; returns its numbers."""
        row = self.step(x, masks, self.done)
        self.done += 1
        return row


def measure(
    size: Size, device: torch.device, *, dtype: str, rounds: int, peak: float, plain_peer: bool
) -> dict[str, object]:
    """One row of the table."""
    from lightly_step import LightlyStep

    torch.manual_seed(0)
    x = torch.randn(size.batch, size.encoder.channels, *size.encoder.signal, device=device)
    masks = MultiBlockMasking(size.encoder.grid)(torch.arange(size.batch), 0).to(device)
    ours = OpenJepaStep(size, device, dtype)
    peer = LightlyStep(
        size.encoder,
        size.predictor,
        device=device,
        autocast=dtype == "bfloat16",
        momentum=ours.objective.config.momentum[0],
        plain_attention=plain_peer,
    )
    with FlopCounterMode(display=False) as counter:
        ours(x, masks)
    times = alternate({"ours": lambda: ours(x, masks), "peer": lambda: peer(x, masks)}, device, rounds=rounds)
    mine, theirs = spread(times["ours"]), spread(times["peer"])
    flops = counter.get_total_flops()
    ratios = [b / a for a, b in zip(times["ours"], times["peer"], strict=True)]
    return {
        "size": size.name,
        "ours": mine,
        "peer": theirs,
        "images_per_s": size.batch / mine["median"],
        "peer_images_per_s": size.batch / theirs["median"],
        "ratio": theirs["median"] / mine["median"],
        "ratio_by_round": spread(ratios),
        "gemm_share": flops / mine["median"] / peak,
        "flops_per_step": flops,
        "context_tokens": masks.context.shape[1],
        "target_blocks": masks.targets.shape[1],
        "target_tokens": masks.targets.shape[2],
        "peer_attention": "plain" if plain_peer else "fused (timm's default)",
        "rounds": rounds,
    }


def table(rows: list[dict], peaks: dict[str, float], facts: dict[str, object]) -> Table:
    """What is printed."""
    shown = Table(
        title=f"A whole I-JEPA training step, {rows[0]['dtype']}, images/s",
        caption=f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}, "
        f"lightly {facts['lightly']}, timm {facts['timm']}; matrix products peak at "
        + " and ".join(f"{flops / 1e9:.0f} GFLOP/s in {name}" for name, flops in peaks.items()),
    )
    for heading in ("size", "tokens", "openjepa", "lightly", "ratio (quartiles)", "of its GEMM peak"):
        shown.add_column(heading, justify="left" if heading == "size" else "right")
    for row in rows:
        by_round = row["ratio_by_round"]
        shown.add_row(
            row["size"],
            f"{row['context_tokens']} + {row['target_blocks']} x {row['target_tokens']}",
            f"{row['images_per_s']:.1f}",
            f"{row['peer_images_per_s']:.1f}",
            f"{row['ratio']:.2f} ({by_round['low']:.2f} to {by_round['high']:.2f})",
            f"{row['gemm_share']:.0%}",
        )
    return shown


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each, after two to warm up")
    parser.add_argument("--quick", action="store_true", help="3 rounds: a look, not a measurement")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, help="PyTorch's threads on a CPU; default: its own choice")
    parser.add_argument(
        "--plain-peer", action="store_true", help="give lightly plain attention too, not timm's default"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="auto: the one whose matrix products are faster here",
    )
    options = parser.parse_args()
    missing = [name for name in ("lightly", "timm") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} missing: pip install -e '.[parity]'")
    if options.threads:
        torch.set_num_threads(options.threads)
    facts = machine(options.device)
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    rows = []
    peaks: dict[str, float] = {}
    for size in SIZES:
        peaks = {name: gemm_peak(dtype, options.device) for name, dtype in dtypes.items()}
        dtype = precision(peaks, options.precision)
        row = measure(
            size,
            options.device,
            dtype=dtype,
            rounds=3 if options.quick else options.rounds,
            peak=peaks[dtype],
            plain_peer=options.plain_peer,
        )
        name = "bfloat16 autocast" if dtype == "bfloat16" else dtype
        rows.append(row | {"dtype": name, "gemm_peak_flops": peaks} | facts)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    Console().print(table(rows, peaks, facts))


if __name__ == "__main__":
    main()
