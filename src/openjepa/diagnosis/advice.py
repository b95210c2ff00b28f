"""What to change, given what a run has set already."""

from collections.abc import Mapping, Sequence
from typing import Any

from openjepa.diagnosis.looks import Row, number

# From so many steps on a slower teacher helps the small recipe; in shorter runs it costs 1.5 points of k-NN
# (benchmarks/README.md, the ablation).
_LONG = 10_000
# About what the recipes have.
_USUAL_LR = 1e-3


def lower_rate(rate: float) -> float:
    """A learning rate to try where ``rate`` was too high: half of it, and no more than is usual."""
    return min(rate / 2, _USUAL_LR)


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


def what_to_change(names: Sequence[str], experiment: Mapping[str, Any], last: Row, reference: Row) -> str:
    """A sentence with those of the named changes that are not made already, or none."""
    ijepa, training, schedule = (_part(experiment, name) for name in ("ijepa", "training", "schedule"))
    lr, steps, weight = number(schedule, "lr"), training.get("steps"), number(ijepa, "variance_covariance")
    momentum, best, usual = ijepa.get("momentum"), reference.get("best_step"), spread_weight(ijepa.get("target_norm"))
    slow = max(0.996, slow_teacher(steps)) if isinstance(steps, int) and steps > 0 else 0.996
    slow_already = isinstance(momentum, list | tuple) and bool(momentum) and momentum[0] > slow - 0.003
    if experiment.get("recipe") == "small" and isinstance(steps, int) and steps < _LONG:
        names = [name for name in names if name != "momentum"]
    known: dict[str, str | None] = {
        "whiten": None if ijepa.get("target_norm") == "whiten" else "--ijepa.target-norm whiten",
        "spread": None if weight else f"--ijepa.variance-covariance {usual:g}",
        "unspread": f"--ijepa.variance-covariance {usual if weight > usual else weight / 3:.1g}" if weight else None,
        "momentum": None if slow_already else f"--ijepa.momentum {slow:.4g} 1.0",
        "lr": f"--schedule.lr {lower_rate(lr):.3g}" if lr else "a lower --schedule.lr",
        "steps": f"--steps {3 * steps}" if isinstance(steps, int) else "more --steps",
        "fewer": f"--steps {2 * best}" if best and isinstance(steps, int) and 2 * best < steps else None,
    }
    if "ijepa" in experiment and "momentum" not in last:  # another objective, without a teacher
        known |= {"whiten": None, "spread": None, "unspread": None, "momentum": None}
    given = [text for name in names if (text := known[name]) is not None]
    if not given:
        return ""
    listed = given[0] if len(given) == 1 else f"{', '.join(given[:-1])} or {given[-1]}"
    return f"In a new run try {listed}."


def _part(experiment: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = experiment.get(name)
    return found if isinstance(found, Mapping) else {}
