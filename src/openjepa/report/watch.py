"""The watch: what the looks during training saw, in sentences and curves."""

from openjepa.diagnosis.findings import Finding
from openjepa.diagnosis.looks import looks, untrained
from openjepa.report.curves import card
from openjepa.report.formats import count, escape
from openjepa.report.run_folder import RunFolder
from openjepa.report.verdict import findings

# Key in metrics.jsonl, title, one line on how to read it.
_CURVES = (
    ("alpha_req", "alpha-ReQ", "How fast the spectrum decays. Above the line: fewer directions hold all."),
    ("pixel_r2", "Pixel R2", "What a linear map tells of the pictures. Below the line: some of it is lost."),
    ("lidar", "LiDAR", "Directions in which images differ more than crops of one do."),
    ("uniformity", "Uniformity", "0: all features point one way. Lower: spread."),
    ("features_over_images", "Features over images", "Variance of a token from image to image. Near 0: all alike."),
    ("features_over_positions", "Features over positions", "Variance of the mean image from place to place."),
    ("target_over_images", "Targets over images", "As above, of what is predicted."),
    ("target_over_positions", "Targets over positions", "As above, of what is predicted."),
    ("predicted_over_images", "Predictions over images", "Below the targets': the rest cannot be foreseen."),
    ("predicted_over_positions", "Predictions over positions", "As above, of the predictions."),
    ("probe", "Online probe", "Accuracy on few images: a trend, not a result."),
)
_STANDING = {"trouble": "bad", "recovering": "mixed", "explained": "good"}
_TITLES = {"trouble": "Trouble", "recovering": "A dip so far", "explained": "Not a trouble"}


def watch_section(run: RunFolder) -> str:
    """The section's HTML; nothing for a run without a look."""
    seen = looks(run.metrics.rows)
    if not seen:
        return ""
    said = "".join(_finding(one) for one in findings(run)) or f"<p>{_nothing(run, len(seen))}</p>"
    cards = "".join(card(run, name, title, hint) for name, title, hint in _CURVES)
    drawn = f'<details><summary>What it measured</summary><div class="curves">{cards}</div></details>' if cards else ""
    return f'<h2 id="watch">The watch</h2>{said}{_choice(run)}{drawn}'


def _finding(one: Finding) -> str:
    change = f'<p class="quiet">{escape(one.change)}</p>' if one.change else ""
    return (
        f'<div class="card finding {_STANDING[one.severity]}"><h3>{_TITLES[one.severity]}</h3><p>{escape(one.seen)}</p>'
        f"{change}</div>"
    )


def _nothing(run: RunFolder, times: int) -> str:
    looked = f"The watch took {count(times)} look{'s' * (times != 1)} at the representation during training"
    if not untrained(run.metrics.rows):
        return f"{looked}, but not before it, so most troubles cannot be told."
    return f"{looked}, beside the untrained encoder: no sign of a collapse in the last looks."


def _choice(run: RunFolder) -> str:
    """Which checkpoint's encoder was exported, where a choice without labels was asked for."""
    choice = run.exported.get("choice")
    return f"<p>{escape(choice)}</p>" if choice else ""
