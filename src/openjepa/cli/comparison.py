"""The verb that sets objectives side by side: compare."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from openjepa.cli.parsing import from_anywhere, parse, share_of_bad
from openjepa.errors import InputError
from openjepa.files import expanded


def compare_verb(arguments: list[str]) -> int:
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Compare:
        """Train objectives with equal data, augmentation, encoder and compute, and set them side by side on one page.

        Each run is a folder of its own inside --out, as pretrain would make it. The same command goes on with a
        comparison that was interrupted. Say how much each run may spend with one of --minutes, --flops, --steps and
        --epochs.

        Attributes:
            data: as for pretrain; nothing means the bundled sample.
            out: the comparison's folder, which must be new or this comparison's.
            objectives: ijepa, mae and denoising, or some of them, with commas between; the first is what the others are
                measured against.
            seeds: runs of each objective, with seeds from 0 on.
            minutes: training time of each run; how many steps fit is settled beforehand, from a few real ones.
            flops: floating-point operations of each run's training, as 1e14; all of a step is counted.
            steps: optimiser steps of each run.
            epochs: passes over the images of each run.
            suite: quick (k-NN, linear probes, spoilt images, scenes) or full: what each run is judged by.
            scene_count: scenes to learn on, and to test on.
            segmentation: judge each run on these images and masks as well.
            recipe: auto, small or standard.
            experiment: a saved I-JEPA experiment.json whose encoder, augmentation and training all objectives take.
            channels: channels of the encoder (the images').
            image_size: height and width in pixels (the recipe's).
            bad_images: share of the images (0 to 1) that may be unreadable; they are left out and counted (the
                recipe's, 0.01).
            workers: loader processes (as many as keep up with the steps, by measurement).
            device: cpu, cuda or cuda:N (a GPU if there is one).
        """

        data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
        out: Path = Path("runs/compare")
        objectives: str = "ijepa,mae,denoising"
        seeds: int = 1
        minutes: float | None = None
        flops: float | None = None
        steps: int | None = None
        epochs: float | None = None
        suite: str = "quick"
        scene_count: tuple[int, int] = (4000, 2000)
        segmentation: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="IMAGES MASKS")] = None
        recipe: str = "auto"
        experiment: Path | None = None
        channels: int | None = None
        image_size: tuple[int, int] | None = None
        bad_images: float | None = None
        workers: int | None = None
        device: str | None = None

    given = parse(Compare, "compare", arguments)
    named = (given.data, given.out, given.experiment, *(given.segmentation or ()))
    where = [] if any(argument.split("=")[0] == "--out" for argument in arguments) else ["--out", str(given.out)]
    return _compare(given, from_anywhere("compare", arguments + where, named))


def _compare(given: Any, command: str) -> int:
    from openjepa.assessment.segmentation import open_parts
    from openjepa.claiming import held
    from openjepa.comparing import Request, check_free
    from openjepa.data.sources import open_data
    from openjepa.experiment import Method

    objectives = tuple(part.strip() for part in given.objectives.split(",") if part.strip())
    if unknown := [name for name in objectives if name not in get_args(Method)]:
        raise InputError(f"there is no objective {unknown[0]!r}; choose from {', '.join(get_args(Method))}")
    request = Request(
        objectives=objectives,  # type: ignore[arg-type] - checked above
        seeds=given.seeds,
        minutes=given.minutes,
        flops=given.flops,
        steps=given.steps,
        epochs=given.epochs,
        evaluate=_judging(given),
        bad_images=given.bad_images,
    )
    wishes = _wishes(given)
    bad_images = share_of_bad(given.bad_images, wishes.experiment)
    if given.segmentation is not None:  # masks by which no run could be judged are told before the first is trained
        open_parts(*(expanded(path) for path in given.segmentation), bad_images=bad_images)
    out, splits = expanded(given.out), open_data(given.data)
    if splits.train.labels is None:
        print(
            f"openjepa compare: {splits.train.name} has no labels ({splits.train.unlabelled}): the objectives are "
            f"compared by which way up its images are, a stand-in, and on scenes drawn from the bundled sample",
            file=sys.stderr,
        )
    check_free(out)
    with held(out):
        return _run(given, request, wishes, splits, out, command)


def _run(given: Any, request: Any, wishes: Any, splits: Any, out: Path, command: str) -> int:
    """Plan or go on, train and judge what is missing, and write the page, after each run too."""
    from openjepa.comparing import begin, gather, run_all, write
    from openjepa.data.sources import in_full
    from openjepa.report.comparison import write_comparison
    from openjepa.training import distributed

    content = begin(out, request, wishes, splits, in_full(given.data), distributed.join(given.device))
    content["command"] = content["command"] or command

    def renew() -> None:
        """What is known by now, in ``compare.json`` and on the page."""
        nonlocal content
        content = gather(out, content, request)
        write(out, content)
        if content["runs"]:
            write_comparison(out)

    renew()
    code = run_all(out, content, request, lambda text: print(text, file=sys.stderr), given.device, renew)
    if content["runs"]:
        _print(content)
        print(f"page: {out / 'compare.html'}")
    if code:
        print(
            f"openjepa compare: a run stopped with exit code {code}; go on with: {content['command']}", file=sys.stderr
        )
    return code


def _judging(given: Any) -> tuple[str, ...]:
    """The arguments of ``openjepa evaluate`` for every run, which has the quick suite from its training already."""
    from openjepa.assessment import Tasks
    from openjepa.evaluation.catalogue import choose

    # What is wrong is told before anything is trained.
    choose(given.suite)
    Tasks(names=("scenes",), scene_count=given.scene_count)
    arguments = ["--suite", "full"] if given.suite == "full" else ["--only", "robustness", "scenes"]
    arguments += ["--scene-count", *map(str, given.scene_count)]
    if given.segmentation is not None:
        arguments += ["--segmentation", *(str(expanded(path).resolve()) for path in given.segmentation)]
    return tuple(arguments)


def _wishes(given: Any) -> Any:
    from openjepa.cli.parsing import read_saved
    from openjepa.planning import Wishes

    return Wishes(
        recipe=given.recipe,
        channels=given.channels,
        image_size=given.image_size,
        workers=given.workers,
        experiment=read_saved(given.experiment),
    )


def _print(content: dict[str, Any]) -> None:
    """The means over seeds, a row for each measure."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from openjepa.cli.tables import console

    objectives = content["request"]["objectives"]
    found = dict.fromkeys(name for row in content["summary"] for name in row["values"])
    names = [*(name for name in objectives if name in found), *(name for name in found if name not in objectives)]
    table = Table(title="%, mean over seeds ± their standard deviation", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # On a narrow terminal headings and names of measures break, and the numbers stay in one piece.
    table.add_column("measure")
    for name in names:
        table.add_column(name, justify="right", min_width=10 if name in objectives else None)
    before = None
    for row in content["summary"]:
        kind, _, of = row["task"].partition(": ")
        if kind != before:
            table.add_section()
            table.add_row(Text(kind, "bold"))
            before = kind
        title = ", ".join(part for part in (of, row["evaluator"], row["metric"]) if part not in ("", "accuracy"))
        table.add_row(title, *(_cell(row["values"].get(name), name in objectives) for name in names))
    console().print(table)


def _cell(found: dict[str, Any] | None, trained: bool) -> str:
    if found is None:
        return ""
    spread = found["std"] if trained else None  # the references are the same for every seed
    return f"{100 * found['mean']:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")
