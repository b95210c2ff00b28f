"""The page of a comparison: what each objective predicts, costs and reaches, from ``compare.json`` alone."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from openjepa._version import __version__
from openjepa.errors import InputError
from openjepa.files import write_whole
from openjepa.report.formats import (
    CALLED,
    Number,
    between,
    count,
    duration,
    escape,
    listed,
    memory,
    percent,
    plain,
    points,
    scaled,
    table,
)
from openjepa.report.series import COLOURS, Line, lines_svg
from openjepa.report.verdict import STAND_IN, spoken

REFERENCES = ("random encoder", "raw pixels", "from scratch")
_SEES = {"ijepa": "a block of tokens", "mae": "random tokens", "denoising": "all tokens, noisy"}
_PREDICTS = {
    "ijepa": "features of hidden blocks, from a slowly moving copy of the encoder",
    "mae": "pixels of the hidden patches",
    "denoising": "the clean pixels of all patches",
}
_MAIN = ("k-NN", "linear probe")
# Mean times of training that differ by more than this share are told.
_SAME_TIME = 0.05
# Standard deviations up to this are rounding: all seeds gave the same (openjepa.evaluation.intervals.NO_SPREAD).
_NO_SPREAD = 1e-12
_TASKS = {
    "classes": "Semantic: the classes of whole images",
    "rotation": "Without labels: which way up an image is",
    "scenes": "Local: scenes of several objects (count, distance, place)",
    "segmentation": "Dense: the class of every pixel",
    "robustness": "Robustness: fitted to clean images, asked about spoilt ones",
    "fine-tuning": "Fine-tuning: all weights trained on the labels",
}


def write_comparison(folder: Path) -> Path:
    """Write ``compare.html`` beside ``compare.json`` and return its path.

    Raises:
        InputError: the folder holds no comparison, or none of its runs is finished.
    """
    path = Path(folder) / "compare.json"
    try:
        content = json.loads(path.read_text())
        runs = content["runs"]
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{path} is missing, damaged or holds no runs yet ({error})") from error
    if not runs:
        raise InputError(f"no run of {folder} is finished yet: go on with {content.get('command', 'openjepa compare')}")
    target = Path(folder) / "compare.html"
    write_whole(target, render(content))
    return target


def render(content: dict[str, Any]) -> str:
    """The whole page as HTML."""
    objectives = [name for name in content["request"]["objectives"] if any(_of(content, name))]
    data = next(iter(content["plans"].values()))["facts"]["data"]
    css = (files("openjepa.report") / "page.css").read_text(encoding="utf-8")
    title = f"{listed([CALLED[name] for name in objectives])} on {Path(data['name']).name}"
    left = len(content["request"]["objectives"]) * content["request"]["seeds"] - len(content["runs"])
    note = f'<div class="notes">{_unfinished(left)} numbers are missing here.</div>' if left else ""
    if unequal := _unequal(content, objectives):
        note += f'<div class="notes">{escape(unequal)}</div>'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: openjepa compare</title>\n<style>\n{css}</style></head>\n<body><main>"
        f'<p class="over"><b>openjepa compare</b> · {escape(data["name"])}</p><h1>{escape(title)}</h1>'
        f'<p class="lede">{escape(_equal(content))}</p>{note}'
        f"<h2>What the numbers say</h2>{_verdict(content, objectives)}"
        f"<h2>Side by side</h2>{_properties(content, objectives)}"
        f"<h2>Accuracy against compute</h2>{_curves(content, objectives)}"
        f"<h2>Every measure</h2>{_measures(content, objectives)}"
        f"<h2>The runs</h2>{_runs(content)}"
        f"<footer>Written by openjepa {escape(__version__)} from compare.json; repeat or go on with "
        f"<code>{escape(content['command'])}</code>.</footer></main></body></html>\n"
    )


def _unfinished(left: int) -> str:
    return f"{left} runs are not finished; their" if left > 1 else "1 run is not finished; its"


def _of(content: dict[str, Any], objective: str) -> list[dict[str, Any]]:
    return [run for run in content["runs"] if run["objective"] == objective]


def _equal(content: dict[str, Any]) -> str:
    request = content["request"]
    name, budget = next(
        (name, request[name]) for name in ("minutes", "flops", "steps", "epochs") if request[name] is not None
    )
    unit = name if budget != 1 else name[:-1]
    told = {"flops": f"{_operations(budget)} of training", "steps": f"{count(budget)} {unit}"}
    # As they were asked for: 0.4 epochs are not none.
    told |= {"minutes": f"{budget:,g} {unit} of training", "epochs": f"{budget:,g} {unit}"}
    seeds = f"{request['seeds']} seeds" if request["seeds"] > 1 else "one seed"
    both = (("mae", "MAE"), ("denoising", "the denoising autoencoder"))
    given: Any = (request.get("experiment") or {}).get("method")
    pixels = listed([called for each, called in both if each in request["objectives"] and each != given])
    own = f", but for {CALLED[given]}'s, of the experiment given" if given in request["objectives"] else ""
    have = "have" if " and " in pixels else "has"
    papers = f" {pixels[:1].upper()}{pixels[1:]} {have} the MAE paper's betas, weight decay and share"
    return (
        f"The same images, crops and encoder, {told[name]} for each run, {seeds}. Learning rates and decoders are this "
        f"project's own{own}.{f'{papers} of warm-up.' if pixels else ''}{_tuned(content)}"
    )


def _tuned(content: dict[str, Any]) -> str:
    """How much choosing each objective's settings had, where one had more than another; it is known of ``small``."""
    objectives, plans = content["request"]["objectives"], content["plans"].values()
    if len(objectives) < 2:
        return ""
    alike = " Their settings were not chosen with equal care"
    if content["request"].get("experiment") or any(one["experiment"]["recipe"] != "small" for one in plans):
        return f"{alike}."
    said = {
        "ijepa": "those of I-JEPA by many trials (of the bundled sample on the very images that it is tested on)",
        "mae": "those of MAE by four learning rates",
        "denoising": "those of the denoising autoencoder by none",
    }
    return f"{alike}: {listed([said[name] for name in said if name in objectives])}."


def _operations(number: Number) -> str:
    """Operations of a whole run, in the unit of the curves."""
    return f"{plain(number / 1e12)} TFLOP"


def _heads(content: dict[str, Any], objectives: Sequence[str]) -> list[str]:
    """The objectives' names for columns, with their seeds where some are not finished."""
    asked = content["request"]["seeds"]
    done = {name: len(_of(content, name)) for name in objectives}
    return [
        CALLED[name] if done[name] == asked else f"{CALLED[name]}, {done[name]} of {asked} seeds" for name in objectives
    ]


def _unequal(content: dict[str, Any], objectives: Sequence[str]) -> str:
    """That some had more time than others where the same was given, or nothing."""
    means = {name: _mean([run["seconds"] for run in _of(content, name)]) for name in objectives}
    if content["request"]["minutes"] is None or max(means.values()) <= (1 + _SAME_TIME) * min(means.values()):
        return ""
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    return (
        f"By the clock they did not have the same time: {CALLED[most]} trained for {duration(means[most])} in the "
        f"mean, {CALLED[least]} for {duration(means[least])}. Each plan is made of a few steps, and what else the "
        f"machine did while the runs took theirs is in these times too."
    )


def _verdict(content: dict[str, Any], objectives: Sequence[str]) -> str:
    """One sentence for each main evaluator: the means, and which differences are clear."""
    said = _sentences(content, objectives, "classes")
    if said:
        return said
    said = _sentences(content, objectives, STAND_IN)
    stand_in = "Which way up an image is stands in for labels, which would say more. " if said else ""
    return (
        f"<p>{_unjudged(content)}. {stand_in}Scenes are drawn from the bundled sample, not from your images; RankMe is "
        f"in each run's report.</p>{said}"
    )


def _sentences(content: dict[str, Any], objectives: Sequence[str], task: str) -> str:
    said = []
    for evaluator in _MAIN if task == "classes" else _MAIN[:1]:
        wanted = task, evaluator, "accuracy"
        row = next((r for r in content["summary"] if (r["task"], r["evaluator"], r["metric"]) == wanted), None)
        if row is None:
            continue
        named = [f"{CALLED[name]} {percent(row['values'][name]['mean'])}" for name in objectives]
        named += [f"{name} {percent(row['values'][name]['mean'])}" for name in REFERENCES if name in row["values"]]
        parts = [_told(name, objectives[0], row) for name in objectives[1:]]
        said.append(f"<p>By <b>{escape(spoken(evaluator))}</b>: {escape(listed(named))}. {escape(' '.join(parts))}</p>")
    return "".join(said)


def _unjudged(content: dict[str, Any]) -> str:
    """Why no run has an accuracy on the images."""
    if _labelled(content):
        return "By the labels of your images no run could be judged (each run's report says why)"
    return "Your images have no labels"


def _labelled(content: dict[str, Any]) -> bool:
    return any(planned["facts"]["data"].get("labelled") for planned in content["plans"].values())


def _told(name: str, first: str, row: dict[str, Any]) -> str:
    """How an objective stands against the first one by a row of the summary."""
    value, low, high = (row["differences"][name][key] for key in ("value", "low", "high"))
    apart = f"{abs(100 * value):.1f} points {'above' if value > 0 else 'below'}"
    named = f"The {CALLED[name]}" if name == "denoising" else CALLED[name]
    text = f"{named} is {'level with' if points(value) == '0.0' else apart} {CALLED[first]}"
    if low is None or high is None:
        if min(row["values"][each]["n"] for each in (name, first)) > 1:
            return f"{text}; all seeds gave the same, so there is no interval."
        alone = [CALLED[each] for each in (first, name) if row["values"][each]["n"] == 1]
        return f"{text}; with one seed of {listed(alone)} nothing can be said about how sure that is."
    clear = "clear" if low > 0 or high < 0 else "not clear"
    images = row["differences"][name].get("test_images")  # older versions counted seeds alone
    over = "seeds alone" if images is None else f"seeds and the {count(images)} test images"
    return f"{text} (95% interval over {over} {points(low)} to {points(high)}: {clear})."


def _mean(values: Sequence[Number]) -> float:
    return float(np.mean(values))


# By what moves the matrices of the blocks; before 2026-11-30 that was not told, and AdamW.
_OPTIMISERS = {"adamw": "AdamW", "muon": "Muon for the blocks' matrices, AdamW for all else"}


def _properties(content: dict[str, Any], objectives: Sequence[str]) -> str:
    plans = {name: content["plans"][name]["facts"] for name in objectives}
    runs = {name: _of(content, name) for name in objectives}

    def measured(key: str, show) -> list[str]:
        values = [[run[key] for run in runs[name]] for name in objectives]
        return ["not available" if None in each else show(_mean(each)) for each in values]

    def planned(show) -> list[str]:
        return [show(plans[name]) for name in objectives]

    lines = [
        ["Sees", *(_SEES[name] for name in objectives)],
        ["Predicts", *(_PREDICTS[name] for name in objectives)],
        ["Tokens seen of the grid", *planned(lambda f: f"{f['masks']['context_tokens']} of {np.prod(f['grid'])}")],
        ["Encoder, parameters", *planned(lambda f: scaled(f["parameters"]["encoder"], "").rstrip())],
        ["Predictor or decoder, parameters", *planned(lambda f: scaled(f["parameters"]["predictor"], "").rstrip())],
        ["Training cost of an image", *planned(lambda f: scaled(f["flops_per_image"]["step"], "FLOP"))],
        ["Optimiser", *planned(lambda f: _OPTIMISERS[f.get("matrices_moved_by", "adamw")])],
        ["Steps", *measured("steps", count)],
        ["Passes over the images", *planned(lambda f: plain(f["epochs"]))],
        ["Time of training", *measured("seconds", duration)],
        ["Images a second", *measured("images_per_s", count)],
        ["Time of an image", *measured("images_per_s", lambda rate: f"{plain(1000 / rate)} ms")],
        ["Training cost of a run", *measured("flops", _operations)],
        ["Peak memory of the process", *measured("peak_memory", memory)],
        ["Energy that the machine counted", *measured("joules", lambda value: scaled(value, "J"))],
    ]
    return table(["", *_heads(content, objectives)], lines, kind="sides")


def _curves(content: dict[str, Any], objectives: Sequence[str]) -> str:
    colours = dict(zip(objectives, COLOURS, strict=False))
    key = "".join(f'<li><i style="background:{colours[name]}"></i>{CALLED[name]}</li>' for name in objectives)
    cards = []
    for measure, title in (("knn", "Online k-NN"), ("probe", "Online probe")):
        for axis, x_name in (("seconds", "seconds of training"), ("flops", "TFLOP of training")):
            lines = [line for run in content["runs"] if (line := _line(run, axis, measure)) is not None]
            if lines:
                svg = lines_svg(lines, label=f"{title} over {x_name}", x_name=x_name, colours=colours)
                cards.append(f'<figure class="card"><header><h3>{title}</h3></header>{svg}</figure>')
    if not cards:
        why = "No accuracy was measured in training" if _labelled(content) else "The images have no labels"
        return f"<p>{why}, so there is none to draw.</p>"
    if any(run.get("untrained") for run in content["runs"]):
        lines_of = "They begin with the encoder before its first step, whose mean is dashed. Raw pixels were"
    else:  # as older versions compared
        lines_of = "A random encoder and raw pixels were"
    return (
        f'<ul class="key">{key}</ul><div class="curves wide">{"".join(cards)}</div><p class="quiet">Online measures '
        "are taken on few training images and show trends; the tables below are the results. Thin lines are seeds, "
        f"a bold one is their mean. {lines_of} not measured so, and have no line.</p>"
    )


def _line(run: dict[str, Any], axis: str, measure: str) -> Line | None:
    rows = [row for row in run["curve"] if measure in row]
    if not rows:
        return None
    x, y = (np.array([row[name] for row in rows], np.float64) for name in (axis, measure))
    before = run.get("untrained", {}).get(measure)  # runs of older versions have none
    return Line(objective=run["objective"], x=x / 1e12 if axis == "flops" else x, y=y, before=before)


def _measures(content: dict[str, Any], objectives: Sequence[str]) -> str:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in content["summary"]:
        groups.setdefault(row["task"].split(":")[0], []).append(row)
    parts = []
    for task, rows in groups.items():
        references = [name for name in REFERENCES if any(name in row["values"] for row in rows)]
        names = [*objectives, *references]
        cells = [
            [_named(row), *(_cell(row, name, objectives) for name in names), *(_gap(row, n) for n in objectives[1:])]
            for row in rows
        ]
        heads = ["", *_heads(content, objectives), *(escape(name) for name in references)]
        heads += [f"{CALLED[name]} less {CALLED[objectives[0]]}" for name in objectives[1:]]
        parts.append(f"<h3>{escape(_TASKS.get(task, task))}</h3>{table(heads, cells, kind='measures')}")
    one = min(len(_of(content, name)) for name in objectives) == 1
    lacking = " With one seed of an objective its differences have none, and nothing of it is bold." if one else ""
    return (
        '<p class="quiet">Mean over the seeds ± their standard deviation. An objective is bold where it is above every '
        "other one and the 95% interval of each difference leaves out zero. It holds what other training seeds and "
        "another draw of as many test images would change, for two objectives are compared image by image; of other "
        "measures, as the balanced accuracy, it is over seeds alone, which is said. The last "
        f"columns hold these intervals of the differences from {CALLED[objectives[0]]}, in points.{lacking} The "
        "interval of each accuracy stands in each run's own report.</p>" + "".join(parts)
    )


def _named(row: dict[str, Any]) -> str:
    task = row["task"].partition(": ")[2]
    return escape(", ".join(part for part in (task, row["evaluator"], row["metric"]) if part and part != "accuracy"))


def _cell(row: dict[str, Any], name: str, objectives: Sequence[str]) -> str:
    if name not in row["values"]:
        return ""
    found = row["values"][name]
    spread = name in objectives and found["std"] is not None  # the references are the same for every seed
    text = percent(found["mean"]) + (f" ± {100 * found['std']:.1f}" if spread else "")
    others = [each for each in objectives if each != name and each in row["values"]]
    best = name in objectives and others and all(_above(row, name, each) for each in others)
    return f"<b>{text}</b>" if best else text


def _above(row: dict[str, Any], name: str, against: str) -> bool:
    """Whether the 95% interval of the difference of two objectives lies above zero."""
    for pair in row.get("pairs", ()):
        if {pair["of"], pair["against"]} == {name, against}:
            bound = pair["low"] if pair["of"] == name else pair["high"]
            return bound is not None and (bound > 0 if pair["of"] == name else bound < 0)
    return _above_by_seeds(row["values"][name], row["values"][against])


def _above_by_seeds(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a mean over seeds is above another by Welch's 95% interval: for what older versions left, which has the
    intervals of the differences from the first objective alone."""
    if one["std"] is None or other["std"] is None or max(one["std"], other["std"]) <= _NO_SPREAD:
        return False
    from scipy.stats import ttest_ind_from_stats

    numbers = (each[name] for each in (one, other) for name in ("mean", "std", "n"))
    return bool(one["mean"] > other["mean"] and ttest_ind_from_stats(*numbers, equal_var=False).pvalue < 0.05)


def _gap(row: dict[str, Any], name: str) -> str:
    """How far an objective is from the first one, with the interval where there is one."""
    if (found := row["differences"].get(name)) is None:
        return ""
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return points(found["value"])
    over = ", over seeds alone" if found.get("test_images") is None else ""
    return f"{points(found['value'])}<small>{between(low, high)}{over}</small>"


def _runs(content: dict[str, Any]) -> str:
    rows = [
        [
            CALLED[run["objective"]],
            str(run["seed"]),
            count(run["steps"]),
            duration(run["seconds"]),
            f'<a href="{escape(run["folder"])}/report.html">{escape(run["folder"])}</a>',
        ]
        for run in content["runs"]
    ]
    return table(["Objective", "Seed", "Steps", "Time of training", "Report"], rows)
