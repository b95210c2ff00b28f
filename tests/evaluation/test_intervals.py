import numpy as np
import pytest
from scipy import stats

from openjepa.evaluation.balanced import balanced_accuracy, balanced_difference
from openjepa.evaluation.intervals import (
    Difference,
    crossed_mean,
    difference_of_runs,
    graded_difference,
    paired_difference,
    wilson,
    wilson_of_groups,
)


def test_wilson_of_known_cases():
    # Newcombe (1998, Statistics in Medicine 17, table I, method 3): 81/263, 15/148, 0/20, 1/29
    for hits, total, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]:
        assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(20, 20)[1] == 1


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_proportions_are_refused(hits, total):
    with pytest.raises(ValueError, match=f"got {hits} of {total}"):
        wilson(hits, total)


@pytest.mark.parametrize(("share", "total"), [(0.1, 200), (0.5, 50), (0.8, 1000), (0.97, 100)])
def test_wilson_covers_the_truth_95_times_of_100(share, total):
    hits = np.random.default_rng(0).binomial(total, share, 4000)
    covered = np.mean([low <= share <= high for low, high in (wilson(int(h), total) for h in hits)])
    assert 0.93 <= covered <= 0.975


@pytest.mark.parametrize(("share", "images"), [(0.3, 60), (0.6, 40), (0.9, 60), (0.97, 60)])
@pytest.mark.parametrize("alike", [0.05, 0.3, 0.8])
def test_an_interval_of_images_asked_several_times_covers_the_truth_too(share, images, alike):
    generator = np.random.default_rng(2)
    each = (1 - alike) / alike
    covered, wide = [], []
    for own in generator.beta(share * each, (1 - share) * each, (1500, images)):
        low, high = wilson_of_groups(generator.random((images, 4)) < own[:, None])
        covered.append(low <= share <= high)
        wide.append(high - low)
    assert 0.935 <= np.mean(covered) <= 0.992
    once = np.subtract(*wilson(round(share * images), images)[::-1])
    assert np.mean(wide) < {0.05: 0.75, 0.3: 0.85, 0.8: 1.0}[alike] * once


def test_answers_that_are_all_alike_count_as_one():
    hits = np.arange(40)[:, None] < np.full(4, 30)
    assert wilson_of_groups(hits) == pytest.approx(wilson(30, 40), abs=0.01)
    assert wilson_of_groups(np.ones((40, 4), bool)) == wilson(40, 40)
    assert wilson_of_groups(np.tile(np.eye(4, dtype=bool), (100, 1))) == wilson(400, 1600)  # no more than there are
    with pytest.raises(ValueError, match="got 0 and 4"):
        wilson_of_groups(np.zeros((0, 4), bool))


@pytest.mark.parametrize(("both", "first", "second"), [(0.7, 0.1, 0.05), (0.5, 0.02, 0.02), (0.2, 0.4, 0.1)])
def test_the_paired_interval_covers_the_true_difference(both, first, second):
    generator = np.random.default_rng(1)
    truth, covered, runs = first - second, 0, 1500
    for _ in range(runs):
        u = generator.random(300)
        a = u < both + first
        b = (u < both) | ((u >= both + first) & (u < both + first + second))
        found = paired_difference(a, b)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / runs <= 0.98


@pytest.mark.parametrize(("won", "lost"), [(0.05, 0.01), (0.1, 0.0), (0.2, 0.2), (0.5, 0.1)])
@pytest.mark.parametrize(("images", "alike"), [(20, 0.4), (60, 0.4), (60, 0.9)])
def test_the_paired_interval_of_images_asked_several_times_covers_the_truth_too(won, lost, images, alike):
    generator = np.random.default_rng(3)
    covered, wide, once = [], [], []
    for _ in range(600):
        # Of each image's four answers so many are one and the same, and the others drawn alone.
        same, own = generator.random((images, 1)), generator.random((images, 4))
        u = np.where(generator.random((images, 4)) < alike, same, own)
        a, b = u < won, (u >= won) & (u < won + lost)
        found, single = paired_difference(a, b), paired_difference(a[:, 0], b[:, 0])
        assert -1 <= found.low <= found.value <= found.high <= 1
        covered.append(found.low <= won - lost <= found.high)
        wide.append(found.high - found.low)
        once.append(single.high - single.low)
    assert np.mean(covered) >= 0.925
    assert np.mean(wide) < (0.9 if alike < 0.5 else 1.0) * np.mean(once)


@pytest.mark.parametrize(("images", "seeds", "between"), [(100, 3, 0.0), (100, 3, 0.3), (400, 2, 0.05), (40, 5, 0.1)])
def test_a_difference_of_runs_covers_the_truth_for_other_images_and_seeds(images, seeds, between):
    """Each side has images that it finds hard, and each run a luck of its own; seeds alone would say far too little."""
    generator = np.random.default_rng(4)
    covered, alone = [], []
    for _ in range(800):
        sides = []
        for _ in range(2):
            hard = generator.normal(0, 1.5, images)
            luck = generator.normal(0, between, (seeds, 1)) + generator.normal(0, 0.5, (seeds, images))
            sides.append((hard + luck > 0).astype(np.float64))
        found = difference_of_runs(*sides)
        assert found.low < found.value < found.high
        covered.append(found.low <= 0 <= found.high)
        (one, spread), (other, width) = ((side.mean(), side.mean(1).std(ddof=1)) for side in sides)
        welch = stats.ttest_ind_from_stats(one, spread + 1e-9, seeds, other, width, seeds, equal_var=False)
        alone.append(welch.pvalue > 0.05)
    assert 0.93 <= np.mean(covered) <= 0.99
    assert np.mean(alone) < np.mean(covered)


def test_the_largest_of_several_differences_is_clear_by_luck_no_more_often_than_one():
    generator, clear = np.random.default_rng(6), {1: 0, 8: 0}
    for _ in range(600):
        u = generator.random((8, 300))
        for among in clear:
            found = [paired_difference(row < 0.1, (row >= 0.1) & (row < 0.2), among=among) for row in u]
            clear[among] += max(found, key=lambda one: one.value).low > 0
    assert clear[8] / 600 < 0.04 < 0.1 < clear[1] / 600


@pytest.mark.parametrize("right", [(0.9, 0.3), (1.0, 1.0), (0.5, 0.97)])
@pytest.mark.parametrize("counts", [(190, 10), (60, 40)])
def test_a_balanced_accuracy_covers_the_truth(right, counts):
    generator, labels = np.random.default_rng(7), np.repeat([3, 8], counts)
    covered, wide = [], []
    for _ in range(1000):
        value, low, high = balanced_accuracy(generator.random(len(labels)) < np.repeat(right, counts), labels)
        assert 0 <= low <= value <= high <= 1
        covered.append(low <= np.mean(right) <= high)
        wide.append(high - low)
    assert np.mean(covered) >= 0.92
    exact = 1.96 * np.sqrt(sum(share * (1 - share) / n for share, n in zip(right, counts, strict=True)))
    assert np.mean(wide) < 1.1 * exact + 2 / min(counts)


@pytest.mark.parametrize(
    ("won", "lost"), [((0.05, 0.3), (0.02, 0.1)), ((0.0, 0.0), (0.0, 0.0)), ((0.1, 0.5), (0.1, 0.0))]
)
@pytest.mark.parametrize("counts", [(190, 10), (60, 40)])
def test_a_difference_of_balanced_accuracies_covers_the_truth(won, lost, counts):
    generator, labels = np.random.default_rng(8), np.repeat([3, 8], counts)
    more, fewer = (np.repeat(share, counts) for share in (won, lost))
    truth, covered, wide = np.mean(won) - np.mean(lost), [], []
    for _ in range(1000):
        u = generator.random(len(labels))
        right, against = u < more, (u >= more) & (u < more + fewer)
        found = balanced_difference(right, against, labels)
        scores = (balanced_accuracy(each, labels)[0] for each in (right, against))
        assert found.value == pytest.approx(np.subtract(*scores))
        assert -1 <= found.low <= found.value <= found.high <= 1
        covered.append(found.low <= truth <= found.high)
        wide.append(found.high - found.low)
    assert np.mean(covered) >= 0.925
    each = ((a + b - (a - b) ** 2) / n for a, b, n in zip(won, lost, counts, strict=True))
    assert np.mean(wide) < 1.2 * 1.96 * np.sqrt(sum(each)) + 2.5 / min(counts)


def test_a_difference_of_balanced_accuracies_of_one_class_is_the_plain_one():
    a, b = (np.random.default_rng(seed).random(300) < 0.6 for seed in (0, 1))
    plain, found = paired_difference(a, b), balanced_difference(a, b, np.zeros(300, np.int64))
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high), abs=2e-3)


def test_a_balanced_accuracy_is_the_mean_over_classes_and_of_equal_ones_the_plain_one():
    right, labels = np.arange(100) < 90, np.repeat([0, 1], [90, 10])
    assert balanced_accuracy(right, labels)[0] == 0.5  # to name always the commonest is worth no more
    even = np.arange(200) % 2
    found = balanced_accuracy(np.arange(200) < 140, even)
    assert found == pytest.approx((0.7, *wilson(140, 200)), abs=0.005)


def test_a_difference_of_runs_needs_two_of_each():
    with pytest.raises(ValueError, match="got 1, 2 and 9"):
        difference_of_runs(np.ones((1, 9)), np.ones((2, 9)))


def test_folds_make_a_difference_of_runs_wider():
    right = np.random.default_rng(5).random((4, 200)) < 0.6
    plain, folded = (difference_of_runs(right[:2] * 1.0, right[2:] * 1.0, worth) for worth in (1, 2 / 3))
    assert folded.value == plain.value
    assert folded.high - folded.low > 1.1 * (plain.high - plain.low)


def test_one_answer_an_image_is_the_plain_paired_difference():
    a, b = (np.random.default_rng(seed).random(50) < 0.6 for seed in (0, 1))
    assert paired_difference(a[:, None], b[:, None]) == paired_difference(a, b)
    # Answers all alike say no more than one of them.
    found, plain = paired_difference(np.tile(a[:, None], 4), np.tile(b[:, None], 4)), paired_difference(a, b)
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high), abs=0.01)


def test_pairs_that_agree_make_the_interval_narrow():
    a = np.arange(1000) < 800
    b = np.arange(1000) < 780  # right on a subset of the same images
    c = np.arange(1000) >= 220  # as often right as b, on other images
    nested, crossed = paired_difference(a, b), paired_difference(a, c)
    assert nested.value == crossed.value == pytest.approx(0.02)
    assert nested.verdict == "above"
    assert crossed.verdict == "unclear"
    assert paired_difference(b, a).verdict == "below"


def test_a_total_win_stays_inside_its_bounds():
    found = paired_difference(np.ones(50, bool), np.zeros(50, bool))
    assert found == Difference(value=1.0, low=found.low, high=1.0)
    assert found.low > 0.8


def test_no_images_make_no_difference():
    with pytest.raises(ValueError, match="got 0"):
        paired_difference(np.zeros(0, bool), np.zeros(0, bool))


def graded(generator, draws: int, images: int, by_draw: float, by_image: float, rest: float) -> np.ndarray:
    """Grades around 0.5 that vary by draw, by image, and by both."""
    parts = (
        generator.normal(size=(draws, 1)),
        generator.normal(size=(1, images)),
        generator.normal(size=(draws, images)),
    )
    return 0.5 + by_draw * parts[0] + by_image * parts[1] + rest * parts[2]


@pytest.mark.parametrize(
    ("draws", "images", "by_draw", "by_image", "rest"),
    [
        (5, 200, 0.05, 0.3, 0.3),
        (5, 200, 0.0, 0.0, 0.4),
        (3, 50, 0.1, 0.0, 0.1),
        (5, 400, 0.0, 0.4, 0.1),
        (1, 60, 0.0, 0.2, 0.2),
    ],
)
def test_the_interval_of_a_mean_over_draws_and_images_covers_the_truth(draws, images, by_draw, by_image, rest):
    generator, runs, covered = np.random.default_rng(0), 1500, 0
    for _ in range(runs):
        value, low, high = crossed_mean(graded(generator, draws, images, by_draw, by_image, rest))
        assert low < value < high
        covered += low <= 0.5 <= high
    assert 0.93 <= covered / runs <= 0.985


def test_a_difference_of_grades_is_that_of_the_same_draws_and_images():
    generator = np.random.default_rng(0)
    grades = graded(generator, 5, 100, 0.1, 0.3, 0.05)
    found = graded_difference(grades + 0.02, grades + generator.normal(0, 0.01, grades.shape))
    # What both have in common, which is nearly all of their spread, is in no interval of the difference.
    assert found.verdict == "above"
    assert 0.015 < found.low < 0.02 < found.high < 0.025
    assert crossed_mean(grades)[2] - crossed_mean(grades)[1] > 0.1


@pytest.mark.parametrize("draws", [1, 5])
def test_where_all_is_right_the_interval_is_that_of_a_proportion(draws):
    right, wrong = np.ones((draws, 12)), np.zeros((draws, 12))
    assert crossed_mean(right) == (1, *wilson(12, 12))
    assert crossed_mean(wrong) == (0, *wilson(0, 12))
    assert graded_difference(right, wrong) == paired_difference(right[0] > 0, wrong[0] > 0)
    assert graded_difference(right, right).low < 0 < graded_difference(right, right).high
    assert graded_difference(right[:, :2], wrong[:, :2]).verdict == "unclear"  # two images say next to nothing
    low, high = crossed_mean(np.full((draws, 12), 0.3))[1:]
    assert low < 0.25
    assert high > 0.35


def test_images_that_only_a_draw_tells_apart_have_both_spreads():
    grades = np.array([[1.0] * 12, [0.0] * 12])
    low, high = crossed_mean(grades)[1:]
    assert low < wilson(6, 12)[0]
    assert high > wilson(6, 12)[1]


def test_of_one_image_nothing_follows_and_of_none_there_is_no_mean():
    value, low, high = crossed_mean(np.full((5, 1), 0.4))
    assert (value, low, high) == (0.4, -np.inf, np.inf)
    with pytest.raises(ValueError, match="at least 1 image and 1 draw, got 0 and 5"):
        crossed_mean(np.ones((5, 0)))


@pytest.mark.parametrize("images", [20, 300])
@pytest.mark.parametrize("draws", [1, 5])
def test_images_that_are_worth_less_have_wider_intervals_by_the_root_of_it(images, draws):
    random = np.random.default_rng(images + draws)
    own, other = (
        random.random((draws, images)) < 0.5 + 0.2 * random.normal(size=(draws, 1)) + 0.1 * random.normal(size=images)
        for _ in range(2)
    )
    for plain, worth in (
        (crossed_mean(own * 1.0)[1:], crossed_mean(own * 1.0, 2 / 3)[1:]),
        *(
            ((one.low, one.high), (two.low, two.high))
            for one, two in (
                (graded_difference(own * 1.0, other * 1.0), graded_difference(own * 1.0, other * 1.0, 2 / 3)),
                (paired_difference(own[0], other[0]), paired_difference(own[0], other[0], 2 / 3)),
            )
        ),
        (wilson_of_groups(own.T), wilson_of_groups(own.T, 2 / 3)),
    ):
        assert (worth[1] - worth[0]) / (plain[1] - plain[0]) == pytest.approx(1.5**0.5, rel=0.06)
