"""What the run cost, how it was set up, which images were set aside, and what to do next."""

import json
import shlex
from typing import Any

import numpy as np

from openjepa.diagnosis.advice import lower_rate
from openjepa.report.formats import (
    called,
    count,
    counted_threads,
    duration,
    escape,
    facts,
    is_number,
    memory,
    percent,
    plain,
    scaled,
    table,
)
from openjepa.report.run_folder import RunFolder, nested
from openjepa.report.verdict import STAND_IN, collapsing, scores

_MOST_BAD = 100


def cost_section(run: RunFolder) -> str:
    """Speed, work, time and memory, as logged; products of logged numbers are marked as computed."""
    pairs: list[tuple[str, str]] = []
    rates = run.metrics.column("images_per_s")[1]
    seconds, peak = run.metrics.last("seconds"), run.metrics.last("peak_memory")
    waits = run.metrics.column("data_wait")[1]
    if seconds is not None:
        pairs.append(("Training time", duration(seconds) + _estimated(run, "seconds", duration)))
    if len(rates):
        pairs.append(
            (
                "Images per second",
                f"{count(np.median(rates))}<small>median of the logged rows; last {count(rates[-1])}</small>",
            )
        )
    if len(waits):
        pairs.append(
            ("Waiting for data", f"{percent(waits.mean())}<small>of the time, {_waiting(float(waits.mean()))}</small>")
        )
    if peak is not None:
        pairs.append(
            ("Peak memory", memory(run.metrics.column("peak_memory")[1].max()) + _estimated(run, "memory", memory))
        )
    pairs += _work(run, float(np.median(rates)) if len(rates) else None)
    machine = [str(run.planned(name)) for name in ("device", "precision") if run.planned(name) is not None]
    threads = run.planned("threads")
    if machine or threads is not None:
        machine += [counted_threads(threads)] if threads is not None else []
        pairs.append(("Machine", escape(", ".join(machine))))
    versions = run.planned("versions")
    if isinstance(versions, dict) and versions:
        pairs.append(("Versions", escape(", ".join(f"{name} {version}" for name, version in versions.items()))))
    body = f'<div class="card">{facts(pairs)}</div>' if pairs else "<p>Neither the log nor the plan holds costs.</p>"
    return f'<h2 id="cost">What did it cost?</h2>{body}'


def _waiting(share: float) -> str:
    if share <= 0.1:
        return "so loading is not what limits the speed"
    return "so more cores may help, and --cache where the images are large"


def _estimated(run: RunFolder, name: str, show: Any) -> str:
    estimate = run.planned("estimate", name)
    return f"<small>the plan estimated {show(estimate)}</small>" if is_number(estimate) else ""


def _work(run: RunFolder, rate: float | None) -> list[tuple[str, str]]:
    forward, step = (run.planned("flops_per_image", name) for name in ("forward", "step"))
    batch = run.planned("batch")
    pairs = []
    if is_number(forward):
        pairs.append(("Encoding one image", scaled(forward, "FLOP")))
    if is_number(step):
        speed = f"<small>{scaled(step * rate, 'FLOP/s')} at the median speed (computed)</small>" if rate else ""
        pairs.append(("Training on one image", scaled(step, "FLOP") + speed))
    if whole := _whole_work(run):
        drawn = count(run.steps_done * batch)
        pairs.append(("Whole training", f"{scaled(whole, 'FLOP')}<small>{drawn} images drawn (computed)</small>"))
    return pairs


def _whole_work(run: RunFolder) -> float:
    """FLOPs of all steps that were done; 0 before the first, or where the plan does not say what one costs."""
    step, batch = run.planned("flops_per_image", "step"), run.planned("batch")
    return float(step * batch * run.steps_done) if is_number(step) and is_number(batch) else 0.0


def plan_section(run: RunFolder) -> str:
    """The plan in words and, folded, every setting of the run."""
    pairs = [*_data(run), *_model(run), *_length(run)]
    body = f'<div class="card">{facts(pairs)}</div>' if pairs else "<p>The run holds no plan (plan.json).</p>"
    if run.experiment is None:
        every = '<p class="quiet">The run holds no readable experiment.json, so its settings cannot be listed.</p>'
    else:
        text = json.dumps(run.experiment, indent=2, ensure_ascii=False)
        every = f"<details><summary>Every setting (experiment.json)</summary><pre>{escape(text)}</pre></details>"
    if run.plan:
        text = json.dumps(run.plan, indent=2, ensure_ascii=False)
        every += f"<details><summary>The whole plan (plan.json)</summary><pre>{escape(text)}</pre></details>"
    return f'<h2 id="plan">How was it trained?</h2>{body}{every}'


def _data(run: RunFolder) -> list[tuple[str, str]]:
    data = run.planned("data")
    if not isinstance(data, dict):
        return []
    skipped = data.get("skipped")
    passed = len(skipped) if isinstance(skipped, list) else skipped
    about = [f"{count(data['images'])} images"] if is_number(data.get("images")) else []
    about += [f"{count(passed)} files skipped"] if is_number(passed) and passed else []
    about += [f"sizes {escape(data['sizes'])}"] if data.get("sizes") else []
    about += (
        [f"{escape(data['channels'])} channel{'s' * (data['channels'] != 1)}"]
        if data.get("channels") is not None
        else []
    )
    about += [{True: "labelled", False: "no labels"}[bool(data["labelled"])]] if "labelled" in data else []
    small = f"<small>{', '.join(about)}</small>" if about else ""
    pairs = [("Data", escape(data.get("name", "unnamed")) + small)]
    if data.get("split"):
        pairs.append(("Split", escape(data["split"])))
    return pairs


def _model(run: RunFolder) -> list[tuple[str, str]]:
    pairs = []
    recipe = run.planned("recipe")
    if isinstance(recipe, dict):
        why = f"<small>{escape(recipe['why'])}</small>" if recipe.get("why") else ""
        pairs.append(("Recipe", escape(recipe.get("name", "unnamed")) + why))
    if run.planned("objective"):
        pairs.append(("Objective", escape(called(run.planned("objective")))))
    shapes = [(name, run.planned(name)) for name in ("image", "patch", "grid")]
    told = [f"{name} {escape('×'.join(str(v) for v in shape))}" for name, shape in shapes if isinstance(shape, list)]
    if told:
        pairs.append(("Signal", f"{', '.join(told)}<small>pixels, pixels, tokens; rows first</small>"))
    sizes = run.planned("parameters")
    if isinstance(sizes, dict):
        told = [f"{escape(name)} {scaled(size, '').rstrip()}" for name, size in sizes.items() if is_number(size)]
        pairs.append(("Parameters", ", ".join(told)))
    masks = run.planned("masks")
    if isinstance(masks, dict):
        told = [f"{escape(str(name).replace('_', ' '))} {escape(value)}" for name, value in masks.items()]
        pairs.append(("Masks", ", ".join(told)))
    return pairs


def _length(run: RunFolder) -> list[tuple[str, str]]:
    pairs = []
    if is_number(run.planned("steps")):
        batch, epochs = run.planned("batch"), run.planned("epochs")
        small = [f"batches of {count(batch)}"] if is_number(batch) else []
        small += [f"{plain(epochs)} epochs"] if is_number(epochs) else []
        steps = f"{count(run.steps_done)} of {count(run.planned('steps'))} steps"
        pairs.append(("Length", steps + (f"<small>{', '.join(small)}</small>" if small else "")))
    if run.checkpoint_step is not None:
        pairs.append(("Last checkpoint", f"step {count(run.checkpoint_step)}"))
    return pairs


def bad_images_section(run: RunFolder) -> str:
    """The images that could not be read, or nothing where every image could."""
    if not run.bad_images:
        return ""
    total = run.planned("data", "images")
    names = {str(record.get("reference", "")) for record in run.bad_images}
    share = f" of {count(total)} ({percent(len(names) / total)})" if is_number(total) and total else ""
    rows = [
        [
            f"<code>{escape(record.get('reference', 'unnamed'))}</code>",
            escape(record.get("reason", "no reason recorded")),
        ]
        for record in run.bad_images[:_MOST_BAD]
    ]
    more = f"<p>The first {_MOST_BAD} records are listed.</p>" if len(run.bad_images) > _MOST_BAD else ""
    return (
        f'<h2 id="bad">Images set aside</h2><p>{count(len(names))} image{"s" * (len(names) != 1)}{share} could not be '
        "read. Others took their places; training went on.</p>"
        f"<details><summary>Which, and why</summary>{more}{table(['Image', 'Reason'], rows)}</details>"
    )


def _compared(run: RunFolder) -> str:
    """The command that gives the other objectives as much compute as this run had, where it was of I-JEPA and whole."""
    work = _whole_work(run)
    if not (run.finished and run.planned("objective") == "ijepa" and work):
        return ""
    data = run.planned("data", "opened")
    experiment = str(run.path.resolve() / "experiment.json")
    words = ["openjepa", "compare", *([data] if data else []), "--experiment", experiment]
    return f"{shlex.join(words)} --flops {work:.3g} --out runs/compared"


def _calmer(run: RunFolder) -> str:
    """The command that begins the run again with a lower learning rate, in a folder beside it."""
    data, rate, place = run.planned("data", "opened"), nested(run.experiment, "schedule", "lr"), run.path.resolve()
    lower = f"{lower_rate(rate):.3g}" if is_number(rate) else "LOWER"
    words = ["openjepa", "pretrain", *([str(data)] if data else []), "--experiment", str(place / "experiment.json")]
    return shlex.join([*words, "--schedule.lr", lower, "--out", f"{place}-lower-lr"])


def next_section(run: RunFolder) -> str:
    """The exact commands that come next."""
    place = run.path.resolve()  # the page may be read, and its commands given, in any folder
    folder = shlex.quote(str(place))
    steps: list[tuple[str, str]] = []
    sunk = collapsing(run)  # as much compute for another objective would be compared with a run that failed
    if run.finished is False and run.stopped_by is None:
        steps.append(("Go on with the training", f"openjepa resume {folder}"))
    command = nested(run.evaluation, "command")
    tasks = {score.task for score in scores(run)}
    repeatable = isinstance(command, str) and command and tasks
    if repeatable:
        again = "Evaluate the encoder that the run holds now" if run.outdated else "Repeat the evaluation"
        steps.append((again, command))
    labelled = bool(run.planned("data", "labelled"))
    if not labelled and not tasks & {"classes", STAND_IN}:
        steps.append(("Ask which way up the images are, which needs no labels", f"openjepa evaluate {folder}"))
    if not repeatable or (not labelled and "classes" not in tasks):
        given = "" if labelled else " FOLDER_WITH_ONE_SUBFOLDER_PER_CLASS"
        steps.append(("Measure how good the features are", f"openjepa evaluate {folder}{given}"))
    steps.append(("Write this page again", f"openjepa report {folder}"))
    if sunk:
        steps.insert(0, ("Train anew, with a lower learning rate (a longer run may do too: --steps)", _calmer(run)))
    elif compared := _compared(run):
        steps.append(("Would predicting pixels be better on these images? As much compute each", compared))
    if run.planned("data", "opened") is None:
        steps.append(("Train on your own images", "openjepa pretrain YOUR_IMAGES --out runs/yours"))
    python = (
        f"import openjepa\n\nencoder = openjepa.load({str(place)!r})\n"
        'features = encoder.encode(["a.jpg", "b.jpg"])  # float32 array (2, D): one row an image'
    )
    exact = "".join(f"<h3>{name}</h3><pre><code>{escape(line)}</code></pre>" for name, line in steps)
    files = f"<p>The encoder itself is in <code>{escape(place / 'encoder')}</code>, in the Hugging Face layout.</p>"
    return (
        f'<h2 id="next">What next</h2>{exact}<h3>Use the encoder in Python</h3><pre><code>{escape(python)}</code></pre>'
        f"{files if run.has_encoder else ''}"
    )
