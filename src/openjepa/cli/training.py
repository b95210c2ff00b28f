"""The verbs that train: pretrain and resume."""

import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from openjepa.cli.parsing import parse, read_saved, share_of_bad, unchecked
from openjepa.cli.tables import print_evaluation, print_plan
from openjepa.errors import InputError
from openjepa.files import expanded
from openjepa.progress import tell


def pretrain_verb(arguments: list[str]) -> int:
    import tyro

    from openjepa.data.augmentation import Augmentation
    from openjepa.encoder import EncoderConfig, PredictorConfig
    from openjepa.experiment import Experiment, Method
    from openjepa.masks import MultiBlockConfig
    from openjepa.objectives.denoising import DenoisingConfig
    from openjepa.objectives.ijepa import IJEPAConfig
    from openjepa.objectives.mae import MAEConfig
    from openjepa.planning import Wishes, plan
    from openjepa.recipes.small import small
    from openjepa.training.optimizer import OptimizerConfig
    from openjepa.training.schedules import ScheduleConfig
    from openjepa.training.step import TrainingConfig

    # The recipe's settings, each of which an option can override; the order is the one of --help.
    parts = ("encoder", "predictor", "masks", "ijepa", "mae", "denoising", "augmentation")
    parts += ("schedule", "optimizer", "training")

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
            cache: before the run, copy large images once at the size that training needs, so that every epoch reads
                them faster; how much room that takes is said first. With it, later runs on the same images at that
                size use the same copies.
            recipe: auto, small, standard, or published-b16, -l16, -h14, -h16-448, -g16.
            objective: ijepa, mae or denoising: what is predicted from what (ijepa, or the saved experiment's).
            experiment: a saved experiment.json to begin with instead of a recipe.
            channels: channels of the encoder (the images').
            image_size: height and width in pixels (the recipe's).
            minutes: length of the training as time; how many steps fit is settled beforehand, from a few real ones.
            epochs: length of the run as passes over the images.
            steps: length of the run as optimiser steps (without any length: 100 epochs, within 3,000 and 30,000 steps).
            keep_best: export the checkpoint that looks best without labels, not the last one.
            bad_images: share of the images (0 to 1) that may be unreadable before the run stops (0.01, or the saved
                experiment's).
            seed: of everything random (0, or the saved experiment's).
            workers: loader processes (as many as keep up with the steps, by measurement).
            device: cpu, cuda or cuda:N (a GPU if there is one).
            encoder: Architecture of the encoder.
            predictor: Architecture of the predictor, or of a baseline's decoder.
            masks: Multi-block masks.
            ijepa: Settings of I-JEPA.
            mae: Settings of MAE.
            denoising: Settings of the denoising autoencoder.
            augmentation: How training varies the images.
            schedule: Learning rate and weight decay over the run.
            optimizer: Settings of AdamW and Muon.
            training: The run; length, watch and loader processes are settled by the plan unless they are given.
        """

        data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
        out: Path | None = None
        dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        cache: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        recipe: str = "auto"
        objective: Method | None = None
        experiment: Path | None = None
        channels: int | None = None
        image_size: tuple[int, int] | None = None
        minutes: float | None = None
        epochs: float | None = None
        steps: int | None = None
        keep_best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        bad_images: float | None = None
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
        parse(Pretrain, "pretrain", arguments, settled)
    # What a setting may be depends on the recipe, and the recipe on the data; so a first look checks types alone.
    bare, bare_settled = unchecked(Pretrain, settled)
    given = parse(bare, "pretrain", arguments, bare_settled)
    asked = {argument.split("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}

    def override(experiment: Experiment) -> Experiment:
        _refuse_of_others(experiment.method, asked)
        before = {name: getattr(experiment, name) for name in parts}
        bare, bare_settled = unchecked(Pretrain, Pretrain(**before))
        again = parse(bare, "pretrain", arguments, bare_settled)
        # Each part's own checks, whose words are the answer.
        settings = {name: type(part)(**vars(getattr(again, name))) for name, part in before.items()}
        if again.keep_best:
            settings["training"] = replace(settings["training"], keep_best=True)
        if again.bad_images is not None:
            settings["training"] = replace(settings["training"], bad_images=again.bad_images)
        return replace(experiment, **settings)

    if "--training.steps" in asked and any((given.minutes, given.epochs, given.steps)):
        raise InputError("give one of --training.steps, --minutes, --epochs and --steps")
    share_of_bad(given.bad_images, None)  # a wrong one is told before anything is read
    both = {"--bad-images", "--training.bad-images"} <= asked
    if both and given.bad_images != given.training.bad_images:
        raise InputError(
            f"--bad-images {given.bad_images:g} and --training.bad-images {given.training.bad_images:g} say the same "
            "setting: give one of them"
        )
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
        workers=given.training.workers if given.workers is None and "--training.workers" in asked else given.workers,
        experiment=read_saved(given.experiment),
    )
    if given.out is None and not given.dry_run:
        raise InputError("say where to put the run, with --out RUN (or look at the plan alone, with --dry-run)")
    given.out = given.out and expanded(given.out)
    return _begin(given, wishes, partial(plan, override=override, asked=asked))


def _refuse_of_others(objective: str, asked: set[str]) -> None:
    """Refuse settings that only another objective than this one reads."""
    own = {"ijepa": ("masks", "ijepa"), "mae": ("mae",), "denoising": ("denoising",)}
    for other, parts in own.items():
        idle = sorted(name for name in asked if name.startswith(tuple(f"--{part}." for part in parts)))
        if other != objective and idle:
            them = "it" if len(idle) == 1 else "them"
            raise InputError(
                f"{' and '.join(idle)} would change nothing: {objective} is to be trained, and only {other} reads "
                f"{them}; leave {them} out, or add --objective {other}"
            )


def _begin(given: Any, wishes: Any, plan: Callable) -> int:
    from openjepa.claiming import claimed
    from openjepa.training import distributed

    processes = distributed.join(given.device)
    try:
        with claimed(given.out) if processes.first and not given.dry_run else nullcontext():
            if processes.first:
                _plan(given, wishes, plan, processes)
            if given.dry_run:
                return 0
            processes.wait(patiently=True)
            return _train(given.out, processes)
    finally:
        distributed.leave()


def _plan(given: Any, wishes: Any, plan: Callable, processes: Any) -> None:
    """Plan the run, print the plan, and make the run's folder unless the plan is all that is wanted."""
    from openjepa.claiming import make_run
    from openjepa.data.sources import in_full, open_data

    tell("looking at the images and timing a few steps ...")
    # Several processes write when the run begins, the first one of each machine.
    write = processes.world == 1 and not given.dry_run
    copied = partial(_copied, write=write) if given.cache else lambda source, experiment: source
    planned = plan(open_data(given.data), wishes, processes, in_full(given.data), copied=copied)
    print_plan(planned.facts)
    if not given.dry_run:
        make_run(given.out, planned)


def _copied(source: Any, experiment: Any, *, write: bool) -> Any:
    """The images' copies, to train from: written where they are not yet, or with ``write`` false only announced."""
    from openjepa.data.copies import Copies, copies_folder

    size = experiment.preprocessing.size
    copies = Copies(source, experiment.augmentation.at_least(size), copies_folder())
    if write:
        _write(copies)
    else:
        _announce(copies)
    if copies.complete and not copies.size:
        print("no copies are kept: no image of 8 bits in grey or colour is so large that one would help")
        return source
    return copies


def _announce(copies: Any) -> int:
    """Say what is to be written; returns its bytes."""
    missing = len(copies) - copies.done
    wanted = copies.estimate() * missing // len(copies) if missing else 0
    if wanted:
        print(f"copies of {missing:,} images: about {wanted / 1e6:,.0f} MB in {copies.place}")
    return wanted


def _write(copies: Any) -> None:
    from openjepa.files import check_room
    from openjepa.progress import progress

    check_room(_announce(copies), copies.place, what="the copies", instead="go without --cache")
    with progress("copies") as count:
        copies.write(count)


def _say(sentence: str) -> None:
    """A line for a person, above the bar where there is one."""
    with suppress(OSError):  # a terminal that is gone, for which no step is to be lost
        print(f"openjepa: {sentence}", file=sys.stderr, flush=True)


def _train(
    run: Path,
    processes: Any,
    *,
    resume: bool = False,
    workers: int | None = None,
    bad_images: float | None = None,
) -> int:
    from openjepa.claiming import has_begun
    from openjepa.running import Run
    from openjepa.training.trainer import TrainingStopped

    training = Run(run, processes, workers=workers, bad_images=bad_images, write=_write, say=_say)
    again = processes.gather(resume and has_begun(run))[0]  # or one would see what another saves meanwhile
    for damaged in training.trainer.resume() if again else ():
        print(f"openjepa: passed over: {damaged}", file=sys.stderr)
    done, steps = training.trainer.done, training.experiment.training.steps
    if again and processes.first:
        print(f"going on from step {done} of {steps}" if done < steps else "finished; evaluating again", flush=True)
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
        on = f"openjepa resume {shlex.quote(str(run))}"
        print(f"stopped by {stopped} at step {training.trainer.done}; saved. Go on with: {on}")
        return 128 + signal.Signals[stopped]
    if done < steps:
        tell("the training is done; evaluating ...")
    return _finish(run, training)


def _finish(run: Path, training: Any) -> int:
    """Write the report, evaluate (without labels by which way up images are), and write it again."""
    from openjepa.assessment import Tasks, judge, panel_of
    from openjepa.cli import exit_code
    from openjepa.cli.evaluation import own_cache, renewed
    from openjepa.data.loader import LoaderError
    from openjepa.evaluation.catalogue import quick
    from openjepa.pretrained import load
    from openjepa.report import write_report

    # First without: whatever becomes of the evaluation, the training is done.
    report, command = write_report(run), f"openjepa evaluate {shlex.quote(str(run.resolve()))}"
    try:
        device = training.processes.device
        found = judge(
            panel_of(load(run).to(device)),
            training.splits,
            entries=quick(str(device)),
            tasks=Tasks(),
            command=command,
            bad_images=training.experiment.training.bad_images,
            trained_on=training.plan["data"]["fingerprint"],
            cache=own_cache(),
        )
        renewed(run, found)
        print_evaluation(found)
    except InputError as error:
        print(f"openjepa: the encoder is trained, but it cannot be evaluated on these images: {error}", file=sys.stderr)
    except LoaderError as error:
        print(
            f"openjepa: the encoder is trained, but not evaluated: {error}. Evaluate with: {command}", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt as stop:
        print(f"stopped in the evaluation; the training is done and saved. Evaluate with: {command}")
        return exit_code(stop)
    finally:
        print(f"encoder: {run / 'encoder'}   report: {report}")
    return 0


def resume_verb(arguments: list[str]) -> int:
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Resume:
        """Go on with a run from its newest whole checkpoint; the result is the same as without the stop.

        Attributes:
            run: the run's folder.
            data: where the run's images are now, if they (or the run) have moved; they must be the same ones, and the
                run remembers the place.
            workers: another number of loader processes; it does not change the result.
            bad_images: another share of the images (0 to 1) that may be unreadable before the run stops; it does not
                change the result.
            device: cpu, cuda or cuda:N (a GPU if there is one).
        """

        run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
        data: str | None = None
        workers: int | None = None
        bad_images: float | None = None
        device: str | None = None

    given = parse(Resume, "resume", arguments)
    from openjepa.claiming import held
    from openjepa.running import moved, read_experiment
    from openjepa.training import distributed

    if given.workers is not None and given.workers < 0:
        raise InputError(f"--workers must be 0 or more, got {given.workers}")
    if given.bad_images is not None:
        share_of_bad(given.bad_images, None)
    run = expanded(given.run)
    processes = distributed.join(given.device)
    try:
        read_experiment(run)  # or it is no run, and nothing is to be made there
        with held(run) if processes.first else nullcontext():
            if given.data is not None:
                if processes.first:
                    moved(run, given.data)
                processes.wait(patiently=True)
            return _train(run, processes, resume=True, workers=given.workers, bad_images=given.bad_images)
    finally:
        distributed.leave()
