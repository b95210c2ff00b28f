"""Judging an encoder on somebody's images, always beside a random encoder of its shape and raw pixels."""

from openjepa.assessment.labelled import assess

__all__ = ["assess"]
