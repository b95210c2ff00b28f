"""What the numbers say, in words. Every number in a sentence is one that the run measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from openjepa.diagnosis.findings import Finding, alike, diagnose
from openjepa.diagnosis.looks import images_looked_at, untrained
from openjepa.report.formats import (
    between,
    count,
    counted_threads,
    duration,
    is_number,
    listed,
    memory,
    percent,
    plain,
    points,
)
from openjepa.report.run_folder import RunFolder, nested

Relation = Literal["above", "below", "level"]
Standing = Literal["good", "mixed", "bad", "unknown"]
# Over all evaluators: above on each, above on some, apart on none, below on some and above on none, below on each.
Outcome = Literal["above", "part", "level", "short", "below"]
PAIR = ("k-NN", "linear probe")
TARGET, RANDOM, PIXELS = "trained encoder", "random encoder", "raw pixels"
# The task that stands for the classes of images where these are not known: which way up images are.
STAND_IN = "rotation"
# A rule of thumb, told to the reader in docs/reading-a-report.md.
_NARROW_SHARE = 0.1
# The watch's findings that are a collapse; its others say that the features are worse than they were.
_COLLAPSES = ("vanished", "positions", "rank")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One evaluated number with its 95% interval, all between 0 and 1 where it is an accuracy."""

    features: str
    evaluator: str
    metric: str
    value: float
    low: float | None
    high: float | None
    dimensions: int | None
    task: str = "classes"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A difference of two scores with its 95% interval, where one was recorded, and what counts as its sign."""

    value: float
    low: float | None
    high: float | None
    relation: Relation

    @property
    def interval(self) -> str:
        """The interval in percentage points, or nothing."""
        return "" if self.low is None or self.high is None else between(self.low, self.high)

    @property
    def told(self) -> str:
        """The difference in percentage points, with its interval."""
        return f"{points(self.value)} points" + (f" ({self.interval})" if self.interval else "")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The encoder's accuracy and the same evaluator's on a baseline."""

    score: Score
    other: Score
    gap: Gap

    @property
    def relation(self) -> Relation:
        return self.gap.relation


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A question of the reader, its answer in a few words, and what the answer rests on."""

    question: str
    answer: str
    because: str
    standing: Standing


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The headline, a sentence that qualifies it, and the four answers."""

    headline: str
    qualification: str
    answers: tuple[Answer, ...]


def scores(run: RunFolder) -> tuple[Score, ...]:
    """The rows of evaluation.json that hold a number, in their order."""
    found: Any = nested(run.evaluation, "rows")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return tuple(
        Score(
            features=str(row.get("features", "unnamed")),
            evaluator=str(row.get("evaluator", "unnamed")),
            metric=str(row.get("metric", "accuracy")),
            value=float(row["value"]),
            low=float(row["low"]) if is_number(row.get("low")) else None,
            high=float(row["high"]) if is_number(row.get("high")) else None,
            dimensions=int(row["dimensions"]) if is_number(row.get("dimensions")) else None,
            task=str(row.get("task", "classes")),
        )
        for row in rows
        if is_number(row.get("value"))
    )


def leading(found: Sequence[Score]) -> tuple[Score, ...]:
    """The accuracies that the verdict goes by: of the pair that every run is judged by, else of the first two.

    They are of the images' classes, or of which way up images are where no classes were asked about.
    """
    accuracies = [score for score in found if score.metric == "accuracy"]
    task = next((task for task in ("classes", STAND_IN) if any(score.task == task for score in accuracies)), None)
    found = [score for score in accuracies if score.task == task]
    names = list(dict.fromkeys(score.evaluator for score in found))
    pair = PAIR if task == "classes" else PAIR[:1]
    wanted = [name for name in names if name in pair] or names[: len(pair)]
    return tuple(score for score in found if score.evaluator in wanted)


def judge(run: RunFolder) -> Verdict:
    """The verdict on a run; :func:`apart` says when an accuracy counts as above another."""
    found = leading(scores(run))
    pairs = {other: _pairs(run, found, other) for other in (RANDOM, PIXELS)}
    answers = (
        _dated(run, _answer("Did it learn?", pairs[RANDOM], "a random encoder")),
        _dated(run, _than_pixels(pairs[PIXELS])),
        _collapse(run, [] if run.outdated else pairs[RANDOM]),
        _cost(run),
    )
    targets = [score for score in found if score.features == TARGET and score.metric == "accuracy"]
    if not targets:
        return Verdict(headline=_unevaluated(run), qualification=_why_unevaluated(run), answers=answers)
    headline = _evaluated(targets, pairs[RANDOM])
    qualification = (
        "Which way up an image is stands in for labels, which would say more."
        if targets[0].task == STAND_IN
        else _beside_pixels(pairs[PIXELS])
    )
    step = run.steps_done if run.evaluated_step is None else run.evaluated_step
    if run.outdated:
        headline, qualification = f"At step {count(step)}: {headline}", f"{outdated(run)} {qualification}"
    elif run.finished is False:
        headline = f"So far, at step {count(step)} of {count(run.planned('steps'))}: {headline}"
    return Verdict(headline=headline, qualification=qualification, answers=answers)


def outdated(run: RunFolder) -> str:
    """That the evaluation is of another encoder than the run's, where it is."""
    if not run.outdated or run.evaluated_step is None:
        return ""
    return (
        f"The evaluation is of the encoder of step {count(run.evaluated_step)}; by now the run holds that of step "
        f"{count(run.exported['step'])}, which was not evaluated yet."
    )


def _dated(run: RunFolder, answer: Answer) -> Answer:
    """The answer with the step of the encoder that it is about, where that is not the run's any more."""
    if not run.outdated or run.evaluated_step is None or answer.standing == "unknown":
        return answer
    return replace(answer, because=f"At step {count(run.evaluated_step)}: {answer.because}")


def apart(run: RunFolder, score: Score, other: Score) -> Gap:
    """How far a score is above another and whether that is clear: by the 95% interval of their difference on the same
    images, where evaluation.json holds it, else by their own intervals."""
    found: Any = nested(run.evaluation, "differences")
    for row in found if isinstance(found, list) else []:
        if not isinstance(row, dict) or row.get("metric", "accuracy") != score.metric:
            continue
        if row.get("task", "classes") != score.task:
            continue
        named = row.get("features"), row.get("against"), row.get("evaluator")
        bounds = is_number(row.get("low")) and is_number(row.get("high"))
        if named == (score.features, other.features, score.evaluator) and bounds:
            relation = "above" if row["low"] > 0 else "below" if row["high"] < 0 else "level"
            value = row["value"] if is_number(row.get("value")) else score.value - other.value
            return Gap(value=value, low=row["low"], high=row["high"], relation=relation)
    return Gap(value=score.value - other.value, low=None, high=None, relation=compare(score, other))


def compare(score: Score, other: Score) -> Relation:
    """Whether one interval lies wholly above the other; without both intervals nothing is called above or below."""
    if score.low is None or score.high is None or other.low is None or other.high is None:
        return "level"
    return "above" if score.low > other.high else "below" if score.high < other.low else "level"


def _pairs(run: RunFolder, found: Sequence[Score], other: str) -> list[Pair]:
    """The target encoder's accuracies, each beside the same evaluator's on ``other``."""
    beside = {score.evaluator: score for score in found if score.features == other and score.metric == "accuracy"}
    mine = [score for score in found if score.features == TARGET and score.metric == "accuracy"]
    pairs = [(score, beside[score.evaluator]) for score in mine if score.evaluator in beside]
    return [Pair(score=a, other=b, gap=apart(run, a, b)) for a, b in pairs]


def _outcome(pairs: Sequence[Pair]) -> Outcome:
    outcomes: set[Outcome] = {pair.relation for pair in pairs}
    if len(outcomes) == 1:
        return outcomes.pop()
    return "part" if "above" in outcomes else "short"


# What an interval of one run is of.
_OVER = "over test images (another seed, or other images to learn on, are not in the interval)"
_SAID: dict[Outcome, tuple[str, Standing, str]] = {
    "above": ("Yes", "good", f"That is clear at 95% {_OVER}."),
    "part": ("In part", "mixed", "Not all of it is clear at 95% and in its favour."),
    "level": ("Not shown", "mixed", "That is within the 95% intervals."),
    "short": ("No", "bad", "Nothing is clear at 95% in its favour, and something against it."),
    "below": ("No", "bad", f"That is clear at 95%, against it, {_OVER}."),
}


def _answer(question: str, pairs: Sequence[Pair], other: str) -> Answer:
    if not pairs:
        because = f"No accuracy of {other} stands beside the encoder's."
        return Answer(question=question, answer="Not measured yet", because=because, standing="unknown")
    outcome = _outcome(pairs)
    answer, standing, said = _SAID[outcome]
    if outcome == "level" and any(None in (s.low, s.high) for pair in pairs for s in (pair.score, pair.other)):
        said = "Without 95% intervals the difference cannot be judged."
    asked = "Asked which way up images are, " if pairs[0].score.task == STAND_IN else ""
    gaps = ", ".join(
        f"{p.score.evaluator} {percent(p.score.value)} against {percent(p.other.value)}: {p.gap.told}" for p in pairs
    )
    because = f"{asked}{gaps}. {said}"
    return Answer(question=question, answer=answer, because=because, standing=standing)


def _than_pixels(pairs: Sequence[Pair]) -> Answer:
    question = "Better than raw pixels?"
    if not pairs or pairs[0].score.task != STAND_IN:
        return _answer(question, pairs, "raw pixels")
    because = (
        "It takes labels: which way up an image is, pixels tell by the light and by traces of how the picture was made "
        f"({listed([percent(pair.other.value) for pair in pairs])})."
    )
    return Answer(question=question, answer="Not measured", because=because, standing="unknown")


def spoken(evaluator: str) -> str:
    """An evaluator's name in a sentence."""
    return evaluator if evaluator == "k-NN" else f"the {evaluator}"


def _evaluated(targets: Sequence[Score], pairs: Sequence[Pair]) -> str:
    if not pairs:
        mine = listed([f"{percent(score.value)} on {spoken(score.evaluator)}" for score in targets])
        return f"The encoder scores {mine}; no random encoder was evaluated beside it, so this does not show learning."
    lead = {
        "above": "Training helped",
        "part": "Training helped in part",
        "level": "No gain from training is shown",
        "short": "No gain from training is shown",
        "below": "Training made the features worse",
    }[_outcome(pairs)]
    asked = "asked which way up images are, " if targets[0].task == STAND_IN else ""
    return f"{lead}: {asked}the encoder is {_where(pairs, 'a random one of its shape', 'it')}."


def _beside_pixels(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return "Raw pixels were not evaluated, so whether an encoder is needed at all for this task is open."
    return f"Raw pixels are the bar that costs nothing: the encoder is {_where(pairs, 'them', 'them')}."


def _where(pairs: Sequence[Pair], first: str, again: str) -> str:
    """On which evaluators the encoder is ahead of what ``first`` names, behind it, or neither; ``again`` names it a
    second time."""
    words: dict[Relation, str] = {"above": "ahead of", "below": "behind", "level": "not clearly apart from"}
    named: dict[Relation, list[str]] = {}
    for pair in pairs:
        named.setdefault(pair.relation, []).append(spoken(pair.score.evaluator))
    called = [first, again, again]
    return listed(
        [f"{words[one]} {name} on {listed(on)}" for (one, on), name in zip(named.items(), called, strict=False)]
    )


def _unevaluated(run: RunFolder) -> str:
    state = f"logged {count(run.steps_done)} steps" if run.metrics.rows else "logged nothing yet"
    steps = run.planned("steps")
    if is_number(steps):
        state = "finished" if run.finished else f"reached step {count(run.steps_done)} of {count(steps)}"
    if run.stopped_by is not None:
        state += f" and was stopped by a number that is not finite ({run.stopped_by} names the images of that step)"
    measured = [
        text
        for name, text in (("loss", "loss {}"), ("rankme", "RankMe {}"))
        if (value := run.metrics.last(name)) is not None
        for text in [text.format(plain(value))]
    ]
    ending = f" ({listed(measured)})" if measured else ""
    return f"Not evaluated yet: training {state}{ending}, and nothing here says yet how useful the features are."


def _why_unevaluated(run: RunFolder) -> str:
    online, values = run.metrics.column("knn")[1], ""
    if len(online):
        values = f" The online k-NN, a rough measure, went from {percent(online[0])} to {percent(online[-1])}."
    if run.planned("data", "labelled") is False:
        return (
            "The images carry no labels (no class folders): the command at the end asks which way up they are, which "
            "needs none; labelled images of the same kind say more." + values
        )
    return (
        "There is no evaluation.json with accuracies in this run: the command at the end makes it, or says why these "
        "images cannot be judged by their labels." + values
    )


def findings(run: RunFolder) -> list[Finding]:
    """What the watch saw, and features that the last numbers show to be all alike.

    The watch's section tells them and the answer on collapse follows from them, so that the two agree.
    """
    rows, experiment = run.metrics.rows, run.experiment if isinstance(run.experiment, dict) else None
    found = diagnose(rows, experiment)
    if any(one.severity == "recovering" or one.kind == "alike" for one in found):
        return found
    rank, spread = _rank_and_spread(run)
    told = alike({"step": run.steps_done - 1, "rankme": rank, "target_std": spread}, rows, experiment)
    return found if told is None else [told, *found]


def _collapse(run: RunFolder, pairs: Sequence[Pair]) -> Answer:
    """Collapse as the findings show it, beside what the evaluation says of a random encoder."""
    question = "Has it collapsed?"
    troubles = [one for one in findings(run) if one.severity != "explained"]
    if troubles:
        lead = min(troubles, key=lambda one: one.severity == "recovering")  # the first that is getting no better
        ahead = [spoken(pair.score.evaluator) for pair in pairs if pair.relation == "above"]
        answer, standing = _said_of(lead, doubted=bool(ahead))
        doubt = f" Yet on {listed(ahead)} the encoder is above a random one." if ahead else ""
        return Answer(question=question, answer=answer, because=lead.seen + doubt, standing=standing)
    (rank, spread), most = _rank_and_spread(run), most_directions(run)
    if rank is None:
        because = "RankMe, the number of directions in use, was not measured" + (
            f"; {_measured(run)}" if spread else ""
        )
        return Answer(question=question, answer="Not measured yet", because=f"{because}.", standing="unknown")
    because = f"{_measured(run)}."
    narrow = most is not None and rank < _NARROW_SHARE * most
    if narrow:
        because += " Few directions are in use. That alone is not failure: see the curves."
    if pairs and _outcome(pairs) in ("short", "below"):
        behind = [spoken(pair.score.evaluator) for pair in pairs if pair.relation == "below"]
        because += f" Yet on {listed(behind)} the features are below a random encoder's."
        return Answer(question=question, answer="The watch saw none", because=because, standing="mixed")
    if narrow:
        return Answer(question=question, answer="No, but narrow", because=because, standing="mixed")
    return Answer(question=question, answer="No sign of it", because=because, standing="good")


def collapsing(run: RunFolder) -> bool:
    """Whether a finding says that the features are worse than untrained and are getting no better."""
    return any(one.severity == "trouble" and one.kind != "fading" for one in findings(run))


def _said_of(lead: Finding, *, doubted: bool) -> tuple[str, Standing]:
    """The answer in a few words; ``doubted`` is whether the evaluation speaks against a collapse."""
    if lead.severity == "recovering":
        return "A dip so far", "mixed"
    if lead.kind == "fading":
        return "No, but it got worse", "mixed"
    if lead.kind == "alike" or (lead.kind in _COLLAPSES and not doubted):
        return "Yes", "bad"
    return "Signs of it", "mixed" if doubted else "bad"


def _rank_and_spread(run: RunFolder) -> tuple[float | None, float | None]:
    """RankMe, the evaluation's (of this encoder) before the online one, and the targets' standard deviation."""
    rank: Any = None if run.outdated else nested(run.evaluation, "spectrum", TARGET, "rankme")
    return rank if is_number(rank) else run.metrics.last("rankme"), run.metrics.last("target_std")


def _untrained_rank(run: RunFolder) -> float | None:
    """RankMe of the untrained encoder on the images of :func:`_rank_and_spread`."""
    ranks = nested(run.evaluation, "spectrum")
    judged = not run.outdated and is_number(nested(ranks, TARGET, "rankme"))
    rank: Any = nested(ranks, RANDOM, "rankme") if judged else untrained(run.metrics.rows).get("rankme")
    return rank if is_number(rank) else None


def _measured(run: RunFolder) -> str:
    (rank, spread), before, most = _rank_and_spread(run), _untrained_rank(run), most_directions(run)
    beside = [f"untrained {plain(before)}"] if before is not None else []
    beside += [f"at most {most}"] if most else []
    told = [f"RankMe {plain(rank)}" + (f" ({', '.join(beside)})" if beside else "")] if rank is not None else []
    told += [f"target std {plain(spread)}"] if spread is not None else []
    return listed(told)


def most_directions(run: RunFolder) -> int | None:
    """The most that RankMe as :func:`_rank_and_spread` has it can reach: the features' number, or that of the images
    looked at; None where that is not known (older evaluations do not say of how many, but of many)."""
    width, judged = feature_width(run), nested(run.evaluation, "spectrum", TARGET)
    of_judged = not run.outdated and is_number(nested(judged, "rankme"))
    if of_judged:
        images: Any = nested(judged, "images")
        return min(width, int(images)) if width and is_number(images) else width
    watched = _watched(run)
    return min(width, watched) if width and watched else None


def _watched(run: RunFolder) -> int | None:
    """How many images the watch looks at, at most all to train on; None where it is not known."""
    steps, batch = (nested(run.experiment, "training", name) for name in ("steps", "batch"))
    images: Any = run.planned("data", "images")
    if not (is_number(steps) and is_number(batch) and is_number(images)):
        return None
    return min(int(images), images_looked_at(int(steps), int(batch)))


def feature_width(run: RunFolder) -> int | None:
    """The target encoder's number of features, from the evaluation or from the pictured tokens."""
    for score in scores(run):
        if score.features == TARGET and score.dimensions:
            return score.dimensions
    features = run.pictures.features if run.pictures else None
    return None if features is None else int(features.shape[-1])


def _cost(run: RunFolder) -> Answer:
    seconds, rate, peak = (run.metrics.last(name) for name in ("seconds", "images_per_s", "peak_memory"))
    parts = [f"{count(rate)} images/s"] if rate is not None else []
    parts += [f"{memory(peak)} at the peak"] if peak is not None else []
    device, threads = run.planned("device"), run.planned("threads")
    if device:
        parts += [f"on {device}" + (f" with {counted_threads(threads)}" if is_number(threads) else "")]
    because = f"{', '.join(parts)}." if parts else "The log holds no speed."
    answer = duration(seconds) if seconds is not None else "Not logged"
    return Answer(question="What did it cost?", answer=answer, because=because, standing="unknown")
