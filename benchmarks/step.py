"""A whole training step side by side: openjepa's, lightly's I-JEPA, and a plain eager one in the published code's
style; and an encoder's forward pass beside that of transformers' IJepaModel.

    python benchmarks/step.py [--json FILE] [--rounds N] [--sizes small vit-s vit-b clip] [--batch N] [--threads 1]
        [--device cuda]

Teacher, context encoder, predictor, loss, backward, AdamW and EMA, masks handed over ready made, under bfloat16
autocast or, where the processor has no instructions for that, in float32. Each contender has a process of its own and
works as its users would have it: ours as the ``openjepa`` command sets it up, on a CPU with as many replicas as there
are threads (the command would measure whether that is best), the others as PyTorch comes. They take turns, one step
each, and medians are compared. Memory is what a process grew by at its peak since it had imported all it needs.
Who is not installed is left out, which is said at once. What the environment says of OpenMP holds for all of them:
OMP_WAIT_POLICY=PASSIVE, which ours sets for itself, slows the others down.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# name: whether it is ours; the order of the table
TRAINING = {"ours": True, "compiled": True, "plain": False, "lightly": False}
FORWARD = {"encoder": True, "transformers": False}
# what a peer imports, and of which packages
PEERS = {
    "lightly": ("lightly_step", ("lightly", "timm")),
    "transformers": ("transformers.models.ijepa.modeling_ijepa", ("transformers",)),
}


def contend(options: argparse.Namespace) -> None:
    """In a process of its own: answer every line with the seconds of a step, and the end with the peak of memory."""
    own = {**TRAINING, **FORWARD}[options.contender]
    if own:
        from openjepa.cli import suit_the_process

        suit_the_process()
    import torch

    import contenders
    from measure import gemm_peaks, machine, precision, seconds
    from openjepa.training.metrics import peak_memory

    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    try:
        if options.contender in PEERS:
            importlib.import_module(PEERS[options.contender][0])
    except ImportError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    before = _resident()
    peaks = gemm_peaks(device) if options.peaks else {}
    size = contenders.sized(options.size, options.batch)
    task = contenders.Task(size, device, precision(peaks, options.precision))
    try:
        if options.contender == "ours" and device.type == "cpu" and threads > 1:
            # As many as share the batch evenly; each has its part of the threads.
            replicas = max(count for count in range(1, threads + 1) if size.batch % count == 0)
            torch.set_num_threads(threads // replicas)
            step = contenders.ours(task, replicas)
        else:
            step = getattr(contenders, options.contender)(task)
    except LookupError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    for _ in range(5 if device.type == "cuda" else 2):  # ours are recorded on a GPU
        step()
    shape = [*task.masks.context.shape[1:], *task.masks.targets.shape[1:]]
    facts = machine(device) | {"threads": threads}
    flops = contenders.flops(task, training=options.contender in TRAINING)
    told = {"flops": flops, "peaks": peaks, "dtype": task.dtype, "machine": facts, "tokens": shape}
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        print(json.dumps(seconds(step, device)), flush=True)
    print(json.dumps(peak_memory(device) - (before if device.type == "cpu" else 0)), flush=True)


def _resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Contender:
    """A process that takes a step whenever it is asked."""

    def __init__(self, name: str, size: str, options: argparse.Namespace, precision: str, peaks: bool) -> None:
        command = [sys.executable, __file__, "--contender", name, "--size", size, "--device", options.device]
        command += ["--precision", precision, *(["--peaks"] if peaks else [])]
        for option in ("threads", "batch"):
            command += [f"--{option}", str(getattr(options, option))] if getattr(options, option) else []
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()
        self.seconds: list[float] = []

    def step(self) -> None:
        """Have it take one."""
        self.seconds.append(self._ask("step"))

    def end(self) -> int:
        """Have it go; returns the bytes that it took at its peak."""
        found = self._ask("end")
        self.close()
        return found

    def close(self) -> None:
        """Wait until it has gone."""
        with self._process:  # closes its pipes as well
            pass

    def _ask(self, word: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a contender ended by itself; its message is above")
        return json.loads(line)


def measure(size: str, kind: dict[str, bool], options: argparse.Namespace) -> dict[str, Any]:
    """One row of a table: seconds, memory and what was refused, of each contender by name."""
    from contenders import sized
    from measure import spread

    taking, refused, precision = {}, {}, options.precision
    for name in kind:
        contender = Contender(name, size, options, precision, peaks=not taking)
        if "refused" in contender.facts:
            refused[name] = contender.facts["refused"]
            contender.close()
        else:
            taking[name] = contender
            precision = contender.facts["dtype"]  # the first one's for all, as the peaks are
    for turn in range(options.rounds):
        for name in list(taking)[:: 1 if turn % 2 == 0 else -1]:
            time.sleep(0.02)  # until the others' threads have gone to sleep
            taking[name].step()
    first = taking[next(iter(kind))]
    chosen = sized(size, options.batch)
    row: dict[str, Any] = {"size": size, "name": chosen.name, "batch": chosen.batch}
    row |= {"rounds": options.rounds, "refused": refused, "contenders": {}}
    row |= {name: first.facts[name] for name in ("dtype", "tokens", "machine", "peaks", "flops")}
    for name, contender in taking.items():
        ratios = [theirs / mine for mine, theirs in zip(first.seconds, contender.seconds, strict=True)]
        row["contenders"][name] = {
            "seconds": spread(contender.seconds),
            "ratio": spread(ratios),
            "gemm_share": row["flops"] / spread(contender.seconds)["median"] / row["peaks"][row["dtype"]],
            "memory": contender.end(),
        }
    return row


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    facts, peaks = rows[0]["machine"], rows[0]["peaks"]
    shown = Table(
        title=f"{title}, {rows[0]['dtype']}",
        caption=f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}, "
        f"lightly {facts['lightly']}, timm {facts['timm']}; matrix products peak at "
        + " and ".join(f"{flops / 1e9:.0f} GFLOP/s in {name}" for name, flops in peaks.items()),
    )
    for heading in ("size", "who", "images/s", "ours is faster by (quartiles)", "of the GEMM peak", "memory, MiB"):
        shown.add_column(heading, justify="left" if heading in ("size", "who") else "right")
    for row in rows:
        for number, (name, found) in enumerate(row["contenders"].items()):
            ratio = found["ratio"]
            shown.add_row(
                "" if number else row["name"],
                name,
                f"{row['batch'] / found['seconds']['median']:.1f}",
                f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if number else "",
                f"{found['gemm_share']:.0%}",
                f"{found['memory'] / 2**20:,.0f}",
            )
        for name, why in row["refused"].items():
            shown.add_row("", name, why)
    Console().print(shown)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--rounds", type=int, default=11, help="timed steps of each, after some to warm up")
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=("small", "vit-s", "vit-b", "vit-s-256", "vit-b-128", "clip"),
        default=["small", "vit-s"],
    )
    parser.add_argument("--batch", type=int, help="images of a step; default: the size's own")
    parser.add_argument("--compiled", action="store_true", help="ours with torch.compile as well")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="cores of a CPU to use; default: all")
    parser.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="auto: the one whose matrix products are faster here",
    )
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    parser.add_argument("--peaks", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        contend(options)
        return
    for name, (_, needed) in PEERS.items():
        missing = [package for package in needed if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{name} is left out: {' and '.join(missing)} missing (pip install -e '.[parity]')", flush=True)
    tables: dict[str, list[dict[str, Any]]] = {"training": [], "forward": []}
    training = {name: own for name, own in TRAINING.items() if options.compiled or name != "compiled"}
    for size in options.sizes:
        for kind, names in (("training", training), ("forward", FORWARD)):
            tables[kind].append(measure(size, names, options))
            if options.json:
                options.json.write_text(json.dumps(tables, indent=1) + "\n")
    show(tables["training"], "A whole I-JEPA training step")
    show(tables["forward"], "An encoder's forward pass")


if __name__ == "__main__":
    main()
