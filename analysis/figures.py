"""Figures, as PNG, PDF and SVG: readable without colour, a legend beside the lines, units on the axes.

The same data give the same bytes: no date and no version is written, and no matplotlibrc of the reader's is heeded.
"""

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import matplotlib
import numpy as np

matplotlib.use("Agg")
from xml.sax.saxutils import escape

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from PIL import Image

from analysis.curve import Curve, Series
from analysis.render import si_bytes
from analysis.styles import Style

Tick = TypeVar("Tick", int, float)
RC: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
}
LINE_WIDTH, MARKER_SIZE = 1.5, 4.8
PLOT_INCHES = (4.9, 3.9)
"""Width of the axes with their labels, and least height of a figure."""
TITLE_LETTERS = 60
"""Longest row of a title, which ends where the legend begins."""
LEGEND_LETTERS, LETTER_INCHES, ROW_INCHES = 44, 0.064, 0.158
"""Longest row of a legend before it is wrapped; the room that a letter and a row take at its size of type."""
PAGE_COLOURS = {"#000000": "currentColor", "#ffffff": "var(--paper)", RC["grid.color"]: "var(--grid)"}
"""Colours of an SVG that follow the page, light or dark."""
SHARED_DASH = 4
"""Length of one model's dash in a line that several share, in widths of the line."""
LEVEL_COLOUR, LEVEL_DASHES = "#6b6b6b", ((0, (1, 1.5)), (0, (4, 2)), (0, (8, 2, 1, 2)))
WIDE = 3
"""Ratio of the greatest figure to the least from which an axis is logarithmic."""
NO_LEVELS: Mapping[str, float] = MappingProxyType({})


def memory(curves: list[Curve], looks: dict[str, Style], title: str) -> Figure:
    """State bytes against context on logarithmic axes; models that hold the same take turns in one line."""
    with _drawing():
        figure, axes = _axes(curves, si_bytes, title, "context (tokens)", "state held (bytes)")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, numticks=20))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: si_bytes(value)))
        _draw(axes, curves, looks, si_bytes)
    return figure


def quality(
    curves: list[Curve],
    looks: dict[str, Style],
    title: str,
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, float] = NO_LEVELS,
) -> Figure:
    """A measure of quality against a position or a length, on a logarithmic axis of tokens; bands: ± one deviation.

    Where the greatest is WIDE times the least and a measure has no upper end, the other axis is logarithmic too, or one
    model would hide the others.
    levels: {name: value} of lines across the figure, which no model drew.
    """
    with _drawing():
        band = _seeds(curves)
        if any(curve.spread for curve in curves):
            curves = [_alone(curve) for curve in curves]
        flat = [Curve(name, "", {0: value}) for name, value in sorted(levels.items(), key=lambda level: -level[1])]
        figure, axes = _axes([*curves, *flat], _three_decimals, title, xlabel + band, ylabel)
        _draw(axes, curves, looks, _three_decimals, flat)
        values = [value for curve in (*curves, *flat) for value in curve.points.values()]
        bounded = any(math.isfinite(curve.limits[1]) for curve in curves)
        if not bounded and 0 < WIDE * min(values, default=0) < max(values, default=0):
            axes.set_yscale("log")
            _round_ticks(axes.yaxis, values)
    return figure


def _alone(curve: Curve) -> Curve:
    """The curve, whose note says so where it is of one seed."""
    one_seed = curve.points and not curve.spread
    return replace(curve, note=" ".join(filter(None, (curve.note, "(one\u00a0seed)")))) if one_seed else curve


def _seeds(curves: list[Curve]) -> str:
    """What the axis says of seeds: what line, band and open markers are."""
    if not any(curve.spread for curve in curves):
        return "\none seed each"
    alone = "; open marker: one seed" if any(curve.spread and curve.single for curve in curves) else ""
    return f"\nline: mean over seeds, band: ± standard deviation{alone}"


def ratio(curves: list[Curve], looks: dict[str, Style], title: str, xlabel: str, ylabel: str) -> Figure:
    """A ratio against a length on logarithmic axes; a line at 1, where neither side wins, is always in sight."""
    with _drawing():
        figure, axes = _axes(curves, _short, title, xlabel, ylabel)
        axes.set_yscale("log", base=2)
        _draw(axes, curves, looks, _short)
        values = [1.0, *(value for curve in curves for value in curve.points.values())]
        axes.set_ylim(min(values) / 1.4, max(values) * 1.2)
        axes.yaxis.set_major_locator(LogLocator(2, numticks=20))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.axhline(1, color="black", linewidth=1, linestyle=(0, (6, 3)))
        axes.annotate("break-even", (1, 1), (-2, -3), ("axes fraction", "data"), "offset points", ha="right", va="top")
    return figure


def scatter(
    series: list[Series], looks: dict[str, Style], title: str, labels: tuple[str, str], tried: bool = False
) -> Figure:
    """Points with their bars and lines, the marked ones ringed, on logarithmic axes.

    labels: of x and of y. tried: whether the ticks of x are the points' own, as far as they have room.
    """
    with _drawing():
        rows = [row for one in series for row in _series_text(one).split("\n")]
        figure, axes = _canvas(rows, title, *labels)
        chosen = variants(series, looks)
        for one in series:
            _points(axes, one, chosen[one.label])
        axes.set_yscale("log")
        xs = sorted({x for one in series for x in one.points})
        _round_ticks(axes.xaxis, xs, apart(xs, factor=1.15) if tried else None)
        bars = [end for one in series for bar in one.bars.values() for end in bar]
        _round_ticks(axes.yaxis, bars + [y for one in series for y in (*one.points.values(), *one.line.values())])
        ordered = sorted(series, key=lambda one: (not one.points, -_end(one), one.label))
        _legend(axes, [_handle(one, chosen[one.label]) for one in ordered], [_series_text(one) for one in ordered])
    return figure


def _round_ticks(axis: Axis, values: Sequence[float], ticks: Sequence[float] | None = None) -> None:
    """Ticks at these, or at round numbers, and no others, of a logarithmic axis."""
    axis.set_major_locator(FixedLocator(nice(values) if ticks is None else ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: si_count(value)))


def _points(axes: Axes, one: Series, style: Style) -> None:
    look = _look(style)
    if one.band:
        lows, highs = zip(*one.band.values(), strict=True)
        axes.fill_between(list(one.band), lows, highs, color=style.colour, alpha=0.15, linewidth=0)
    if one.line:
        axes.plot(list(one.line), list(one.line.values()), **(look | {"marker": "none"}))
    axes.plot(list(one.points), list(one.points.values()), **(look | {"linestyle": "none"}))
    for x, (low, high) in one.bars.items():
        axes.plot([x, x], [low, high], color=style.colour, linewidth=0.8)
    if one.marked in one.points:
        ring: dict[str, Any] = {
            "marker": "o",
            "markersize": 2.2 * MARKER_SIZE,
            "markerfacecolor": "none",
            "linestyle": "none",
        }
        axes.plot([one.marked], [one.points[one.marked]], markeredgecolor=style.colour, **ring)


def _handle(one: Series, style: Style) -> Line2D:
    look = _look(style) | ({} if one.line else {"linestyle": "none"})
    return Line2D([], [], **look) if one.points else Line2D([], [], linestyle="none")


def _end(one: Series) -> float:
    return one.points[max(one.points)] if one.points else 0.0


def _series_text(one: Series) -> str:
    return "\n".join(
        textwrap.wrap("  ".join(filter(None, (one.label, one.note))), LEGEND_LETTERS, subsequent_indent="   ")
    )


def nice(values: Iterable[float], most: int = 7) -> list[float]:
    """At most so many round numbers from the least of `values` to the greatest, for a logarithmic axis; none for none.

    Even steps where the values lie within a factor of three, a finer one where a step leaves two; else of like ratio.
    """
    known = [value for value in values if value > 0]
    if not known:
        return []
    low, high = min(known), max(known)
    if high < 3 * low:
        power = 10.0 ** math.floor(math.log10(max(high - low, 1e-3 * high)))
        steps = [step * scale for scale in (power / 10, power, 10 * power) for step in (1, 2, 5)]
        fits = next(place for place, step in enumerate(steps) if (high - low) / step <= most - 1)
        ticks = _multiples(steps[fits], low, high)
        return (ticks if len(ticks) > 2 or not fits else _multiples(steps[fits - 1], low, high)) or [low]
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for mantissas in ((1, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.25, 2, 2.5, 4, 5, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [m * power for power in powers for m in mantissas if low <= m * power * 1.001 <= high * 1.002]
        if len(ticks) <= most:
            break
    return ticks or [low]


def _multiples(step: float, low: float, high: float) -> list[float]:
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def si_count(value: float) -> str:
    """125000 -> 125k, 1e6 -> 1M, 0.003 -> 0.003."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes NAME.png and NAME.pdf into `folder` and closes the figure; a palette takes a third of the bytes."""
    paths, drawn = [folder / f"{name}.png", folder / f"{name}.pdf"], io.BytesIO()
    with _drawing():
        figure.savefig(drawn, format="png", dpi=150)
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(paths[0], optimize=True)
        figure.savefig(paths[1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    plt.close(figure)
    return paths


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element that can stand in a page beside others, and closes it.

    name: what its ids begin with. A line tells its label and its points to whoever points at it. Black, white and the
    grid's grey are the page's own: `currentColor`, `var(--paper)` and `var(--grid)`.
    """
    lines = {f"line{number}": line for number, line in enumerate(figure.axes[0].get_lines())}
    for gid, line in lines.items():
        line.set_gid(gid)
    buffer = io.StringIO()
    with _drawing({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    for gid, line in lines.items():
        told = escape(_told(line)) if not str(line.get_label()).startswith("_") else ""
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{told}</title>' if told else f'<g id="{gid}">')
    own_ids = re.sub(r"[^\w-]", "_", name)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own_ids}-", text)
    for drawn, own in PAGE_COLOURS.items():
        text = text.replace(drawn, own)
    return text.strip()


def _told(line: Line2D) -> str:
    """The label of a line, and below it one line a point."""
    points = [f"{short_count(x)}: {y:,.5g}" for x, y in np.asarray(line.get_xydata(), dtype=float)]
    return "\n".join([str(line.get_label()), *points])


def _drawing(more: dict[str, str] | None = None) -> AbstractContextManager:
    """matplotlib's own defaults and the settings of this module, whatever the reader's matplotlibrc says."""
    return plt.style.context(["default", RC | (more or {})])


def _axes(
    curves: list[Curve], show: Callable[[float], str], title: str, xlabel: str, ylabel: str
) -> tuple[Figure, Axes]:
    """A figure with room for the legend of its curves."""
    return _canvas([row for c in curves for row in legend_text(c, show).split("\n")], title, xlabel, ylabel)


def _canvas(rows: list[str], title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """A figure with room for these rows of a legend."""
    width = PLOT_INCHES[0] + 0.7 + LETTER_INCHES * max(map(len, rows), default=0)
    height = max(PLOT_INCHES[1], 0.5 + ROW_INCHES * len(rows))
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_xscale("log", base=2)
    axes.set_title("\n".join(textwrap.wrap(title, TITLE_LETTERS)), loc="left", fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _draw(
    axes: Axes, curves: list[Curve], looks: dict[str, Style], show: Callable[[float], str], flat: Sequence[Curve] = ()
) -> None:
    """One line a curve, and a legend in the order of their ends, the highest first, what diverged last.

    flat: lines across the whole axis, below the others in the legend.
    """
    chosen = variants(curves, looks)
    groups: dict[tuple, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(tuple(curve.points.items()), []).append(curve)
    for points, sharing in groups.items():
        for turn, curve in enumerate(sharing if points else ()):
            _line(axes, curve, chosen[curve.label], turn, len(sharing))
    ticks = apart(x for curve in curves for x in curve.points)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    ordered = sorted(curves, key=lambda curve: (not curve.points, -last(curve), curve.label))
    samples = [_sample(curve, chosen[curve.label]) for curve in ordered]
    for place, curve in enumerate(flat):
        dash = LEVEL_DASHES[place % len(LEVEL_DASHES)]
        samples.append(axes.axhline(last(curve), color=LEVEL_COLOUR, linewidth=1, linestyle=dash, label=curve.label))
    _legend(axes, samples, [legend_text(curve, show) for curve in (*ordered, *flat)])


def _legend(axes: Axes, samples: list[Line2D], texts: list[str]) -> None:
    axes.figure.legend(
        samples,
        texts,
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        handlelength=3.2,
        labelspacing=0.35,
    )


def _line(axes: Axes, curve: Curve, style: Style, turn: int, sharing: int) -> None:
    """A curve and its band; of several that are the same each draws its share of dashes and markers: all are seen."""
    xs, ys = list(curve.points), list(curve.points.values())
    look = _look(style)
    if sharing > 1:
        length = SHARED_DASH * sharing
        look["linestyle"] = ((length - SHARED_DASH * turn) % length, (SHARED_DASH, length - SHARED_DASH))
        look["markevery"] = (turn % len(xs), sharing)
    axes.plot(xs, ys, dash_capstyle="butt", label=curve.label, **look)
    if curve.spread and (alone := sorted(curve.single)):
        look |= {"linestyle": "none", "markerfacecolor": "white", "fillstyle": "full", "markevery": None}
        axes.plot(alone, [curve.points[x] for x in alone], zorder=3, **look)
    if curve.spread:
        ends = ([y + side * curve.spread.get(x, 0.0) for x, y in curve.points.items()] for side in (-1, 1))
        low, high = (np.clip(end, *curve.limits) for end in ends)
        axes.fill_between(xs, low, high, color=style.colour, alpha=0.15, linewidth=0)


def _look(style: Style) -> dict[str, Any]:
    return {
        "color": style.colour,
        "linestyle": style.dash,
        "linewidth": LINE_WIDTH,
        "marker": style.marker,
        "markersize": MARKER_SIZE,
        "fillstyle": "full" if style.face == "none" else style.face,
        "markerfacecolor": "white" if style.face == "none" else style.colour,
        "markerfacecoloralt": "white",
    }


def _sample(curve: Curve, style: Style) -> Line2D:
    """The line that stands in the legend; none for a curve without points."""
    return Line2D([], [], **_look(style)) if curve.points else Line2D([], [], linestyle="none")


def variants(curves: Sequence[Curve | Series], looks: dict[str, Style]) -> dict[str, Style]:
    """The style of each curve by its label: its model's, and among curves of one model the variant's, by label."""
    chosen, seen = {}, dict.fromkeys((curve.model for curve in curves), 0)
    for curve in sorted(curves, key=lambda curve: curve.label):
        if curve.points:
            chosen[curve.label] = looks[curve.model].variant(seen[curve.model])
            seen[curve.model] += 1
        else:
            chosen[curve.label] = looks[curve.model]
    return chosen


def legend_text(curve: Curve, show: Callable[[float], str]) -> str:
    """The label, its last value and the note, wrapped."""
    value = show(last(curve)).replace(" ", "\u00a0") if curve.points else ""  # a number and its unit stay together
    text = "  ".join(filter(None, (curve.label, value, curve.note)))
    return "\n".join(textwrap.wrap(text, LEGEND_LETTERS, subsequent_indent="   "))


def last(curve: Curve) -> float:
    """The value at the largest x; 0 for a curve without points."""
    return list(curve.points.values())[-1] if curve.points else 0.0


def apart(ticks: Iterable[Tick], factor: float = 1.6) -> list[Tick]:
    """The ticks that leave room for each other's labels on a logarithmic axis: the largest, then downwards."""
    kept: list[Tick] = []
    for tick in sorted(set(ticks), reverse=True):
        if tick > 0 and (not kept or kept[-1] / tick >= factor):
            kept.append(tick)
    return kept[::-1]


def short_count(value: float) -> str:
    """1024 -> 1k, 131072 -> 128k; what is no multiple of 1,024 is written out."""
    return f"{value / 1024:.0f}k" if value >= 1024 and value % 1024 == 0 else f"{value:,.0f}"


def _three_decimals(value: float) -> str:
    return f"{value:.3f}"


def _short(value: float) -> str:
    return f"{value:.3g}"
