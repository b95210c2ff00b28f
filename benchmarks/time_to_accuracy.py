"""How much a minute teaches: our default, the published recipe's settings and MAE, trained for several budgets of time.

    python benchmarks/time_to_accuracy.py DATA --out FOLDER [--minutes 2 7 30] [--seeds 0 1] [--marks 45 50]

Every (recipe, budget, seed) is a whole run with its own schedule, made and judged by the commands that a person would
type (``openjepa pretrain --minutes``), the others with the encoder that our default took with the same seed and the
same budget, or the nearest of those that are there (so ours goes first); nothing else should run meanwhile. Runs that
are there are left out, and a stopped one is gone on with, so a stopped study goes on. The mark is what the published
settings reach with the longest budget, and ``--marks`` are more of them for the linear probe, in percent. Told is the
time of training with which each recipe reaches it: by the clock, in the mean over seeds, and between two budgets along
a line over the logarithm of time. ``results.json`` in FOLDER holds the numbers.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OPENJEPA = [sys.executable, "-m", "openjepa"]
# The published settings (recipes/published.py) where they are not an architecture's or ImageNet's, with a
# fair mask of as many tokens as the published sampler leaves on 8x8 (its own never ends on small grids).
REFERENCE = """
    --masks.context-share 0.3125 --ijepa.target-norm layer --ijepa.variance-covariance 0 --ijepa.momentum 0.996 1.0
    --training.batch 256 --schedule.lr 1e-3 --schedule.start-lr 2e-4 --optimizer.betas 0.9 0.999
    --optimizer.matrices adamw --augmentation.crop-scale 0.3 1.0
    --predictor.width 96 --predictor.depth 4 --predictor.heads 3
"""
RECIPES = {"openjepa": [], "published settings": REFERENCE.split(), "MAE": ["--objective", "mae"]}


def train(data: str, run: Path, options: list[str]) -> None:
    """Begin the run, or go on with it."""
    begun = (run / "checkpoints").is_dir()
    command = ["resume", str(run)] if begun else ["pretrain", data, "--out", str(run), *options]
    subprocess.run([*OPENJEPA, *command], check=True, stdout=subprocess.DEVNULL)


def same_encoder(out: Path, minutes: float, seed: int) -> list[str]:
    """Options for the encoder of our run with the same seed and budget, or with the budget that is nearest to it."""
    begun = {float(run.parent.name.split("-")[1]): run for run in out.glob(f"openjepa-*-{seed}/experiment.json")}
    if not begun:
        raise SystemExit(
            f"the others take our encoder, and no run with seed {seed} is in {out}: add openjepa to --recipes"
        )
    nearest = begun[min(begun, key=lambda budget: abs(budget - minutes))]
    encoder = json.loads(nearest.read_text())["encoder"]
    return [part for name in ("width", "depth", "heads") for part in (f"--encoder.{name}", str(encoder[name]))]


def found_by(run: Path) -> dict[str, Any]:
    """k-NN and probe of the run's encoder and of the baselines, and what the run took."""
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    found = {f"{row['features']}, {row['evaluator']}": row["value"] for row in rows if row["metric"] == "accuracy"}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {"accuracy": found, "steps": last["step"] + 1, "seconds": last["seconds"]}


def time_to(mark: float, curve: list[tuple[float, float]]) -> str:
    """The minutes with which a ``curve`` of (minutes, accuracy), in their order, first reaches the mark, in words."""
    before = None
    for minutes, accuracy in curve:
        if accuracy >= mark:
            if before is None:
                return f"at most {minutes:.1f} minutes"
            share = (mark - before[1]) / (accuracy - before[1])
            return f"{math.exp(math.log(before[0]) + share * math.log(minutes / before[0])):.1f} minutes"
        before = minutes, accuracy
    return "not run" if before is None else f"not in {before[0]:.1f} minutes"


def told(results: list[dict[str, Any]], evaluator: str, marks: Sequence[float] = ()) -> str:
    """The table of one evaluator as Markdown, and the time to each mark and to what the published settings end with."""
    budgets = sorted({result["minutes"] for result in results})
    heading = " | ".join(f"{budget:g} min" for budget in budgets)
    rows = [f"| {evaluator} | {heading} |", f"|{'---|' * (len(budgets) + 1)}"]
    curves: dict[str, list[tuple[float, float]]] = {recipe: [] for recipe in RECIPES}
    for recipe in RECIPES:
        cells = []
        for budget in budgets:
            runs = [result for result in results if (result["recipe"], result["minutes"]) == (recipe, budget)]
            own = [100 * run["accuracy"][f"trained encoder, {evaluator}"] for run in runs]
            if own:
                minutes = statistics.mean(run["seconds"] for run in runs) / 60
                curves[recipe].append((minutes, statistics.mean(own)))
            cells.append(" ".join(f"{value:.1f}" for value in own))
        rows.append(f"| {recipe} | {' | '.join(cells)} |")
    ends = [curve[-1][1] for recipe, curve in curves.items() if recipe == "published settings" and curve]
    for mark in sorted({*marks, *ends}):
        rows.append(f"to {mark:.1f}: {'; '.join(f'{name} {time_to(mark, curve)}' for name, curve in curves.items())}")
    return "\n".join(rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[2.0, 7.0, 30.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="NAME")
    parser.add_argument("--marks", type=float, nargs="+", default=[], help="of the linear probe, in percent")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    done = {(result["recipe"], result["minutes"], result["seed"]) for result in results}
    for seed in options.seeds:
        for minutes in sorted(options.minutes):
            for recipe in RECIPES:
                if recipe not in options.recipes or (recipe, minutes, seed) in done:
                    continue
                run = options.out / f"{recipe.replace(' ', '-')}-{minutes:g}-{seed}"
                encoder = same_encoder(options.out, minutes, seed) if recipe != "openjepa" else []
                train(options.data, run, ["--minutes", str(minutes), "--seed", str(seed), *encoder, *RECIPES[recipe]])
                found = found_by(run)
                results.append({"recipe": recipe, "minutes": minutes, "seed": seed, **found})
                path.write_text(json.dumps(results, indent=1) + "\n")
                print(recipe, minutes, seed, found["steps"], "steps", found["accuracy"], flush=True)
    for evaluator, marks in (("linear probe", options.marks), ("k-NN", ())):
        print(told(results, evaluator, marks), end="\n\n")


if __name__ == "__main__":
    main()
