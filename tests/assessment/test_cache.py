"""Features are computed once, found again by content, and computed anew when an entry is damaged."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from openjepa.assessment import assess, extraction
from openjepa.assessment.cache import Entry, FeatureCache, cache_at, key_of
from openjepa.assessment.encoders import panel_of
from openjepa.assessment.extraction import Chosen, extract_kinds
from openjepa.cli.evaluation import _cache as cache_of
from openjepa.data.augmentation import Preprocessing
from openjepa.data.base import Splits
from openjepa.data.idx import ArraySource
from openjepa.data.sources import open_data
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.errors import InputError
from openjepa.evaluation.catalogue import choose
from openjepa.evaluation.suite import LAST, TOKENS
from openjepa.pretrained import Pretrained


def source(count: int, seed: int = 0) -> ArraySource:
    images = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 1), dtype=np.uint8)
    return ArraySource("noise", images, np.arange(count) % 3, ("a", "b", "c"))


def ours(seed: int = 3) -> Pretrained:
    config = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=3)
    preprocessing = Preprocessing(size=(16, 16), channels=1, mean=(0.5,), std=(0.25,))
    return Pretrained(Encoder(config, generator=torch.Generator().manual_seed(seed)), preprocessing)


class Notes(list):
    def __call__(self, sentence: str) -> None:
        self.append(sentence)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def cache(tmp_path, notes) -> FeatureCache:
    return FeatureCache(folder=tmp_path / "features", note=notes)


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """How many kinds of features each pass over the images computes."""
    seen = []
    compute = extraction._compute

    def counted(panel, part, missing, count):
        seen.append(len(missing))
        return compute(panel, part, missing, count)

    monkeypatch.setattr(extraction, "_compute", counted)
    return seen


def taken(pretrained: Pretrained, cache: FeatureCache | None, images=None, views=(LAST,), indices=None):
    panel, images = panel_of(pretrained), images or source(40)
    part = Chosen(source=images, indices=np.arange(len(images)) if indices is None else indices, name="train")
    return extract_kinds(panel, part, [kind for kind in panel.kinds if kind.view in views], cache).parts


def test_a_second_look_computes_nothing_and_gives_the_same(cache, passes):
    first, second = taken(ours(), cache), taken(ours(), cache)
    assert passes == [3]
    for kind, part in taken(ours(), None).items():
        assert np.array_equal(part.values, first[kind].values)
        assert np.array_equal(part.values, second[kind].values)
        assert np.array_equal(part.labels, second[kind].labels)
    taken(ours(), cache, views=(LAST, TOKENS))
    assert passes == [3, 3, 3]  # the tokens alone are new
    assert len(list(cache.folder.glob("*.npy"))) == len(list(cache.folder.glob("*.json"))) == 6


def test_whatever_the_features_depend_on_is_another_entry(cache, passes):
    taken(ours(), cache)
    taken(ours(seed=4), cache)
    assert passes == [3, 1]  # other weights; the random encoder and the pixels are the same
    taken(ours(), cache, images=source(40, seed=1))
    taken(ours(), cache, indices=np.arange(5, 30))
    other = ours()
    other.preprocessing = Preprocessing(size=(16, 16), channels=1, mean=(0.4,), std=(0.25,))
    taken(other, cache)
    assert passes == [3, 1, 3, 3, 3]


def test_files_that_changed_under_the_same_name_and_size_are_other_images(cache, passes, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(source(6).images):
        np.save(folder / f"{number}.npy", image)
    parts = []
    for _ in range(2):
        parts.append(taken(ours(), cache, images=open_data(str(folder)).train, indices=np.arange(4)))
        np.save(folder / "0.npy", source(6, seed=1).images[0])
    assert passes == [3, 3]
    for kind, before in parts[0].items():
        changed = (before.values != parts[1][kind].values).any(1)
        assert changed.tolist() == [True, False, False, False]


@pytest.mark.parametrize("damage", ["flip", "cut", "words", "shape"])
def test_a_damaged_entry_is_computed_again_and_it_is_said(damage, cache, passes, notes):
    whole = taken(ours(), cache)
    for array in cache.folder.glob("*.npy"):
        content = array.read_bytes()
        words = array.with_suffix(".json")
        if damage == "flip":
            array.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        elif damage == "cut":
            array.write_bytes(content[:-8])
        elif damage == "words":
            words.write_text("{")
        else:
            words.write_text(json.dumps(json.loads(words.read_text()) | {"shape": [1, 1]}))
    again = taken(ours(), cache)
    assert passes == [3, 3]
    assert len(notes) == 3
    assert "damaged" in notes[0]
    assert all(np.array_equal(again[kind].values, part.values) for kind, part in whole.items())
    taken(ours(), cache)
    assert passes == [3, 3]


def test_images_that_cannot_be_read_are_left_out_of_the_entry_too(cache, passes, damaged):
    with damaged(lambda _, index: index == 7):
        for _ in range(2):
            for part in taken(ours(), cache).values():
                assert len(part) == 39
                assert part.labels.tolist() == [i % 3 for i in range(40) if i != 7]
        assert passes == [3], "the second time from the cache"
    # As with a newer decoder, or a larger OPENJEPA_MAX_PIXELS.
    assert all(len(part) == 40 for part in taken(ours(), cache).values())


def test_the_longest_unused_go_first_and_strangers_stay(tmp_path, notes):
    values = np.zeros((100, 100), np.float32)
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "package.json").write_text("{}")
    cache = FeatureCache(folder=folder, limit=3 * 41_000, note=notes)
    asked = np.arange(100)
    keys = [key_of(number) for number in range(4)]
    for age, key in enumerate(keys[:3]):
        cache.write(key, Entry(values=values, samples=asked, left_out={}), {})
        for path in folder.glob(f"{key}*"):
            os.utime(path, (1000 + age, 1000 + age))
    assert cache.read(keys[0], asked) is not None  # and is now the newest
    cache.write(keys[3], Entry(values=values, samples=asked, left_out={}), {})
    assert [cache.read(key, asked) is not None for key in keys] == [True, False, True, True]
    assert (folder / "package.json").exists()
    big = FeatureCache(folder=folder, limit=1000, note=notes)
    big.write(key_of("big"), Entry(values=values, samples=asked, left_out={}), {})
    assert "exceed the cache's 1,000" in notes[-1]


def test_what_killed_writers_left_goes_after_a_day(cache):
    cache.folder.mkdir()
    keys = [key_of(number) for number in range(6)]
    names = [f"{keys[0]}.npy", f"{keys[1]}.npy", f".{keys[2]}.npy.0123abcd.part", f".{keys[3]}.json.0123abcd.part"]
    left, strange = [cache.folder / name for name in names], cache.folder / "mine.npy"
    for path in (*left, strange):
        path.write_bytes(b"half of it")
        os.utime(path, (1, 1))
    living = [cache.folder / f"{keys[4]}.npy", cache.folder / f".{keys[4]}.json.0123abcd.part"]  # whose words come next
    for path in living:
        path.write_bytes(b"just written")
    cache.write(keys[5], Entry(values=np.zeros((4, 3), np.float32), samples=np.arange(4), left_out={}), {})
    assert [path.exists() for path in (*left, strange, *living)] == [False] * 4 + [True] * 3
    assert cache.read(keys[5], np.arange(4)) is not None


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, notes, passes):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--cache .* is a file"):
        cache_at(tmp_path / "file", notes)
    cache = FeatureCache(folder=tmp_path / "file" / "features", note=notes)
    assert taken(ours(), cache)
    assert "cannot be kept" in notes[0]


def test_without_a_place_features_are_not_kept_and_it_is_said(homeless, capsys):
    homeless()
    assert cache_of(SimpleNamespace(no_cache=False, cache=None)) is None
    assert "not kept for the next time" in capsys.readouterr().err


def test_somebody_elses_cache_is_read_all_the_same(cache, passes, monkeypatch):
    first = taken(ours(), cache)

    def refused(path, *times):
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "utime", refused)
    passes.clear()
    again = taken(ours(), cache)
    assert passes == []
    assert all(np.array_equal(part.values, again[kind].values) for kind, part in first.items())


def test_tokens_are_bounded_and_the_bound_is_said(monkeypatch):
    monkeypatch.setattr(extraction, "TOKEN_BYTES", 30 * 2 * 16 * 24)
    splits = Splits(train=source(60), test=source(30, 1), sentence="")
    found = assess(ours(), splits, entries=choose("full", ("attentive",)))
    assert {row["settings"]["images"] for row in found["rows"]} == {30.0}
    assert {row["features"] for row in found["rows"]} == {"trained encoder", "random encoder", "raw pixels"}
    assert any("are of 30 train images" in note for note in found["notes"])
