"""Several objectives in one chart: accuracy over compute, one colour an objective, one line a seed."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from openjepa.report.charts import MUTED, RULE, inline

# In the order of the objectives; they read on a light and on a dark page, and to the colour-blind (Okabe and Ito).
COLOURS = ("#2b7bba", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run in a chart."""

    objective: str
    x: Float64[np.ndarray, "n"]
    y: Float64[np.ndarray, "n"]


def lines_svg(
    lines: Sequence[Line], levels: Mapping[str, float], *, label: str, x_name: str, colours: Mapping[str, str]
) -> str:
    """The lines as an ``<svg>`` element; ``levels`` are dashed references, ``label`` the alternative text, escaped."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.size": 8}):
        figure = Figure(figsize=(4.6, 2.5))
        axes = figure.add_axes((0.1, 0.17, 0.87, 0.79))
        for line in lines:
            axes.plot(line.x, line.y, color=colours[line.objective], linewidth=1.4, marker="o", markersize=2.5)
        for name, level in levels.items():
            axes.axhline(level, color=MUTED, linewidth=0.9, dashes=(3, 3))
            axes.annotate(name, (1, level), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                          ha="right", va="bottom", color=MUTED, fontsize=7)  # fmt: skip
        axes.yaxis.set_major_formatter(PercentFormatter(1))
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
