"""How time and memory of a training step grow with tokens, width and batch, and of opening a folder with its images.

    python benchmarks/growth.py --json benchmarks/results/growth.json --plot benchmarks/results/growth.png \
        [--index benchmarks/results/indexing.json] [--sweeps tokens width batch] [--only 196]

Our step as the command line has it, with a replica for each core that shares the batch evenly, masks ready made. Memory
of an image is what a process takes more at its peak with twice the batch than another with the batch, by image.
Tokens and width vary from a ViT of width 384, depth 12, with 16 px patches, 14x14 tokens; batch from ViT 192x6 on 8x8
tokens.
``--index`` is what ``indexing.py`` wrote.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

# What varies: its points, as the grid's side in tokens, patch, width, depth, heads, predictor's width and depth, batch.
SWEEPS: dict[str, dict[int, tuple[int, ...]]] = {
    "tokens": {
        side * side: (side, 16, 384, 12, 6, 192, 6, batch) for side, batch in ((7, 16), (14, 8), (28, 4), (56, 2))
    },
    "width": {width: (14, 16, width, 12, width // 64, width // 2, 6, 24) for width in (192, 384, 768, 1024)},
    "batch": {batch: (8, 4, 192, 6, 3, 128, 1, batch) for batch in (2, 8, 32, 128, 512)},
}


def point(facts: tuple[int, ...], *, timed: bool) -> None:
    """In a process of its own: the memory of a step, and if ``timed`` seconds and FLOPs of an image, as JSON."""
    from openjepa.cli import suit_the_process

    suit_the_process()
    import torch

    import contenders
    from measure import gemm_peaks, machine, precision, seconds
    from openjepa.encoder import EncoderConfig, PredictorConfig
    from openjepa.training.metrics import peak_memory

    side, patch, width, depth, heads, narrow, shallow, batch = facts
    cpu = torch.device("cpu")
    peaks = gemm_peaks(cpu)
    dtype, cores = precision(peaks, "auto"), torch.get_num_threads()
    replicas = max(count for count in range(1, cores + 1) if batch % count == 0)
    torch.set_num_threads(cores // replicas)
    size = contenders.Size(
        name="",
        encoder=EncoderConfig(signal=(side * patch,) * 2, patch=(patch,) * 2, width=width, depth=depth, heads=heads),
        predictor=PredictorConfig(width=narrow, depth=shallow, heads=4),
        batch=batch,
    )
    task, times = contenders.Task(size, cpu, dtype), []
    step = contenders.ours(task, replicas)
    for _ in range(3):
        step()
    told: dict[str, Any] = {"peak memory": peak_memory(cpu)}
    if not timed:
        print(json.dumps(told))
        return
    while len(times) < 3 or sum(times) < 2:
        times.append(seconds(step, cpu))
    flops = contenders.flops(task, training=True) / batch
    told |= {"seconds": statistics.median(times) / batch, "flops": flops}
    print(json.dumps(told | {"dtype": dtype, "peak": peaks[dtype], "machine": machine(cpu) | {"threads": cores}}))


def measured(facts: tuple[int, ...], *, timed: bool) -> dict[str, Any]:
    """What a process of its own tells of a point."""
    command = [sys.executable, __file__, "--json", "-", "--point", *map(str, facts), *(["--untimed"] * (not timed))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def draw(results: dict[str, Any], path: Path) -> None:
    """Time above, memory below, one column for each thing that varies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    index = results.get("index", [])
    columns = [name for name in SWEEPS if name in results] + ["images"] * bool(index)
    figure, axes = pyplot.subplots(
        2, len(columns), figsize=(3.6 * len(columns), 6.4), layout="constrained", squeeze=False
    )
    for place, name in enumerate(columns):
        above, below = axes[0][place], axes[1][place]
        if name == "images":
            files = [found["files"] for found in index]
            for look, style in (("first", "o-"), ("again", "s--")):
                spent = [found[look]["open"] + found[look]["fingerprint"] for found in index]
                above.plot(files, spent, style, label=f"opened {look}" if look == "again" else "opened first")
                below.plot(files, [found[look]["MiB"] for found in index], style)
            above.set(title="images of a folder", ylabel="seconds to open it")
            below.set(ylabel="MiB to open it", xlabel="images")
            above.legend(frameon=False)
        else:
            found = {int(value): facts for value, facts in results[name].items()}
            values = sorted(found)
            above.plot(values, [1000 * found[value]["seconds"] for value in values], "o-", label="measured")
            limit = [1000 * found[value]["flops"] / found[value]["peak"] for value in values]
            above.plot(values, limit, ":", color="grey", label="its products at peak")
            below.plot(values, [found[value]["bytes"] / 2**20 for value in values], "o-")
            above.set(title=name, ylabel="ms of a step, by image")
            below.set(ylabel="MiB of a step, by image", xlabel=name)
            above.legend(frameon=False)
        points = [found["files"] for found in index] if name == "images" else [int(value) for value in results[name]]
        for axis in (above, below):
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(points, [f"{value:,}" for value in points], fontsize=8)
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.xaxis.set_minor_locator(ticker.NullLocator())
            axis.yaxis.set_minor_locator(ticker.NullLocator())
            axis.grid(alpha=0.3, linewidth=0.5)
    figure.savefig(path, dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--index", type=Path)
    parser.add_argument(
        "--sweeps", nargs="*", choices=list(SWEEPS), default=list(SWEEPS), help="others stay as they are"
    )
    parser.add_argument("--point", type=int, nargs=8, help=argparse.SUPPRESS)
    parser.add_argument("--untimed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, nargs="+", metavar="VALUE", help="points of the sweeps; others stay")
    options = parser.parse_args()
    if options.point:
        point(tuple(options.point), timed=not options.untimed)
        return
    known = [value for name in options.sweeps for value in SWEEPS[name]]
    wanted = options.only or known
    if not set(wanted) <= set(known):
        parser.error(f"--only takes points of the sweeps ({', '.join(map(str, known))}), got {wanted}")
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    for name in options.sweeps:
        found = results.setdefault(name, {})
        points = {value: facts for value, facts in SWEEPS[name].items() if value in wanted}
        print(f"\n| {name} | ms by image | of the GEMM peak | MiB by image |\n|---|---|---|---|")
        for value, facts in points.items():
            told = measured(facts, timed=True)
            twice = measured((*facts[:-1], 2 * facts[-1]), timed=False)
            told["bytes"] = (twice["peak memory"] - told["peak memory"]) / facts[-1]
            results["machine"] = told.pop("machine")
            found[str(value)] = told  # as JSON has it
            share = told["flops"] / told["seconds"] / told["peak"]
            cells = f"{1000 * told['seconds']:.1f} | {share:.0%} | {told['bytes'] / 2**20:.1f}"
            print(f"| {value:,} | {cells} |", flush=True)
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.index is not None:
        results["index"] = json.loads(options.index.read_text())
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
