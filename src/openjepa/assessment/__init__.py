"""Judging an encoder on somebody's images, always beside a random encoder of its shape and raw pixels."""

from openjepa.assessment.encoders import open_panel
from openjepa.assessment.labelled import assess, assess_given

__all__ = ["assess", "assess_given", "open_panel"]
