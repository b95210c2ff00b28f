"""What the rows so far say, in sentences, and when a run has to be told."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openjepa.diagnosis.advice import what_to_change
from openjepa.diagnosis.looks import NO_SPECTRUM, Choice, Row, choose, looks, number, score, steps_done, untrained
from openjepa.diagnosis.symptoms import ALIKE, LOOKS, SYMPTOMS, Symptom, references


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


def diagnose(rows: Sequence[Row], experiment: Mapping[str, Any] | None = None) -> list[Finding]:
    """What the rows so far show: the troubles first, then what only looks like one.

    A trouble is told when the last two looks show it (that features are all alike: also when only the last look of a
    whole run does), and is ``recovering`` while the last one has regained a quarter of what was lost and goes on doing
    so: a transient dip, as LayerNorm targets with a slow teacher give, climbs out.
    What a look cannot say, for want of a number or of the untrained encoder's, is left out.

    Args:
        rows: of ``metrics.jsonl``, in the order of the steps.
        experiment: the contents of ``experiment.json``, so that nothing is recommended that is set already.
    """
    found = _to_tell(_troubles(rows, experiment or {}))
    own = (experiment or {}).get("method", "ijepa") == "ijepa"  # what predicts pixels has no targets of its own
    explained = _rising(rows, looks(rows), untrained(rows)) if own and not found else None
    return found if explained is None else [explained]


def _troubles(rows: Sequence[Row], experiment: Mapping[str, Any]) -> list[Finding]:
    """Every trouble, those too that another says as well."""
    seen, before = looks(rows), untrained(rows)
    if rows:
        before |= {"loss": rows[0].get("loss")}
    beside = list(zip(seen, references(seen, before), strict=True))
    ended = bool(seen) and _ended(seen[-1], experiment)
    found = (_trouble(one, beside, experiment, least=one.at_end if ended else LOOKS) for one in SYMPTOMS)
    return [finding for finding in found if finding is not None]


def alike(look: Row, rows: Sequence[Row], experiment: Mapping[str, Any] | None = None) -> Finding | None:
    """That features are all alike, where this one look (of an evaluation, say) shows it beside the run's ``rows``."""
    beside = [(look, untrained(rows))]
    return _trouble(ALIKE, beside, experiment or {}, least=1)


def _to_tell(found: list[Finding]) -> list[Finding]:
    """The troubles without those that another one says as well."""
    if any(one.severity == "recovering" for one in found):  # what climbs is no last word
        found = [one for one in found if one.kind != "alike"]
    # The first says the same and more.
    for more, less in (("alike", ("rank", "below", "pixels")), ("rank", ("below", "pixels")), ("below", ("pixels",))):
        if any(one.kind == more for one in found):
            found = [one for one in found if one.kind not in less]
    if len(found) > 1:  # what made the accuracy fall is told already
        found = [one for one in found if one.kind != "fading"]
    return found


def _trouble(
    symptom: Symptom, beside: Sequence[tuple[Row, Row]], experiment: Mapping[str, Any], *, least: int = LOOKS
) -> Finding | None:
    margins = [symptom.margin(look, reference) for look, reference in beside]
    first = len(margins)
    while first and (value := margins[first - 1]) is not None and value < 0:
        first -= 1
    streak = [value for value in margins[first:] if value is not None]
    if len(streak) < least:
        return None
    lowest = min(streak)
    recovering = len(streak) > 1 and streak[-1] > streak[-2] and streak[-1] - lowest > 0.25 * -lowest
    since, (last, reference) = steps_done(beside[first][0]), beside[-1]
    told = f"{symptom.seen(last, reference)}, since step {since:,}{' so far' if recovering else ''}."
    if recovering:
        told += " It has been getting better over the last looks: this may be a dip that the run climbs out of."
    severity = "recovering" if recovering else "trouble"
    change = what_to_change(symptom.advice, experiment, last, reference)
    return Finding(kind=symptom.kind, severity=severity, since=since, seen=told, change=change)


def _ended(look: Row, experiment: Mapping[str, Any]) -> bool:
    """Whether a look is the last one of its run."""
    training = experiment.get("training")
    return isinstance(training, Mapping) and training.get("steps") == steps_done(look)


def _rising(rows: Sequence[Row], seen: Sequence[Row], before: Row) -> Finding | None:
    """A loss that rises while the representation gets no worse: its targets get richer, and so harder to predict."""
    losses = _between_looks(rows, seen)
    if len(losses) < LOOKS or not before:
        return None
    least = min(range(len(losses)), key=lambda i: losses[i])
    then, now = score(seen[least], before), score(seen[-1], before)
    if then is None or now is None or losses[-1] < 1.15 * losses[least] or now <= max(then, 0):
        return None
    moved = _moved(seen[least], seen[-1])
    since = steps_done(seen[least])
    told = (
        f"The loss has risen from {losses[least]:.3g} to {losses[-1]:.3g} since step {since:,} while the "
        f"representation {f'got better ({moved})' if moved else 'kept its level'}: its targets "
        f"come from the encoder itself, so richer features are harder to predict. This is no trouble."
    )
    return Finding(kind="rising", severity="explained", since=since, seen=told, change="")


def _moved(then: Row, now: Row) -> str:
    """The measures of :func:`score` that read differently at two looks."""
    told = []
    for name, measure, digits, note in (
        ("alpha-ReQ", "alpha_req", 2, ", lower is better"),
        ("RankMe", "rankme", 1, ""),
        ("pixel R2", "pixel_r2", 2, ""),
    ):
        pair = [number(look, measure) for look in (then, now)]
        if measure == "alpha_req":
            pair = [NO_SPECTRUM if value is None else value for value in pair]
        before, after = ("" if value is None else f"{value:.{digits}f}" for value in pair)
        if before and after and before != after:
            told.append(f"{name} from {before} to {after}{note}")
    return "; ".join(told)


def _between_looks(rows: Sequence[Row], seen: Sequence[Row]) -> list[float]:
    """The mean loss of the rows up to each look, from the one before."""
    means, part, wanted = [], [], {look["step"] for look in seen}
    for row in rows:
        part += [value] if (value := number(row, "loss")) is not None else []
        if row.get("step") in wanted and part:
            means.append(sum(part) / len(part))
            part = []
    return means


class Lookout:
    """Follows the rows of a run as they come, and says when a finding appears and when it has ended.

    Args:
        experiment: the contents of ``experiment.json``.
        rows: of the part of the run that is done, whose findings were told then.
    """

    def __init__(self, experiment: Mapping[str, Any] | None = None, rows: Iterable[Row] = ()) -> None:
        self.experiment, self.rows = experiment or {}, list[Row]()
        self._open: dict[str, Finding] = {}
        for row in rows:
            self.note(row)

    @property
    def choice(self) -> Choice | None:
        """The checkpoint to keep, of those so far."""
        return choose(self.rows)

    def note(self, row: Row) -> list[str]:
        """Take another row; returns what there is to say, most often nothing."""
        look = number(row, "rankme") is not None
        if look or not self.rows:  # the first holds what there was before training
            self.rows.append(row)
        if not look:
            return []
        found = _troubles(self.rows, self.experiment)
        # One that another says as well by now goes on all the same.
        there, shown = {one.kind for one in found}, {one.kind: one for one in _to_tell(found)}
        new = [one for kind, one in shown.items() if kind not in self._open]
        ended = [one for kind, one in self._open.items() if kind not in there]
        self._open = {kind: one for kind, one in self._open.items() if kind in there} | shown
        said = [f"step {steps_done(row):,}: {one.sentence}" for one in new]
        return said + [f"step {steps_done(row):,}: no longer so: {one.seen}" for one in ended]
