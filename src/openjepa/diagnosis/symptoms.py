"""The kinds of trouble that a look can show: how far it is from each, and how to say so."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openjepa.diagnosis.looks import Row, log_ratio, number, pixel_r2_gain, score, spectrum, steps_done

# What a symptom asks of one look, given the untrained encoder's and the best k-NN since: how far from trouble (below 0)
# it is, or None.
_Margin = Callable[[Row, Row], float | None]
# Looks in a row that a trouble needs, and how far below 0 the score must fall: both from benchmarks/collapse.
LOOKS = 2
_BELOW = -0.4
# Rules of thumb, told to the reader in docs/reading-a-report.md. Features of one direction have RankMe 1.
_ALIKE_RANK, _ALIKE_STD = 2.0, 0.02


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """A kind of trouble: how far a look is from it, and what to say and to recommend.

    Attributes:
        at_end: how many looks in a row it takes at the end of a run; before it takes ``LOOKS``.
    """

    kind: str
    margin: _Margin
    seen: Callable[[Row, Row], str]
    advice: tuple[str, ...]
    at_end: int = LOOKS


def references(seen: Sequence[Row], before: Row) -> list[Row]:
    """What each look is judged beside: the untrained encoder's, and the best online k-NN of the looks before it."""
    found, best = [], {}
    for look in seen:
        found.append({**before, **best})
        knn = number(look, "knn")
        if knn is not None and knn > best.get("best_knn", -1.0):
            best = {"best_knn": knn, "best_step": steps_done(look)}
    return found


def _image_share(look: Row, what: str = "features") -> float | None:
    """The share of the variance of tokens that is over images, not over positions."""
    images, positions = (number(look, f"{what}_over_{axis}") for axis in ("images", "positions"))
    if images is None or positions is None or images + positions <= 0:
        return None
    return images / (images + positions)


def _alike_margin(look: Row, before: Row) -> float | None:
    """Features of one direction, where the untrained ones had more, or targets that hardly differ."""
    rank, spread, then = number(look, "rankme"), number(look, "target_std"), number(before, "rankme")
    least = _ALIKE_RANK if then is None else min(_ALIKE_RANK, 0.9 * then)
    found = [] if rank is None else [rank / least - 1]
    found += [] if spread is None else [spread / _ALIKE_STD - 1]
    return min(found, default=None)


def _alike_seen(look: Row, before: Row) -> str:
    """What :func:`_alike_margin` went by, in words."""
    rank, spread = number(look, "rankme"), number(look, "target_std")
    told = [] if rank is None else [f"RankMe {rank:.2f} (1 is a single direction)"]
    told += [] if spread is None else [f"the targets' standard deviation {spread:.2g}"]
    return f"All images get nearly the same features: {', '.join(told)}"


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
    rank, beside = log_ratio(look, before, "rankme"), spectrum(look, before)
    return None if rank is None else max(rank - math.log(0.6), -math.inf if beside is None else beside - _BELOW)


def _rank_seen(look: Row, before: Row) -> str:
    told = f"The features use far fewer directions than before training: RankMe {look['rankme']:.1f} after "
    told += f"{before['rankme']:.1f}"
    return told + (f", alpha-ReQ {_alpha(look)} after {_alpha(before)}" if spectrum(look, before) is not None else "")


def _vanished_margin(look: Row, before: Row) -> float | None:
    """Both the loss and the spread over images are small, as shares of what they were."""
    loss, spread = log_ratio(look, before, "loss"), log_ratio(look, before, "features_over_images")
    return None if loss is None or spread is None else max(loss - math.log(0.1), spread - math.log(0.2))


def _vanished_seen(look: Row, before: Row) -> str:
    names = ("loss", "features_over_images")
    loss, spread = (f"{look[name]:.2g} after {before[name]:.2g}" for name in names)
    return f"The loss is near zero because there is little left to predict: loss {loss}, variance over images {spread}"


def _below_margin(look: Row, before: Row) -> float | None:
    value = score(look, before)
    return None if value is None else value - _BELOW


def _below_seen(look: Row, before: Row) -> str:
    pixels = "" if pixel_r2_gain(look, before) is None else f", {_pixel_r2(look, before)}"
    return (
        f"By measures without labels the representation is worse than the untrained one (alpha-ReQ {_alpha(look)} "
        f"after {_alpha(before)}, RankMe {look['rankme']:.1f} after {before['rankme']:.1f}{pixels})"
    )


def _pixel_r2(look: Row, before: Row) -> str:
    return f"pixel R2 {look['pixel_r2']:.2f} after {before['pixel_r2']:.2f}"


def _pixels_margin(look: Row, before: Row) -> float | None:
    gained = pixel_r2_gain(look, before)
    return None if gained is None else gained + _LOST


def _pixels_seen(look: Row, before: Row) -> str:
    told = "The features hold less of the pictures than the untrained ones, as a linear map reads them: "
    return told + _pixel_r2(look, before)


def _knn_margin(look: Row, before: Row) -> float | None:
    now, then = number(look, "knn"), number(before, "knn")
    return None if now is None or then is None else now - then + 0.05


def _knn_seen(look: Row, before: Row) -> str:
    return (
        f"The online k-NN is right for {_percent(look['knn'])} of the watched images, the untrained encoder's was for "
        f"{_percent(before['knn'])}"
    )


def _fading_margin(look: Row, reference: Row) -> float | None:
    now, best = number(look, "knn"), number(reference, "best_knn")
    if now is None or best is None:
        return None
    return now - best + _FADING / math.sqrt(number(look, "labelled") or _LABELLED)


def _fading_seen(look: Row, reference: Row) -> str:
    return (
        f"The online k-NN has fallen from its best: it is right for {_percent(look['knn'])} of the watched images "
        f"after {_percent(reference['best_knn'])} at step {reference['best_step']:,}"
    )


def _alpha(look: Row) -> str:
    value = number(look, "alpha_req")
    return "without end" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{100 * share:.1f}%"


# How far pixel R2 may fall (benchmarks/collapse).
_LOST = 0.12
# How far the online k-NN may fall below its best, times the root of the number of images: about 1.5 standard errors of
# the difference. With 1,000 images that is 0.025; of 33 labelled runs the ones that ended well fell by 0.024 at most.
_FADING, _LABELLED = 0.8, 1000
ALIKE = Symptom(
    kind="alike", margin=_alike_margin, seen=_alike_seen, advice=("lr", "spread", "momentum", "whiten"), at_end=1
)
SYMPTOMS = (
    ALIKE,
    Symptom(kind="vanished", margin=_vanished_margin, seen=_vanished_seen, advice=("whiten", "spread", "steps")),
    Symptom(kind="positions", margin=_positions_margin, seen=_positions_seen, advice=("whiten", "spread", "steps")),
    Symptom(kind="rank", margin=_rank_margin, seen=_rank_seen, advice=("spread", "lr", "momentum", "whiten")),
    Symptom(kind="below", margin=_below_margin, seen=_below_seen, advice=("spread", "lr", "momentum", "whiten")),
    Symptom(kind="pixels", margin=_pixels_margin, seen=_pixels_seen, advice=("spread", "lr", "momentum", "whiten")),
    Symptom(kind="knn", margin=_knn_margin, seen=_knn_seen, advice=("spread", "unspread", "lr", "momentum", "steps")),
    Symptom(kind="fading", margin=_fading_margin, seen=_fading_seen, advice=("unspread", "momentum", "fewer")),
)
