"""All that the records give: tables, figures and the generated sections of the pages."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import bench, example, figures, frame, memory, models, quality, render, tables
from analysis.records import Record, Records
from analysis.render import Table

NOTHING = "_No recorded runs yet._"
PARTS = {
    "loss_by_position": ("Loss by position", "position in the context (tokens)"),
    "extrapolation": ("Beyond the trained length", "length evaluated (tokens)"),
}
"""{part of the evaluation: (title, label of its axis)}"""


@dataclass(frozen=True)
class Report:
    """comparison: of text tasks. synthetic: of tasks scored by accuracy. figures: by the stem of their files.

    example: one run's summary. models: the table of models, in Markdown. measured: the bench's folder.
    """

    runs: pd.DataFrame
    comparison: list[Table]
    synthetic: list[Table]
    memory: list[Table]
    figures: dict[str, "Plot"]
    example: str
    models: str
    measured: Path


@dataclass(frozen=True)
class Plot:
    """A figure that is drawn when it is wanted. title: also its alternative text."""

    title: str
    draw: Callable[..., Figure]


def build(records: Records, measured: Path) -> Report:
    """Makes every table and curve that the records hold figures for; `measured`: the bench's folder, there or not."""
    runs = frame.runs(records.runs)
    contexts = frame.contexts(records.runs, list(runs["label"]) if len(runs) else [])
    sizes = sorted(contexts["size"].unique())
    return Report(
        runs,
        tables.comparisons(runs),
        tables.comparisons(runs, "test_accuracy") + tables.comparisons(runs, "test_mean_squared_error"),
        [table for size in sizes if (table := memory.table(contexts, size))],
        _memory_plots(contexts, sizes) | _quality_plots(records.runs, runs),
        example.summary(records.runs),
        models.table(records.runs),
        measured,
    )


def _memory_plots(contexts: pd.DataFrame, sizes: list[str]) -> dict[str, Plot]:
    plots = {}
    for size in sizes:
        if known := memory.curves(contexts, size):
            title = f"What generation must keep, {size} parameters"
            plots[f"memory-{size}"] = Plot(title, partial(figures.memory, known))
    return plots


def _quality_plots(records: list[Record], runs: pd.DataFrame) -> dict[str, Plot]:
    """Loss by position and by length, for every table that has such figures in two places at least."""
    plots = {}
    for name, group in runs.groupby("table", sort=True) if len(runs) else []:
        members = [records[index] for index in group.index]
        for part, (what, xlabel) in PARTS.items():
            metric, known = quality.curves(members, group["label"], part)
            if any(len(curve) > 1 for curve in known.values()):
                title = f"{what}, {group['task'].iloc[0]}, {group['size'].iloc[0]} parameters"
                draw = partial(figures.quality, known, xlabel=xlabel, ylabel=f"{metric.replace('_', ' ')} (test)")
                plots[f"{part.replace('_', '-')}-{name}"] = Plot(title, draw)
    return plots


def write(report: Report, output: Path) -> list[Path]:
    """Writes all tables and figures, and runs.csv with one row a run, into the folder `output`."""
    output.mkdir(parents=True, exist_ok=True)
    report.runs.drop(columns="variant").to_csv(output / "runs.csv", index=False)
    paths = [output / "runs.csv"]
    for table in [*report.comparison, *report.synthetic, *report.memory]:
        paths += render.write(table, output)
    for name, plot in report.figures.items():
        paths += figures.save(plot.draw(title=plot.title), output, name)
    return paths + bench.draw(report.measured, output)


def sections(report: Report, output: Path, page: Path) -> dict[str, str]:
    """The sections that a page may show, by name.

    example, architectures (the table of models), comparison, synthetic, memory, figures; headline and figure, the
    comparison of the most runs and the figure of its models' states; the bench's kernels, models and newton.
    """
    folder = Path(os.path.relpath(output, page.parent)).as_posix()
    images = {name: f"![{plot.title}]({folder}/{name}.png)" for name, plot in report.figures.items()}
    largest = max(report.comparison, key=lambda table: len(table.rows), default=None)
    memories = [name for name in images if name.startswith("memory-")]
    shown = [name for name in memories if largest and largest.name.endswith(name.removeprefix("memory"))] or memories
    texts = {
        "example": [report.example] if report.example else [],
        "architectures": [report.models],
        "headline": [render.markdown(largest)] if largest else [],
        "figure": [images[name] for name in shown[:1]],
        "comparison": [render.markdown(table) for table in report.comparison],
        "synthetic": [render.markdown(table) for table in report.synthetic],
        "memory": [render.markdown(table) for table in report.memory],
        "figures": list(images.values()),
    }
    made = {name: "\n".join(parts) or NOTHING for name, parts in texts.items()}
    return made | bench.sections(report.measured, folder)
