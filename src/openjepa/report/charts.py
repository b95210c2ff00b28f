"""Charts as inline SVG whose colours are the page's own, so that light and dark both read well."""

import io
import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

# Drawn in these and then replaced by the page's CSS variables: the page decides, by light or dark.
_COLOURS = {"#1b2431": "--ink", "#5c6879": "--muted", "#e2e6ed": "--rule", "#2462eb": "--accent", "#c9dafb": "--band"}
_INK, MUTED, RULE, _ACCENT, _BAND = _COLOURS
MOST_POINTS = 300
_LEAST_SPAN = 0.05


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One series over steps: ``name`` is its identity in the page, ``reference`` a dashed level with its label,
    ``start`` the value before the first step, ``until`` the steps of the whole run, ``from_zero`` an axis without a
    logarithm, up to a little above all but the highest values."""

    name: str
    steps: Float64[np.ndarray, "n"]
    values: Float64[np.ndarray, "n"]
    as_percent: bool = False
    reference: tuple[float, str] | None = None
    start: float | None = None
    until: float | None = None
    from_zero: bool = False

    @property
    def logarithmic(self) -> bool:
        """Whether the values span so much that a linear axis would hide their lower part."""
        return bool(
            self.values.min() > 0
            and self.values.max() > 20 * self.values.min()
            and not (self.as_percent or self.from_zero)
        )


@dataclass(frozen=True, kw_only=True)
class Thinned:
    """At most a few hundred points: the mean of each bucket of neighbouring rows, with its lowest and highest value."""

    steps: Float64[np.ndarray, "n"]
    mean: Float64[np.ndarray, "n"]
    low: Float64[np.ndarray, "n"]
    high: Float64[np.ndarray, "n"]


def thinned(steps: Float64[np.ndarray, "n"], values: Float64[np.ndarray, "n"], most: int = MOST_POINTS) -> Thinned:
    """Average neighbouring rows so that at most ``most`` points are left; few rows stay as they are."""
    if len(steps) <= most:
        return Thinned(steps=steps, mean=values, low=values, high=values)
    starts = np.arange(most) * len(steps) // most
    sizes = np.diff(np.append(starts, len(steps)))
    return Thinned(
        steps=np.add.reduceat(steps, starts) / sizes,
        mean=np.add.reduceat(values, starts) / sizes,
        low=np.minimum.reduceat(values, starts),
        high=np.maximum.reduceat(values, starts),
    )


def curve_svg(curve: Curve, label: str) -> str:
    """The curve as an ``<svg>`` element for the middle of an HTML page; ``label`` is its alternative text, escaped."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": curve.name, "font.size": 10}):
        figure = Figure(figsize=(3.5, 1.95))
        _draw(figure.add_axes((0.15, 0.21, 0.81, 0.75)), curve)  # one frame for all, so that cards align
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue(), label)


def _draw(axes, curve: Curve) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    line = thinned(curve.steps, curve.values)
    if len(curve.steps) > len(line.steps):
        axes.fill_between(line.steps, line.low, line.high, color=_BAND, linewidth=0)
    few, before = len(line.steps) <= 24, [] if curve.start is None else [curve.start]
    steps, mean = np.append(np.zeros(len(before)), line.steps), np.append(before, line.mean)
    axes.plot(steps, mean, color=_ACCENT, linewidth=1.4, marker="o" if few else None, markersize=3)
    if curve.reference is not None:
        level, text = curve.reference
        axes.axhline(level, color=MUTED, linewidth=0.9, dashes=(3, 3))
        axes.annotate(text, (1, level), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right", va="bottom", color=MUTED, fontsize=9)  # fmt: skip
    if curve.logarithmic:
        _log_axis(axes)
    elif curve.as_percent:
        whole_percents(axes)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1e3 else f"{value:.6g}")
        )
        if curve.from_zero:
            axes.set_ylim(0, 1.2 * np.percentile(curve.values, 98) or None)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if curve.until is not None:
        axes.set_xlim(-0.01 * curve.until, 1.01 * curve.until)
    elif len(line.steps) == 1:
        axes.set_xlim(line.steps[0] - 1, line.steps[0] + 1)
    else:
        axes.margins(x=0.01)
    axes.set_xlabel("step", color=MUTED, labelpad=1)
    axes.tick_params(colors=MUTED, length=0, which="both")
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(RULE)


def whole_percents(axes) -> None:
    """An axis of shares in whole percents, over 5 points at least: less is drawn as the little that it is."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    low, high = axes.get_ylim()
    if high - low < _LEAST_SPAN:
        low = max((low + high - _LEAST_SPAN) / 2, 0)
        axes.set_ylim(low, low + _LEAST_SPAN)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _log_axis(axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, numticks=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def inline(svg: str, label: str) -> str:
    """Only what an HTML page needs of matplotlib's file: no prologue, metadata, sizes, fonts or element numbers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg class="chart" role="img" aria-label="{label}" {view_box[0] if view_box else ""}>'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    svg = re.sub(r' id="[A-Za-z]+\d*[a-z.]*_\d+"', "", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r">\s+<", "><", svg).strip()
