"""What judging and using an encoder costs: k-NN, the probe's grid, ``encode`` beside the bare forward pass, and
start-up.

    python benchmarks/evaluation.py [--json FILE] [--images 50000 10000] [--width 384] [--encoded 192]

Features are drawn (ten clusters that overlap), and each evaluator has a process of its own; told is by how much it
raised the process' peak of memory, that of drawing the features. ``encode`` is given uint8 arrays of 224 px, or paths
of JPEGs that are made in a temporary folder: noise with a photograph's spectrum (1/f), 500x375, or enlarged from that
to 12 megapixels. The bare pass has as many images as tensors of ``encode``'s batches. Start-up is the median of five
processes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import alternate, machine, spread

BATCH = 64  # of encode, its default
JPEGS = {"encode 500x375 JPEGs": (500, 375), "encode 12-megapixel JPEGs": (4000, 3000)}
FILES = 16  # so many different ones; each is read as often as it takes
JOBS = ("k-NN", "SGD probe", "SGD probe with BatchNorm", "logistic regression", "encode", *JPEGS)
STARTS = {
    "openjepa --help": ["-m", "openjepa", "--help"],
    "import openjepa": ["-c", "import openjepa"],
    "openjepa.load, as imported": ["-c", "import openjepa; openjepa.load"],
    "import torch": ["-c", "import torch"],
}


def judged(job: str, counts: list[int], width: int) -> dict[str, float]:
    """Seconds, accuracy and growth of memory (bytes) of one evaluator."""
    import numpy as np

    from openjepa.evaluation.features import Features
    from openjepa.evaluation.knn import KNN
    from openjepa.evaluation.linear import LinearProbe
    from openjepa.evaluation.sgd_probe import SGDProbe
    from openjepa.training.metrics import peak_memory

    evaluators = {
        "k-NN": KNN(),
        "SGD probe": SGDProbe(),
        "SGD probe with BatchNorm": SGDProbe(batch_norm=True),
        "logistic regression": LinearProbe(),
    }
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, width))
    parts = []
    for count in counts:
        labels = rng.integers(0, 10, count)
        values = 0.35 * centres[labels] + 1.5 * rng.normal(size=(count, width))
        parts.append(Features(values.astype(np.float32), labels, "drawn"))
    before = peak_memory(_cpu())
    begin = time.perf_counter()
    accuracy = evaluators[job].classify(*parts).scores()["accuracy"]
    return {"seconds": time.perf_counter() - begin, "accuracy": accuracy, "memory": peak_memory(_cpu()) - before}


def encoded(job: str, count: int) -> dict[str, Any]:
    """``encode`` beside the bare forward pass of the same ViT-S/16 over as many images, in turns."""
    import numpy as np
    import torch

    from openjepa.data.augmentation import Preprocessing
    from openjepa.encoder import Encoder, EncoderConfig
    from openjepa.pretrained import Pretrained

    preprocessing = Preprocessing(size=(224, 224), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = Pretrained(Encoder(EncoderConfig()).eval(), preprocessing)
    images = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8)
    parts = preprocessing.normalise(torch.from_numpy(images).permute(0, 3, 1, 2)).split(BATCH)

    @torch.inference_mode()
    def bare() -> None:
        for x in parts:
            model.encoder(x).mean(1)

    with tempfile.TemporaryDirectory() as folder:
        given = images if job == "encode" else jpegs(Path(folder), JPEGS[job], count)
        calls: dict[str, Callable[[], object]] = {"bare": bare, "encode": lambda: model.encode(given, batch=BATCH)}
        times = alternate(calls, _cpu(), rounds=5)
    shares = [bare / whole for bare, whole in zip(times["bare"], times["encode"], strict=True)]
    return {name: spread(found) for name, found in times.items()} | {"share": spread(shares)}


def jpegs(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """The paths of ``count`` JPEGs of ``size`` (width, height), up to FILES of them different."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    height, width = 375, 500
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = np.inf
    paths = [folder / f"{number % FILES}.jpg" for number in range(count)]
    for path in paths[:FILES]:
        noise = rng.normal(size=(height, width)) + 0.3 * rng.normal(size=(3, height, width))  # colours are much alike
        light = np.fft.ifft2(np.fft.fft2(noise) / frequency).real
        light = 128 + 50 * light / light.std((1, 2), keepdims=True)
        photo = Image.fromarray(light.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())
        photo.resize(size).save(path, quality=90)
    return paths


def _cpu():
    import torch

    return torch.device("cpu")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--images", nargs=2, type=int, default=[50_000, 10_000], help="to learn on, and to judge")
    parser.add_argument("--width", type=int, default=384, help="of the features")
    parser.add_argument("--encoded", type=int, default=3 * BATCH, help="images to encode")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        from openjepa.cli import suit_the_process

        suit_the_process()
        if options.job.startswith("encode"):
            found = encoded(options.job, options.encoded)
        else:
            found = judged(options.job, options.images, options.width)
        print(json.dumps(found))
        return
    asked = {"images": options.images, "width": options.width, "encoded": options.encoded}
    told: dict[str, Any] = {"options": asked, "machine": machine(_cpu())}
    for job in JOBS:
        command = [sys.executable, __file__, *sys.argv[1:], "--job", job]
        told[job] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{job:28s} {_said(told[job])}", flush=True)
    for name, arguments in STARTS.items():
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - begin)
        told[name] = spread(times)
        print(f"{name:28s} {statistics.median(times):6.2f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n")


def _said(found: dict[str, Any]) -> str:
    if "share" in found:
        return f"{found['encode']['median']:6.2f} s, {found['share']['median']:.0%} of the bare pass's speed"
    return f"{found['seconds']:6.2f} s, {found['memory'] / 2**20:6,.0f} MiB, accuracy {found['accuracy']:.4f}"


if __name__ == "__main__":
    main()
