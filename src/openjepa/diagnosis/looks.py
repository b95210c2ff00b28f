"""What a run logs of its representation, and how good a look is without labels.

A row is a line of ``metrics.jsonl``; a look is a row of the watch. The first row holds the watch's measures of the
encoder before training as well, under names that begin with ``untrained_``: the reference for every later look.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNTRAINED = "untrained_"
NO_SPECTRUM = 10.0
_PIXEL_R2_WEIGHT = 2.0
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The look that the label-free score likes best: steps done and :func:`score` there."""

    step: int
    score: float


def images_looked_at(steps: int, batch: int) -> int:
    """At how many images, of as many as there are, the watch of a run of this length looks: a look is 1.8 forward
    passes for each, a training step about three for each of its.

    With twelve looks a run, one image for every 240 that are trained on is about 3% of the run's time.
    """
    return min(1000, max(400, steps * batch // 240))


def untrained(rows: Iterable[Row]) -> dict[str, Any]:
    """The watch's measures before the first step, by their plain names; empty where they were not logged."""
    for row in rows:
        found = {name.removeprefix(UNTRAINED): row[name] for name in row if name.startswith(UNTRAINED)}
        if found:
            return found
    return {}


def looks(rows: Iterable[Row]) -> list[Row]:
    """The rows of the watch."""
    return [row for row in rows if number(row, "rankme") is not None]


def spectrum(look: Row, before: Row) -> float | None:
    """How the spectrum stands against the untrained encoder's: above 0 is better, or None.

    (untrained alpha-ReQ - alpha-ReQ) + 1/2 log(RankMe / untrained RankMe): it decays less steeply, in more directions.
    Features without a spectrum (all alike) count as an alpha-ReQ of 10.
    """
    then, rank = number(before, "alpha_req"), log_ratio(look, before, "rankme")
    if then is None or rank is None:
        return None
    now = number(look, "alpha_req")
    return then - (NO_SPECTRUM if now is None else now) + rank / 2


def pixel_r2_gain(look: Row, before: Row) -> float | None:
    """How much more of the pictures a linear map tells than from the untrained encoder, or None."""
    now, then = number(look, "pixel_r2"), number(before, "pixel_r2")
    return None if now is None or then is None else now - then


def score(look: Row, before: Row) -> float | None:
    """How good the representation is against the untrained one, without labels: above 0 is better, or None.

    :func:`spectrum` + 2 :func:`pixel_r2_gain`, or the spectrum alone where pixel R2 was not measured. Chosen in
    benchmarks/collapse, where each alone misses runs that the other tells, and LiDAR, which ranks trained encoders,
    tells them less surely from the untrained: it rose in runs that ended far below.
    """
    value = spectrum(look, before)
    return None if value is None else value + _PIXEL_R2_WEIGHT * (pixel_r2_gain(look, before) or 0.0)


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
    return Choice(step=steps_done(look), score=value)


def number(row: Row, name: str) -> float | None:
    """A finite number of a row, or None."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def steps_done(row: Row) -> int:
    """Steps done; rows number their step from 0."""
    return int(row["step"]) + 1


def log_ratio(look: Row, before: Row, name: str) -> float | None:
    """The logarithm of what a look has over what there was before, or None where one of them is not above 0."""
    now, then = number(look, name), number(before, name)
    return None if now is None or then is None or min(now, then) <= 0 else math.log(now / then)
