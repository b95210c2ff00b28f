"""From files to batches: images/s of the loader beside torchvision's ImageFolder and Hugging Face datasets.

    python benchmarks/data.py PHOTOS [--json FILE] [--workers 1] [--seconds 8]

PHOTOS is a folder of photographs. From them are made, in a temporary folder: 12-megapixel JPEGs, 28-pixel grey PNGs,
and a Parquet file of the photographs as they are. Everybody crops 0.3 to 1 of the area at random, to 224 pixels (28 for
the small ones), and normalises; ours draws the masks as well, and has a second row with --cache (the time that copying
takes is not in it). The peers have the transforms of torchvision's documentation and PyTorch's DataLoader. All take
turns with the same number of workers; the rate is that of whole batches of 32 after the first two.
"""

import argparse
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
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
COUNTS = {"photos": 200, "12 megapixels": 48, "28 px, grey": 4000, "Parquet": 200}
COPIED = " with --cache"  # our own rate from copies, beside the peer's from the files


def make(photos: Path, folder: Path) -> None:
    """Write the four sets, each as one class for ImageFolder."""
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise SystemExit(f"there are no JPEG or PNG files in {photos}")
    for name in COUNTS:
        (folder / name / "all").mkdir(parents=True)
    rows = []
    for number, path in zip(range(COUNTS["photos"]), itertools.cycle(found), strict=False):
        image = Image.open(path).convert("RGB")
        content = io.BytesIO()
        image.save(content, "JPEG", quality=90)
        (folder / "photos" / "all" / f"{number}.jpg").write_bytes(content.getvalue())
        rows.append({"image": {"bytes": content.getvalue(), "path": f"{number}.jpg"}, "label": 0})
        if number < COUNTS["12 megapixels"]:
            image.resize((4000, 3000)).save(folder / "12 megapixels" / "all" / f"{number}.jpg", quality=90)
    small = [Image.open(path).convert("L").resize((64, 64)) for path in found[:50]]
    for number in range(COUNTS["28 px, grey"]):
        left, top = number % 36, number // 36 % 36
        part = small[number % len(small)].crop((left, top, left + 28, top + 28))
        part.save(folder / "28 px, grey" / "all" / f"{number}.png")
    pq.write_table(pa.Table.from_pylist(rows), folder / "Parquet" / "train.parquet", row_group_size=100)


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


def image_folder(name: str, folder: Path, workers: int) -> Generator[int, None, None]:
    """The sizes of torchvision's batches; for Parquet, Hugging Face datasets' with the same transforms."""
    name = name.removesuffix(COPIED)
    transform = _transform(name)
    if name == "Parquet":
        from datasets import Image as ImageColumn
        from datasets import load_dataset

        cache = str(folder / "cache")
        rows = load_dataset("parquet", data_files=str(folder / name / "train.parquet"), split="train", cache_dir=cache)
        rows = rows.cast_column("image", ImageColumn())
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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make(options.photos, folder)
        for name in (*COUNTS, "12 megapixels" + COPIED):
            rates[name] = {"ours": [], "peer": []}
            for _ in range(options.rounds):
                for who, run in (("ours", ours), ("peer", image_folder)):
                    with closing(run(name, folder, options.workers)) as batches:
                        rates[name][who].append(rate(batches, options.seconds))
    facts = machine(torch.device("cpu"))
    shown = Table(title=f"From files to batches, images/s, {options.workers} worker(s)", caption=facts["processor"])
    for heading in ("images", "openjepa", "peer", "ratio"):
        shown.add_column(heading, justify="left" if heading == "images" else "right")
    found: dict[str, Any] = {"workers": options.workers, "machine": facts, "rates": rates, "ratio": {}}
    for name, of in rates.items():
        mine, theirs = (statistics.median(of[who]) for who in ("ours", "peer"))
        found["ratio"][name] = mine / theirs
        peer = "datasets" if name == "Parquet" else "ImageFolder"
        shown.add_row(name, f"{mine:.0f}", f"{theirs:.0f} ({peer})", f"{mine / theirs:.2f}")
    Console().print(shown)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
