"""The verb that judges: evaluate."""

import errno
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from openjepa.cli.parsing import from_anywhere, parse, share_of_bad
from openjepa.cli.tables import print_evaluation
from openjepa.errors import InputError
from openjepa.files import cache_folder, expanded, locked, moved_aside, write_whole
from openjepa.progress import stages, tell

# Held while what a run says of its encoder is written; another than the training's, beside which it may be judged.
_LOCK = ".evaluation.lock"


def evaluate_verb(arguments: list[str]) -> int:
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Evaluate:
        """Judge an encoder by what its features are good for, beside a random one of its shape and raw pixels.

        The quick suite is k-NN and a linear probe (of the last layer; of the last four blocks). The full one adds k-NN
        with k chosen, logistic regression with less regularisation, SGD probes (with and without BatchNorm; last layer
        and last four blocks), an attentive probe, low-shot probes, retrieval, turned images, spoilt images, scenes of
        several objects, and fine-tuning. All choices are made on a part held out of the training images. Of images
        without labels k-NN is asked which way up they are, a stand-in that needs none.

        Attributes:
            encoder: a run, an imported checkpoint's folder, a Hugging Face model directory (other models than I-JEPA
                need the extra export), a timm model directory (extra timm), or features that are computed already:
                a folder with train.npy, test.npy (images, dimensions) and train_labels.npy, test_labels.npy (one whole
                number an image), or one .npy file with labels.npy beside it (tested on in five folds; of more than
                5,000 images a fifth is).
            data: images, as for pretrain, labelled ones if there are any; for a run, nothing means its own. For .npy
                features it may be left out, or be the images that they are of, in their order, for raw pixels to stand
                beside them.
            suite: quick or full.
            only: run only these of the full suite: knn, logistic, sgd, attentive, lowshot, retrieval, rotation (which
                way up images are that were turned, by k-NN), robustness (test images with noise and blur), scenes (how
                many objects drawn scenes hold, how near, and where; judged by the evaluators named beside it, else by
                the suite's) and finetune (all weights trained on some labels, beside the same from random weights).
            limit: at most this many images to learn on (two of every class all the same), and a quarter of it to
                test on (.npy features: all are used). Without a test part images that are no more than this quarter
                are tested on in five folds, each by what was learned on the others; of more a fifth is held out.
            bad_images: share of the images (0 to 1) that may be unreadable: they are left out and counted (a run's own
                --bad-images, else 0.01).
            cache: where features (at most 4 GiB) and what evaluators found in them are kept for the next time, the
                longest unused removed (by default openjepa/features in the user's cache folder).
            no_cache: compute everything anew, and keep nothing.
            json: also write the result here.
            segmentation: judge patches by k-NN and a linear layer, as mIoU: a folder of images, and one of masks of
                the same names (PNG with class numbers, or black and white). In place of the quick suite; beside what
                --suite full or --only ask for.
            scene_count: scenes to learn on, and to test on.
            finetune_epochs: passes over the images to fine-tune on.
            finetune_images: at most this many of them.
            pictures: a folder for pictures of the scenes and of --segmentation to look at.
            device: cpu, cuda or cuda:N (a GPU if there is one).
        """

        encoder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|ENCODER|FEATURES")]
        data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
        suite: str = "quick"
        only: tuple[str, ...] = ()
        limit: int = 20_000
        bad_images: float | None = None
        cache: Path | None = None
        no_cache: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
        json: Path | None = None
        segmentation: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="IMAGES MASKS")] = None
        scene_count: tuple[int, int] = (4000, 2000)
        finetune_epochs: int = 10
        finetune_images: int = 1000
        pictures: Path | None = None
        device: str | None = None

    given = parse(Evaluate, "evaluate", arguments)
    place = None if given.json is None else expanded(given.json)
    if place is not None and (place.is_dir() or not place.absolute().parent.is_dir()):
        raise InputError(f"--json {given.json} cannot be written: name a file in a folder that exists")
    if place is not None:
        _check_writable(place)
    named = (given.encoder, given.data, *(given.segmentation or ()), given.cache, given.json, given.pictures)
    found = _judged(given, from_anywhere("evaluate", arguments, named))
    folder, said = expanded(given.encoder), list[str]()
    # What took hours is on the disk before a word of it is printed to what may be a broken pipe, or a full disk's log.
    try:
        if (folder / "experiment.json").is_file():
            if smaller := _smaller(folder, found):
                keep = "" if given.json else "--json FILE keeps this; "
                said.append(f"not kept: {smaller} ({keep}without that record the run takes it)")
            elif _reports(folder, given.data):
                said += [f"written: {path}" for path in renewed(folder, found, said.append)]
            elif place is None:
                said.append(f"not kept: {folder} reports on its own images (--json FILE keeps this)")
    finally:
        try:
            if place is not None:
                _write_json(place, found)
                said.append(f"written: {place}")
        finally:
            print_evaluation(found)
            for line in said:
                print(line)
    return 0


def _check_writable(place: Path) -> None:
    """Refuse, before anything is computed, a file that cannot be written; nothing is left, and what is there stays.

    Raises:
        InputError: it cannot.
    """
    try:
        if _in_place(place):
            if not os.access(place, os.W_OK) and place.exists():
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            with tempfile.TemporaryFile(dir=place.absolute().parent):
                pass
    except OSError as error:
        raise InputError(f"--json {place} cannot be written ({error.strerror}): name another file") from error


def _in_place(place: Path) -> bool:
    """Whether a file is written as it stands, without a draft: ``/dev/stdout``, a pipe or a link."""
    return place.is_symlink() or (place.exists() and not place.is_file())


def _write_json(place: Path, found: dict[str, Any]) -> None:
    """Write a result, whole or not at all where that can be."""
    text = json.dumps(found, indent=1) + "\n"
    if _in_place(place):
        place.write_text(text, encoding="utf-8")
    else:
        write_whole(place, text)


def _reports(run: Path, data: str | None) -> bool:
    """Whether a run's report is of these images: its own, or any where its own have no labels to report on."""
    from openjepa.data.sources import in_full
    from openjepa.running import read_experiment

    own = read_experiment(run)[1]["data"]
    return data is None or not own.get("labelled") or in_full(data) == own["opened"]


def _smaller(run: Path, found: dict[str, Any]) -> str:
    """Where a run's record of the same encoder is of more test images of the same data, a sentence that says so."""
    before = _recorded(run) or {}
    if before.get("encoder") != found["encoder"]:
        return ""
    kinds = before.get("tasks", {}) | {"classes": before}
    for name, facts in (found.get("tasks", {}) | {"classes": found}).items():
        then, now = (one.get("test_images") or 0 for one in (kinds.get(name, {}), facts))
        if then > now > 0 and kinds[name].get("data") == facts.get("data"):
            return f"{run / 'evaluation.json'} is of {then:,} test images, and this of {now:,} of them"
    return ""


def _recorded(run: Path) -> dict[str, Any] | None:
    """What a run's evaluation.json holds; nothing where there is none, None where it is damaged."""
    path = run / "evaluation.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return content if isinstance(content, dict) and isinstance(content.get("rows", []), list) else None


def renewed(run: Path, found: dict[str, Any], say: Callable[[str], None] = print) -> list[Path]:
    """What a run says of its own encoder: evaluation.json (what was measured before stays), card and report.

    Nothing where training has gone on meanwhile and the run holds another encoder by now. Else the record holds the
    ``step`` of the encoder, by which a report tells later on whether that is still the run's.
    """
    with locked(run / _LOCK, wait=True):  # or of two that measure at a time one would write over the other's rows
        return _renewed(run, found, say)


def _renewed(run: Path, found: dict[str, Any], say: Callable[[str], None]) -> list[Path]:
    """What :func:`renewed` does, one at a time."""
    from openjepa.assessment import open_panel
    from openjepa.assessment.tasks import joined
    from openjepa.report import write_report
    from openjepa.running import EXPORTED, renew_card

    path = run / "evaluation.json"
    if found["encoder"] != open_panel(run).fingerprint:
        say(f"not kept: training went on, and {run} holds another encoder by now (--json FILE keeps this)")
        return []
    before = _recorded(run)
    if before is None:
        kept = moved_aside(path, ".damaged")
        say(f"{path} was damaged: it is kept as {kept.name}, and what was measured now takes its place")
    whole = joined(before or {}, found)
    if left := len((before or {}).get("rows", [])) + len(found["rows"]) - len(whole["rows"]):
        say(f"{left} older rows of {path} are replaced: measured anew, or of another encoder or other images")
    with suppress(OSError, ValueError, LookupError):  # the card cannot be written without it, which says so
        whole["step"] = int(json.loads((run / EXPORTED).read_text())["step"])
    write_whole(path, json.dumps(whole, indent=1) + "\n")
    report = write_report(run)  # before the card, which is refused where encoder/ is no longer the run's own
    card = renew_card(run, _with_data(whole))
    if card is None:
        edited = run / "encoder" / "README.md"
        say(f"not renewed: {edited} has been edited, and is left as it is (delete it to have a new one written)")
    return [path, *([] if card is None else [card]), report]


def _with_data(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a record, each with the data that it was measured on, the numbers of images and of classes."""
    tasks = found.get("tasks", {}) | {"classes": found}
    named = ("data", "train_images", "test_images", "folds", "classes")
    rows = []
    for row in found["rows"]:
        facts = tasks.get(row["task"].split(":")[0], {})
        told = {name: facts[name] for name in named if name in facts}
        rows.append(row | told | ({"data": _for_others(told["data"])} if "data" in told else {}))
    return rows


def _for_others(data: str) -> str:
    """What the data are called where the folder that they are in says nothing, and perhaps too much."""
    from openjepa.assessment.segmentation import WITH_MASKS

    folders = (expanded(part) for part in data.split(WITH_MASKS))
    return WITH_MASKS.join(path.name if path.is_absolute() or path.exists() else str(path) for path in folders)


def _judged(given: Any, command: str) -> dict[str, Any]:
    """What the evaluators say of the encoder, or of the features, that the command line names."""
    from openjepa.assessment import Tasks, assess_given
    from openjepa.assessment.precomputed import is_precomputed, read_given
    from openjepa.data.sources import open_data
    from openjepa.training import distributed

    folder = expanded(given.encoder)
    if given.limit < 8:
        raise InputError(f"--limit must be at least 8 images, got {given.limit}")
    share_of_bad(given.bad_images, None)  # a wrong one is told before anything is read
    if given.cache is not None and given.no_cache:
        raise InputError("give one of --cache and --no-cache")
    names, whole, evaluators = _asked(given)  # a wrong name is told before anything is read
    tasks = Tasks(
        names=names,
        scene_count=given.scene_count,
        finetune_epochs=given.finetune_epochs,
        finetune_images=given.finetune_images,
        segmentation=given.segmentation,
        pictures=given.pictures and expanded(given.pictures),
    )
    if is_precomputed(folder):
        if (given.only and names) or given.segmentation:
            raise InputError("features that are computed already cannot be judged on other images: it takes a network")
        features = read_given(folder)
        splits = None if given.data is None else open_data(given.data)
        entries = evaluators(str(distributed.join(given.device).device)) if whole else ()
        with stages() as progress:
            found = assess_given(features, splits, entries=entries, command=command, progress=progress)
        if names:  # of --suite full
            found["notes"].append(f"Not available without the network: {', '.join(names)}.")
        return found
    if not folder.exists():
        raise InputError(f"there is no file or folder {folder}: name a run, an encoder's folder, or features (.npy)")
    device = distributed.join(given.device).device
    entries = evaluators(str(device))
    tasks = replace(tasks, entries=entries)
    return _encoder_judged(given, folder, device, tasks, entries if whole else (), command)


def _encoder_judged(
    given: Any, folder: Path, device: Any, tasks: Any, entries: tuple[Any, ...], command: str
) -> dict[str, Any]:
    """What the evaluators and tasks say of the encoder in ``folder``; of a run it is known what it was trained on."""
    from openjepa.assessment import judge, open_panel
    from openjepa.data.sources import open_data
    from openjepa.running import own_data, read_experiment

    experiment, plan = read_experiment(folder) if (folder / "experiment.json").is_file() else (None, None)
    splits, bad_images = None, share_of_bad(given.bad_images, experiment)
    if entries or {"rotation", "robustness", "finetune"} & set(tasks.names):
        if given.data is None and plan is None:
            raise InputError(f"{folder} is not a run, so say which images to judge it on")
        splits = own_data(folder, plan) if given.data is None and plan is not None else open_data(given.data)
    elif given.data is not None:
        raise InputError(f"scenes and masks bring their own images: leave {given.data!r} out")
    with stages() as progress:
        return judge(
            open_panel(folder, device),
            splits,
            entries=entries,
            tasks=tasks,
            limit=given.limit,
            bad_images=bad_images,
            trained_on="" if plan is None else plan["data"]["fingerprint"],
            command=command,
            cache=_cache(given),
            progress=progress,
            note=tell,
        )


def own_cache() -> Any:
    """Where features are kept unless another place is named; None where nobody knows of a place, which is said."""
    from openjepa.assessment.cache import cache_at

    try:
        place = cache_folder() / "features"
    except InputError as error:
        _of_cache(f"features are not kept for the next time: {error}")
        return None
    return cache_at(place, _of_cache)


def _cache(given: Any) -> Any:
    """Where features are looked for and kept, or None."""
    from openjepa.assessment.cache import cache_at

    if given.no_cache:
        return None
    return own_cache() if given.cache is None else cache_at(given.cache, _of_cache)


def _of_cache(sentence: str) -> None:
    print(f"openjepa: {sentence}", file=sys.stderr)


def _asked(given: Any) -> tuple[tuple[str, ...], bool, Callable[[str], tuple[Any, ...]]]:
    """The tasks of other kinds, whether whole images are judged too, and the evaluators as a function of the device."""
    from openjepa.assessment.tasks import TASKS
    from openjepa.evaluation.catalogue import choose

    names = tuple(name for name in TASKS if name in given.only or (given.suite == "full" and not given.only))
    images = tuple(name for name in given.only if name not in TASKS)
    choose(given.suite, images, others=TASKS)
    alone = (given.only and not images) or (given.segmentation and not given.only and given.suite == "quick")
    return names, not alone, lambda device: choose(given.suite, images, device, others=TASKS)
