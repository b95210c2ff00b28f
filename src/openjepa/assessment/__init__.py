"""Judging an encoder on somebody's images, always beside a random encoder of its shape and raw pixels."""

from openjepa.assessment.encoders import open_panel, panel_of
from openjepa.assessment.labelled import assess, assess_given
from openjepa.assessment.tasks import Tasks, judge

__all__ = ["Tasks", "assess", "assess_given", "judge", "open_panel", "panel_of"]
