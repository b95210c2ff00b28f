"""The rows of the tasks as a table on the terminal."""

from collections.abc import Sequence
from typing import Any


def print_tasks(found: Sequence[dict[str, Any]]) -> None:
    """A table of all rows, then what each task was measured on and what it says."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table()
    for heading in ("features", "evaluator", "value", "95% interval"):
        table.add_column(heading, justify="left" if heading in ("features", "evaluator") else "right", no_wrap=True)
    before = None
    for row in (row for part in found for row in part["rows"]):
        if row["task"] != before:
            table.add_section()
            table.add_row(f"[bold]{row['task']} ({row['metric']})")
            before = row["task"]
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        table.add_row(row["features"], row["evaluator"], f"{100 * row['value']:.1f}%", interval)
    console.print(table)
    for part in found:
        counts = f"{part['train_images']:,} images to learn on, {part['test_images']:,} to test"
        console.print(f"{part['data']}: {counts}. {part['split']}")
        console.print(part["summary"])
