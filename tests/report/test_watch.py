"""The watch's section of the page: sentences, curves beside the untrained encoder's level, the choice."""

import json

from openjepa.report import write_report

UNTRAINED = {"untrained_rankme": 10.0, "untrained_alpha_req": 2.5}


def page(parts) -> str:
    return write_report(parts.write()).read_text()


def watched(parts, alphas, rank=9.0) -> None:
    parts.metrics = [{"step": 0, "loss": 0.2} | UNTRAINED]
    for number, alpha in enumerate(alphas, 1):
        parts.metrics.append({"step": 10 * number - 1, "loss": 0.1, "rankme": rank, "alpha_req": alpha})


def test_a_trouble_is_told_with_what_to_change(parts):
    watched(parts, [3.5, 3.9], rank=4.0)
    found = page(parts)
    assert 'id="watch"' in found
    assert "RankMe 4.0 after 10.0, alpha-ReQ 3.90 after 2.50, since step 10." in found
    assert "In a new run try" in found
    assert "untrained 2.50" in found


def test_the_line_beside_rankme_is_of_the_watched_images(parts):
    parts.evaluation["spectrum"] = {"random encoder": {"rankme": 4.0}}
    watched(parts, [2.4, 2.3])
    found = page(parts)
    assert "untrained 10.0" in found
    assert "random encoder 4.00" not in found
    parts.metrics, parts.path = parts.metrics[1:], parts.path.with_name("unwatched")
    assert "random encoder 4.00" in page(parts)


def test_a_rising_loss_is_explained_and_not_called_a_collapse(parts):
    watched(parts, [2.4, 2.3, 2.1, 2.0])
    for row, loss in zip(parts.metrics[1:], (0.1, 0.05, 0.1, 0.15), strict=True):
        row["loss"] = loss
    found = page(parts)
    assert "<h3>Not a trouble</h3><p>The loss has risen from 0.05 to 0.15 since step 20 while the" in found
    assert "alpha-ReQ from 2.30 to 2.00, lower is better" in found
    assert "<strong>No sign of it</strong>" in found


def test_the_answer_on_collapse_says_what_the_watch_says(parts):
    watched(parts, [3.5, 3.9], rank=4.0)
    parts.score(0.5, 0.6, 0.7)
    found = page(parts)
    seen = "use far fewer directions than before training: RankMe 4.0 after 10.0, alpha-ReQ 3.90 after 2.50, since step"
    assert f"<strong>Yes</strong><p>The features {seen} 10." in found
    assert f"<h3>Trouble</h3><p>The features {seen} 10." in found


def test_after_a_collapse_comes_a_lower_learning_rate_and_no_comparison(parts):
    watched(parts, [3.5, 3.9], rank=4.0)
    parts.experiment = {"schedule": {"lr": 0.001}}
    parts.plan["steps"] = 20
    found = page(parts).split('id="next"')[1]
    assert found.index("--schedule.lr 0.0005 --out") < found.index("openjepa evaluate")
    assert "openjepa compare" not in found


def test_features_that_are_all_alike_in_the_end_are_a_trouble_too(parts):
    watched(parts, [2.4, 2.3])
    parts.evaluation["spectrum"] = {"trained encoder": {"rankme": 1.2}}
    found = page(parts)
    assert found.count("All images get nearly the same features: RankMe 1.20 (1 is a single direction)") == 2
    assert "no sign of a collapse" not in found


def test_a_run_without_trouble_says_so_and_one_without_a_reference_what_it_lacks(parts):
    watched(parts, [2.4, 2.3])
    assert (
        "The watch took 2 looks at the representation during training, beside the untrained encoder: no sign"
        in page(parts)
    )


def test_a_run_that_did_not_look_before_training_says_what_it_lacks(parts):
    assert "but not before it" in page(parts)


def test_no_look_no_section(parts):
    parts.metrics = [{"step": 0, "loss": 0.2}]
    assert 'id="watch"' not in page(parts)


def test_the_choice_is_told_where_the_run_asked_for_it(parts):
    watched(parts, [2.0, 2.4])
    said = "The encoder of step 10 of 20 is exported: of all looks, the score without labels is highest there."
    run = parts.write()
    for content, told in ((json.dumps({"step": 10, "choice": said}), True), ("cut sho", False)):
        (run / "exported.json").write_text(content)
        assert (said in write_report(run).read_text()) is told


def test_odd_files_do_not_break_it(parts):
    watched(parts, [3.5, 3.9])
    parts.metrics[1]["loss"] = "much"
    parts.experiment = {"ijepa": [], "training": {"keep_best": "yes"}}
    assert 'id="watch"' in page(parts)
