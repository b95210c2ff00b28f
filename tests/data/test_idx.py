"""The bundled sample, its script, and idx files in general."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import openjepa
from openjepa.data import idx
from openjepa.data.sources import ArraySource, open_data
from openjepa.errors import InputError

SAMPLE = Path(openjepa.__file__).parent / "sample"
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_sample.py"
PACKAGE = Path("/usr/share/datasets/fashion-mnist")
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def write(folder: Path, packed: bool = True) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    arrays = []
    for name in NAMES:
        count = 12 if "train" in name else 4
        shape = (count, 5, 6) if "images" in name else (count,)
        array = generator.integers(0, 256, shape, dtype=np.uint8) if "images" in name else np.arange(count) % 3
        content = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + array.astype(np.uint8).tobytes()
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)
        arrays.append(array)
    return arrays


def test_the_sample_is_balanced_and_small():
    splits = open_data(None)
    assert splits.test is not None
    for source, count in ((splits.train, 2000), (splits.test, 500)):
        assert isinstance(source, ArraySource)
        assert source.images.shape == (10 * count, 28, 28, 1)
        assert np.bincount(source.labels).tolist() == [count] * 10
        assert source.classes[9] == "Ankle boot"
        assert source.header(0)[:4] == (28, 28, 1, 8)
    assert splits.train.fingerprint != splits.test.fingerprint
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 12e6
    assert "Zalando SE" in (SAMPLE / "LICENSE").read_text()


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_script_gives_the_sample(tmp_path):
    subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path)], check=True, capture_output=True)
    for name in NAMES:
        made = (tmp_path / f"{name}.gz").read_bytes()
        bundled = (SAMPLE / f"{name}.gz").read_bytes()
        assert made[:10] == bundled[:10]  # no name and no date in the header
        assert gzip.decompress(made) == gzip.decompress(bundled)
    images = idx.read_idx(PACKAGE / "train-images-idx3-ubyte.gz")
    labels = idx.read_idx(PACKAGE / "train-labels-idx1-ubyte.gz")
    first = np.flatnonzero(labels == 4)[:2000]
    sample = open_data(None).train
    np.testing.assert_array_equal(sample.images[sample.labels == 4][..., 0], images[first])


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_of_idx_files(tmp_path, packed):
    arrays = write(tmp_path, packed)
    splits = open_data(str(tmp_path))
    np.testing.assert_array_equal(splits.train.read(7)[..., 0], arrays[0][7])
    assert splits.test.labels.tolist() == arrays[3].tolist()
    assert splits.train.classes == ("0", "1", "2")


@pytest.mark.parametrize("below", ["", "fashion-mnist"])
def test_fashion_mnist_from_the_data_folder(tmp_path, monkeypatch, below):
    arrays = write(tmp_path / below)
    monkeypatch.setenv("OPENJEPA_DATA", str(tmp_path))
    splits = open_data("fashion-mnist")
    np.testing.assert_array_equal(splits.train.read(0)[..., 0], arrays[0][0])
    assert splits.train.classes[0] == "T-shirt/top"


def test_fashion_mnist_that_is_here_needs_no_home(tmp_path, monkeypatch, homeless):
    arrays = write(tmp_path)
    monkeypatch.setenv("OPENJEPA_DATA", str(tmp_path))
    monkeypatch.setattr(idx, "_DEBIAN", tmp_path / "none")
    homeless()
    np.testing.assert_array_equal(open_data("fashion-mnist").train.read(0)[..., 0], arrays[0][0])
    monkeypatch.delenv("OPENJEPA_DATA")
    with pytest.raises(InputError, match="set OPENJEPA_CACHE"):
        open_data("fashion-mnist")


def test_fashion_mnist_that_cannot_be_had(tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setenv("OPENJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(idx, "_DEBIAN", tmp_path / "none")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(InputError, match=r"(?s)download failed.*dataset-fashion-mnist.*OPENJEPA_DATA"):
        open_data("fashion-mnist")


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", struct.pack(">HBBI", 0, 13, 1, 3), struct.pack(">HBBI", 0, 8, 1, 99) + b"abc"]
)
def test_damaged_idx_files_are_named(tmp_path, content):
    write(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\.gz is not a readable idx file"):
        open_data(str(tmp_path))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\.gz is not a readable idx file"):
        open_data(str(tmp_path))


def test_labels_that_do_not_match_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 3) + b"\0\1\2"))
    with pytest.raises(InputError, match="don't match"):
        open_data(str(tmp_path))
