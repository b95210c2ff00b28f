"""From files to batches: images/s of the loader beside torchvision's ImageFolder and Hugging Face datasets.

    python benchmarks/data.py PHOTOS [--json FILE] [--workers 1] [--seconds 8] [--rows photos Parquet]

PHOTOS is a folder of photographs. From them are made, in a temporary folder: JPEGs of their own size, written again
with quality 90; a Parquet file of the same; 12-megapixel JPEGs, of one photograph enlarged and of many side by side
(of an enlarged one little is left to decode but its pixels); and 28-pixel grey PNGs. Everybody crops 0.3 to 1 of the
area at random, to 224 pixels (28 for the small ones), and normalises; ours draws the masks as well, and has a second
row with --cache (the time that copying takes is not in it). The peers have the transforms of torchvision's
documentation and PyTorch's DataLoader; without Hugging Face datasets (``pip install -e '.[hub]'``) Parquet has no peer.
All take turns with the same number of workers; the rate is that of whole batches of 32 after the first two.
"""

import argparse
import importlib
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets, transforms

from measure import machine
from openjepa.data.augmentation import Augmentation, Preprocessing
from openjepa.data.copies import Copies
from openjepa.data.loader import training_batches
from openjepa.data.sources import open_data
from openjepa.grid import TokenGrid
from openjepa.masking import MultiBlockMasking

BATCH = 32
LARGE = (4000, 3000)
COUNTS = {"photos": 200, "12 megapixels": 48, "12 megapixels, mosaics": 48, "28 px, grey": 4000, "Parquet": 200}
COPIED = " with --cache"  # our own rate from copies, beside the peer's from the files
ROWS = (*COUNTS, "12 megapixels" + COPIED)


def make(photos: Path, folder: Path, wanted: set[str]) -> None:
    """Write the sets that are wanted, each as one class for ImageFolder."""
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise SystemExit(f"there are no JPEG or PNG files in {photos}")
    for name in wanted:
        (folder / name / "all").mkdir(parents=True)
    rows = []
    for number, path in zip(range(COUNTS["photos"]), itertools.cycle(found), strict=False):
        image = Image.open(path).convert("RGB")
        content = io.BytesIO()
        image.save(content, "JPEG", quality=90)
        if "photos" in wanted:
            (folder / "photos" / "all" / f"{number}.jpg").write_bytes(content.getvalue())
        rows.append({"image": {"bytes": content.getvalue(), "path": f"{number}.jpg"}, "label": 0})
        if "12 megapixels" in wanted and number < COUNTS["12 megapixels"]:
            image.resize(LARGE).save(folder / "12 megapixels" / "all" / f"{number}.jpg", quality=90)
        if "12 megapixels, mosaics" in wanted and number < COUNTS["12 megapixels, mosaics"]:
            large = mosaic(found[number % len(found) :] + found[: number % len(found)])
            large.save(folder / "12 megapixels, mosaics" / "all" / f"{number}.jpg", quality=90)
    if "Parquet" in wanted:
        pq.write_table(pa.Table.from_pylist(rows), folder / "Parquet" / "train.parquet", row_group_size=100)
    if "28 px, grey" in wanted:
        small = [Image.open(path).convert("L").resize((64, 64)) for path in found[:50]]
        for number in range(COUNTS["28 px, grey"]):
            left, top = number % 36, number // 36 % 36
            part = small[number % len(small)].crop((left, top, left + 28, top + 28))
            part.save(folder / "28 px, grey" / "all" / f"{number}.png")


def mosaic(photos: list[Path]) -> Image.Image:
    """Photographs of their own size in rows: as much to decode in an area as these have."""
    canvas = Image.new("RGB", LARGE)
    left = top = tallest = 0
    pictures = itertools.cycle(photos)
    while top < LARGE[1]:
        photo = Image.open(next(pictures)).convert("RGB")
        canvas.paste(photo, (left, top))
        left, tallest = left + photo.width, max(tallest, photo.height)
        if left >= LARGE[0]:
            left, top, tallest = 0, top + tallest, 0
    return canvas


def ours(name: str, folder: Path, workers: int) -> Generator[int, None, None]:
    """The sizes of our batches, one after the other."""
    edge, channels = (28, 1) if "28" in name else (224, 3)
    patch = 7 if "28" in name else 16
    source = open_data(str(folder / name.removesuffix(COPIED))).train
    augmentation = Augmentation(crop_scale=(0.3, 1.0))
    if name.endswith(COPIED):
        source = Copies(source, augmentation.at_least((edge, edge)), folder / "copies")
        source.write()
    preprocessing = Preprocessing(size=(edge, edge), channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
    masking = MultiBlockMasking(TokenGrid((edge // patch, edge // patch)))
    batches = training_batches(source, preprocessing, augmentation, masking, batch=BATCH, seed=0, workers=workers)
    with closing(batches):
        for batch in batches:
            yield len(preprocessing.normalise(batch.images))


def _transform(name: str) -> Callable[[Image.Image], torch.Tensor]:
    edge, channels = (28, 1) if "28" in name else (224, 3)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(edge, scale=(0.3, 1.0)),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * channels, (0.25,) * channels),
        ]
    )


def peer(name: str, folder: Path, workers: int, hub: ModuleType | None) -> Generator[int, None, None]:
    """The sizes of torchvision's batches; for Parquet, those of ``hub``, Hugging Face datasets, transformed alike."""
    name = name.removesuffix(COPIED)
    transform = _transform(name)
    if name == "Parquet":
        assert hub is not None
        files, cache = str(folder / name / "train.parquet"), str(folder / "cache")
        rows = hub.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
        rows = rows.cast_column("image", hub.Image())
        rows.set_transform(lambda batch: {"image": [transform(image.convert("RGB")) for image in batch["image"]]})
        data: Any = rows
        key: Any = "image"
    else:

        def load(path: str) -> Image.Image:
            with open(path, "rb") as file:
                return Image.open(file).convert("L" if "28" in name else "RGB")

        data = datasets.ImageFolder(str(folder / name), transform, loader=load)
        key = 0
    # With replacement, so that it need not end and begin again: so few images are a batch or two.
    sampler = RandomSampler(data, replacement=True, num_samples=10**9)
    loader = DataLoader(data, BATCH, sampler=sampler, num_workers=workers)
    while True:
        for batch in loader:
            yield len(batch[key])


def rate(batches: Iterator[int], seconds: float) -> float:
    """Images/s, after two batches."""
    for _ in range(2):
        next(batches)
    begin, images = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        images += next(batches)
    return images / (time.perf_counter() - begin)


def the_hub() -> ModuleType | None:
    """Hugging Face datasets, or None, which is said at once and not after the rows before."""
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        print(f"Parquet is read without a peer: {error} (pip install -e '.[hub]')", flush=True)
        return None


def show(found: dict[str, Any]) -> None:
    """Print a table."""
    shown = Table(
        title=f"From files to batches, images/s, {found['workers']} worker(s)", caption=found["machine"]["processor"]
    )
    for heading in ("images", "kB a file", "openjepa", "peer", "ratio"):
        shown.add_column(heading, justify="left" if heading == "images" else "right")
    for name, of in found["rates"].items():
        mine, cells = statistics.median(of["ours"]), ["", ""]
        if name in found["ratio"]:
            who = "datasets" if name == "Parquet" else "ImageFolder"
            cells = [f"{statistics.median(of['peer']):.0f} ({who})", f"{found['ratio'][name]:.2f}"]
        shown.add_row(name, f"{found['bytes'][name] / 1000:,.1f}", f"{mine:.0f}", *cells)
    Console().print(shown)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--json", type=Path, help="write the numbers there, after every row")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {ROWS}")
    options = parser.parse_args()
    hub = the_hub() if "Parquet" in options.rows else None
    torch.set_num_threads(1)
    found: dict[str, Any] = {"workers": options.workers, "machine": machine(torch.device("cpu"))}
    found |= {"bytes": {}, "rates": {}, "ratio": {}}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make(options.photos, folder, {name.removesuffix(COPIED) for name in options.rows})
        for name in options.rows:
            sizes = [path.stat().st_size for path in (folder / name.removesuffix(COPIED)).rglob("*") if path.is_file()]
            found["bytes"][name] = statistics.mean(sizes)
            runs = {"ours": lambda name=name: ours(name, folder, options.workers)}
            if name != "Parquet" or hub is not None:
                runs["peer"] = lambda name=name: peer(name, folder, options.workers, hub)
            rates: dict[str, list[float]] = {who: [] for who in runs}
            for _ in range(options.rounds):
                for who, run in runs.items():
                    with closing(run()) as batches:
                        rates[who].append(rate(batches, options.seconds))
            found["rates"][name] = rates
            if "peer" in rates:
                found["ratio"][name] = statistics.median(rates["ours"]) / statistics.median(rates["peer"])
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    show(found)


if __name__ == "__main__":
    main()
