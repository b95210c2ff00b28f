"""The report: one self-contained HTML page that says what a run's numbers say. It imports no models."""

from openjepa.report.page import write_report

__all__ = ["write_report"]
