"""What the logged numbers of a run say about its representation, in sentences: a pure function of the rows.

A row is a line of ``metrics.jsonl``; a look is a row of the watch. The first row holds the watch's measures of the
encoder before training as well, under names that begin with ``untrained_``: the reference for every later look.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

UNTRAINED = "untrained_"
_NO_SPECTRUM = 10.0
Row = Mapping[str, Any]
# What a finding asks of one look, given the untrained encoder's and the best k-NN since: how far from trouble (below 0)
# it is, or None.
_Margin = Callable[[Row, Row], float | None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that the rows show.

    Attributes:
        kind: its name, the same for as long as it lasts.
        severity: ``trouble``, ``recovering`` (trouble that grows less over the last looks) or ``explained`` (what looks
            like trouble and is none).
        since: steps done at the first look that shows it.
        seen: what is seen, a sentence with its numbers.
        change: what to change, a sentence; empty for what needs nothing.
    """

    kind: str
    severity: Literal["trouble", "recovering", "explained"]
    since: int
    seen: str
    change: str

    @property
    def sentence(self) -> str:
        """All of it, to print."""
        return f"{self.seen} {self.change}".strip()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The look that the label-free score likes best: steps done and :func:`score` there."""

    step: int
    score: float


def untrained(rows: Iterable[Row]) -> dict[str, Any]:
    """The watch's measures before the first step, by their plain names; empty where they were not logged."""
    for row in rows:
        found = {name.removeprefix(UNTRAINED): row[name] for name in row if name.startswith(UNTRAINED)}
        if found:
            return found
    return {}


def looks(rows: Iterable[Row]) -> list[Row]:
    """The rows of the watch."""
    return [row for row in rows if _number(row, "rankme") is not None]


def score(look: Row, before: Row) -> float | None:
    """How good the representation is against the untrained one, without labels: above 0 is better, or None.

    (untrained alpha-ReQ - alpha-ReQ) + 1/2 log(RankMe / untrained RankMe): a spectrum that decays less steeply, in more
    directions. Chosen in benchmarks/collapse, where each of the two alone misses runs that the other one tells, and
    LiDAR, which ranks trained encoders, does not tell one from the untrained: it rose in runs that ended far below.
    Features without a spectrum (all alike) count as an alpha-ReQ of 10.
    """
    then, rank = _number(before, "alpha_req"), _log_ratio(look, before, "rankme")
    if then is None or rank is None:
        return None
    now = _number(look, "alpha_req")
    return then - (_NO_SPECTRUM if now is None else now) + rank / 2


def choose(rows: Sequence[Row]) -> Choice | None:
    """The checkpoint to keep: the look with the highest :func:`score`, the first among equals; None where none has one.

    Runs without a look before training are judged beside their first one.
    """
    seen = looks(rows)
    before = untrained(rows) or (seen[0] if seen else {})
    scored = [(score(look, before), look) for look in seen]
    found = [(value, look) for value, look in scored if value is not None]
    if not found:
        return None
    value, look = max(found, key=lambda pair: pair[0])
    return Choice(step=_done(look), score=value)


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _done(row: Row) -> int:
    """Steps done; rows number their step from 0."""
    return int(row["step"]) + 1


def _log_ratio(look: Row, before: Row, name: str) -> float | None:
    now, then = _number(look, name), _number(before, name)
    return None if now is None or then is None or min(now, then) <= 0 else math.log(now / then)


def slow_teacher(steps: int) -> float:
    """The EMA momentum for the teacher of a long run to begin with: 1 - 50 / steps.

    (1 - momentum) x steps is then what 5,000 steps from 0.99 have; a teacher that takes in more made a run of 24,000
    steps worse (LOG.md).
    """
    return 1 - 50 / steps


def spread_weight(target_norm: str | None) -> float:
    """The weight of the variance-covariance term to begin with: the small recipe's, beside targets of this kind.

    Long runs standardise them per feature and have 0.005, others 0.01. More can pull too hard: with 0.03, features of
    tiles of photographs fell below a random encoder's (docs/questions.md).
    """
    return 0.005 if target_norm == "feature" else 0.01


def diagnose(rows: Sequence[Row], experiment: Mapping[str, Any] | None = None) -> list[Finding]:
    """What the rows so far show: the troubles first, then what only looks like one.

    A trouble is told when the last two looks show it, and is ``recovering`` while the last one has regained a quarter
    of what was lost and goes on doing so: a transient dip, as LayerNorm targets with a slow teacher give, climbs out.
    What a look cannot say, for want of a number or of the untrained encoder's, is left out.

    Args:
        rows: of ``metrics.jsonl``, in the order of the steps.
        experiment: the contents of ``experiment.json``, so that nothing is recommended that is set already.
    """
    seen, before = looks(rows), untrained(rows)
    if rows:
        before |= {"loss": rows[0].get("loss")}
    beside = list(zip(seen, _references(seen, before), strict=True))
    found = [finding for case in _CASES if (finding := _trouble(case, beside, experiment or {})) is not None]
    if any(one.kind == "rank" for one in found):  # it says the same and more
        found = [one for one in found if one.kind != "below"]
    if len(found) > 1:  # what made the accuracy fall is told already
        found = [one for one in found if one.kind != "fading"]
    explained = None if found else _rising(rows, seen, before)
    return found if explained is None else [explained]


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A kind of trouble: how far a look is from it, and what to say and to recommend."""

    kind: str
    margin: _Margin
    seen: Callable[[Row, Row], str]
    advice: tuple[str, ...]


def _trouble(case: _Case, beside: Sequence[tuple[Row, Row]], experiment: Mapping[str, Any]) -> Finding | None:
    margins = [case.margin(look, reference) for look, reference in beside]
    first = len(margins)
    while first and (value := margins[first - 1]) is not None and value < 0:
        first -= 1
    streak = [value for value in margins[first:] if value is not None]
    if len(streak) < _LOOKS:
        return None
    lowest = min(streak)
    recovering = streak[-1] > streak[-2] and streak[-1] - lowest > 0.25 * -lowest
    since, (last, reference) = _done(beside[first][0]), beside[-1]
    told = f"{case.seen(last, reference)}, since step {since:,}{' so far' if recovering else ''}."
    if recovering:
        told += " It has been getting better over the last looks: this may be a dip that the run climbs out of."
    severity = "recovering" if recovering else "trouble"
    change = _change(case, experiment, last, reference)
    return Finding(kind=case.kind, severity=severity, since=since, seen=told, change=change)


def _references(seen: Sequence[Row], before: Row) -> list[Row]:
    """What each look is judged beside: the untrained encoder's, and the best online k-NN of the looks before it."""
    found, best = [], {}
    for look in seen:
        found.append({**before, **best})
        knn = _number(look, "knn")
        if knn is not None and knn > best.get("best_knn", -1.0):
            best = {"best_knn": knn, "best_step": _done(look)}
    return found


def _change(case: _Case, experiment: Mapping[str, Any], last: Row, reference: Row) -> str:
    """The advice of a case that is not followed already."""
    ijepa, training, schedule = (_part(experiment, name) for name in ("ijepa", "training", "schedule"))
    lr, steps, weight = _number(schedule, "lr"), training.get("steps"), _number(ijepa, "variance_covariance")
    momentum, best, usual = ijepa.get("momentum"), reference.get("best_step"), spread_weight(ijepa.get("target_norm"))
    slow = max(0.996, slow_teacher(steps)) if isinstance(steps, int) and steps > 0 else 0.996
    slow_already = isinstance(momentum, list | tuple) and bool(momentum) and momentum[0] > slow - 0.003
    known: dict[str, str | None] = {
        "whiten": None if ijepa.get("target_norm") == "whiten" else "--ijepa.target-norm whiten",
        "spread": None if weight else f"--ijepa.variance-covariance {usual:g}",
        "unspread": f"--ijepa.variance-covariance {usual if weight > usual else weight / 3:.1g}" if weight else None,
        "momentum": None if slow_already else f"--ijepa.momentum {slow:.4g} 1.0",
        "lr": f"--schedule.lr {lr / 2:g}" if lr else "a lower --schedule.lr",
        "steps": f"--steps {3 * steps}" if isinstance(steps, int) else "more --steps",
        "fewer": f"--steps {2 * best}" if best and isinstance(steps, int) and 2 * best < steps else None,
    }
    if "ijepa" in experiment and "momentum" not in last:  # another objective, without a teacher
        known |= {"whiten": None, "spread": None, "unspread": None, "momentum": None}
    given = [text for name in case.advice if (text := known[name]) is not None]
    if not given:
        return ""
    listed = given[0] if len(given) == 1 else f"{', '.join(given[:-1])} or {given[-1]}"
    return f"In a new run try {listed}."


def _part(experiment: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = experiment.get(name)
    return found if isinstance(found, Mapping) else {}


def _rising(rows: Sequence[Row], seen: Sequence[Row], before: Row) -> Finding | None:
    """A loss that rises while the representation gets better: its targets get richer, and so harder to predict."""
    losses = _between_looks(rows, seen)
    if len(losses) < _LOOKS or not before:
        return None
    least = min(range(len(losses)), key=lambda i: losses[i])
    then, now = score(seen[least], before), score(seen[-1], before)
    if then is None or now is None or losses[-1] < 1.15 * losses[least] or now <= max(then, 0):
        return None
    alpha = [_number(look, "alpha_req") or _NO_SPECTRUM for look in (seen[least], seen[-1])]
    since = _done(seen[least])
    told = (
        f"The loss has risen from {losses[least]:.3g} to {losses[-1]:.3g} since step {since:,} while the "
        f"representation got better (alpha-ReQ from {alpha[0]:.2f} to {alpha[1]:.2f}, lower is better): its targets "
        f"come from the encoder itself, so richer features are harder to predict. This is no trouble."
    )
    return Finding(kind="rising", severity="explained", since=since, seen=told, change="")


def _between_looks(rows: Sequence[Row], seen: Sequence[Row]) -> list[float]:
    """The mean loss of the rows up to each look, from the one before."""
    means, part, wanted = [], [], {look["step"] for look in seen}
    for row in rows:
        part += [value] if (value := _number(row, "loss")) is not None else []
        if row.get("step") in wanted and part:
            means.append(sum(part) / len(part))
            part = []
    return means


def _image_share(look: Row, what: str = "features") -> float | None:
    """The share of the variance of tokens that is over images, not over positions."""
    images, positions = (_number(look, f"{what}_over_{axis}") for axis in ("images", "positions"))
    if images is None or positions is None or images + positions <= 0:
        return None
    return images / (images + positions)


def _positions_margin(look: Row, before: Row) -> float | None:
    now, then = _image_share(look), _image_share(before)
    return None if now is None else now - (0.1 if then is None else min(0.1, 0.4 * then))


def _positions_seen(look: Row, before: Row) -> str:
    now, then, targets = _image_share(look), _image_share(before), _image_share(look, "target")
    told = f"The features differ by position but hardly by image: {_percent(now)} of their variance is over images"
    told += f" ({_percent(then)} before training)" if then is not None else ""
    return told + (f", and {_percent(targets)} of the targets'" if targets is not None else "")


def _rank_margin(look: Row, before: Row) -> float | None:
    """RankMe alone misleads (it falls in good runs too), so the spectrum must decay faster than it did."""
    rank, beside = _log_ratio(look, before, "rankme"), _below_margin(look, before)
    return None if rank is None else max(rank - math.log(0.6), -math.inf if beside is None else beside)


def _rank_seen(look: Row, before: Row) -> str:
    told = f"The features use far fewer directions than before training: RankMe {look['rankme']:.1f} after "
    told += f"{before['rankme']:.1f}"
    return told + (f", alpha-ReQ {_alpha(look)} after {_alpha(before)}" if score(look, before) is not None else "")


def _vanished_margin(look: Row, before: Row) -> float | None:
    """Both the loss and the spread over images are small, as shares of what they were."""
    loss, spread = _log_ratio(look, before, "loss"), _log_ratio(look, before, "features_over_images")
    return None if loss is None or spread is None else max(loss - math.log(0.1), spread - math.log(0.2))


def _vanished_seen(look: Row, before: Row) -> str:
    names = ("loss", "features_over_images")
    loss, spread = (f"{look[name]:.2g} after {before[name]:.2g}" for name in names)
    return f"The loss is near zero because there is little left to predict: loss {loss}, variance over images {spread}"


def _below_margin(look: Row, before: Row) -> float | None:
    value = score(look, before)
    return None if value is None else value - _BELOW


def _below_seen(look: Row, before: Row) -> str:
    return (
        f"By measures without labels the representation is worse than the untrained one (alpha-ReQ {_alpha(look)} "
        f"after {_alpha(before)}, RankMe {look['rankme']:.1f} after {before['rankme']:.1f})"
    )


def _knn_margin(look: Row, before: Row) -> float | None:
    now, then = _number(look, "knn"), _number(before, "knn")
    return None if now is None or then is None else now - then + 0.05


def _knn_seen(look: Row, before: Row) -> str:
    return (
        f"The online k-NN is right for {_percent(look['knn'])} of the watched images, the untrained encoder's was for "
        f"{_percent(before['knn'])}"
    )


def _fading_margin(look: Row, reference: Row) -> float | None:
    now, best = _number(look, "knn"), _number(reference, "best_knn")
    if now is None or best is None:
        return None
    return now - best + _FADING / math.sqrt(_number(look, "labelled") or _LABELLED)


def _fading_seen(look: Row, reference: Row) -> str:
    return (
        f"The online k-NN has fallen from its best: it is right for {_percent(look['knn'])} of the watched images "
        f"after {_percent(reference['best_knn'])} at step {reference['best_step']:,}"
    )


def _alpha(look: Row) -> str:
    value = _number(look, "alpha_req")
    return "without end" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{100 * share:.1f}%"


# Looks in a row that a trouble needs, and how far below 0 the score must fall: both from benchmarks/collapse.
_LOOKS = 2
_BELOW = -0.4
# How far the online k-NN may fall below its best, times the root of the number of images: about 1.5 standard errors of
# the difference. With 1,000 images that is 0.025; of 33 labelled runs the ones that ended well fell by 0.024 at most.
_FADING, _LABELLED = 0.8, 1000
_CASES = (
    _Case(kind="vanished", margin=_vanished_margin, seen=_vanished_seen, advice=("whiten", "spread", "steps")),
    _Case(kind="positions", margin=_positions_margin, seen=_positions_seen, advice=("whiten", "spread", "steps")),
    _Case(kind="rank", margin=_rank_margin, seen=_rank_seen, advice=("spread", "lr", "momentum", "whiten")),
    _Case(kind="below", margin=_below_margin, seen=_below_seen, advice=("spread", "lr", "momentum", "whiten")),
    _Case(kind="knn", margin=_knn_margin, seen=_knn_seen, advice=("spread", "unspread", "lr", "momentum", "steps")),
    _Case(kind="fading", margin=_fading_margin, seen=_fading_seen, advice=("unspread", "momentum", "fewer")),
)


class Lookout:
    """Follows the rows of a run as they come, and says when a finding appears and when it has ended.

    Args:
        experiment: the contents of ``experiment.json``.
        rows: of the part of the run that is done, whose findings were told then.
    """

    def __init__(self, experiment: Mapping[str, Any] | None = None, rows: Iterable[Row] = ()) -> None:
        self.experiment, self.rows = experiment, list(rows)
        self._open = self._troubles()

    @property
    def choice(self) -> Choice | None:
        """The checkpoint to keep, of those so far."""
        return choose(self.rows)

    def note(self, row: Row) -> list[str]:
        """Take another row; returns what there is to say, most often nothing."""
        self.rows.append(row)
        if _number(row, "rankme") is None:
            return []
        before, self._open = self._open, self._troubles()
        said = [f"step {_done(row):,}: {new.sentence}" for kind, new in self._open.items() if kind not in before]
        ended = [old for kind, old in before.items() if kind not in self._open]
        return said + [f"step {_done(row):,}: no longer so: {old.seen}" for old in ended]

    def _troubles(self) -> dict[str, Finding]:
        return {one.kind: one for one in diagnose(self.rows, self.experiment) if one.severity != "explained"}
