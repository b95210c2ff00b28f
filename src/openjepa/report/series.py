"""Several objectives in one chart: accuracy over compute, one colour an objective, thin seeds and a bold mean."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from openjepa.report.charts import MUTED, RULE, inline, whole_percents

# In the order of the objectives; they read on a light and on a dark page, and to the colour-blind (Okabe and Ito).
COLOURS = ("#2b7bba", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run in a chart; ``before`` is its value at zero compute, which the line begins with."""

    objective: str
    x: Float64[np.ndarray, "n"]
    y: Float64[np.ndarray, "n"]
    before: float | None = None

    def whole(self) -> "Line":
        """The line with its beginning as its first point."""
        if self.before is None:
            return self
        return Line(objective=self.objective, x=np.append(0.0, self.x), y=np.append(self.before, self.y))


def mean_line(lines: Sequence[Line]) -> Line:
    """The mean over seeds where all of them have values, read between their points: their times are never the same."""
    start, end = max(line.x[0] for line in lines), min(line.x[-1] for line in lines)
    inside = np.concatenate([line.x[(line.x >= start) & (line.x <= end)] for line in lines])
    x = np.linspace(start, end, max(2, len(inside) // len(lines))) if end > start else np.array([(start + end) / 2])
    return Line(objective=lines[0].objective, x=x, y=np.mean([np.interp(x, line.x, line.y) for line in lines], axis=0))


def lines_svg(lines: Sequence[Line], *, label: str, x_name: str, colours: Mapping[str, str]) -> str:
    """The lines as an ``<svg>`` element, with a bold mean where an objective has several; ``label`` is the alternative
    text, escaped."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.size": 10}):
        figure = Figure(figsize=(4.6, 2.5))
        axes = figure.add_axes((0.12, 0.2, 0.85, 0.76))
        for objective in dict.fromkeys(line.objective for line in lines):
            own, colour = [line.whole() for line in lines if line.objective == objective], colours[objective]
            mean = mean_line(own)
            for line in own if len(own) > 1 else []:
                axes.plot(line.x, line.y, color=colour, linewidth=0.7, alpha=0.5)
            axes.plot(mean.x, mean.y, color=colour, linewidth=2.2, marker="o" if len(mean.x) < 3 else None)
        if levels := [line.before for line in lines if line.before is not None]:
            axes.axhline(float(np.mean(levels)), color=MUTED, linewidth=0.9, dashes=(3, 3))
        whole_percents(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(x_name, color=MUTED, labelpad=1)
        axes.tick_params(colors=MUTED, length=0)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(RULE)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue(), label)
