"""All that the records give: tables, figures and the generated sections of the pages."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import (
    bench,
    claims,
    context,
    cost,
    downstream,
    drops,
    example,
    figures,
    frame,
    memory,
    models,
    mtlnn,
    provenance,
    quality,
    references,
    render,
    search,
    selection,
    tables,
    tracking,
    verdict,
)
from analysis.findings import evidence
from analysis.findings import pages as findings
from analysis.findings.finding import Finding
from analysis.models import ASKED
from analysis.records import Record, Records
from analysis.render import Table
from analysis.styles import Style, styles

NOTHING = "_No recorded runs yet._"
ROOM = 6
"""Rows of the headline, which stands in the README."""
DROPS = "drops-"
"""How the names of the figures of dropped steps begin."""
PARTS = {
    "loss_by_position": ("Loss by position", "position in the context (tokens)"),
    "extrapolation": ("Beyond the trained length", "length evaluated (tokens)"),
}
"""{part of the evaluation: (title, label of its axis)}"""


@dataclass(frozen=True)
class Report:
    """runs: one row a run; test figures are those of chosen runs alone. records: the runs. comparison: of text tasks.

    headline: the comparison of the most seeds, with the best reference line of each method. synthetic: of tasks scored
    otherwise. tuning: what was chosen, among what. search: for the recipe that all share, whose runs are the last, and
    in no other table. figures: by the stem of their files. example: one run's summary. models: the table of models, in
    Markdown. verdict: what docs/comparison.md shows. downstream: scores of published tasks. measured: the bench's
    folder. findings: what all that says, a sentence each. claims: what was published, beside what the records say of
    it. tracking: the same of what theory says of state tracking.
    """

    runs: pd.DataFrame
    records: list[Record]
    comparison: list[Table]
    headline: Table | None
    synthetic: list[Table]
    tuning: list[Table]
    search: list[Table]
    memory: list[Table]
    figures: dict[str, "Plot"]
    example: str
    models: str
    verdict: verdict.Verdict
    downstream: list[Table]
    measured: Path
    findings: list[Finding]
    claims: Table
    tracking: Table


@dataclass(frozen=True)
class Plot:
    """A figure that is drawn when it is wanted. title: also its alternative text."""

    title: str
    draw: Callable[..., Figure]


def build(
    records: Records,
    measured: Path,
    tuned: Sequence[str] = selection.CHOSEN,
    root: Path | None = None,
    prices: Path = cost.FILE,
) -> Report:
    """Makes every table and curve that the records hold figures for.

    measured: the bench's folder, there or not. tuned: the keys whose values are chosen on validation. root: a checkout;
    tables then say which rows older code made. prices: the file that costs are computed with.
    """
    keys = search.keys(measured.parent)
    sought = [record for record in records.runs if record.result["key"] in keys]
    compared = [record for record in records.runs if record.result["key"] not in keys]
    runs = selection.select(compared, frame.runs(compared), tuned)
    if root is not None:
        runs["older"] = [bool(provenance.changed(record, root)) for record in compared]
    chosen = [record for record, counts in zip(compared, runs.get("chosen", []), strict=True) if counts]
    shown = runs[runs["chosen"]].reset_index(drop=True) if len(runs) else runs
    if chosen:
        shown["label"] = frame.labels(chosen, shown)
    contexts = frame.contexts(chosen, list(shown["label"]) if chosen else [])
    sizes = sorted(contexts["size"].unique(), key=tables.size_order)
    looks = styles(record.result["model"] for record in compared)
    comparison = tables.comparisons(shown)
    largest = _largest(comparison)
    recorded = references.read(measured / references.REFERENCES)
    beside = references.by_table(recorded, shown)
    priced = cost.read(prices)
    judged = _with_references(verdict.build(compared, runs, shown, looks, measured, priced), beside)
    lines = {text: references.best(known) for text, known in recorded.items()}
    known = evidence.gather(compared, runs, measured, largest.name if largest else "")
    costs = {table.name: table.data for table in judged.tables["cost"]}
    known = replace(known, lines=lines, laws=judged.laws, costs=costs, prices=priced)
    theory = tracking.read()
    drawn = {stem: Plot(title, draw) for stem, (title, draw) in verdict.everything(judged)[1].items()}
    by_context = context.plots(bench.content(measured, "context"))
    return Report(
        _without_test_of_others(_followed(runs, sought)),
        [*compared, *sought],
        [references.below(table, beside.get(table.name, ())) for table in comparison],
        largest and references.below(_shortened(largest), references.best(beside.get(largest.name, ()))),
        [table for quality in list(tables.QUALITY)[1:] for table in tables.comparisons(shown, quality)],
        tables.tuning(runs),
        search.tables(records.runs, measured.parent),
        [table for size in sizes if (table := memory.table(contexts, size))],
        _memory_plots(contexts, sizes, looks)
        | _quality_plots(chosen, shown, looks, beside)
        | _drop_plots(chosen, looks)
        | {stem: Plot(title, draw) for stem, (title, draw) in by_context.items()}
        | drawn,
        example.summary(example.kept(measured.parent) or chosen),
        models.table(records.runs),
        judged,
        downstream.build(chosen, shown),
        measured,
        findings.build(known),
        claims.table(claims.answer(claims.read(), records.runs, measured)),
        tracking.table(theory, tracking.measure(theory, records.runs, measured.parent)),
    )


def _with_references(judged: verdict.Verdict, beside: dict[str, list[references.Line]]) -> verdict.Verdict:
    """The verdict with the reference lines of each text below its tables of quality."""
    shown = [
        references.below(table, beside.get(table.name.removeprefix("quality-"), ()), digits=4)
        for table in judged.tables["quality"]
    ]
    return replace(judged, tables=judged.tables | {"quality": shown})


def _largest(comparison: list[Table]) -> Table | None:
    """The comparison that rests on the most seeds, over its models, which the README shows; None for none."""

    def rests_on(table: Table) -> tuple[int, int]:
        return int(table.data.groupby("model")["seeds"].max().sum()), len(table.rows)

    return max(comparison, key=rests_on, default=None)


def _shortened(table: Table) -> Table:
    """The best rows, and the best of each model that the question names; a note counts the others."""
    models = list(table.data["model"])
    asked = {models.index(model) for model in ASKED if model in models}
    kept = sorted(asked | set(range(min(ROOM, len(models)))))
    if len(kept) == len(models):
        return table
    return replace(
        table,
        rows=[table.rows[place] for place in kept],
        runs=[table.runs[place] for place in kept],
        data=table.data.iloc[kept].reset_index(drop=True),
        notes=[*table.notes, f"Rows left out: {len(models) - len(kept)} (docs/baselines.md)."],
    )


def _followed(runs: pd.DataFrame, sought: list[Record]) -> pd.DataFrame:
    """The frame with the runs of the search below, none of which was chosen for its own sake."""
    if not sought:
        return runs
    return pd.concat([runs, frame.runs(sought).assign(chosen=False, choice="", family="")], ignore_index=True)


def _without_test_of_others(runs: pd.DataFrame) -> pd.DataFrame:
    """The frame with the test figures of chosen runs alone, so that nothing can be chosen on them later."""
    columns = [str(column) for column in runs if str(column).startswith("test_")]
    return runs.assign(**{column: runs[column].where(runs["chosen"]) for column in columns})


def _memory_plots(contexts: pd.DataFrame, sizes: list[str], looks: dict[str, Style]) -> dict[str, Plot]:
    plots = {}
    for size in sizes:
        if known := memory.curves(contexts, size):
            title = f"What generation must keep, {size} parameters"
            plots[f"memory-{size}"] = Plot(title, partial(figures.memory, known, looks))
    return plots


def _quality_plots(
    records: list[Record], runs: pd.DataFrame, looks: dict[str, Style], known: dict[str, list[references.Line]]
) -> dict[str, Plot]:
    """Loss by position and by length, for every table that has such figures in two places at least.

    known: the reference lines of each table, of which the best of each method is drawn.
    """
    plots = {}
    for name, trained, group in quality.groups(records, runs):
        members = [records[index] for index in group.index]
        for part, (what, xlabel) in PARTS.items():
            metric, found = quality.curves(members, group["label"], part)
            if any(len(curve.points) > 1 for curve in found):
                title = f"{what}, {tables.title(group)}{trained}"
                ylabel = f"{metric.replace('_', ' ')} (test)"
                lines = references.best(known.get(name, ())) if references.METRIC.endswith(metric) else []
                levels = {line.label: line.bits_per_byte for line in lines}
                draw = partial(figures.quality, found, looks, xlabel=xlabel, ylabel=ylabel, levels=levels)
                plots[f"{part.replace('_', '-')}-{name}"] = Plot(title, draw)
    return plots


def _drop_plots(records: list[Record], looks: dict[str, Style]) -> dict[str, Plot]:
    plots = {}
    for (task, size), (metric, found) in sorted(drops.curves(records).items()):
        ylabel, xlabel = f"{metric.replace('_', ' ')} (test)", "steps left (%), with the true time between them"
        draw = partial(figures.quality, found, looks, xlabel=xlabel, ylabel=ylabel)
        plots[f"{DROPS}{task}-{size}"] = Plot(f"Dropped steps, {task}, {size} parameters", draw)
    return plots


def write(report: Report, output: Path) -> list[Path]:
    """Writes all tables and figures, and runs.csv with one row a run, into the folder `output`."""
    output.mkdir(parents=True, exist_ok=True)
    report.runs.drop(columns=["variant", "family", "recipe"]).to_csv(output / "runs.csv", index=False)
    paths = [output / "runs.csv"]
    for table in [
        *report.comparison,
        *report.synthetic,
        *report.tuning,
        *report.search,
        *report.memory,
        *report.downstream,
        report.claims,
        report.tracking,
        *verdict.everything(report.verdict)[0],
    ]:
        paths += render.write(table, output)
    for name, plot in report.figures.items():
        paths += figures.save(plot.draw(title=plot.title), output, name)
    return paths + bench.draw(report.measured, output)


def _for_readme(table: Table) -> Table:
    kept = [note for note in table.notes if not note.startswith(EXPLAINED)]
    return replace(table, notes=[*kept, "The columns: docs/baselines.md."]).without(LEFT_OUT)


LEFT_OUT = ("parameters", "state at 1k", "memory at 32k", tables.SPEED.heading, tables.LATENCY.heading)
"""Columns of the comparison that the README leaves to docs/baselines.md; speeds are told by the bench."""
EXPLAINED = ("Around it:", "Context:", "State:", "No model:", "Where runs differ", "Speeds ")
"""How notes begin that it leaves there too: what the columns mean."""


def sections(report: Report, output: Path, page: Path) -> dict[str, str]:
    """The sections that a page may show, by name.

    example, architectures (the table of models), comparison, synthetic, tuning, search, memory, downstream (scores of
    published tasks), figures, drops (those of dropped steps); headline and
    figure, the comparison of the most seeds and the figure of their states; findings, and verdict, the foremost of
    them; quality, scaling, learning-rates, field, liquid, cost and serving; the bench's kernels, models and newton;
    claims, of docs/claims.yaml; tracking, of docs/theory.yaml; mtlnn, from the formula of its recurrence.
    """
    folder = Path(os.path.relpath(output, page.parent)).as_posix()
    images = {name: f"![{plot.title}]({folder}/{name}.png)" for name, plot in report.figures.items()}
    largest = report.headline
    memories = [name for name in images if name.startswith("memory-")]
    shown = [name for name in memories if largest and largest.name.endswith(name.removeprefix("memory"))] or memories
    judged = verdict.everything(report.verdict)[1]
    texts = {
        "example": [report.example] if report.example else [],
        "architectures": [report.models],
        "headline": [render.markdown(_for_readme(largest))] if largest else [],
        "figure": [images[name] for name in shown[:1]],
        "comparison": render.together(report.comparison),
        "synthetic": render.together(report.synthetic),
        "tuning": render.together(report.tuning),
        "search": render.together(report.search),
        "downstream": [render.markdown(table) for table in report.downstream],
        "memory": [render.markdown(table) for table in report.memory],
        "figures": [image for name, image in images.items() if name not in judged and not name.startswith(DROPS)],
        "drops": [image for name, image in images.items() if name.startswith(DROPS)],
        "findings": [findings.markdown(report.findings)],
        "verdict": [findings.headline(report.findings)],
        "claims": [render.markdown(report.claims)],
        "tracking": [render.markdown(report.tracking)],
        "mtlnn": [render.markdown(mtlnn.table())],
    } | verdict.sections(report.verdict, images)
    made = {name: "\n".join(parts) or NOTHING for name, parts in texts.items()}
    return made | bench.sections(report.measured, folder)
