import numpy as np
import pytest

from openjepa.data.scenes import DISTANCE_CLASSES, TASKS, Layout, Scenes, distance_limits
from openjepa.data.sources import open_data


def scenes(size: tuple[int, int] = (64, 64), channels: int = 1, part: str = "train", seed: int = 0) -> Scenes:
    return Scenes(seed=seed, size=size, channels=channels, part=part)


def test_a_scene_is_a_function_of_seed_part_and_number():
    one, index = scenes(channels=3), np.array([7, 2, 30])
    drawn = one.draw(index)
    assert drawn.shape == (3, 3, 64, 64)
    assert drawn[1].equal(scenes(channels=3).draw(np.array([2]))[0])
    for other in (scenes(channels=3, seed=1), scenes(channels=3, part="test")):
        assert not drawn[1].equal(other.draw(np.array([2]))[0])
    assert all(np.array_equal(one.labels(index)[task][1:2], one.labels(np.array([2]))[task]) for task in TASKS)


@pytest.mark.parametrize(("size", "channels"), [((28, 28), 1), ((32, 48), 3), ((96, 64), 2), ((224, 224), 3)])
def test_scenes_have_the_encoders_size_and_channels(size, channels):
    drawn = scenes(size, channels).draw(np.arange(4))
    assert drawn.shape == (4, channels, *size)
    assert drawn.float().std() > 10


def test_the_dark_object_is_where_the_label_says():
    one, index = scenes(), np.arange(200)
    layout, labels = one.layout(index), one.labels(index)
    dark = one.draw(index)[:, 0].numpy() < 25
    right = 0
    for scene, mask in enumerate(dark):
        rows, columns = np.nonzero(mask)
        seen = np.array([(rows.min() + rows.max() + 1) / 2, (columns.min() + columns.max() + 1) / 2]) / 64
        # An item's outline is not centred in its frame to the pixel.
        assert np.abs(seen - layout.centres[scene, 0]).max() < 0.09
        row, column = np.clip((3 * (seen - 0.17) / 0.66).astype(int), 0, 2)
        right += 3 * row + column == labels["position"][scene]
    assert right > 180


def test_one_object_alone_is_counted_as_one_thing_in_the_picture():
    from scipy import ndimage

    one, index = scenes((96, 96)), np.arange(300)
    count = one.labels(index)["count"]
    drawn = one.draw(index)[:, 0].numpy().astype(int)
    things = np.array([ndimage.label(ndimage.binary_closing(np.abs(p - np.median(p)) > 45))[1] for p in drawn])
    assert np.median(things[count == 0]) == 1
    # Neighbours may touch, and one item may come apart, so more objects are more things on the whole.
    assert np.corrcoef(count, things)[0, 1] > 0.5
    covered = (np.abs(drawn - np.median(drawn, (1, 2), keepdims=True)) > 45).mean((1, 2))
    assert np.corrcoef(count, covered)[0, 1] > 0.7


def test_the_nearest_distance_is_that_of_the_two_closest_of_the_objects_that_are_there():
    places = np.full((2, 6, 2), 0.5)
    places[:, :3] = [[0.2, 0.2], [0.8, 0.2], [0.5, 0.6]]
    layout = Layout(count=np.array([3, 1]), centres=places, sides=np.full((2, 6), 0.3))
    assert layout.nearest().tolist() == pytest.approx([0.5, np.inf])


def test_classes_are_balanced():
    labels = scenes().labels(np.arange(6000))
    for task, classes in (("count", 6), ("position", 9), ("nearest distance", DISTANCE_CLASSES)):
        known = labels[task][labels[task] >= 0]
        share = np.bincount(known, minlength=classes) / len(known)
        assert len(share) == classes
        assert np.abs(share * classes - 1).max() < 0.15, task
    assert np.array_equal(labels["nearest distance"] < 0, labels["count"] == 0)
    limits = distance_limits((1.0, 1.0))
    assert (np.diff(limits) > 0).all()


def test_objects_hide_little_of_each_other():
    layout = scenes().layout(np.arange(5000))
    apart = np.linalg.norm(layout.centres[:, :, None] - layout.centres[:, None], axis=-1)
    sides = (layout.sides[:, :, None] + layout.sides[:, None]) / 2
    place = np.arange(6)
    pair = (place[:, None] < place) & (place < layout.count[:, None, None])
    gap = np.where(pair, apart / sides, np.inf).min((1, 2))
    assert gap.min() > 0.4
    assert (gap < 0.75).mean() < 0.03


def test_the_parts_share_no_item():
    sample = open_data(None)
    train, test = scenes(part="train").items, scenes(part="test").items
    assert np.array_equal(train, sample.train.images[..., 0])
    assert np.array_equal(test, sample.test.images[..., 0])
    # Not two copies of one item either.
    assert not {item.tobytes() for item in train} & {item.tobytes() for item in test}


def test_too_small_a_scene_is_refused():
    with pytest.raises(ValueError, match="16 x 16"):
        scenes((8, 8))
