"""What ``openjepa.kernels`` spares in bfloat16 on a CPU: linear layers without a gradient, and attention of short rows.

    python benchmarks/kernels.py [--json FILE] [--rounds N] [--tokens 9 26 78] [--rows 16384]

Linear layers and GELU: PyTorch's beside ours, by rows, inputs and outputs. Attention, forward and back, by tokens: its
scores as they are beside padded to whole lengths of what softmax takes at once; "taken" is what the library does.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from measure import compared, machine
from openjepa import kernels, transformer
from openjepa.cli import suit_the_process

TOKENS = (9, 12, 16, 20, 25, 26, 31, 35, 45, 48, 63, 78, 108, 196)
LAYERS = ((96, 384), (192, 576), (192, 768), (768, 192), (384, 1536))  # inputs, outputs
HEADS, FEATURES = 4, 64
CPU, BFLOAT16 = torch.device("cpu"), torch.bfloat16


def layer(rows: int, inputs: int, outputs: int, rounds: int) -> dict[str, Any]:
    """Seconds of a layer, and of one with GELU, by PyTorch and by ours."""
    ours = kernels.Linear(inputs, outputs).to(BFLOAT16).requires_grad_(False)
    x = torch.randn(rows, inputs, dtype=BFLOAT16)
    calls: dict[str, Callable[[], object]] = {
        "pytorch": lambda: F.linear(x, ours.weight, ours.bias),
        "ours": lambda: ours(x),
        "pytorch, gelu": lambda: F.gelu(F.linear(x, ours.weight, ours.bias)),
        "ours, gelu": lambda: ours.gelu(x),
    }
    with torch.no_grad():
        return {"rows": rows, "inputs": inputs, "outputs": outputs} | compared(calls, CPU, rounds=rounds)


def row_of_attention(tokens: int, total: int, rounds: int) -> dict[str, Any]:
    """Seconds of attention as it is and padded, forward and with the way back."""
    padding = kernels.padding
    taken = padding(torch.empty(tokens, tokens, dtype=BFLOAT16))
    batch = max(1, total // tokens // HEADS)
    q, k, v = (torch.randn(batch, HEADS, tokens, FEATURES, dtype=BFLOAT16, requires_grad=True) for _ in range(3))
    slope = torch.randn_like(q)

    def run(more: int, backward: bool) -> None:
        kernels.padding = lambda _: more
        with torch.set_grad_enabled(backward):
            mixed = transformer.attention(q, k, v)
        if backward:
            torch.autograd.grad(mixed, (q, k, v), slope)

    row: dict[str, Any] = {"tokens": tokens, "rows": batch, "more": -tokens % kernels.LANES, "taken": bool(taken)}
    for kind, backward in (("forward", False), ("both", True)):
        calls: dict[str, Callable[[], object]] = {
            "as it is": partial(run, 0, backward),
            "padded": partial(run, row["more"], backward),
        }
        row[kind] = compared(calls, CPU, rounds=rounds)
    kernels.padding = padding
    return row


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="lengths of a row of attention")
    parser.add_argument("--rows", type=int, default=16384, help="of a layer; and of attention, over all heads")
    options = parser.parse_args()
    suit_the_process()
    torch.set_num_threads(1)
    facts = machine(CPU)
    layers = [layer(options.rows, *of, options.rounds) for of in LAYERS]
    rows = [row_of_attention(tokens, options.rows, options.rounds) for tokens in options.tokens]
    if options.json:
        told = {"machine": facts, "layers": layers, "attention": rows}
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    caption = f"{facts['processor']}, 1 thread, torch {facts['torch']}, bfloat16"
    shown = Table(title=f"Linear layers of {options.rows} rows, ms", caption=caption)
    for heading in ("inputs", "outputs", "PyTorch", "ours", "ratio", "PyTorch, GELU", "ours, GELU", "ratio"):
        shown.add_column(heading, justify="right")
    for found in layers:
        cells = []
        for last in ("", ", gelu"):
            theirs, mine = (1e3 * found[f"{who}{last}"]["median"] for who in ("pytorch", "ours"))
            cells += [f"{theirs:.2f}", f"{mine:.2f}", f"{theirs / mine:.2f}"]
        shown.add_row(str(found["inputs"]), str(found["outputs"]), *cells)
    Console(width=120).print(shown)
    shown = Table(title=f"Attention, {HEADS} heads of {FEATURES}, ms (as it is over padded)", caption=caption)
    for heading in ("tokens", "padded by", "forward", "padded", "and back", "padded", "taken"):
        shown.add_column(heading, justify="right")
    for found in rows:
        cells = []
        for kind in ("forward", "both"):
            plain, padded = (1e3 * found[kind][name]["median"] for name in ("as it is", "padded"))
            cells += [f"{plain:.2f}", f"{padded:.2f} ({plain / padded:.2f})"]
        shown.add_row(str(found["tokens"]), str(found["more"]), *cells, "yes" if found["taken"] else "no")
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
