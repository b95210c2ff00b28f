"""The order of batches and what is in them depend on the seed and the step, and on nothing else."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa import draws
from openjepa.assessment import extraction
from openjepa.assessment.extraction import Chosen
from openjepa.data import loader
from openjepa.data.augmentation import NUMBERS, Augmentation, Preprocessing, augment
from openjepa.data.loader import LoaderError, ordered_batches, training_batches
from openjepa.data.sources import ArraySource, open_data
from openjepa.errors import InputError
from openjepa.grid import TokenGrid
from openjepa.masking import MultiBlockMasking
from openjepa.masks import MultiBlockConfig

GREY = Preprocessing(size=(16, 16), channels=1, mean=(0.5,), std=(0.5,))
COLOUR = Preprocessing(size=(16, 16), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)


def in_memory(count=50) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (count, 20, 18, 1), dtype=np.uint8)
    return ArraySource("noise", images, np.arange(count) % 7, tuple("abcdefg"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 images of several kinds, of which 3 and 11 are damaged."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(20):
        noise = Image.fromarray(generator.integers(0, 256, (24 + number, 30, 3), dtype=np.uint8))
        path = root / f"{number:02}.{('png', 'jpg', 'webp')[number % 3]}"
        noise.save(path)
        if number in (3, 11):
            path.write_bytes(path.read_bytes()[:300])
    return open_data(str(root)).train


def take(batches, count: int) -> list:
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def same(first, second) -> bool:
    masks = [[part for own in batch.masks for part in (own.context, own.targets)] for batch in (first, second)]
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.samples, second.samples)
        and torch.equal(first.labels, second.labels)
        and all(torch.equal(one, other) for one, other in zip(*masks, strict=True))
        and first.bad == second.bad
    )


def settings(**change):
    masking = MultiBlockMasking(TokenGrid((4, 4)), MultiBlockConfig(target_scale=(0.1, 0.2)), seed=3)
    return {"masking": masking, "batch": 8, "seed": 3, "workers": 0, **change}


def test_each_epoch_is_a_permutation_without_its_rest():
    source = in_memory()
    batches = take(training_batches(source, GREY, Augmentation(), **settings()), 18)
    epochs = [torch.cat([batch.samples for batch in batches[start : start + 6]]) for start in (0, 6, 12)]
    for epoch, samples in enumerate(epochs):
        assert samples.tolist() == draws.permutation(50, "order", 3, epoch)[:48].tolist()
    assert not torch.equal(epochs[0], epochs[1])
    assert all(batch.images.shape == (8, 1, 16, 16) for batch in batches)
    assert all(batch.images.dtype == torch.uint8 for batch in batches)
    assert all(torch.equal(batch.labels, batch.samples % 7) for batch in batches)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("start", [0, 4])
def test_workers_and_start_change_nothing(folder, workers, start):
    for source, preprocessing in ((in_memory(), GREY), (folder, COLOUR)):
        alone = take(training_batches(source, preprocessing, Augmentation(flip=True), **settings()), 9)
        split = training_batches(
            source, preprocessing, Augmentation(flip=True), **settings(workers=workers, start_step=start)
        )
        for one, other in zip(alone[start:], take(split, 9 - start), strict=True):
            assert same(one, other)


def test_ranks_share_the_batch(folder):
    for source, preprocessing in ((in_memory(), GREY), (folder, COLOUR)):
        whole = take(training_batches(source, preprocessing, Augmentation(), **settings()), 4)
        shares = [
            take(training_batches(source, preprocessing, Augmentation(), **settings(rank=rank, world=4)), 4)
            for rank in range(4)
        ]
        for step, batch in enumerate(whole):
            assert torch.equal(batch.images, torch.cat([share[step].images for share in shares]))
            assert torch.equal(batch.samples, torch.cat([share[step].samples for share in shares]))
            assert torch.equal(batch.masks[0].targets, torch.cat([share[step].masks[0].targets for share in shares]))


@pytest.mark.parametrize("room", [10**6, 6000])
def test_small_images_are_decoded_once_where_there_is_room(folder, monkeypatch, room):
    monkeypatch.setattr(loader, "_ROOM", room)
    read: Counter[int] = Counter()
    decode = type(folder).read

    def counted(self, index, at_least=None):
        read[index] += 1
        return decode(self, index, at_least)

    monkeypatch.setattr(type(folder), "read", counted)
    first = take(training_batches(folder, COLOUR, Augmentation(), **settings()), 12)
    kept = [index for index, count in read.items() if count == 1]
    good = len(folder) - 2  # two cannot be read, and are tried again
    assert len(kept) == good if room > 6000 else 0 < len(kept) < good
    # What is kept changes nothing.
    later = take(training_batches(folder, COLOUR, Augmentation(), **settings(start_step=11)), 1)
    assert same(first[11], later[0])


def test_kept_images_lie_together_and_no_further_than_there_is_room():
    # An array of its own for each cost twenty times its pixels, in room that decoders could not use again.
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3), np.uint8)
    kept = loader._Kept(30 * images[0].nbytes)
    for number, image in enumerate(images):
        kept.keep(number, image[:, ::-1])
    assert all(np.array_equal(kept.get(number), images[number, :, ::-1]) for number in range(30))
    assert all(kept.get(number) is None for number in range(30, 40))
    assert len({id(kept.get(number).base) for number in range(30)}) == 1


def test_kept_images_fill_block_after_block(monkeypatch):
    monkeypatch.setattr(loader, "_BLOCK", 100)
    kept = loader._Kept(10**6)
    images = [np.full((size, 2, 1), size, np.uint8) for size in (30, 15, 10, 50, 51)]
    for number, image in enumerate(images):
        kept.keep(number, image)
    assert all(np.array_equal(kept.get(number), images[number]) for number in range(4))
    assert kept.get(4) is None  # larger than a block


def test_micro_batches_have_masks_of_their_own():
    # The published sampler draws one size for the images of a device, and cuts them to their shortest.
    masking = MultiBlockMasking(TokenGrid((14, 14)), MultiBlockConfig(shape="reference"))
    own = settings(masking=masking, pieces=2)
    (batch,) = take(training_batches(in_memory(), GREY, Augmentation(), **own), 1)
    assert len(batch.masks) == 2
    for masks, samples in zip(batch.masks, batch.samples.split(4), strict=True):
        expected = masking(samples.numpy(), 0)
        assert torch.equal(masks.context, expected.context)
        assert torch.equal(masks.targets, expected.targets)
    with pytest.raises(ValueError, match="8 cannot be shared by 1 processes with 3 micro-batches"):
        training_batches(in_memory(), GREY, Augmentation(), **settings(pieces=3))


def test_seed_and_epoch_change_the_crops():
    source = in_memory(8)
    first, second = take(training_batches(source, GREY, Augmentation(), **settings()), 2)
    other = take(training_batches(source, GREY, Augmentation(), **settings(seed=4)), 1)[0]
    assert not torch.equal(first.images[first.samples.argsort()], second.images[second.samples.argsort()])
    assert not torch.equal(first.images[first.samples.argsort()], other.images[other.samples.argsort()])


@pytest.mark.parametrize(("has", "wanted"), [(1, 2), (1, 3), (1, 4), (3, 1), (3, 4)])
def test_arrays_get_the_channels_that_are_wanted(has, wanted):
    source = ArraySource("noise", np.random.default_rng(0).integers(80, 176, (8, 20, 18, has), dtype=np.uint8))
    preprocessing = Preprocessing(size=(16, 16), channels=wanted, mean=(0.5,) * wanted, std=(0.5,) * wanted)
    batch = take(training_batches(source, preprocessing, Augmentation(), None, batch=8, seed=0, workers=0), 1)[0]
    for sample, image in zip(batch.samples.tolist(), batch.images, strict=True):
        u = draws.uniform("crop", 0, 0, sample, np.arange(NUMBERS))
        expected = augment(source.read(sample), preprocessing, Augmentation(), u)
        torch.testing.assert_close(image.int(), expected.int(), rtol=0, atol=1)
    assert not batch.bad


def test_nothing_is_read_before_the_start(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(16):
        Image.fromarray(generator.integers(0, 256, (20, 20), dtype=np.uint8)).save(tmp_path / f"{number:02}.png")
    early = draws.permutation(16, "order", 3, 0)[:8]
    for number in early:
        (tmp_path / f"{number:02}.png").unlink()
        (tmp_path / f"{number:02}.png").write_bytes(b"")
    source = open_data(str(tmp_path)).train
    batch = take(training_batches(source, GREY, Augmentation(), **settings(start_step=1)), 1)[0]
    assert batch.bad == ()
    assert not set(batch.samples.tolist()) & set(early.tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_replaced_and_named(folder, workers):
    batches = take(training_batches(folder, COLOUR, Augmentation(), **settings(batch=20, workers=workers)), 3)
    replacements = set()
    for batch in batches:
        assert {(record.sample, record.reference) for record in batch.bad} == {(3, "03.png"), (11, "11.webp")}
        assert all("cannot be decoded" in record.reason for record in batch.bad)
        assert len(batch.samples) == 20
        assert not {3, 11} & set(batch.samples.tolist())
        for record in batch.bad:
            assert record.replacement in batch.samples.tolist()
            replacements.add(record.replacement)
    assert len(replacements) > 1


def test_images_with_other_channels_are_replaced(tmp_path):
    for number in range(8):
        np.save(tmp_path / f"{number}.npy", np.zeros((16, 16, 6 if number == 2 else 5), np.uint16))
    source = open_data(str(tmp_path)).train
    preprocessing = Preprocessing(size=(16, 16), channels=5, mean=(0.0,) * 5, std=(1.0,) * 5)
    batch = take(training_batches(source, preprocessing, Augmentation(), **settings()), 1)[0]
    assert batch.images.dtype == torch.float32
    assert [(record.reference, record.reason) for record in batch.bad] == [("2.npy", "has 6 channels, 5 are wanted")]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_damage_stops(tmp_path, workers):
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    source = open_data(str(tmp_path)).train
    with pytest.raises(InputError, match=r"^33 images in a row cannot be used"):
        take(training_batches(source, GREY, Augmentation(), **settings(workers=workers)), 1)


def test_a_mixed_batch_is_float_and_normalises_alike(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    source = open_data(str(tmp_path)).train
    mixed = take(ordered_batches(source, GREY, batch=2, workers=0), 1)[0]
    alone = take(ordered_batches(source, GREY, batch=1, workers=0), 1)[0]
    assert mixed.images.dtype == torch.float32
    assert alone.images.dtype == torch.uint8
    assert torch.equal(GREY.normalise(mixed.images)[:1], GREY.normalise(alone.images))
    assert torch.allclose(mixed.images[0], mixed.images[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_ordered_batches_leave_bad_images_out(folder, workers):
    batches = list(ordered_batches(folder, COLOUR, batch=7, workers=workers))
    assert [len(batch.samples) for batch in batches] == [6, 6, 6]
    samples = torch.cat([batch.samples for batch in batches]).tolist()
    assert samples == [number for number in range(20) if number not in (3, 11)]
    assert [(record.sample, record.replacement) for batch in batches for record in batch.bad] == [(3, -1), (11, -1)]
    for batch in batches:
        for sample, image in zip(batch.samples.tolist(), batch.images, strict=True):
            assert torch.equal(image, COLOUR.fit(folder.read(sample)))


def test_ordered_batches_of_chosen_images(folder):
    chosen = [5, 3, 3, 0]
    batches = list(ordered_batches(folder, COLOUR, chosen, batch=1, workers=0))
    assert [batch.samples.tolist() for batch in batches] == [[5], [], [], [0]]
    assert batches[1].images.shape == (0, 3, 16, 16)
    assert batches[0].labels.tolist() == [-1]
    assert list(ordered_batches(folder, COLOUR, [], batch=4, workers=0)) == []


class Gone(ArraySource):
    """Images in a file that cannot be read any more."""

    def read(self, index, at_least=None):
        raise InputError("row group 0 cannot be read")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_stops_ordered_batches_is_said_as_it_is(workers):
    with pytest.raises(InputError, match=r"^row group 0 cannot be read$"):
        list(ordered_batches(Gone("gone", in_memory().images), GREY, batch=8, workers=workers))


def test_impossible_requests():
    with pytest.raises(InputError, match="50 images, fewer than a batch of 64"):
        training_batches(in_memory(), GREY, Augmentation(), **settings(batch=64))
    for change in ({"world": 3}, {"rank": 2, "world": 2}, {"batch": 0}):
        with pytest.raises(ValueError, match="cannot be shared"):
            training_batches(in_memory(), GREY, Augmentation(), **settings(**change))


def children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_go_on_over_epochs_and_end_with_the_iterator():
    before = children()
    batches = training_batches(in_memory(), GREY, Augmentation(), **settings(workers=2))
    next(batches)
    started = children() - before
    assert len(started) == 2
    for _ in range(20):
        next(batches)
    assert children() - before == started
    batches.close()
    assert not started & children()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_worker_is_said():
    before = children()
    batches = training_batches(in_memory(), GREY, Augmentation(), **settings(workers=1))
    next(batches)
    os.kill((children() - before).pop(), signal.SIGKILL)
    time.sleep(0.5)  # nothing is raised before a batch is asked for
    with pytest.raises(LoaderError, match="a loader process was killed"):
        take(batches, 1000)


@pytest.mark.skipif(sys.platform != "linux", reason="the workers of other systems know no patch")
def test_without_shared_memory_the_loader_says_so_and_does_not_wait(folder, monkeypatch):
    said = RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    def full(_: torch.Tensor) -> None:
        raise said

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(LoaderError, match=r"/dev/shm.*No space left on device.*--shm-size=2g.*--workers 0"):
        take(training_batches(in_memory(), GREY, Augmentation(), **settings(workers=1)), 1)
    # A judgement goes on in one process, with every image once.
    monkeypatch.setattr(extraction, "_IN_PARALLEL", 1)
    monkeypatch.setattr(extraction, "_BATCH", 4)
    told: list[str] = []
    monkeypatch.setattr(extraction, "tell", told.append)
    chosen = Chosen(source=folder, indices=np.arange(20), name="train")
    samples = torch.cat([batch.samples for batch in chosen.batches(chosen.indices, COLOUR)])
    assert samples.tolist() == [number for number in range(20) if number not in (3, 11)]
    assert "/dev/shm" in told[0]
    said = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with pytest.raises(LoaderError, match=r"may open no more files.*ulimit -n"):
        take(training_batches(in_memory(), GREY, Augmentation(), **settings(workers=1)), 1)
    said = RuntimeError("a tensor that is no memory of its own")
    with pytest.raises(RuntimeError, match=r"(?s)^Caught RuntimeError.*of its own"):
        take(training_batches(in_memory(), GREY, Augmentation(), **settings(workers=1)), 1)


PROGRAM = """
import signal, sys, time
import numpy as np
from openjepa.data.augmentation import Augmentation, Preprocessing
from openjepa.data.idx import ArraySource
from openjepa.data.loader import training_batches

stop = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: stop.append(1))
source = ArraySource("zeros", np.zeros((64, 8, 8, 1), np.uint8))
preprocessing = Preprocessing(size=(8, 8), channels=1, mean=(0.0,), std=(1.0,))
batches = training_batches(source, preprocessing, Augmentation(), None, batch=8, seed=0, workers=2)
next(batches)
print("ready", flush=True)
while not stop:
    next(batches)
    time.sleep(0.01)
for _ in range(50):
    next(batches)
print("went on", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system cannot tell who sent a signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_the_workers_alone(number):
    """As Ctrl-C at a terminal, or SIGTERM from a service manager: the main process wants to finish its step."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)
    started = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "went on\n", "")
    assert time.monotonic() - started < 20


SLOW = """
import sys, time
import numpy as np
from openjepa.data.augmentation import Augmentation, Preprocessing
from openjepa.data.idx import ArraySource
from openjepa.data.loader import training_batches

class Slow(ArraySource):
    def read(self, index, at_least=None):
        self.count = getattr(self, "count", 0) + 1
        if self.count > 24:
            print("slow", flush=True)
            time.sleep(60)
        return super().read(index, at_least)

source = Slow("zeros", np.zeros((64, 80, 80, 1), np.uint8))  # of smaller arrays it would not be asked
preprocessing = Preprocessing(size=(8, 8), channels=1, mean=(0.0,), std=(1.0,))
batches = training_batches(source, preprocessing, Augmentation(), None, batch=8, seed=0, workers=1)
next(batches)
print("ready", flush=True)
sys.stdin.readline()
batches.close()
"""


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system cannot tell who sent a signal")
def test_a_worker_that_is_ended_amid_a_batch_leaves_no_folder(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SLOW], text=True, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert {process.stdout.readline(), process.stdout.readline()} == {"ready\n", "slow\n"}
        assert list(tmp_path.glob("pymp-*")), "or there is nothing to take away"
        process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert not list(tmp_path.glob("pymp-*"))
