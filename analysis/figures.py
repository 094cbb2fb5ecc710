"""Figures, as PNG and PDF: readable without colour, labelled at the lines, units on the axes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from analysis.render import si_bytes

Curve = dict[int, float]
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31"]
"""Okabe and Ito's palette (jfly.uni-koeln.de/color), its yellow, too pale for a line, replaced."""
MARKERS = "osD^vPX*"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "pdf.fonttype": 42,  # text stays text
}
LABEL_GAP = 0.055
"""Least distance between two labels, as a part of the axis' height."""


def memory(curves: dict[str, Curve], title: str) -> Figure:
    """State bytes against context on logarithmic axes; models that hold the same share one line."""
    with plt.rc_context(STYLE):
        figure, axes = _axes(title, "context (tokens)", "state held (bytes)")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, numticks=20))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: si_bytes(value)))
        _draw(axes, merged(curves), si_bytes)
    return figure


def quality(curves: dict[str, Curve], title: str, xlabel: str, ylabel: str) -> Figure:
    """A measure of quality against a position or a length, on a logarithmic axis of tokens."""
    with plt.rc_context(STYLE):
        figure, axes = _axes(title, xlabel, ylabel)
        _draw(axes, curves, lambda value: f"{value:.2f}")
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes NAME.png and NAME.pdf into `folder` and closes the figure; the same data give the same bytes."""
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    figure.savefig(paths[0], dpi=200)
    figure.savefig(paths[1], metadata={"CreationDate": None})
    plt.close(figure)
    return paths


def merged(curves: dict[str, Curve]) -> dict[str, Curve]:
    """Curves that are the same as one, under all their names; otherwise the last drawn would hide the others."""
    names: dict[tuple, list[str]] = {}
    for name, curve in curves.items():
        names.setdefault(tuple(curve.items()), []).append(name)
    return {", ".join(same): dict(curve) for curve, same in names.items()}


def _axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(6.4, 3.9), layout="constrained")
    axes.set_xscale("log", base=2)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _draw(axes: Axes, curves: dict[str, Curve], show: Callable[[float], str]) -> None:
    """One line a curve, the highest end first, its name and last value to its right."""
    ordered = sorted(curves.items(), key=lambda item: (-list(item[1].values())[-1], item[0]))
    for number, (_, curve) in enumerate(ordered):
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
        }
        axes.plot(list(curve), list(curve.values()), markersize=4.5, linewidth=1.6, **style)
    ticks = sorted({x for curve in curves.values() for x in curve})
    axes.xaxis.set_major_locator(FixedLocator(apart(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axes.margins(y=0.08)
    _label_ends(axes, ordered, show)


def _label_ends(axes: Axes, ordered: list[tuple[str, Curve]], show: Callable[[float], str]) -> None:
    to_axes = axes.transData + axes.transAxes.inverted()
    axes.set_ylim(axes.get_ylim())  # the labels must not move it
    ends = [list(curve.items())[-1] for _, curve in ordered]
    heights = [float(to_axes.transform(end)[1]) for end in ends]
    for number, place in enumerate(spread_apart(heights, LABEL_GAP)):
        axes.annotate(
            f"{ordered[number][0]}  {show(ends[number][1])}",
            xy=ends[number],
            xytext=(1.04, place),
            textcoords=axes.transAxes,
            va="center",
            color=COLOURS[number % len(COLOURS)],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": "#b0b0b0",
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def apart(ticks: list[int], factor: float = 1.6) -> list[int]:
    """The ticks that leave room for each other's labels on a logarithmic axis: the largest, then downwards."""
    kept: list[int] = []
    for tick in sorted(ticks, reverse=True):
        if tick > 0 and (not kept or kept[-1] / tick >= factor):
            kept.append(tick)
    return kept[::-1]


def spread_apart(places: list[float], gap: float) -> list[float]:
    """Moves places as little as it takes for neighbours to be `gap` apart, in the order they have.

    Neighbours that come too close merge into a block that is centred on the mean of where its members want to be.
    """
    blocks: list[list[int]] = []
    for index in sorted(range(len(places)), key=lambda i: (places[i], -i)):
        blocks.append([index])
        while len(blocks) > 1 and _bottom(blocks[-1], places, gap) - _top(blocks[-2], places, gap) < gap:
            last = blocks.pop()
            blocks[-1] += last
    result = np.zeros(len(places))
    for block in blocks:
        result[block] = _bottom(block, places, gap) + gap * np.arange(len(block))
    return result.tolist()


def _bottom(block: list[int], places: list[float], gap: float) -> float:
    return sum(places[index] for index in block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: list[int], places: list[float], gap: float) -> float:
    return _bottom(block, places, gap) + gap * (len(block) - 1)


def short_count(value: float) -> str:
    """1024 -> 1k, 131072 -> 128k; what is no multiple of 1,024 is written out."""
    return f"{value / 1024:.0f}k" if value >= 1024 and value % 1024 == 0 else f"{value:,.0f}"
