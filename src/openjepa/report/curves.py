"""The curves of a run, with what they can and cannot tell."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from openjepa.diagnosis.looks import untrained
from openjepa.report.charts import MOST_POINTS, Curve, curve_svg
from openjepa.report.evaluation import class_count
from openjepa.report.formats import count, escape, is_number, memory, percent, plain, table
from openjepa.report.run_folder import RunFolder, nested, predicts_features
from openjepa.report.verdict import RANDOM, feature_width

_SHARES = ("knn", "probe", "data_wait")
# Key in metrics.jsonl, title, one line on how to read it.
_CURVES = (
    ("loss", "Loss", ""),
    ("rankme", "RankMe", "How many directions the features use."),
    ("knn", "Online k-NN", "Accuracy on few images: a trend, not a result."),
    ("target_std", "Target std", "How much the targets differ. Near 0: all alike."),
    ("grad_norm", "Gradient norm", "Spikes or steady growth: instability."),
    ("images_per_s", "Images per second", "Training speed."),
    ("lr", "Learning rate", "Set by the schedule."),
    ("weight_decay", "Weight decay", "Set by the schedule."),
    ("momentum", "EMA momentum", "The target encoder's inertia; 1 is frozen."),
    ("prediction_loss", "Prediction loss", "The loss without the terms below."),
    ("variance_term", "Variance term", "How far features fall short of a spread of 1."),
    ("covariance_term", "Covariance term", "How much features repeat one another."),
)
# Only there with --ijepa.variance-covariance, and not missed without.
_OPTIONAL = ("prediction_loss", "variance_term", "covariance_term")


def curves_section(run: RunFolder) -> str:
    """The section's HTML; a run without a logged step says so."""
    heading = '<h2 id="curves">Curves</h2>'
    if not run.metrics.rows:
        return (
            heading + "<p>No step has been logged (metrics.jsonl is absent or empty), so there is nothing to draw.</p>"
        )
    cards = "".join(card(run, name, title, hint) for name, title, hint in _CURVES)
    absent = [title for name, title, _ in _CURVES if name not in _OPTIONAL and not len(run.metrics.column(name)[1])]
    missing = (
        f'<p class="quiet">Not logged in this run: {escape(", ".join(absent))}.{_no_labels(run, absent)}</p>'
        if absent
        else ""
    )
    return (
        f'{heading}{_how_to_read(run)}<div class="curves">{cards}</div>{missing}'
        f"{_thinned(run)}"
        f"<details><summary>The same in numbers</summary>{_numbers(run)}</details>"
    )


def _thinned(run: RunFolder) -> str:
    if len(run.metrics.rows) <= MOST_POINTS:
        return ""
    return (
        f'<p class="quiet">{count(len(run.metrics.rows))} logged rows are drawn as averages of neighbours, at most '
        f"{MOST_POINTS} a curve; the band spans their lowest to highest value.</p>"
    )


def _no_labels(run: RunFolder, absent: Sequence[str]) -> str:
    unlabelled = run.planned("data", "labelled") is False
    return " The online k-NN needs labels, which these images lack." if unlabelled and "Online k-NN" in absent else ""


def card(run: RunFolder, name: str, title: str, hint: str) -> str:
    """The HTML of one curve of the log; nothing where the log does not hold it."""
    steps, values = run.metrics.column(name)
    if not len(steps):
        return ""
    before, whole = untrained(run.metrics.rows).get(name), run.planned("steps")
    curve = Curve(
        name=name,
        steps=steps,
        values=values,
        as_percent=name in _SHARES,
        reference=_reference(run, name),
        start=float(before) if before is not None and is_number(before) and steps[0] > 0 else None,
        until=float(max(whole, steps[-1])) if is_number(whole) and whole > 0 else None,
        from_zero=name == "images_per_s",  # one stalled row is no reason for a logarithm
    )
    last = _shown(name, values[-1])
    described = f"{title} from {_shown(name, values[0])} at step {count(steps[0])} to {last} at step {count(steps[-1])}"
    if name == "loss":
        hint = "Predicted against target features" if predicts_features(run) else "Predicted against true pixels"
        hint += ", plus the weighted terms below." if len(run.metrics.column("covariance_term")[1]) else "."
    log = " Log scale." if curve.logarithmic else ""
    return (
        f'<figure class="card"><header><h3>{title}</h3><b>{_large(name, values)}</b></header>'
        f'<div class="hint">{hint}{log}</div>{curve_svg(curve, escape(described))}</figure>'
    )


def _large(name: str, values: Float64[np.ndarray, "n"]) -> str:
    """The number on a card: the last one, of a schedule with its peak or its beginning before it."""
    last = _shown(name, values[-1])
    first = {"lr": values.max(), "weight_decay": values[0], "momentum": values[0]}.get(name)
    return last if first is None or (shown := _shown(name, first)) == last else f"{shown} → {last}"


def _shown(name: str, value: float) -> str:
    if name in _SHARES:
        return percent(value)
    return f"{value:.5f}".rstrip("0").rstrip(".") if name == "momentum" else plain(float(value))


def _reference(run: RunFolder, name: str) -> tuple[float, str] | None:
    level = untrained(run.metrics.rows).get(name)
    if level is not None and is_number(level):
        return float(level), f"untrained {_shown(name, float(level))}"
    # Of other images than the curve, so only where the watch did not look before training.
    if name == "rankme" and is_number(rank := nested(run.evaluation, "spectrum", RANDOM, "rankme")):
        return float(rank), f"random encoder {plain(rank)}"
    classes, commonest = class_count(run), nested(run.evaluation, "chance", "classes")
    if name == "knn" and is_number(commonest):
        return float(commonest), f"always the commonest {percent(commonest)}"
    return (1 / classes, f"guessing {percent(1 / classes)}") if name == "knn" and classes else None


def _how_to_read(run: RunFolder) -> str:
    """What the loss can tell, which depends on whether its targets move with the encoder."""
    steps, losses = run.metrics.column("loss")
    told = _loss_told(steps, losses) if len(steps) > 1 else ""
    if not predicts_features(run):
        return (
            f"<p>A lower loss says that the training task is done better, not that the features are better.{told}</p>"
        )
    width = feature_width(run)
    least = f" RankMe can reach at most the number of features ({width}) or of images, whichever is less."
    scale = least if width else ""
    return (
        "<p>The targets come from a copy of the encoder itself, so <b>the loss is no measure of quality</b>. One that "
        "falls fast at first can be the collapse dip: the targets grow alike and so easy to predict. One that rises "
        f"later can go with a better representation.{told}</p>"
        '<p class="quiet">Measured on CIFAR-10 with the reference recipe and a ViT 192x6, where a random encoder has '
        "37% on a linear probe: a schedule of 400 steps sank from loss 0.18 to 0.003 and ended at 36%, RankMe 7 of "
        "192; one of 1,200 steps stood at 36% at step 200 and climbed to 41.6%, loss 0.021, RankMe 10. So short runs "
        f"end in the dip, and a low RankMe does not by itself mean failure.{scale} Judge by RankMe and k-NN together, "
        "and in the end by the evaluation.</p>"
    )


def _loss_told(steps: Float64[np.ndarray, "n"], losses: Float64[np.ndarray, "n"]) -> str:
    """This run's loss in a sentence: the first, the lowest and the last logged value."""
    least = int(losses.argmin())
    first, last = (f"{plain(losses[i])} at step {count(steps[i])}" for i in (0, -1))
    if least == len(losses) - 1:
        return f" In this run it went from {first} to {last}, its lowest."
    if least == 0:
        return f" In this run it went up from {first}, its lowest, to {last}."
    lowest = f"its lowest, {plain(losses[least])} at step {count(steps[least])}"
    return f" In this run it went from {first}, through {lowest}, to {last}."


def _numbers(run: RunFolder) -> str:
    """About twelve rows of the log, evenly spread, first and last among them."""
    rows = run.metrics.rows
    names = [(name, title) for name, title, _ in _CURVES if len(run.metrics.column(name)[1])]
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, 12).round().astype(int))]
    extra = [("data_wait", "Data wait"), ("peak_memory", "Peak memory")]
    names += [(name, title) for name, title in extra if len(run.metrics.column(name)[1])]
    cells = [[count(row["step"]), *(_cell(name, row.get(name)) for name, _ in names)] for row in chosen]
    return table(["step", *(escape(title) for _, title in names)], cells, kind="numbers")


def _cell(name: str, value: object) -> str:
    if not isinstance(value, int | float) or not is_number(value):
        return ""
    return memory(value) if name == "peak_memory" else _shown(name, value)
