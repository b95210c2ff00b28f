"""The command line. Each verb parses its arguments, calls the library, and prints what a person needs."""

import inspect
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from openjepa._version import __version__
from openjepa.errors import InputError

_HELP = f"""openjepa {__version__}: train a vision encoder on your own unlabelled images, and know how good it is.

  openjepa pretrain DATA --out RUN          train; DATA is a folder of images, Parquet, fashion-mnist, a hub id,
                                            or nothing for the bundled sample
  openjepa resume RUN                       go on with a run
  openjepa report RUN                       write RUN/report.html
  openjepa evaluate RUN|ENCODER [DATA]      k-NN and linear probe, beside a random encoder and raw pixels;
                                            --suite full for all the probes; ENCODER may be another library's
  openjepa import CHECKPOINT --out DIR      turn a published .pth.tar into files that other tools load

Every verb explains itself with --help.
"""


def main(arguments: list[str] | None = None) -> None:
    """The entry point; exits with 0, 1 (training cannot go on), 2 (unusable input) or 128 + signal."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # OpenMP's threads spin while they wait, and starve the loader and each other as soon as anything else runs: a step
    # took ten times as long on two cores with one other process (LOG.md). It is read when PyTorch is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        sys.exit(0 if arguments else 2)
    if arguments[0] in ("--version", "version"):
        print(__version__)
        sys.exit(0)
    verb, rest = arguments[0], arguments[1:]
    if verb not in _VERBS:
        print(f"openjepa: there is no verb {verb!r}; choose from {', '.join(_VERBS)}", file=sys.stderr)
        sys.exit(2)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(_VERBS[verb](rest))
    except InputError as error:
        print(f"openjepa {verb}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"openjepa {verb}: {stop or 'interrupted'}", file=sys.stderr)
        sys.exit(143 if str(stop) else 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(_number: int, _frame: object) -> None:
    # Outside the training loop, which saves first, SIGTERM ends what is done as Ctrl-C does.
    raise KeyboardInterrupt("stopped by SIGTERM")


def _parse(kind: Any, verb: str, arguments: list[str], default: Any = None) -> Any:
    import tyro

    program, description = f"openjepa {verb}", (inspect.getdoc(kind) or "").split("\n\nAttributes:")[0]
    try:
        if default is None:
            return tyro.cli(kind, prog=program, args=arguments, description=description)
        return tyro.cli(kind, prog=program, args=arguments, description=description, default=default)
    except ValueError as error:  # a setting's own check
        raise InputError(str(error)) from error


def _pretrain(arguments: list[str]) -> int:
    import tyro

    from openjepa.data.augmentation import Augmentation
    from openjepa.encoder import EncoderConfig, PredictorConfig
    from openjepa.experiment import Experiment, Method
    from openjepa.masking import MultiBlockConfig
    from openjepa.objectives.denoising import DenoisingConfig
    from openjepa.objectives.ijepa import IJEPAConfig
    from openjepa.objectives.mae import MAEConfig
    from openjepa.planning import Wishes, plan
    from openjepa.recipes.small import small
    from openjepa.training.optimizer import OptimizerConfig
    from openjepa.training.schedules import ScheduleConfig
    from openjepa.training.trainer import TrainingConfig

    # The recipe's settings, each of which an option can override; the order is the one of --help.
    parts = {
        "encoder": EncoderConfig,
        "predictor": PredictorConfig,
        "masks": MultiBlockConfig,
        "ijepa": IJEPAConfig,
        "mae": MAEConfig,
        "denoising": DenoisingConfig,
        "augmentation": Augmentation,
        "schedule": ScheduleConfig,
        "optimizer": OptimizerConfig,
        "training": TrainingConfig,
    }

    @dataclass(frozen=True, kw_only=True)
    class Pretrain:
        """Train an encoder on unlabelled images: look at them, print the plan, train, evaluate, write the report.

        The options with a dot override single settings of the recipe; the defaults shown for them are those of the
        bundled sample, and the recipe sets them for your data.

        Attributes:
            data: a folder of images in any layout, a Parquet file or folder, fashion-mnist, a Hugging Face hub id
                (owner/name), or nothing for the bundled sample.
            out: the run's folder, which must be new.
            dry_run: print the plan and stop.
            recipe: auto, small, standard, or published-b16, -l16, -h14, -h16-448, -g16.
            objective: ijepa, mae or denoising: what is predicted from what (ijepa, or the saved experiment's).
            experiment: a saved experiment.json to begin with instead of a recipe.
            channels: channels of the encoder (the images').
            image_size: height and width in pixels (the recipe's).
            minutes: length of the training as time; how many steps fit is settled beforehand, from a few real ones.
            epochs: length of the run as passes over the images.
            steps: length of the run as optimiser steps.
            keep_best: export the checkpoint that looks best without labels, not the last one.
            seed: of everything random (0, or the saved experiment's).
            workers: loader processes (the recipe's).
            device: cpu, cuda or cuda:N (a GPU if there is one).
        """

        data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
        out: Path | None = None
        dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        recipe: str = "auto"
        objective: Method | None = None
        experiment: Path | None = None
        channels: int | None = None
        image_size: tuple[int, int] | None = None
        minutes: float | None = None
        epochs: float | None = None
        steps: int | None = None
        keep_best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        seed: int | None = None
        workers: int | None = None
        device: str | None = None
        encoder: EncoderConfig = field(default_factory=EncoderConfig)
        predictor: PredictorConfig = field(default_factory=PredictorConfig)
        masks: MultiBlockConfig = field(default_factory=MultiBlockConfig)
        ijepa: IJEPAConfig = field(default_factory=IJEPAConfig)
        mae: MAEConfig = field(default_factory=MAEConfig)
        denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
        augmentation: Augmentation = field(default_factory=Augmentation)
        schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
        optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
        training: TrainingConfig = field(default_factory=TrainingConfig)

    sample = small(signal=(28, 28), patch=(7, 7), mean=(0.286,), std=(0.353,))
    settled = Pretrain(**{name: getattr(sample, name) for name in parts})
    if {"-h", "--help"} & set(arguments):
        _parse(Pretrain, "pretrain", arguments, settled)
    # What a setting may be depends on the recipe, and the recipe on the data; so a first look checks types alone.
    bare, bare_settled = _unchecked(Pretrain, settled)
    given = _parse(bare, "pretrain", arguments, bare_settled)
    asked = {argument.split("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}

    def override(experiment: Experiment) -> Experiment:
        settled = Pretrain(**{name: getattr(experiment, name) for name in parts})
        again = _parse(Pretrain, "pretrain", arguments, settled)
        settings = {name: getattr(again, name) for name in parts}
        if again.keep_best:
            settings["training"] = replace(settings["training"], keep_best=True)
        return replace(experiment, **settings)

    if "--training.steps" in asked and any((given.minutes, given.epochs, given.steps)):
        raise InputError("give one of --training.steps, --minutes, --epochs and --steps")
    saved = None
    if given.experiment is not None:
        if not given.experiment.is_file():
            raise InputError(f"there is no file {given.experiment}")
        try:
            saved = Experiment.from_json(given.experiment.read_text(), origin=given.experiment)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{given.experiment} cannot be read as text: {error}") from error
    wishes = Wishes(
        recipe=given.recipe,
        objective=given.objective,
        channels=given.channels,
        image_size=given.image_size,
        minutes=given.minutes,
        epochs=given.epochs,
        steps=given.training.steps if "--training.steps" in asked else given.steps,
        watch_every=given.training.watch_every if "--training.watch-every" in asked else None,
        seed=given.seed,
        workers=given.workers,
        experiment=saved,
    )
    if given.out is None and not given.dry_run:
        raise InputError("say where to put the run, with --out RUN (or look at the plan alone, with --dry-run)")
    given.out = given.out and given.out.expanduser()
    return _begin(given, wishes, override, plan)


def _unchecked(kind: Any, default: Any) -> tuple[Any, Any]:
    """The command line's dataclass and its default, with settings that have types and no checks."""
    hints = get_type_hints(kind, include_extras=True)
    values, columns = {}, []
    for one in fields(kind):
        hint, value = hints[one.name], getattr(default, one.name)
        if is_dataclass(value):
            inner = get_type_hints(type(value))
            bare = make_dataclass(hint.__name__, [(part.name, inner[part.name]) for part in fields(value)])
            hint, value = bare, bare(**{part.name: getattr(value, part.name) for part in fields(value)})
        columns.append((one.name, hint))
        values[one.name] = value
    bare = make_dataclass(kind.__name__, columns)
    return bare, bare(**values)


def _begin(given: Any, wishes: Any, override: Callable, plan: Callable) -> int:
    from openjepa.data.sources import open_data
    from openjepa.running import check_free, make_run
    from openjepa.training import distributed

    processes = distributed.join(given.device)
    try:
        if processes.first:
            if not given.dry_run:
                check_free(given.out)
            # Spelled in full, so that the run can go on from any other folder.
            opened = given.data
            if opened is not None and Path(opened).expanduser().exists():
                opened = str(Path(opened).expanduser().resolve())
            planned = plan(open_data(given.data), wishes, processes, opened, override)
            _print_plan(planned.facts)
            if not given.dry_run:
                make_run(given.out, planned)
        if given.dry_run:
            return 0
        processes.wait()
        return _train(given.out, processes)
    finally:
        distributed.leave()


def _train(run: Path, processes: Any, *, resume: bool = False, workers: int | None = None) -> int:
    from openjepa.running import Run
    from openjepa.training.trainer import TrainingStopped

    training = Run(run, processes, workers=workers)
    if resume:
        for damaged in training.trainer.resume():
            print(f"openjepa: passed over: {damaged}", file=sys.stderr)
        if processes.first:
            print(f"going on from step {training.trainer.done} of {training.experiment.training.steps}")
    try:
        stopped = training.train(show=processes.first)
    except TrainingStopped as error:
        if processes.first:
            print(f"openjepa: {error}", file=sys.stderr)
        return 1
    if not processes.first:
        return 0
    if training.choice:
        print(training.choice)
    if stopped is not None:
        print(f"stopped by {stopped} at step {training.trainer.done}; saved. Go on with: openjepa resume {run}")
        return 130 if stopped == "SIGINT" else 143
    return _finish(run, training)


def _finish(run: Path, training: Any) -> int:
    """Evaluate where there are labels, and write the report."""
    from openjepa.assessment import assess
    from openjepa.pretrained import load
    from openjepa.report import write_report

    found = assess(load(run).to(training.processes.device), training.splits, command=f"openjepa evaluate {run}")
    (run / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")
    training.export(evaluation=found["rows"])
    _print_evaluation(found)
    print(f"encoder: {run / 'encoder'}   report: {write_report(run)}")
    return 0


def _resume(arguments: list[str]) -> int:
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Resume:
        """Go on with a run from its newest whole checkpoint; the result is the same as without the stop.

        Attributes:
            run: the run's folder.
            workers: another number of loader processes; it does not change the result.
            device: cpu, cuda or cuda:N (a GPU if there is one).
        """

        run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
        workers: int | None = None
        device: str | None = None

    given = _parse(Resume, "resume", arguments)
    from openjepa.training import distributed

    processes = distributed.join(given.device)
    try:
        return _train(given.run.expanduser(), processes, resume=True, workers=given.workers)
    finally:
        distributed.leave()


def _report(arguments: list[str]) -> int:
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Report:
        """Write RUN/report.html: one file that opens offline.

        Attributes:
            run: the run's folder.
        """

        run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]

    given = _parse(Report, "report", arguments)
    from openjepa.report import write_report

    print(write_report(given.run.expanduser()))
    return 0


def _evaluate(arguments: list[str]) -> int:
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Evaluate:
        """Judge features by their use for classes, beside a random encoder of the same shape and raw pixels.

        The quick suite is k-NN and a linear probe. The full one adds k-NN with k chosen, logistic regression with less
        regularisation, SGD probes (with and without BatchNorm; last layer and last four blocks), an attentive probe,
        low-shot probes and retrieval. All choices are made on a part held out of the training images.

        --segmentation, --scenes and --finetune ask for other tasks in their place.

        Attributes:
            encoder: a run, an imported checkpoint's folder, a Hugging Face model directory (other models than I-JEPA
                need the extra export), a timm model directory (extra parity), or features that are computed already:
                a folder with train.npy, test.npy (images, dimensions) and train_labels.npy, test_labels.npy (one whole
                number an image), or one .npy file with labels.npy beside it, of which a fifth is held out to test on.
            data: labelled images, as for pretrain; for a run, nothing means its own. For .npy features it may be left
                out, or be the images that they are of, in their order, for raw pixels to stand beside them.
            suite: quick or full.
            only: run only these of the full suite: knn, logistic, sgd, attentive, lowshot, retrieval.
            limit: at most this many images to learn on, and a quarter of it to test on (.npy features: all are used).
            cache: where features are kept for the next time, at most 4 GiB, the longest unused removed (by default
                openjepa/features in the user's cache folder).
            no_cache: compute features anew, and keep none.
            json: also write the result here.
            segmentation: judge patches by k-NN and a linear layer, as mIoU: a folder of images, and one of masks of
                the same names (PNG with class numbers, or black and white).
            scenes: judge by k-NN and a linear probe how many objects drawn scenes hold, how near, and where.
            scene_count: scenes to learn on, and to test on.
            finetune: train a copy of all weights on the labels, beside the same from random weights.
            finetune_epochs: passes over the images to learn on.
            finetune_images: at most this many of them.
            pictures: a folder for pictures of --scenes and --segmentation to look at.
            device: cpu, cuda or cuda:N (a GPU if there is one).
        """

        encoder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|ENCODER|FEATURES")]
        data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
        suite: str = "quick"
        only: tuple[str, ...] = ()
        limit: int = 20_000
        cache: Path | None = None
        no_cache: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        json: Path | None = None
        segmentation: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="IMAGES MASKS")] = None
        scenes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        scene_count: tuple[int, int] = (4000, 2000)
        finetune: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        finetune_epochs: int = 10
        finetune_images: int = 1000
        pictures: Path | None = None
        device: str | None = None

    given = _parse(Evaluate, "evaluate", arguments)
    if given.json is not None and (given.json.is_dir() or not given.json.absolute().parent.is_dir()):
        raise InputError(f"--json {given.json} cannot be written: name a file in a folder that exists")
    found = _judged(given, shlex.join(["openjepa", "evaluate", *arguments]))
    _print_evaluation(found)
    paths = [] if given.json is None else [given.json]
    folder = given.encoder.expanduser()
    own = given.data is None and (folder / "experiment.json").is_file()
    if own:
        paths.append(folder / "evaluation.json")
    for path in paths:
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"written: {path}")
    if own:
        from openjepa.report import write_report
        from openjepa.running import renew_card

        print(f"written: {renew_card(folder, found['rows'])}")
        print(f"written: {write_report(folder)}")
    return 0


def _judged(given: Any, command: str) -> dict[str, Any]:
    """What the evaluators say of the encoder, or of the features, that the command line names."""
    from openjepa.assessment import assess, assess_given, open_panel
    from openjepa.assessment.cache import cache_at
    from openjepa.assessment.precomputed import is_precomputed, read_given
    from openjepa.data.idx import cache_folder
    from openjepa.data.sources import open_data
    from openjepa.evaluation.catalogue import choose
    from openjepa.running import own_data, read_experiment
    from openjepa.training import distributed

    folder = given.encoder.expanduser()
    choose(given.suite, given.only)  # a wrong name is told before anything is read
    if given.cache is not None and given.no_cache:
        raise InputError("give one of --cache and --no-cache")
    if is_precomputed(folder):
        features = read_given(folder)
        splits = None if given.data is None else open_data(given.data)
        device = str(distributed.join(given.device).device)
        with _progress() as progress:
            entries = choose(given.suite, given.only, device)
            return assess_given(features, splits, entries=entries, command=command, progress=progress)
    if given.data is None and not (folder / "experiment.json").is_file():
        raise InputError(f"{folder} is not a run, so say which labelled images to judge it on")
    device = distributed.join(given.device).device
    panel = open_panel(folder, device)
    splits = own_data(folder, read_experiment(folder)[1]) if given.data is None else open_data(given.data)
    cache = None
    if not given.no_cache:
        place = given.cache or cache_folder() / "features"
        cache = cache_at(place, lambda sentence: print(f"openjepa evaluate: {sentence}", file=sys.stderr))
    entries = choose(given.suite, given.only, str(device))
    with _progress() as progress:
        return assess(
            panel, splits, entries=entries, limit=given.limit, command=command, cache=cache, progress=progress
        )


@contextmanager
def _progress() -> Iterator[Callable[[str, float, float], None]]:
    """A bar on a terminal for whoever waits, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, end = bar.add_task("", total=None), None

        def show(doing: str, done: float, total: float) -> None:
            nonlocal task, end
            if total != end:  # another stage, whose speed says nothing of the last one's
                bar.remove_task(task)
                task, end = bar.add_task(doing, total=total), total
            bar.update(task, description=doing, completed=done)

        yield show


def _import(arguments: list[str]) -> int:
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Import:
        """Turn a published .pth.tar into a folder with both encoders (Hugging Face layout) and the predictor.

        Attributes:
            checkpoint: the file.
            out: the folder to make, which must be new.
            num_heads: attention heads of the encoder, where its width is not a published one.
            predictor_heads: attention heads of the predictor, where they are not the encoder's.
        """

        checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
        out: Path
        num_heads: int | None = None
        predictor_heads: int | None = None

    given = _parse(Import, "import", arguments)
    from openjepa.interop.imported import import_checkpoint

    path, out = given.checkpoint.expanduser(), given.out.expanduser()
    facts = import_checkpoint(path, out, heads=given.num_heads, predictor_heads=given.predictor_heads)
    for name, value in facts.items():
        print(f"{name}: {value}")
    print(f"written: {out} (encoder/ is the target encoder; openjepa.load({str(out)!r}) reads it)")
    return 0


def _print_plan(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    data, masks, estimate = facts["data"], facts["masks"], facts["estimate"]
    kept = "all visible" if masks["shape"] in ("packed", "reference") else f"{masks['context_tokens']}"
    blocks = "1 block" if masks["target_blocks"] == 1 else f"{masks['target_blocks']} blocks"
    rows = {
        "images": f"{data['images']:,} to train on ({data['name']}); {data['split']}",
        "skipped": _skipped(data),
        "sizes": f"{data['sizes']} px (height x width), {data['channels']} channel{'s' * (data['channels'] != 1)}",
        "labels": f"{data['classes']} classes, for evaluation only" if data["labelled"] else "none found",
        "recipe": f"{facts['recipe']['name']}: {facts['recipe']['why']}",
        "input": f"{_times(facts['image'])} px in patches of {_times(facts['patch'])}: {_times(facts['grid'])} tokens",
        "masks": f"{masks['shape']}: {kept} seen, {blocks} of {masks['target_tokens']} asked",
        "parameters": f"{facts['parameters']['encoder']:,} encoder, {facts['parameters']['predictor']:,} predictor",
        "length": f"{facts['steps']:,} steps of {facts['batch']} images, {facts['epochs']:.1f} epochs",
        "machine": f"{facts['device']}, {facts['precision']}, {facts['processes']} x {facts['threads']} threads",
        "estimate": f"{_duration(estimate['seconds'])} of training (then the evaluation) and "
        f"{estimate['memory'] / 2**30:.1f} GiB, from a few real steps",
    }
    table = Table(show_header=False, box=None, padding=(0, 1))
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", value)
    Console().print(table)


def _skipped(data: dict[str, Any]) -> str:
    files, bad = data["skipped"], data["unreadable"]
    said = f"{files:,} files" + (f" (for example {data['skipped_example']})" if files else "")
    said += f"; {bad:,} of the {data['looked_at']:,} images looked at cannot be read"
    return said + (f" (for example {data['unreadable_example']})" if bad else "")


def _print_evaluation(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not found["rows"]:
        console.print(found["split"])
        for name, measures in found["spectrum"].items():
            console.print(f"RankMe of {name}: {measures['rankme']:.1f}")
        return
    table = Table(
        title=f"{found['data']}: {found['train_images']:,} images to learn on, {found['test_images']:,} to test"
    )
    for heading in ("evaluator", "features", "measure", "value", "95% interval", "width"):
        left = heading in ("evaluator", "features", "measure")
        # On a narrow terminal long names of evaluators break, and the numbers stay in one piece.
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading not in ("evaluator", "measure"))
    measures = dict.fromkeys((row["evaluator"], row["metric"]) for row in found["rows"])
    before = None
    for evaluator, metric in sorted(
        measures, key=lambda one: list(dict.fromkeys(e for e, _ in measures)).index(one[0])
    ):
        rows = [row for row in found["rows"] if (row["evaluator"], row["metric"]) == (evaluator, metric)]
        if before not in (None, evaluator):
            table.add_section()
        for number, row in enumerate(rows):
            name = evaluator if before != evaluator and number == 0 else ""
            interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
            shown = metric if number == 0 else ""
            table.add_row(name, row["features"], shown, f"{100 * row['value']:.1f}%", interval, str(row["dimensions"]))
        before = evaluator
    console.print(table)
    for sentence in (found["summary"], *found.get("notes", ())):
        if sentence:
            console.print(sentence)


def _times(extents: list[int]) -> str:
    return "x".join(map(str, extents))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


_VERBS: dict[str, Callable[[list[str]], int]] = {
    "pretrain": _pretrain,
    "resume": _resume,
    "report": _report,
    "evaluate": _evaluate,
    "import": _import,
}
