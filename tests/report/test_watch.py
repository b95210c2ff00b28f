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


def test_a_run_without_trouble_says_so_and_one_without_a_reference_what_it_lacks(parts):
    watched(parts, [2.4, 2.3])
    assert "looked at 2 times during training, beside the untrained encoder: no sign of a collapse" in page(parts)


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
