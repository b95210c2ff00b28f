"""``openjepa.load(path).encode(images)``: every kind of folder, every kind of image, and plain words for the others."""

import json
import os
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openjepa
from openjepa import pretrained
from openjepa.data.augmentation import Preprocessing
from openjepa.data.loader import ordered_batches
from openjepa.data.sources import open_data
from openjepa.encoder import Encoder, EncoderConfig
from openjepa.errors import InputError
from openjepa.interop import huggingface
from openjepa.interop.imported import import_checkpoint

TRACE = Path(__file__).parent / "parity" / "trace" / "start.pth.tar"
SIZE, GRID, WIDTH = (24, 16), (6, 4), 32
RGB = Preprocessing(size=SIZE, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def make_encoder(channels: int = 3, signal: tuple[int, ...] = SIZE, patch: tuple[int, ...] = (4, 4)) -> Encoder:
    config = EncoderConfig(signal=signal, patch=patch, channels=channels, width=WIDTH, depth=2, heads=2)
    return Encoder(config, generator=torch.Generator().manual_seed(3)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("encoders") / "rgb"
    huggingface.export(make_encoder(), path, preprocessing=RGB)
    return path


@pytest.fixture(scope="module")
def rgb(folder) -> openjepa.Pretrained:
    return openjepa.load(folder)


@pytest.fixture(scope="module")
def grey() -> openjepa.Pretrained:
    return openjepa.Pretrained(make_encoder(1), Preprocessing(size=SIZE, channels=1, mean=(0.5,), std=(0.25,)))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3), np.uint8)


def expected(pixels: np.ndarray) -> np.ndarray:
    """The tokens of uint8 images of the encoder's size, worked out without the library's preprocessing."""
    x = (pixels / 255 - np.array(RGB.mean)) / np.array(RGB.std)
    with torch.no_grad():
        return make_encoder()(torch.from_numpy(x).float().permute(0, 3, 1, 2)).numpy()


def close(found: np.ndarray, wanted: np.ndarray, atol: float = 1e-5) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


# ---- what is loaded


def test_features_are_the_encoders_own(rgb, pixels):
    tokens = expected(pixels)
    close(rgb.encode(pixels), tokens.mean(1))
    close(rgb.encode(pixels, tokens=True), tokens.reshape(5, *GRID, WIDTH))


def test_the_last_blocks_stand_side_by_side(rgb, pixels):
    x = torch.from_numpy((pixels / 255 - np.array(RGB.mean)) / np.array(RGB.std)).float().permute(0, 3, 1, 2)
    own = make_encoder()
    with torch.no_grad():
        first = own.stack.norm(own.depths(x)[1]).numpy()
    both = np.concatenate([first, expected(pixels)], -1)
    close(rgb.encode(pixels, blocks=2), both.mean(1))
    close(rgb.encode(pixels, tokens=True, blocks=2), both.reshape(5, *GRID, 2 * WIDTH))
    for wrong in (0, 3):
        with pytest.raises(InputError, match=f"from 1 to 2.*got {wrong}"):
            rgb.encode(pixels, blocks=wrong)


def test_a_run_folder_gives_its_encoder(tmp_path, folder, rgb, pixels):
    (tmp_path / "experiment.json").write_text("{}")
    with pytest.raises(InputError, match="no encoder yet"):
        openjepa.load(tmp_path)
    (tmp_path / "encoder").symlink_to(folder)
    assert np.array_equal(openjepa.load(str(tmp_path)).encode(pixels), rgb.encode(pixels))


def test_an_imported_checkpoint_gives_its_target_encoder(tmp_path):
    import_checkpoint(TRACE, tmp_path / "imported", heads=3)
    found = openjepa.load(tmp_path / "imported")
    target = huggingface.load(tmp_path / "imported" / "encoder").encoder
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(found.encoder.parameters(), target.parameters(), strict=True)
    )
    config = found.encoder.config
    image = np.random.default_rng(1).integers(0, 256, (*config.signal, config.channels), np.uint8)
    assert found.encode(image, tokens=True).shape == (1, *config.grid.shape, config.width)


def test_an_encoder_of_ones_own_loop_is_saved_and_loaded(pixels, tmp_path):
    own = openjepa.Pretrained(make_encoder(), openjepa.Preprocessing(**vars(RGB)))
    own.save(tmp_path / "mine")
    again = openjepa.load(tmp_path / "mine")
    assert again.preprocessing == RGB
    np.testing.assert_array_equal(again.encode(pixels), own.encode(pixels))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        own.save(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    for name, said in (("README.md", "has been edited"), ("model.safetensors", "is another than openjepa wrote")):
        own.save(tmp_path / said)
        (tmp_path / said / name).write_text("changed")
        with pytest.raises(InputError, match=said):
            own.save(tmp_path / said)
        assert (tmp_path / said / name).read_text() == "changed"


def test_another_size_than_the_native_one_has_its_own_grid(tmp_path, pixels):
    """The preprocessing of a directory may ask for larger images than the encoder was trained on."""
    bigger = Preprocessing(size=(32, 40), channels=3, mean=RGB.mean, std=RGB.std)
    huggingface.export(make_encoder(), tmp_path / "bigger", preprocessing=bigger)
    found = openjepa.load(tmp_path / "bigger")
    tokens = found.encode(pixels, tokens=True)
    assert tokens.shape == (5, 8, 10, WIDTH)
    close(tokens.mean((1, 2)), found.encode(pixels))


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 2},
            "stretches",
        ),
        (
            {"size": {"shortest_edge": 20}, "resample": 3},
            r"short side of images 20 px \(bicubic\) and cuts 16x16 px out",
        ),
        ({"size": {"shortest_edge": 16}, "resample": 2}, r"short side of images 16 px \(bilinear\)"),
        (
            {"size": {"shortest_edge": 16}, "resample": 3, "do_resize": False},
            "leaves the size of images as it is and cuts",
        ),
        ({"size": {"shortest_edge": 16}, "resample": 3}, None),
        ({"image_processor_type": "BitImageProcessorFast", "size": {"shortest_edge": 16}, "resample": 3}, None),
        (None, None),
    ],
)
def test_another_way_to_prepare_images_than_ours_is_told(processor, said, tmp_path):
    """What transformers would show the encoder is not what is shown here: nobody gets other features unknowingly."""
    square = {"size": (16, 16), "channels": 3, "mean": RGB.mean, "std": RGB.std}
    huggingface.export(make_encoder(signal=(16, 16)), tmp_path / "one", preprocessing=square)
    config, file = tmp_path / "one" / "config.json", tmp_path / "one" / "preprocessor_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "openjepa"}))
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | processor)) if processor is not None else file.unlink()
    if said is None:
        openjepa.load(tmp_path / "one")
    else:
        with pytest.warns(UserWarning, match=rf"not be transformers' own: .*{said}.*made 16x16 px \(bicubic\)") as told:
            openjepa.load(tmp_path / "one")
        assert len(told) == 1


def test_an_oblong_that_another_says_to_stretch_is_told_and_our_own_is_not(folder):
    openjepa.load(folder)
    config = folder / "config.json"
    before = config.read_text()
    config.write_text(json.dumps({k: v for k, v in json.loads(before).items() if k != "openjepa"}))
    with pytest.warns(UserWarning, match="stretches images to 24x16 px"):
        openjepa.load(folder)
    config.write_text(before)


def test_folders_that_hold_no_image_encoder_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        openjepa.load(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"no config\.json"):
        openjepa.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="bert"):
        openjepa.load(tmp_path)


def test_encoders_that_cannot_read_images_are_refused(tmp_path):
    clip = make_encoder(signal=(4, 8, 8), patch=(2, 4, 4))
    facts = {"size": (4, 8, 8), "channels": 3, "mean": RGB.mean, "std": RGB.std}
    huggingface.export(clip, tmp_path / "clip", preprocessing=facts)
    with pytest.raises(InputError, match="3 axes"):
        openjepa.load(tmp_path / "clip")
    huggingface.export(make_encoder(), tmp_path / "odd", preprocessing=facts | {"size": (24, 18)})
    with pytest.raises(InputError, match=r"no multiple of the encoder's patch \(4, 4\)"):
        openjepa.load(tmp_path / "odd")


def test_an_image_that_cannot_be_read_is_an_error_or_a_row_of_nan(rgb, pixels, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    paths[1].write_bytes(b"no image")
    with pytest.raises(InputError, match="unreadable must be 'raise' or 'nan', got 'skip'"):
        rgb.encode(paths, unreadable="skip")
    with pytest.raises(InputError, match=r"1\.png is not an image"):
        rgb.encode(paths)
    wanted = rgb.encode([*paths[:1], *paths[2:]])
    for given in ({}, {"batch": 2}, {"tokens": True}):
        with pytest.warns(UserWarning, match=r"1 of 5 images are NaN, the first: .*1\.png is not an image"):
            found = rgb.encode(paths, unreadable="nan", **given)
        assert np.isnan(found[1]).all()
        assert np.isfinite(np.delete(found, 1, 0)).all()
        if "tokens" not in given:
            close(np.delete(found, 1, 0), wanted)
    assert np.isfinite(rgb.encode(paths[2:], unreadable="nan")).all()
    with pytest.warns(UserWarning, match=r"2 of 3 images are NaN, the first: a{300} cannot be decoded: File name too"):
        assert np.isnan(rgb.encode([paths[0], "a" * 300, paths[1]], unreadable="nan")[1:]).all()
    with pytest.raises(InputError, match=r"is a folder: give its files, as sorted\(Path\('.*'\)\.rglob\('\*\.jpg'\)\)"):
        rgb.encode(tmp_path)


# ---- what is encoded


def test_one_path_or_many_and_a_generator(rgb, pixels, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    wanted = rgb.encode(pixels)
    close(rgb.encode(paths[0]), wanted[:1])
    close(rgb.encode(str(paths[1])), wanted[1:2])
    close(rgb.encode(paths), wanted)
    close(rgb.encode(path for path in paths), wanted)
    close(rgb.encode([paths[0], Image.fromarray(pixels[1]), pixels[2], str(paths[3]), pixels[4:]]), wanted)


def test_arrays_of_every_type(rgb, pixels):
    wanted = rgb.encode(pixels)
    close(rgb.encode(pixels[2]), wanted[2:3])
    close(rgb.encode(list(pixels)), wanted)
    close(rgb.encode(pixels.astype(np.uint16) * 257), wanted)
    close(rgb.encode((pixels.astype(np.uint16) * 257).astype(">u2")), wanted)
    close(rgb.encode(pixels.astype(np.float32) / 255), wanted)
    close(rgb.encode(pixels.astype(np.float64) / 255), wanted)
    close(rgb.encode((pixels / 255).astype(np.float16)), wanted, atol=1e-2)
    close(rgb.encode(pixels[:, ::-1, ::-1]), rgb.encode(pixels[:, ::-1, ::-1].copy()))


def test_tensors_of_every_type(rgb, pixels):
    wanted = rgb.encode(pixels)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    close(rgb.encode(tensor), wanted)
    close(rgb.encode(tensor[3]), wanted[3:4])
    close(rgb.encode(one for one in tensor), wanted)
    close(rgb.encode((tensor.float() / 255).requires_grad_()), wanted)
    close(rgb.encode(tensor.to(torch.uint16) * torch.tensor(257, dtype=torch.uint16)), wanted)
    close(rgb.encode((tensor / 255).bfloat16()), wanted, atol=0.1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1"])
def test_pillow_images_are_as_their_files(rgb, pixels, mode, tmp_path):
    image = Image.fromarray(pixels[0]).convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    image.save(tmp_path / f"image.{suffix}")
    assert rgb.encode(image).shape == (1, WIDTH)
    close(rgb.encode(image), rgb.encode(tmp_path / f"image.{suffix}"))


def test_transparency_lies_over_white(rgb, pixels):
    image = Image.fromarray(pixels[0]).convert("RGBA")
    image.putalpha(0)
    close(rgb.encode(image), rgb.encode(np.full((*SIZE, 3), 255, np.uint8)))


def test_sixteen_bits_and_floats_of_pillow(grey, tmp_path):
    values = np.random.default_rng(2).integers(0, 65536, SIZE, np.uint16)
    wanted = grey.encode(values)
    close(wanted, grey.encode(values / 65535))
    for mode in ("I;16", "I;16B", "I"):
        kinds = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32}
        image = Image.frombytes(mode, SIZE[::-1], values.astype(kinds[mode]).tobytes())
        close(grey.encode(image), wanted)
    close(grey.encode(Image.fromarray((values / 65535).astype(np.float32))), wanted)
    Image.fromarray(values).save(tmp_path / "image.png")
    close(grey.encode(tmp_path / "image.png"), wanted)


def test_eight_and_sixteen_bits_share_a_batch(rgb, pixels):
    mixed = [pixels[0], pixels[1].astype(np.uint16) * 257, (pixels[2] / 255).astype(np.float32)]
    close(rgb.encode(mixed), rgb.encode(pixels[:3]))


def test_grey_becomes_colour_and_back(rgb, grey, pixels):
    plane = pixels[0, ..., 0]
    close(rgb.encode(plane), rgb.encode(np.stack([plane] * 3, -1)))
    close(grey.encode(plane), grey.encode(plane[..., None]))
    close(grey.encode(pixels[0]), grey.encode(Image.fromarray(pixels[0]).convert("L")))


def test_other_sizes_are_covered_and_cut_in_the_centre(rgb, pixels):
    wide = np.concatenate([np.zeros_like(pixels[0]), pixels[0], np.zeros_like(pixels[0])], 1)
    close(rgb.encode(wide), rgb.encode(pixels[0]))


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_the_batch_size_changes_nothing(rgb, pixels, batch):
    close(rgb.encode(pixels, batch=batch), expected(pixels).mean(1))


def test_a_large_jpeg_has_the_features_that_an_evaluation_takes(rgb, tmp_path):
    """To the bit: the file is decoded at a fraction of its size in both, which changes its features."""
    noise = np.random.default_rng(4).integers(0, 256, (3, 40, 60, 3), np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).resize((3000, 2000)).save(tmp_path / f"{number}.jpg")
    paths = sorted(tmp_path.iterdir())
    batches = ordered_batches(open_data(tmp_path).train, RGB, batch=2, workers=0)
    wanted = np.concatenate([rgb.features(one.images).mean(1).numpy() for one in batches])
    assert np.array_equal(rgb.encode(paths, batch=2), wanted)
    whole = [np.asarray(Image.open(path)) for path in paths]
    assert not np.array_equal(rgb.encode(whole, batch=2), wanted)


# ---- how files are read


@pytest.fixture
def paths(pixels, tmp_path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture
def reading(monkeypatch):
    """Have this called with each path, in the thread that reads it, before it is decoded."""

    def set_to(before) -> None:
        decode = pretrained.decode
        monkeypatch.setattr(pretrained, "decode", lambda path, *rest: before(Path(path)) or decode(path, *rest))

    return set_to


def test_the_next_batch_is_read_while_one_is_computed_and_none_beyond(rgb, pixels, paths, reading, monkeypatch):
    pulled, taken = [], []
    read, begun = ([threading.Event() for _ in paths] for _ in range(2))

    def look(path: Path) -> None:
        number = paths.index(path)
        assert number == 0 or begun[number - 1].wait(30)
        read[number].set()

    def compute(x, blocks):
        begun[len(taken)].set()
        taken.append(len(pulled))
        assert read[len(pulled) - 1].wait(30)
        return features(x, blocks)

    features = rgb.features
    reading(look)
    monkeypatch.setattr(rgb, "features", compute)
    found = rgb.encode((pulled.append(path) or path for path in paths), batch=1)
    close(found, expected(pixels).mean(1))
    assert taken == [2, 3, 4, 5, 5]


def test_features_are_in_order_when_the_first_image_is_read_last(rgb, pixels, paths, reading, monkeypatch):
    monkeypatch.setattr("openjepa.pretrained.cores", lambda: 2)
    last = threading.Event()

    def wait(path: Path) -> None:
        if path == paths[-1]:
            last.set()
        assert path != paths[0] or last.wait(30)

    reading(wait)
    close(rgb.encode(paths), expected(pixels).mean(1))


def test_readers_leave_nothing_behind(rgb, paths, reading):
    """No thread, no filter of warnings, and for threads that begin later PyTorch's number of threads."""
    counts, readers = [], set()

    def look(path: Path) -> None:
        warnings.warn("a flaw in the file", stacklevel=1)
        readers.add(threading.current_thread())
        counts.append(torch.get_num_threads())

    reading(look)
    before, filters, count = threading.enumerate(), list(warnings.filters), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        rgb.encode(paths, batch=2)
        with pytest.raises(InputError, match="absent"):
            rgb.encode([*paths, paths[0].with_name("absent.png"), *paths], batch=2)
        assert torch.get_num_threads() == 3
        later = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        later.start()
        later.join()
    finally:
        torch.set_num_threads(count)
    assert set(counts[:-1]) == {1}
    assert counts[-1] == 3
    assert threading.current_thread() not in readers
    assert threading.enumerate() == before
    assert warnings.filters == filters


def test_calls_that_overlap_leave_nothing_behind(rgb, pixels, paths, reading):
    """The second begins while the first one reads, in a thread of its own, and ends after it, as in a service."""
    begun, first_ended = threading.Event(), threading.Event()
    counts, found = [], []

    def second() -> None:
        found.append(rgb.encode(paths[1]))
        counts.append(torch.get_num_threads())

    other = threading.Thread(target=second)

    def look(path: Path) -> None:
        if path == paths[0]:
            other.start()
            assert begun.wait(20)
        else:
            begun.set()
            assert first_ended.wait(20)

    reading(look)
    filters, count = list(warnings.filters), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found.append(rgb.encode(paths[0]))
        first_ended.set()
        other.join()
        later = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        later.start()
        later.join()
    finally:
        torch.set_num_threads(count)
    assert counts == [3, 3]
    assert warnings.filters == filters
    close(np.concatenate(found), expected(pixels).mean(1)[:2])


def test_what_a_generator_changes_or_closes_was_read_before(rgb, pixels, paths):
    def one_array():
        array = np.empty_like(pixels[0])
        for image in pixels:
            array[:] = image
            yield array

    def open_images():
        for path in paths:
            with Image.open(path) as image:
                yield image

    close(rgb.encode(one_array(), batch=2), expected(pixels).mean(1))
    close(rgb.encode(open_images(), batch=2), expected(pixels).mean(1))


# ---- what cannot be encoded


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_first_error_is_told(rgb, pixels, paths, reading, batch, place):
    """Whatever is wrong with later images, and however long the first takes to read."""
    paths[place].write_text("these are words")
    reading(lambda path: time.sleep(0.03 if path == paths[place] else 0))
    for bad in (paths[0].with_name("absent.png"), pixels[0].astype(np.int64), np.zeros(7)):
        with pytest.raises(InputError, match=str(paths[place])):
            rgb.encode([*paths[: place + 1], bad], batch=batch)

    def broken(given):
        yield from given
        raise ZeroDivisionError

    with pytest.raises(InputError, match=str(paths[place])):
        rgb.encode(broken(paths), batch=batch)
    with pytest.raises(ZeroDivisionError):
        rgb.encode(broken(paths[:place]), batch=batch)


@pytest.mark.parametrize(
    "nothing", [[], (), iter(()), np.zeros((0, *SIZE, 3), np.uint8)], ids=["list", "tuple", "iterator", "array"]
)
def test_no_images(rgb, nothing):
    with pytest.raises(InputError, match="no images"):
        rgb.encode(nothing)


def test_a_file_that_cannot_be_read_is_named(rgb, pixels, tmp_path):
    good, cut, text = tmp_path / "good.png", tmp_path / "cut.png", tmp_path / "notes.png"
    Image.fromarray(pixels[0]).save(good)
    cut.write_bytes(good.read_bytes()[: os.path.getsize(good) // 2])
    text.write_text("these are words")
    for bad in (cut, text, tmp_path / "absent.png", tmp_path):
        with pytest.raises(InputError, match=str(bad)):
            rgb.encode([good, bad])


def test_an_image_whose_file_was_cut_short_is_numbered(rgb, pixels, tmp_path):
    Image.fromarray(pixels[0]).save(tmp_path / "image.png")
    content = (tmp_path / "image.png").read_bytes()
    (tmp_path / "image.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "image.png") as image, pytest.raises(InputError, match="image 1 cannot be decoded"):
        rgb.encode([pixels[0], image])


@pytest.mark.parametrize("value", [-0.5, 1.5, np.nan, np.inf])
def test_floats_that_are_not_in_the_unit_range(rgb, value):
    image = np.full((*SIZE, 3), 0.5, np.float32)
    image[0, 0, 0] = value
    with pytest.raises(InputError, match=r"image 1 holds float32 .* floats from 0 to 1 that are not normalised"):
        rgb.encode([np.zeros_like(image), image])
    with pytest.raises(InputError, match="image 0 holds float32"):
        rgb.encode(torch.from_numpy(image).permute(2, 0, 1))


@pytest.mark.parametrize("kind", [np.bool_, np.int16, ">u2"])
def test_numbers_whose_white_is_known_are_as_in_a_file(kind, rgb, pixels, tmp_path):
    array = (pixels[0] // 2).astype(kind) if kind != np.bool_ else pixels[0] > 127
    np.save(tmp_path / "one.npy", array)
    close(rgb.encode(array), rgb.encode(tmp_path / "one.npy"), 0)
    if kind != ">u2":  # which torch has not
        close(rgb.encode(torch.from_numpy(array).permute(2, 0, 1)), rgb.encode(array), 0)


def test_numbers_that_are_no_intensities(rgb, pixels):
    for wrong, said in (
        (pixels[0].astype(np.int16) - 300, r"has values from -300 to -\d+; scale them"),
        # Image by image, one of 200 at the most would be shown 257 times as bright beside one of 300.
        (pixels[0].astype(np.int64), r"holds int64 from 0 to \d+: give uint8, uint16, int16, bool, or floats"),
        (pixels[0].astype(complex), "holds complex128, which is no image's"),
        (np.full((*SIZE, 3), "a"), "holds <U1, which is no image's"),
    ):
        with pytest.raises(InputError, match=f"image 0 {said}"):
            rgb.encode(wrong)


def test_channels_on_the_wrong_side_are_told(rgb, grey):
    for one, channels in ((rgb, 3), (grey, 1), (rgb, 1)):
        first, last = np.zeros((channels, *SIZE), np.uint8), torch.zeros(*SIZE, channels, dtype=torch.uint8)
        with pytest.raises(InputError, match=rf"\({channels}, 24, 16\)\): channels first\? An array is H W C"):
            one.encode(first)
        with pytest.raises(InputError, match=rf"\(24, 16, {channels}\)\): channels last\? A tensor is C H W"):
            one.encode([last])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.1), (torch.float64, 1e-5)])
def test_an_encoder_of_another_precision_gives_its_features_all_the_same(dtype, atol, pixels):
    encoder = openjepa.Pretrained(make_encoder(), RGB).to(dtype)
    assert encoder.encoder.embed.weight.dtype == dtype
    close(encoder.encode(pixels, tokens=True).reshape(5, 24, WIDTH), expected(pixels), atol)


@pytest.mark.parametrize("shape", [(16,), (2, 2, 24, 16, 3), ()])
def test_arrays_with_the_wrong_axes(rgb, shape):
    with pytest.raises(InputError, match=r"axes H W, H W C or n H W C, got"):
        rgb.encode(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(24, 16), (2, 2, 3, 24, 16), ()])
def test_tensors_with_the_wrong_axes(rgb, shape):
    with pytest.raises(InputError, match=r"axes \(n\) C H W, got"):
        rgb.encode(torch.zeros(shape, dtype=torch.uint8))


def test_the_wrong_number_of_channels_and_empty_images(rgb):
    with pytest.raises(InputError, match=r"image 0 has 28 channels, 3 are wanted; many grey .* axes n H W 1"):
        rgb.encode(np.zeros((50, 28, 28), np.uint8))
    with pytest.raises(InputError, match="image 0 has 5 channels, 3 are wanted"):
        rgb.encode(np.zeros((*SIZE, 5), np.uint8))
    with pytest.raises(InputError, match="image 0 is empty"):
        rgb.encode(np.zeros((0, 16), np.uint8))
    with pytest.raises(InputError, match="batch=0"):
        rgb.encode(np.zeros((*SIZE, 3), np.uint8), batch=0)


def test_a_picture_that_lies_on_its_side_is_turned_however_it_is_given(rgb, pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[0]).save(tmp_path / "aside.png", exif=exif)
    by_path = rgb.encode(tmp_path / "aside.png")
    close(rgb.encode(Image.open(tmp_path / "aside.png")), by_path)
    close(rgb.encode(np.rot90(pixels[0], -1)), by_path)
