"""Judging an encoder on somebody's images, always beside a random encoder of its shape and raw pixels."""

from openjepa.assessment.encoders import open_panel
from openjepa.assessment.finetuning import assess_finetuning
from openjepa.assessment.labelled import assess, assess_given
from openjepa.assessment.scenes import assess_scenes
from openjepa.assessment.segmentation import assess_segmentation

__all__ = ["assess", "assess_finetuning", "assess_given", "assess_scenes", "assess_segmentation", "open_panel"]
