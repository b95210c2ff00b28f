"""Which evaluators run: the quick ones after every training, and the full suite."""

from collections.abc import Sequence
from typing import Literal

from openjepa.errors import InputError
from openjepa.evaluation.attentive import AttentiveProbe
from openjepa.evaluation.knn import KNN, KNNGrid
from openjepa.evaluation.linear import LinearProbe
from openjepa.evaluation.lowshot import LowShot
from openjepa.evaluation.retrieval import Retrieval
from openjepa.evaluation.sgd_probe import SGDProbe
from openjepa.evaluation.suite import LAST, LAST_FOUR, TOKENS, Entry

Suite = Literal["quick", "full"]
SUITES: tuple[Suite, ...] = ("quick", "full")


def quick(device: str = "cpu") -> tuple[Entry, ...]:
    """k-NN, and logistic regression on the last layer and on the last four blocks, as every run is judged."""
    return (
        Entry(key="knn", evaluator=KNN(device=device), cost=4.0),
        Entry(key="logistic", evaluator=LinearProbe(device=device), cost=4.0),
        Entry(
            key="logistic",
            evaluator=LinearProbe(device=device, name="linear probe, last four blocks"),
            view=LAST_FOUR,
            cost=8.0,
        ),
    )


def full(device: str = "cpu") -> tuple[Entry, ...]:
    """The quick evaluators and all others; costs are seconds of one core on 20,000 features of width 96."""
    freer = LinearProbe(
        strengths=(*LinearProbe().strengths, 100.0, 1000.0), device=device, name="logistic regression, C up to 1000"
    )
    return (
        *quick(device),
        Entry(key="knn", evaluator=KNNGrid(device=device), cost=4.0),
        Entry(key="logistic", evaluator=freer, cost=4.0),
        *(
            Entry(
                key="sgd",
                evaluator=SGDProbe(batch_norm=normed, device=device, name=f"SGD probe{norm}{source}"),
                view=view,
                cost=cost,
            )
            for view, source, cost in ((LAST, "", 6.0), (LAST_FOUR, ", last four blocks", 12.0))
            for normed, norm in ((False, ""), (True, " with BatchNorm"))
        ),
        Entry(key="attentive", evaluator=AttentiveProbe(device=device), view=TOKENS, cost=30.0),
        Entry(key="lowshot", evaluator=LowShot(device=device), cost=4.0),
        Entry(key="retrieval", evaluator=Retrieval(device=device), cost=12.0),
    )


def choose(
    suite: str, only: Sequence[str] = (), device: str = "cpu", *, others: Sequence[str] = ()
) -> tuple[Entry, ...]:
    """The entries of a suite, or those of the full one whose key is in ``only``.

    Args:
        others: names of what is judged elsewhere, for the message.

    Raises:
        InputError: there is no such suite, or no such evaluator.
    """
    if suite not in SUITES:
        raise InputError(f"there is no suite {suite!r}; choose from {', '.join(SUITES)}")
    if not only:
        return quick(device) if suite == "quick" else full(device)
    entries = full(device)
    keys = list(dict.fromkeys(entry.key for entry in entries))
    if unknown := [name for name in only if name not in keys]:
        raise InputError(f"there is no evaluator {unknown[0]!r}; choose from {', '.join([*keys, *others])}")
    return tuple(entry for entry in entries if entry.key in only)
