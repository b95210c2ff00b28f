"""The evaluation: dots on their 95% intervals for the pair that every run is judged by, and a table of all the rest."""

from collections.abc import Callable
from typing import Any

from openjepa.report.formats import count, duration, escape, is_number, percent, plain, points, table
from openjepa.report.run_folder import RunFolder, nested
from openjepa.report.verdict import PIXELS, RANDOM, STAND_IN, TARGET, Score, apart, leading, outdated, scores

SPOILT = "robustness"
# What the trained encoder is compared with, in the head of a column.
_CALLED = {RANDOM: "random", PIXELS: "raw pixels", "from scratch": "from scratch"}
_Axis = tuple[float, float, list[float]]  # lower end, upper end, ticks


def evaluation_section(run: RunFolder) -> str:
    """The section's HTML; where nothing was evaluated it says why."""
    found = scores(run)
    if not found:
        notes = f'<p class="quiet">{_notes(run)}</p>' if _notes(run) else ""
        return f'<h2 id="evaluation">How good are the features?</h2><p>{_absent(run)}</p>{notes}'
    groups: dict[tuple[str, str], list[Score]] = {}
    shown = leading(found)
    for score in shown:
        groups.setdefault((score.evaluator, score.metric), []).append(score)
    # One axis for all evaluators of a metric: their cards can be compared by eye.
    axes = {metric: _axis([score for score in shown if score.metric == metric], metric) for _, metric in groups}
    cards = "".join(_card(name, metric, rows, run, axes[metric]) for (name, metric), rows in groups.items())
    # openjepa.evaluation.folds.WORTH says why.
    shared = ", each of which counts for two thirds of one: folds share most of what they learned on"
    shared = shared if is_number(_facts(run).get("folds")) else ""
    old = f"<p><b>{escape(outdated(run))}</b></p>" if run.outdated else ""
    return (
        '<h2 id="evaluation">How good are the features?</h2>'
        f"{old}<p>The encoder is frozen; only a readout of its average-pooled features is trained. A <b>random "
        "encoder</b> has the same shape and never trained: what it reaches is due to the architecture. "
        "<b>Raw pixels</b> need no encoder.</p>"
        f'<div class="stack">{cards}</div>{_others([score for score in found if score not in shown], run)}'
        '<p class="quiet">Bars are 95% intervals: how far the number could move with another draw of as many test '
        f"images{shared}. The words at the top go by the interval of the difference on the same images, which is "
        "narrower and stands beside each baseline. They cover neither another training run with another seed nor "
        f"another draw of the images to learn on.{_fewer(run)}{_setting(run)}</p>"
    )


def _fewer(run: RunFolder) -> str:
    """That what was learned on is the smaller part, and so the luckier one, where it is (folds learn on most)."""
    facts = _facts(run)
    learn: Any = facts.get("train_images")
    test: Any = facts.get("test_images")
    if is_number(facts.get("folds")) or not is_number(learn) or not is_number(test) or learn >= test:
        return ""
    return (
        f" Here fewer images were learned on than tested on ({count(learn)} and {count(test)}): which ones they are "
        "can matter more than these intervals say."
    )


def _others(rest: list[Score], run: RunFolder) -> str:
    """All other measures, a table for each task: a row for each measure, a column for each kind of features and for
    each baseline that the trained encoder is compared with."""
    tables, shown = [], {score.task for score in leading(scores(run))}
    kinds: dict[str, list[Score]] = {}
    for score in rest:
        spoilt = score.task.startswith(f"{SPOILT}: ")  # one table: a row for each way of spoiling
        kinds.setdefault(SPOILT if spoilt else score.task, []).append(score)
    for task, own in kinds.items():
        columns = list(dict.fromkeys(score.features for score in own))
        cells = {(score.evaluator, _measure(score), score.features): score for score in own}
        against = [name for name in columns if name in _CALLED and TARGET in columns]
        rows, before = [], None
        for evaluator, metric in sorted({key[:2]: None for key in cells}, key=_order(own)):
            line = {name: cells.get((evaluator, metric, name)) for name in columns}
            gaps = [_lead(run, line[TARGET], line[name]) for name in against]
            name = f"<b>{escape(evaluator)}</b>" if evaluator != before else ""
            rows.append([name, escape(metric), *map(_cell, line.values()), *gaps])
            before = evaluator
        tables.append(f"<h3>{escape(task)}{': all other measures' if task in shown else ''}</h3>{_about(run, task)}")
        heads = [*map(escape, columns), *(f"encoder against {_CALLED[name]}" for name in against)]
        tables.append(table(["evaluator", "measure", *heads], rows, kind="suite"))
    said = _notes(run)
    marks = '<p class="quiet">An arrow says that the 95% interval of the difference, below it, leaves out 0.'
    return "".join(tables) + (f"{marks} {said}</p>" if tables else f'<p class="quiet">{said}</p>' if said else "")


def _notes(run: RunFolder) -> str:
    """What a reader of the numbers should know besides."""
    notes: Any = (run.evaluation or {}).get("notes")
    return " ".join(escape(note) for note in notes if isinstance(note, str)) if isinstance(notes, list) else ""


def _about(run: RunFolder, task: str) -> str:
    """On which images a task was measured, where they are not those of the cards."""
    facts = nested(run.evaluation, "tasks", task.split(":")[0])
    if not isinstance(facts, dict) or not is_number(facts.get("train_images")):
        return ""
    folds = f" in each of {count(facts['folds'])} folds" if is_number(facts.get("folds")) else ""
    counts = f"{count(facts['train_images'])} images to learn on{folds}, {count(facts['test_images'])} to test"
    counts += " in all" if folds else ""
    chance = nested(facts, "chance", task)
    told = f" Always the commonest: {percent(chance)}." if is_number(chance) else ""
    return f'<p class="quiet">{escape(facts.get("data", ""))}: {counts}.{told}</p>'


def _order(own: list[Score]) -> Callable[[tuple[str, str]], tuple[int, int]]:
    """In the order of the record, but all measures of an evaluator together."""
    evaluators = list(dict.fromkeys(score.evaluator for score in own))
    metrics = list(dict.fromkeys(_measure(score) for score in own))
    return lambda key: (evaluators.index(key[0]), metrics.index(key[1]))


def _measure(score: Score) -> str:
    """What tells a row of a table from its neighbours: how images were spoilt, or the metric."""
    return score.task.partition(": ")[2] if score.task.startswith(f"{SPOILT}: ") else score.metric


def _is_share(score: Score) -> bool:
    return score.low is not None and score.high is not None and 0 <= score.low <= score.high <= 1


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    shares = _is_share(score)
    number = percent(score.value) if shares else plain(score.value)
    if score.low is None or score.high is None:
        return number
    interval = (
        f"{100 * score.low:.1f} to {100 * score.high:.1f}" if shares else f"{plain(score.low)} to {plain(score.high)}"
    )
    return f"{number}<small>{interval}</small>"


def _lead(run: RunFolder, own: Score | None, other: Score | None) -> str:
    """The cell of a difference: the trained encoder's score less a baseline's."""
    if own is None or other is None or not (_is_share(own) and _is_share(other)):
        return ""
    gap = apart(run, own, other)
    if not gap.interval:  # their own intervals say less
        return points(gap.value)
    mark = {"above": " ↑", "below": " ↓", "level": ""}[gap.relation]
    return f"{points(gap.value)}{mark}<small>{gap.interval}</small>"


def _absent(run: RunFolder) -> str:
    if run.planned("data", "labelled") is False:
        return (
            "Not measured. The images have no labels (labels come from class folders or a label column). Without any, "
            "the features can be asked which way up images are; labels of a few hundred images of the same kind say "
            'more. Both commands are under <a href="#next">what next</a>. RankMe and the feature maps below can show '
            "that an encoder has collapsed, but not that it is good."
        )
    return 'Not measured yet: the run holds no evaluation. The command is under <a href="#next">what next</a>.'


def _setting(run: RunFolder) -> str:
    evaluation, (ways, called) = _facts(run), _ways(run)
    parts = []
    if evaluation.get("data"):
        parts.append(f"Data: {escape(evaluation['data'])}")
    fitted, tested = "{} images to fit" if _turned(run) else "{} labelled images to fit", "{} to test"
    folds: Any = evaluation.get("folds")
    if is_number(folds):
        fitted, tested = f"{fitted} in each of {count(folds)} folds", "{} to test in all"
    for name, text in (("train_images", fitted), ("test_images", tested)):
        if is_number(evaluation.get(name)):
            parts.append(text.format(count(evaluation[name])))
    if ways:
        parts.append(f"{ways} {called}")
    if is_number(evaluation.get("seconds")):
        parts.append(f"took {duration(evaluation['seconds'])}")
    split = f" {escape(evaluation['split']).rstrip('.')}." if evaluation.get("split") else ""  # sentences of their own
    return (f" {'; '.join(parts)}." if parts else "") + split


def _turned(run: RunFolder) -> bool:
    """Whether the cards are of turned images, for want of classes."""
    return any(score.task == STAND_IN for score in leading(scores(run)))


def _facts(run: RunFolder) -> dict[str, Any]:
    """What the record says of the images that the cards are of."""
    found = nested(run.evaluation, "tasks", STAND_IN) if _turned(run) else run.evaluation
    return found if isinstance(found, dict) else {}


def _ways(run: RunFolder) -> tuple[int | None, str]:
    """Among how many answers an evaluator of the cards chooses, and what they are called."""
    if not _turned(run):
        return class_count(run), "classes"
    ways: Any = _facts(run).get("classes")
    return int(ways) if is_number(ways) else None, "ways of turning"


def class_count(run: RunFolder) -> int | None:
    """The number of classes, whether the evaluation holds a number or the names."""
    for classes in (nested(run.evaluation, "classes"), run.planned("data", "classes")):
        if is_number(classes) and classes > 0:
            return int(classes)
        if isinstance(classes, list) and classes:
            return len(classes)
    return None


def _card(evaluator: str, metric: str, rows: list[Score], run: RunFolder, axis: _Axis) -> str:
    shares = metric == "accuracy"
    low, high, ticks = axis
    place = {tick: 100 * (tick - low) / (high - low) for tick in ticks}
    lines = "".join(f'<i class="tick" style="left:{at:.2f}%"></i>' for at in place.values())
    own = next((row for row in rows if row.features == TARGET), None)
    body = "".join(_row(row, _gap(run, own, row, shares), (low, high), lines, shares) for row in rows)
    labels = "".join(f'<span style="left:{at:.2f}%">{_tick(tick, shares)}</span>' for tick, at in place.items())
    (ways, called), turned = _ways(run), _turned(run)
    equal = called if turned else f"equal {called}"
    commonest: Any = None if turned else nested(_facts(run), "chance", "classes")
    chance = f" Guessing among {ways} {equal} gives {percent(1 / ways)}." if shares and ways and ways > 1 else ""
    chance = f" Always the commonest: {percent(commonest)}." if shares and is_number(commonest) else chance
    return (
        f'<div class="card"><h3>{escape(evaluator)}: {"which way up" if turned else escape(metric)}</h3>'
        f'<div class="hint">{_meaning(evaluator, turned)}{chance}</div><div class="forest">{body}'
        '<div class="empty"></div><div class="empty"></div>'
        f'<div class="axis" aria-hidden="true">{labels}</div></div></div>'
    )


def _meaning(evaluator: str, turned: bool) -> str:
    asked = "turned image takes the way up" if turned else "test image takes the label"
    return {
        "k-NN": f"A {asked} that its nearest training images vote for. Nothing is trained.",
        "linear probe": "One linear layer is trained on the features.",
    }.get(evaluator, "")


def _row(row: Score, gap: str, limits: tuple[float, float], lines: str, shares: bool) -> str:
    low, high = limits
    dot = 100 * (row.value - low) / (high - low)
    number = percent(row.value) if shares else plain(row.value)
    interval, bar = "no interval", ""
    if row.low is not None and row.high is not None:
        left, right = (100 * (edge - low) / (high - low) for edge in (row.low, row.high))
        bar = f'<i class="span" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
        interval = (
            f"{100 * row.low:.1f} to {100 * row.high:.1f}" if shares else f"{plain(row.low)} to {plain(row.high)}"
        )
    width = f"{row.dimensions:,} dimensions" if row.dimensions else ""
    mine = " mine" if row.features == TARGET else ""
    return (
        f'<div class="name">{escape(row.features)}<small>{width}</small></div>'
        f'<div class="figures"><b>{number}</b><small>{interval}</small></div>'
        f'<div class="track{mine}" role="img" aria-label="{escape(row.features)}: {number}, 95% interval {interval}">'
        f'{lines}{bar}<i class="dot" style="left:{dot:.2f}%"></i></div>'
        + (f'<div class="gap">{gap}</div>' if gap else '<div class="empty"></div>')
    )


def _gap(run: RunFolder, own: Score | None, row: Score, shares: bool) -> str:
    """How far the trained encoder is from a baseline's row, by the interval that the headline goes by."""
    if own is None or row.features not in (RANDOM, PIXELS) or not shares:
        return ""
    gap = apart(run, own, row)
    told = ", ".join(filter(None, (gap.interval, "not clear" if gap.relation == "level" else "")))
    return f"encoder <b>{points(gap.value)} points</b><br> {told}"


def _axis(rows: list[Score], metric: str) -> _Axis:
    """Limits a little beyond all intervals, and round numbers between them."""
    from matplotlib.ticker import MaxNLocator

    shares = metric == "accuracy"
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    low, high = min(ends), max(ends)
    margin = max(0.12 * (high - low), 0.01 if shares else 1e-9 + 0.01 * abs(high))
    low, high = low - margin, high + margin
    if shares:
        low, high = max(low, -0.005), min(high, 1.005)
    ticks = [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    return low, high, ticks


def _tick(tick: float, shares: bool) -> str:
    return f"{100 * tick:.3g}%" if shares else f"{tick:g}"
