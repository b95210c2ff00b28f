"""Cut the bundled sample from Fashion-MNIST: the first images of every class, 20,000 to train and 5,000 to test.

The four idx .gz files are in the Debian package dataset-fashion-mnist. The same input gives the same bytes.

    python scripts/make_sample.py [--source FOLDER] [--out FOLDER]
"""

import argparse
import gzip
import io
import struct
from pathlib import Path

import numpy as np

SPLITS = {"train": 2000, "t10k": 500}
HERE = Path(__file__).resolve().parent


def read(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(struct.unpack_from(f">{axes}I", content, 4))


def write(path: Path, array: np.ndarray) -> int:
    """Write an idx file without name or date in its gzip header; its size in bytes."""
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file:
        file.write(content)
    return path.write_bytes(packed.getvalue())


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """The places of the first ``count`` labels of every class, in their order in the file."""
    places = [np.flatnonzero(labels == number)[:count] for number in np.unique(labels)]
    if any(len(place) < count for place in places):
        raise SystemExit(f"a class has fewer than {count} images: {[len(place) for place in places]}")
    return np.sort(np.concatenate(places))


def main() -> None:
    """Cut, write, and say how much there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=HERE.parent / "src" / "openjepa" / "sample")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    total = 0
    for split, count in SPLITS.items():
        images = read(settings.source / f"{split}-images-idx3-ubyte.gz")
        labels = read(settings.source / f"{split}-labels-idx1-ubyte.gz")
        chosen = first_of_each_class(labels, count)
        total += write(settings.out / f"{split}-images-idx3-ubyte.gz", images[chosen])
        total += write(settings.out / f"{split}-labels-idx1-ubyte.gz", labels[chosen])
        print(f"{split}: {len(chosen)} images")
    print(f"{total / 1e6:.1f} MB in {settings.out}")


if __name__ == "__main__":
    main()
