"""What the rows so far say, in sentences, and when a run has to be told."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openjepa.diagnosis.advice import what_to_change
from openjepa.diagnosis.looks import NO_SPECTRUM, Choice, Row, choose, looks, number, score, steps_done, untrained
from openjepa.diagnosis.symptoms import LOOKS, SYMPTOMS, Symptom, references


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
    beside = list(zip(seen, references(seen, before), strict=True))
    found = [finding for symptom in SYMPTOMS if (finding := _trouble(symptom, beside, experiment or {})) is not None]
    for more, less in (("rank", ("below", "pixels")), ("below", ("pixels",))):  # the first says the same and more
        if any(one.kind == more for one in found):
            found = [one for one in found if one.kind not in less]
    if len(found) > 1:  # what made the accuracy fall is told already
        found = [one for one in found if one.kind != "fading"]
    explained = None if found else _rising(rows, seen, before)
    return found if explained is None else [explained]


def _trouble(symptom: Symptom, beside: Sequence[tuple[Row, Row]], experiment: Mapping[str, Any]) -> Finding | None:
    margins = [symptom.margin(look, reference) for look, reference in beside]
    first = len(margins)
    while first and (value := margins[first - 1]) is not None and value < 0:
        first -= 1
    streak = [value for value in margins[first:] if value is not None]
    if len(streak) < LOOKS:
        return None
    lowest = min(streak)
    recovering = streak[-1] > streak[-2] and streak[-1] - lowest > 0.25 * -lowest
    since, (last, reference) = steps_done(beside[first][0]), beside[-1]
    told = f"{symptom.seen(last, reference)}, since step {since:,}{' so far' if recovering else ''}."
    if recovering:
        told += " It has been getting better over the last looks: this may be a dip that the run climbs out of."
    severity = "recovering" if recovering else "trouble"
    change = what_to_change(symptom.advice, experiment, last, reference)
    return Finding(kind=symptom.kind, severity=severity, since=since, seen=told, change=change)


def _rising(rows: Sequence[Row], seen: Sequence[Row], before: Row) -> Finding | None:
    """A loss that rises while the representation gets better: its targets get richer, and so harder to predict."""
    losses = _between_looks(rows, seen)
    if len(losses) < LOOKS or not before:
        return None
    least = min(range(len(losses)), key=lambda i: losses[i])
    then, now = score(seen[least], before), score(seen[-1], before)
    if then is None or now is None or losses[-1] < 1.15 * losses[least] or now <= max(then, 0):
        return None
    pair = seen[least], seen[-1]
    alpha = [number(look, "alpha_req") or NO_SPECTRUM for look in pair]
    first, last = (number(look, "pixel_r2") for look in pair)
    pixels = "" if first is None or last is None else f"; pixel R2 from {first:.2f} to {last:.2f}"
    since = steps_done(seen[least])
    told = (
        f"The loss has risen from {losses[least]:.3g} to {losses[-1]:.3g} since step {since:,} while the "
        f"representation got better (alpha-ReQ from {alpha[0]:.2f} to {alpha[1]:.2f}, lower is better; RankMe from "
        f"{pair[0]['rankme']:.1f} to {pair[1]['rankme']:.1f}{pixels}): its targets "
        f"come from the encoder itself, so richer features are harder to predict. This is no trouble."
    )
    return Finding(kind="rising", severity="explained", since=since, seen=told, change="")


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
        self.experiment, self.rows = experiment, list(rows)
        self._open = self._troubles()

    @property
    def choice(self) -> Choice | None:
        """The checkpoint to keep, of those so far."""
        return choose(self.rows)

    def note(self, row: Row) -> list[str]:
        """Take another row; returns what there is to say, most often nothing."""
        self.rows.append(row)
        if number(row, "rankme") is None:
            return []
        before, self._open = self._open, self._troubles()
        said = [f"step {steps_done(row):,}: {new.sentence}" for kind, new in self._open.items() if kind not in before]
        ended = [old for kind, old in before.items() if kind not in self._open]
        return said + [f"step {steps_done(row):,}: no longer so: {old.seen}" for old in ended]

    def _troubles(self) -> dict[str, Finding]:
        return {one.kind: one for one in diagnose(self.rows, self.experiment) if one.severity != "explained"}
