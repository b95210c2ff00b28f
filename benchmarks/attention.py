"""Attention forward and backward, plain matrix products, the same in parts, and PyTorch's fused kernel, by tokens.

    python benchmarks/attention.py [--json FILE] [--rounds N] [--tokens 196 1568] [--total 8192]

Memory is kept as the command line keeps it. What ``openjepa.transformer.attention_path`` takes on a CPU comes from this
table.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from measure import compared, machine
from openjepa import transformer
from openjepa.cli import suit_the_process

TOKENS = (16, 35, 64, 108, 196, 400, 784, 1568, 3136)
PATHS = ("plain", "parts", "fused")
HEADS, FEATURES = 6, 64  # ViT-S


def measure(tokens: int, total: int, dtype: torch.dtype, device: torch.device, rounds: int) -> dict[str, Any]:
    """One row: seconds of each path on ``total`` tokens in rows of ``tokens``, from the joint projection and back."""
    batch = max(1, total // tokens)
    qkv = torch.randn(batch, tokens, 3, HEADS, FEATURES, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn(batch, tokens, HEADS * FEATURES, device=device, dtype=dtype)

    def run(path: str, backward: bool) -> None:
        transformer.attention_path = lambda *_, path=path: path
        with torch.set_grad_enabled(backward):
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            mixed = transformer.attention(q, k, v).transpose(1, 2).reshape(grad.shape)
        if backward:
            qkv.grad = None
            mixed.backward(grad)

    row: dict[str, Any] = {"tokens": tokens, "batch": batch, "dtype": str(dtype).removeprefix("torch.")}
    for kind, backward in (("forward", False), ("both", True)):
        row[kind] = compared({path: partial(run, path, backward) for path in PATHS}, device, rounds=rounds)
        for path in PATHS[1:]:
            row[kind][f"{path}_over_plain"] = row[kind][path]["median"] / row[kind]["plain"]["median"]
    return row


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file as they come")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="lengths of a row")
    parser.add_argument("--total", type=int, default=8192, help="tokens of a batch; rows are as many as fit")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads on a CPU")
    suit_the_process()
    options, device = parser.parse_args(), torch.device("cpu")
    torch.set_num_threads(options.threads)
    facts, limit = machine(device), transformer.PLAIN_ATTENTION_TOKENS
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in options.tokens:
            rows.append(measure(tokens, options.total, dtype, device, options.rounds) | facts)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    shown = Table(
        title=f"Attention, {HEADS} heads of {FEATURES}, {options.total} tokens, ms (over plain)",
        caption=f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}; in bfloat16 plain is taken "
        f"up to {limit} tokens, then parts",
    )
    for heading in ("dtype", "tokens", *PATHS, *(f"{path} and back" for path in PATHS)):
        shown.add_column(heading, justify="right")
    for row in rows:
        cells = []
        for kind in ("forward", "both"):
            cells += [f"{row[kind]['plain']['median'] * 1e3:.1f}"]
            cells += [f"{row[kind][p]['median'] * 1e3:.1f} ({row[kind][f'{p}_over_plain']:.2f})" for p in PATHS[1:]]
        shown.add_row(row["dtype"], str(row["tokens"]), *cells)
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
