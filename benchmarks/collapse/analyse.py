"""What the runs of ``run.py`` say of the watch: how early and how surely it tells a run that ends badly.

    python benchmarks/collapse/analyse.py STUDY.jsonl --out FOLDER
    python benchmarks/collapse/analyse.py PAIR.jsonl --looks [--out FOLDER]    (each run by itself, look by look)

A run is bad where its last encoder is below its own untrained one on the linear probe (and, separately, on k-NN) of
labelled images that the watch does not have. Signs and thresholds are settled on one half of the runs (by a hash of
their number) and the numbers reported are of the other half; the columns "all" are of both. Alarms are counted twice:
as the watch gives them with labels at hand, and without. Writes ``analysis.json``, ``analysis.md``, ``analysis.png``
and ``runs.jsonl``, the runs without the rows between two looks, which it takes for a STUDY as well.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from openjepa import draws
from openjepa.diagnosis.findings import Finding, diagnose
from openjepa.diagnosis.looks import UNTRAINED, score

LABELLED = {prefix + name for prefix in ("", UNTRAINED) for name in ("knn", "probe")}
# Label-free first; then what the online labels say; last the loss, for comparison.
RATIOS = ("rankme", "lidar")
DIFFERENCES = ("alpha_req", "pixel_r2", "uniformity", "alignment", "image_share", "knn", "probe")
# Which way up the judged images are that were turned: not of the watch, but of what is told without labels afterwards.
TURNED = ("turned_knn", "turned_probe")
WEIGHTS = (0.25, 0.5, 1.0)  # of RankMe beside alpha-ReQ; the library's is 0.5, with pixel R2 beside
# Which way is better, where the measure itself says so; of the others one half of the runs decides.
SIGNS = {"rankme": 1, "lidar": 1, "alpha_req": -1, "pixel_r2": 1, "image_share": 1, "knn": 1, "probe": 1}
SIGNS |= dict.fromkeys(TURNED, 1)
RESAMPLES = 2000
# A run that ends at least so far from its untrained encoder ends clearly above or below; within it is mostly noise.
CLEAR = 0.02


@dataclass(frozen=True, kw_only=True)
class Studied:
    """A finished run: looks 0 (untrained) to 10, the loss at each, and the probe and k-NN judged there."""

    number: int | str
    looks: list[dict[str, float]]
    rows: list[dict[str, Any]]
    judged: dict[str, np.ndarray]

    @property
    def fitting(self) -> bool:
        """Whether thresholds are chosen on it, rather than reported."""
        return bool(draws.bits("collapse half", self.number)[0] & np.uint64(1))

    def bad(self, outcome: str) -> bool:
        """Whether it ends below the untrained encoder."""
        return bool(self.judged[outcome][-1] < self.judged[outcome][0])


def read(path: Path) -> tuple[list[Studied], int]:
    """The runs that finished, and how many broke down."""
    found, failed = [], 0
    for line in path.read_text().splitlines():
        run = json.loads(line)
        if "failed" in run:
            failed += 1
            continue
        taken = run["looks"][-11:]  # the first runs looked twice before the first step
        looks = [dict(look["watch"]) for look in taken]
        for look in looks:
            images, positions = look["features_over_images"], look["features_over_positions"]
            look["image_share"] = images / max(images + positions, 1e-12)
            look.setdefault("alpha_req", 10.0)  # not finite, and so not logged: no spectrum at all
        for look, own in zip(looks, taken, strict=True):
            look |= {name: value for name, value in own["judged"].items() if name in TURNED}
        judged = {name: np.array([look["judged"][name] for look in taken]) for name in ("probe", "knn")}
        rows = run["rows"]
        rows[0] |= {UNTRAINED + name: value for name, value in looks[0].items()}
        found.append(Studied(number=run["run"], looks=looks, rows=rows, judged=judged))
    return found, failed


def measures(runs: Sequence[Studied]) -> dict[str, Callable[[Studied, int], float]]:
    """Numbers that may tell, as functions of a run and a look: each against the untrained encoder's.

    Of pixel R2 and turned images only where all runs have them, for those before 2026-11-29 do not.
    """
    differences = [name for name in (*DIFFERENCES, *TURNED) if all(name in look for run in runs for look in run.looks)]

    def ratio(name: str) -> Callable[[Studied, int], float]:
        return lambda run, at: math.log(max(run.looks[at][name], 1e-9) / max(run.looks[0][name], 1e-9))

    def difference(name: str) -> Callable[[Studied, int], float]:
        return lambda run, at: run.looks[at][name] - run.looks[0][name]

    def library(run: Studied, at: int) -> float:
        found = score(run.looks[at], run.looks[0])
        return 0.0 if found is None else found

    def loss(run: Studied, at: int) -> float:
        rows = [row["loss"] for row in run.rows if row["step"] < at * (run.rows[-1]["step"] + 1) / 10]
        return rows[-1] / rows[0] if rows else 1.0

    def combined(run: Studied, at: int, weight: float) -> float:
        return weight * ratio("rankme")(run, at) - difference("alpha_req")(run, at)

    found: dict[str, Callable[[Studied, int], float]] = {"score (the library's)": library}
    found |= {f"{w:g} log rankme - alpha_req": lambda run, at, w=w: combined(run, at, w) for w in WEIGHTS}
    found |= {name: ratio(name) for name in RATIOS} | {name: difference(name) for name in differences}
    return found | {"loss": loss}


def interval(values: np.ndarray, bad: np.ndarray) -> tuple[float, float, float]:
    """AUC of a lower value meaning bad (the share of pairs in order, ties a half), and its 95% bootstrap interval."""
    if bad.all() or not bad.any():
        return math.nan, math.nan, math.nan
    n = len(bad)
    below, above = values[bad][:, None], values[~bad][None]
    ordered = (below < above) + 0.5 * (below == above)
    drawn = (draws.uniform("collapse bootstrap", np.arange(RESAMPLES)[:, None], np.arange(n)) * n).astype(int)
    times = (drawn[:, :, None] == np.arange(n)).sum(1)  # how often each run is in each resample
    hits, pairs = ((times[:, bad] @ ordered) * times[:, ~bad]).sum(1), times[:, bad].sum(1) * times[:, ~bad].sum(1)
    low, high = np.quantile(hits[pairs > 0] / pairs[pairs > 0], [0.025, 0.975])
    return float(ordered.mean()), float(low), float(high)


def separation(runs: Sequence[Studied], outcome: str) -> dict[str, Any]:
    """For every measure and tenth: AUC on the half reported and on all, the sign settled on the other half."""
    bad = np.array([run.bad(outcome) for run in runs])
    fitting = np.array([run.fitting for run in runs])
    found: dict[str, Any] = {}
    for name, measure in measures(runs).items():
        values = np.array([[measure(run, at) for at in range(11)] for run in runs])
        clear = np.array([abs(run.judged[outcome][-1] - run.judged[outcome][0]) >= CLEAR for run in runs])
        known = interval(values[fitting, 2], bad[fitting])[0]
        sign = SIGNS.get(name, 1 if "log rankme" in name or name.startswith("score") or not known < 0.5 else -1)
        found[name] = {
            "sign": sign,
            "reported": [interval(sign * values[~fitting, at], bad[~fitting]) for at in range(1, 11)],
            "all": [interval(sign * values[:, at], bad) for at in range(1, 11)],
            "clear": [interval(sign * values[clear, at], bad[clear]) for at in range(1, 11)],
        }
    return found


def findings(run: Studied, *, labels: bool) -> list[list[Finding]]:
    """What the watch shows at each tenth; with ``labels`` or without them."""
    rows = [{k: v for k, v in row.items() if labels or k not in LABELLED} for row in run.rows]
    steps = [row["step"] for row in rows if "rankme" in row]
    return [diagnose([row for row in rows if row["step"] <= step]) for step in steps]


def alarms(runs: Sequence[Studied], outcome: str, *, labels: bool) -> dict[str, Any]:
    """What a person would have been told: at each tenth, whether :func:`diagnose` sees trouble; with ``labels`` or
    without them."""
    told = np.array(
        [[any(one.severity == "trouble" for one in found) for found in findings(run, labels=labels)] for run in runs]
    )
    bad = np.array([run.bad(outcome) for run in runs])
    first = [int(row.argmax()) + 1 if row.any() else None for row in told]
    caught = [at for at, is_bad in zip(first, bad, strict=True) if is_bad and at is not None]
    return {
        "bad_runs": int(bad.sum()),
        "good_runs": int((~bad).sum()),
        "share_of_bad_in_trouble": told[bad].mean(0).tolist() if bad.any() else [],
        "share_of_good_in_trouble": told[~bad].mean(0).tolist() if (~bad).any() else [],
        "mean_share_of_run_left_at_alarm": 1 - float(np.mean(caught)) / 10 if caught else None,
    }


def ranks(runs: Sequence[Studied], outcome: str, signs: dict[str, int]) -> dict[str, float]:
    """Spearman's correlation of each measure with the accuracy at the runs' ends, both against the untrained one's."""
    ends = rankdata([run.judged[outcome][-1] - run.judged[outcome][0] for run in runs])
    values = {name: [signs[name] * own(run, 10) for run in runs] for name, own in measures(runs).items()}
    return {name: float(np.corrcoef(rankdata(own), ends)[0, 1]) for name, own in values.items()}


def choices(runs: Sequence[Studied], outcome: str, signs: dict[str, int]) -> dict[str, Any]:
    """Points that a choice among the ten checkpoints loses against the one that is best by the evaluation."""

    def lost(pick: Callable[[Studied], int]) -> dict[str, float]:
        points = [100 * (run.judged[outcome][1:].max() - run.judged[outcome][pick(run)]) for run in runs]
        return {"mean": float(np.mean(points)), "most": float(np.max(points))}

    found = {"last checkpoint": lost(lambda run: 10)}
    for name, measure in measures(runs).items():
        found[name] = lost(
            lambda run, m=measure, s=signs[name]: 1 + int(np.argmax([s * m(run, i) for i in range(1, 11)]))
        )
    return found


def markdown(found: dict[str, Any]) -> str:
    """The tables, as they stand in a README."""
    parts = [f"{found['runs']} runs, {found['reported']} of them reported; {found['failed']} broke down."]
    for outcome, part in found["outcomes"].items():
        parts.append(
            f"\n## Outcome: {outcome} ({part['alarms']['bad_runs']} of {found['runs']} runs end below random)\n"
        )
        parts.append(
            "| measure | AUC at 1/10 | 2/10 (95%) | 5/10 | 10/10 | all runs, 2/10 | clear ends, 2/10 | points lost "
            "(most) | rank correlation of the ends |"
        )
        parts.append(f"|{'---|' * 9}")
        for name, auc in part["separation"].items():
            own, every, lost, clear = auc["reported"], auc["all"], part["choices"][name], auc["clear"][1]
            parts.append(
                f"| {name} | {own[0][0]:.2f} | {own[1][0]:.2f} ({own[1][1]:.2f} to {own[1][2]:.2f}) | {own[4][0]:.2f} "
                f"| {own[9][0]:.2f} | {every[1][0]:.2f} ({every[1][1]:.2f} to {every[1][2]:.2f}) "
                f"| {clear[0]:.2f} ({clear[1]:.2f} to {clear[2]:.2f}) | {lost['mean']:.1f} ({lost['most']:.1f}) "
                f"| {part['ranks'][name]:.2f} |"
            )
        last = part["choices"]["last checkpoint"]
        parts.append(f"| last checkpoint | | | | | | | {last['mean']:.1f} ({last['most']:.1f}) | |")
        for told, whose in ((part["alarms"], "with labels"), (part["alarms without labels"], "without labels")):
            for kind in ("bad", "good"):
                shares = " ".join(f"{100 * share:.0f}" for share in told[f"share_of_{kind}_in_trouble"])
                parts.append(f"\n{kind} runs told to be in trouble, {whose}, at each tenth (%): {shares}")
            left = told["mean_share_of_run_left_at_alarm"]
            if left is not None:
                parts.append(f"\nAt the first alarm {whose} {100 * left:.0f}% of a bad run is still to come.")
    return "\n".join(parts) + "\n"


def by_look(run: Studied) -> str:
    """One run as a table: what was judged at each look, two of the watch's measures, and what the watch told."""
    steps = [0, *(row["step"] + 1 for row in run.rows if "rankme" in row)]
    # Before the first step there is nothing to tell.
    told = [[[], *findings(run, labels=labels)] for labels in (True, False)]
    parts = [
        f"\n{run.number}\n",
        "| steps | k-NN | probe | RankMe | pixel R2 | loss | with labels | without |",
        f"|{'---|' * 8}",
    ]
    losses = {row["step"] + 1: row["loss"] for row in run.rows}
    for at, step in enumerate(steps):
        kinds = [", ".join(f"{one.kind}: {one.severity}" for one in found[at]) for found in told]
        look, judged = run.looks[at], run.judged
        cells = [
            f"{step:,}",
            *(f"{100 * judged[name][at]:.1f}" for name in ("knn", "probe")),
            *(f"{look[name]:.{digits}f}" if name in look else "" for name, digits in (("rankme", 1), ("pixel_r2", 2))),
            f"{losses[step]:.4f}" if step else "",
            *kinds,
        ]
        parts.append(f"| {' | '.join(cells)} |")
    sentences = {one.kind: one.sentence for found in told[0] for one in found}
    return "\n".join([*parts, "", *sentences.values()])


def picture(found: dict[str, Any], path: Path) -> None:
    """AUC over the run for every measure, an axis for each outcome."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    colours = colormaps["tab20"]
    for axes, (outcome, part) in zip(figure.subplots(1, 2, sharey=True), found["outcomes"].items(), strict=True):
        for place, (name, auc) in enumerate(part["separation"].items()):
            own = np.array(auc["all"])
            is_score = name.startswith("score")
            axes.plot(
                range(1, 11),
                own[:, 0],
                label=name,
                color=colours(place),
                linewidth=2.5 if is_score else 1.2,
                zorder=3 if is_score else 2,
            )
            if is_score:
                axes.fill_between(range(1, 11), own[:, 1], own[:, 2], alpha=0.15)
        axes.axhline(0.95, color="grey", linewidth=0.8, dashes=(3, 3))
        axes.set(
            title=f"ends below random on {'the probe' if outcome == 'probe' else 'k-NN'}",
            xlabel="tenth of the run",
            ylim=(0.3, 1.02),
        )
    figure.axes[0].set_ylabel("AUC, all runs")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    figure.savefig(path, dpi=130)


def slim(study: Path, path: Path) -> None:
    """Write the runs with the first of their rows and those of their looks, in five digits."""
    lines = []
    for line in study.read_text().splitlines():
        run = json.loads(line, parse_float=lambda text: float(f"{float(text):.5g}"))
        if "rows" in run:
            run["rows"] = [row for number, row in enumerate(run["rows"]) if number == 0 or "rankme" in row]
        lines.append(json.dumps(run) + "\n")
    path.write_text("".join(lines))


def analyse(runs: Sequence[Studied], failed: int, out: Path) -> None:
    """What all of the runs say, as JSON, tables and a picture in the folder ``out``."""
    reported = [run for run in runs if not run.fitting]
    outcomes = {}
    for outcome in ("probe", "knn"):
        separated = separation(runs, outcome)
        signs = {name: part["sign"] for name, part in separated.items()}
        outcomes[outcome] = {
            "separation": separated,
            "alarms": alarms(runs, outcome, labels=True),
            "alarms without labels": alarms(runs, outcome, labels=False),
            "ranks": ranks(runs, outcome, signs),
            "choices": choices(reported, outcome, signs),
            "choices_all": choices(runs, outcome, signs),
        }
    found = {"runs": len(runs), "reported": len(reported), "failed": failed, "outcomes": outcomes}
    (out / "analysis.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "analysis.md").write_text(markdown(found))
    picture(found, out / "analysis.png")
    print(markdown(found))


def main() -> None:
    """Parse, compute, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--looks", action="store_true", help="a table of each run instead of what all of them say")
    given = parser.parse_args()
    out: Path | None = given.out
    if out is not None and given.study.resolve() == (out / "runs.jsonl").resolve():
        parser.error("--out would overwrite the study: name another folder")
    runs, failed = read(given.study)
    if not runs:
        parser.error(f"{given.study} holds no finished run")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        slim(given.study, out / "runs.jsonl")
    if given.looks:
        print("\n".join(map(by_look, runs)))
    elif out is not None:
        analyse(runs, failed, out)
    else:
        parser.error("--out is missing: name the folder of the analysis")


if __name__ == "__main__":
    main()
