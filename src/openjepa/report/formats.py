"""Numbers as people read them, and text made safe for HTML."""

import html
import math
from collections.abc import Sequence
from typing import Any

CALLED = {"ijepa": "I-JEPA", "mae": "MAE", "denoising": "denoising autoencoder"}
Number = int | float  # runtime type checks do not take an int for a float


def escape(value: Any) -> str:
    """``value`` as text that HTML shows as it is, also in an attribute; a lone surrogate (odd path) becomes '?'."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number (a bool is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def percent(share: Number) -> str:
    """A share between 0 and 1 as a percentage with one decimal; what would round to nothing is not called 0.0%."""
    return "under 0.1%" if 0 < share < 0.0005 else f"{100 * share:.1f}%"


def points(difference: Number) -> str:
    """A difference of two shares in percentage points, with its sign; zero after rounding has none."""
    text = f"{round(100 * difference, 6):+.1f}"  # of 30.25 and 26.5% as of the 3.75 between them: +3.8
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def called(objective: Any) -> str:
    """An objective as people write it."""
    return CALLED.get(str(objective), str(objective))


def between(low: Number, high: Number) -> str:
    """The ends of an interval of a difference in percentage points; one above zero has no sign."""
    return " to ".join(points(end).lstrip("+") for end in (low, high))


def count(number: Number) -> str:
    """A whole number with thousands separated."""
    return f"{round(number):,}"


def plain(number: Number) -> str:
    """Three significant digits, without an exponent between 0.001 and a million."""
    if number == 0:
        return "0"
    size = abs(number)
    if size >= 1e6 or size < 1e-3:
        return f"{number:.2e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    if size >= 100:
        return f"{number:,.0f}"
    return f"{number:.{2 - math.floor(math.log10(size))}f}"


def scaled(number: Number, unit: str) -> str:
    """A number with a decimal prefix, such as 4.61 GFLOP."""
    for power, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= power:
            return f"{plain(number / power)} {prefix}{unit}"
    return f"{plain(number)} {unit}"


def memory(size: Number) -> str:
    """Bytes as MiB or GiB."""
    return f"{plain(size / 2**30)} GiB" if size >= 2**30 else f"{plain(size / 2**20)} MiB"


def counted_threads(number: Any) -> str:
    """A number of threads as a plan holds it, which may be anything: 1 thread, 2 threads."""
    return f"{number} thread" if number == 1 else f"{number} threads"


def duration(seconds: Number) -> str:
    """A time in its two largest units, such as 3 h 20 min."""
    if seconds < 59.95:
        return f"{plain(seconds)} s"
    total = round(seconds)
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def listed(parts: Sequence[str]) -> str:
    """Parts joined as in a sentence: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """An HTML table that scrolls on a narrow screen. Cells are HTML already: escape them first."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A definition list of names and values; both are HTML already."""
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in pairs)}</dl>"
