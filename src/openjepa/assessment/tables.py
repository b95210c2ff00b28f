"""The rows of the tasks as tables on the terminal."""

from collections.abc import Sequence
from typing import Any


def print_tasks(found: Sequence[dict[str, Any]]) -> None:
    """For each task a table of its rows, what it was measured on, and what it says."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for part in found:
        tables: dict[str, Table] = {}
        for row in part["rows"]:
            if row["task"] not in tables:
                tables[row["task"]] = Table(title=f"{row['task']} ({row['metric']})")
                for heading in ("features", "evaluator", "value", "95% interval"):
                    tables[row["task"]].add_column(heading, justify="left" if heading[0] in "fe" else "right")
            interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
            cells = row["features"], row["evaluator"], f"{100 * row['value']:.1f}%", interval
            tables[row["task"]].add_row(*cells)
        for table in tables.values():
            console.print(table)
        counts = f"{part['train_images']:,} images to learn on, {part['test_images']:,} to test"
        console.print(f"{part['data']}: {counts}. {part['split']}")
        console.print(part["summary"])
