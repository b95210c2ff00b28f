"""Objectives side by side: the same images, augmentation, encoder and compute, several seeds, one page.

Every run is a folder of its own, trained and judged by the commands that a person would type, each in a process of its
own: so its memory is its own, and an interrupted comparison goes on where it stopped.
"""

import dataclasses
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from openjepa.assessment import rotations
from openjepa.claiming import LOCK, claimed, make_run
from openjepa.data.base import Splits
from openjepa.diagnosis.looks import untrained
from openjepa.errors import InputError
from openjepa.evaluation.answers import shares
from openjepa.evaluation.catalogue import quick
from openjepa.evaluation.intervals import NO_SPREAD, difference_of_runs
from openjepa.experiment import Experiment, Method
from openjepa.files import names_in, write_whole
from openjepa.planning import Plan, Wishes, plan
from openjepa.running import EXPORTED, read_experiment
from openjepa.training import checkpoint as checkpoints
from openjepa.training.distributed import Processes
from openjepa.training.metrics import read_rows

FILE = "compare.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is compared.

    Attributes:
        objectives: the methods.
        seeds: number of seeds, from 0 on.
        minutes, flops, steps, epochs: of each run's training; exactly one. ``flops`` counts every operation of a step,
            an I-JEPA's target encoder included.
        evaluate: arguments of ``openjepa evaluate`` for every run (``--suite full``, ``--scenes``, ...).
        bad_images: share of the images (0 to 1) that may be unreadable, in training and evaluation; None is the
            recipe's.
    """

    objectives: tuple[Method, ...]
    seeds: int
    minutes: float | None = None
    flops: float | None = None
    steps: int | None = None
    epochs: float | None = None
    evaluate: tuple[str, ...] = ()
    bad_images: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("minutes", "flops", "steps", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                "say how much each run may spend with one of --minutes, --flops, --steps and --epochs"
                + (f", not {' and '.join(f'--{name}' for name in given)}" if given else "")
            )
        if not getattr(self, given[0]) > 0:
            raise InputError(f"--{given[0]} must be above 0, got {getattr(self, given[0])}")
        if len(set(self.objectives)) != len(self.objectives) or not self.objectives:
            raise InputError(f"--objectives names each objective once, got {', '.join(self.objectives) or 'none'}")
        if self.seeds < 1:
            raise InputError(f"--seeds must be 1 or more, got {self.seeds}")

    def settled(self, experiment: Experiment) -> Experiment:
        """The experiment with what is asked of every run alike."""
        if self.bad_images is None:
            return experiment
        return replace(experiment, training=replace(experiment.training, bad_images=self.bad_images))

    @property
    def runs(self) -> list[tuple[Method, int]]:
        """Every (objective, seed), seed by seed, so that an early stop leaves a comparison."""
        return [(objective, seed) for seed in range(self.seeds) for objective in self.objectives]


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something else than a comparison.

    Raises:
        InputError: it does, or it is a file.
    """
    if not folder.exists() or (folder / FILE).is_file():
        return
    if not folder.is_dir() or names_in(folder) - {LOCK}:
        raise InputError(f"{folder} exists and is no comparison: choose another --out")


def begin(
    folder: Path, request: Request, wishes: Wishes, splits: Splits, opened: str | None, processes: Processes
) -> dict[str, Any]:
    """Plan every objective and write ``compare.json``; a folder that has one of the same request is gone on with.

    Raises:
        InputError: the folder holds something else, another comparison, or a damaged one.
    """
    saved = None if wishes.experiment is None else json.loads(wishes.experiment.to_json())
    asked = {"data": opened, **dataclasses.asdict(request), "recipe": wishes.recipe, "channels": wishes.channels}
    asked |= {"image_size": wishes.image_size, "experiment": saved}
    path = folder / FILE
    if path.is_file():
        found = _read(path)
        before = found["request"]
        changed = [name for name, value in json.loads(json.dumps(asked)).items() if before.get(name) != value]
        if changed:
            raise InputError(
                f"{folder} holds a comparison with other settings ({', '.join(changed)}): go on with it by the command "
                f"that began it ({found['command']}), or choose another --out"
            )
        return found
    check_free(folder)
    plans: dict[Method, Plan] = {}
    wishes = replace(wishes, minutes=request.minutes, flops=request.flops, steps=request.steps, epochs=request.epochs)
    # Whatever the order they were asked for in, I-JEPA decides, whose long recipe has more than a wider encoder.
    for objective in sorted(request.objectives, key=get_args(Method).index):
        plans[objective] = plan(splits, replace(wishes, objective=objective), processes, opened, request.settled)
        # Steps of the others are cheaper or dearer, but the network is to be the same.
        wishes = replace(wishes, long=plans[objective].long)
    _check_equal(plans)
    content = {
        "request": asked,
        "command": "",
        "plans": {
            name: {"experiment": json.loads(planned.experiment.to_json()), "facts": planned.facts}
            for name, planned in ((name, plans[name]) for name in request.objectives)
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, content)
    return content


def _read(path: Path) -> dict[str, Any]:
    """What ``compare.json`` holds.

    Raises:
        InputError: it is damaged, or of something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        whole = set(content["request"]["objectives"]) <= set(content["plans"]) and isinstance(content["command"], str)
        if not whole or any(not {"experiment", "facts"} <= set(planned) for planned in content["plans"].values()):
            raise ValueError("it does not say all that was asked and planned")
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged, or no comparison's ({error}): restore it, or choose another --out"
        ) from error
    return content


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write ``compare.json``, whole or not at all."""
    write_whole(folder / FILE, json.dumps(content, indent=1) + "\n")


def _check_equal(plans: dict[Method, Plan]) -> None:
    """Whatever is said to be equal is equal, or there is no comparison."""
    first, *others = plans.values()
    for other in others:
        for part in ("encoder", "augmentation", "mean", "std"):
            if getattr(first.experiment, part) != getattr(other.experiment, part):
                raise ValueError(f"the {part} of {first.experiment.method} and {other.experiment.method} differ")


def run_all(
    folder: Path,
    content: dict[str, Any],
    request: Request,
    say: Callable[[str], None],
    device: str | None,
    judged: Callable[[], None] = lambda: None,
) -> int:
    """Train and judge every run that is not there yet; ``judged`` is called after each.

    Returns:
        The exit code of a command that failed or was interrupted, or 0.
    """
    missing = [own for own in request.runs if not (_run_of(folder, *own) / "judged.json").is_file()]
    to_train = [own for own in missing if not _trained_and_judged(_run_of(folder, *own))]
    if len(missing) > 1:
        seconds = sum(content["plans"][objective]["facts"]["estimate"]["seconds"] for objective, _ in to_train)
        hours, minutes = divmod(math.ceil(seconds / 60), 60)
        say(
            f"{len(missing)} runs: at most {f'{hours} h ' if hours else ''}{minutes} min of training by their plans, "
            "and an evaluation after each (Ctrl-C saves; the same command goes on)"
        )
    for number, (objective, seed) in enumerate(request.runs, 1):
        run = _run_of(folder, objective, seed)
        if (objective, seed) not in missing:
            continue
        say(f"run {number} of {len(request.runs)}: {objective}, seed {seed}")
        if not (run / "experiment.json").is_file():
            planned = content["plans"][objective]
            experiment = Experiment.from_json(json.dumps(planned["experiment"]), origin=folder / FILE)
            with claimed(run):
                make_run(run, Plan(experiment=replace(experiment, seed=seed), facts=planned["facts"]))
        where = [] if device is None else ["--device", device]
        training = [["resume", str(run)]] if (objective, seed) in to_train else []
        for command in (*training, ["evaluate", str(run), *request.evaluate]):
            code = _openjepa(*command, *where)
            if code:
                return code
        write_whole(run / "judged.json", (run / "evaluation.json").read_text())  # the sign that all of it went well
        judged()
    return 0


def _run_of(folder: Path, objective: Method, seed: int) -> Path:
    return folder / f"{objective}-seed{seed}"


def _trained_and_judged(run: Path) -> bool:
    """Whether a run is at its end and its encoder is judged by the quick suite, with which ``resume`` ends."""
    try:
        record = json.loads((run / "evaluation.json").read_text())
        rows, judged = record["rows"], record["step"]
        exported = json.loads((run / EXPORTED).read_text())["step"]
    except (OSError, ValueError, TypeError, LookupError):
        return False
    evaluators = {row["evaluator"] for row in rows if row["task"] == "classes"}
    by_labels = {entry.evaluator.name for entry in quick()} <= evaluators
    if judged != exported or not (by_labels or any(row["task"] == rotations.TASK for row in rows)):
        return False
    return read_experiment(run)[0].training.steps in checkpoints.steps(run / "checkpoints")


def _openjepa(*arguments: str) -> int:
    """One command in a process of its own; Ctrl-C reaches it too, and it saves before it ends. Nor does it outlive
    this call, whatever ends that."""
    # -P: or Python files in the current folder, a downloaded one perhaps, would come before the libraries' own.
    process = subprocess.Popen([sys.executable, "-P", "-m", "openjepa", *arguments], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                code = process.wait()
                return code if code >= 0 else 128 - code  # as a shell tells the signal that ended it
            except KeyboardInterrupt:  # on a terminal it got the signal too, and takes two within half a second as one
                ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # and by the process too, then
                process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def gather(folder: Path, content: dict[str, Any], request: Request) -> dict[str, Any]:
    """What the finished runs found, with means and spreads over the seeds, as ``compare.json`` holds it."""
    runs = []
    for objective, seed in request.runs:
        run = _run_of(folder, objective, seed)
        if (run / "judged.json").is_file():
            runs.append(_outcome(run, objective, seed))
    _check_same_images(folder, runs)
    summary = summarise(runs, request.objectives)
    for run in runs:  # of the answers image by image the summary has what they say
        run["rows"] = [{name: value for name, value in row.items() if name != "answers"} for row in run["rows"]]
    return content | {"runs": runs, "summary": summary}


def _check_same_images(folder: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Runs judged on other images than the last one have no mean with it: older versions chose them otherwise.

    Raises:
        InputError: there are some; it says what to do.
    """
    if not runs:
        return
    last = max(runs, key=lambda run: (folder / run["folder"] / "judged.json").stat().st_mtime_ns)
    if others := [run["folder"] for run in runs if run["images"] != last["images"]]:
        raise InputError(
            f"in {folder} {', '.join(others)} {'was' if len(others) == 1 else 'were'} judged on other images than "
            f"{last['folder']}, as an older version of openjepa chooses them: delete judged.json and "
            "evaluation.json there, and give the same command again, which judges anew and trains nothing"
        )


def _outcome(run: Path, objective: Method, seed: int) -> dict[str, Any]:
    experiment, facts = read_experiment(run)
    rows, judged = _logged(run), _judged(run)
    cost = facts["flops_per_image"]["step"] * experiment.training.batch
    curve = [
        {name: row[name] for name in ("step", "seconds", "knn", "probe", "rankme") if name in row}
        | {"flops": cost * (row["step"] + 1)}
        for row in rows
        if "rankme" in row
    ]
    last = rows[-1]
    return {
        "objective": objective,
        "seed": seed,
        "folder": run.name,
        "steps": last["step"] + 1,
        "seconds": last["seconds"],
        "images_per_s": (last["step"] + 1) * experiment.training.batch / last["seconds"],
        "flops": cost * (last["step"] + 1),
        "peak_memory": last["peak_memory"],
        "joules": last.get("joules"),
        "curve": curve,
        "untrained": {name: value for name, value in untrained(rows).items() if name in ("knn", "probe", "rankme")},
        "images": judged.get("images") or judged.get("tasks", {}).get("rotation", {}).get("images"),
        "rows": judged["rows"],
    }


def _logged(run: Path) -> list[dict[str, Any]]:
    """The rows that a finished run has logged.

    Raises:
        InputError: there are none.
    """
    path = run / "metrics.jsonl"
    rows = read_rows(path) if path.is_file() else []
    if not rows:
        raise InputError(
            f"{path} of a finished run is missing or damaged: restore it, or delete the folder {run} and give the same "
            "command again, which trains that run anew"
        )
    return rows


def _judged(run: Path) -> dict[str, Any]:
    """What a finished run was judged to be.

    Raises:
        InputError: the record is damaged.
    """
    path = run / "judged.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["rows"], list):
            raise ValueError("it holds no rows")
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(
            f"{path} is damaged ({error}): delete it and give the same command again, which judges that run anew and "
            "trains nothing"
        ) from error
    return content


def summarise(runs: Sequence[dict[str, Any]], objectives: Sequence[Method]) -> list[dict[str, Any]]:
    """For every measure: mean, standard deviation and number of seeds of each objective, and of the references.

    Each also has the difference of every two objectives (``pairs``: ``of`` one, ``against`` one asked for before it;
    ``differences``: those from the first one), with a 95% interval where both have two seeds or more, which do not all
    give the same. It is over seeds and ``test_images`` where the rows hold answers image by image, else over seeds
    alone (Welch's t; ``test_images`` is None).
    """
    found: dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        for row in run["rows"]:
            key = (row["task"], row["evaluator"], row["metric"])
            own = row["features"] not in ("random encoder", "raw pixels", "from scratch")
            name = run["objective"] if own else row["features"]
            found.setdefault(key, {}).setdefault(name, []).append(row)
    summary = []
    for (task, evaluator, metric), rows in found.items():
        pairs = [
            {"of": name, "against": against} | _difference(rows[name], rows[against])
            for number, against in enumerate(objectives)
            for name in objectives[number + 1 :]
            if against in rows and name in rows
        ]
        differences = {
            pair["of"]: {key: pair[key] for key in ("value", "low", "high", "test_images")}
            for pair in pairs
            if pair["against"] == objectives[0]
        }
        means = {name: _spread([row["value"] for row in each]) for name, each in rows.items()}
        named = {"task": task, "evaluator": evaluator, "metric": metric}
        summary.append(named | {"values": means, "differences": differences, "pairs": pairs})
    return summary


def _spread(values: Sequence[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return {"mean": mean, "std": (squares / (len(values) - 1)) ** 0.5 if len(values) > 1 else None, "n": len(values)}


def _difference(rows: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far the mean of some seeds' rows is above that of others', with its interval where there is one."""
    values, others = ([row["value"] for row in each] for each in (rows, against))
    one, other = _spread(values), _spread(others)
    found = {"value": one["mean"] - other["mean"], "low": None, "high": None, "test_images": None}
    # Seeds that all give the same, as of few test images that are all right, show no spread, which is not to have none.
    if len(values) < 2 or len(others) < 2 or max(one["std"], other["std"]) ** 2 <= NO_SPREAD:
        return found
    answers = [row["answers"] for row in (*rows, *against) if "answers" in row]  # rows of older versions have none
    images = {each["images"] for each in answers}
    if len(answers) == len(rows) + len(against) and len(images) == 1 and images != {1}:
        right = np.stack([shares(each) for each in answers])
        interval = difference_of_runs(right[: len(rows)], right[len(rows) :], answers[0]["worth"])
        return found | {"low": interval.low, "high": interval.high, "test_images": images.pop()}
    from scipy.stats import ttest_ind

    interval = ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
    return found | {"low": float(interval.low), "high": float(interval.high)}
