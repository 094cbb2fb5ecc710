"""What docs/comparison.md and docs/serving.md show: quality, scaling laws, tuning, the field, cost, serving."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import bench, cost, differences, field, grids, liquid, literature, models, scaling, serving
from analysis.frame import TUNED
from analysis.records import Record
from analysis.render import Table, together
from analysis.selection import families, select
from analysis.styles import Style

LADDER = (*TUNED, "size", "trainer.tokens")
"""The keys that differ along a ladder of sizes: runs that agree in all others are one architecture's."""
SECTIONS = ("quality", "scaling", "learning-rates", "field", "liquid", "cost")
Drawn = tuple[str, partial[Figure]]
"""A figure's title, and what draws it."""


@dataclass(frozen=True)
class Verdict:
    """tables: of each of SECTIONS. figures: of a section, by the stem of their files.

    laws: {(task, digest of its data): the scaling law of each architecture}. serving: the tables of docs/serving.md.
    """

    tables: dict[str, list[Table]]
    figures: dict[str, dict[str, Drawn]]
    laws: dict[tuple[str, str], list[scaling.Fit]]
    serving: list[Table]


def build(
    records: Sequence[Record],
    runs: pd.DataFrame,
    shown: pd.DataFrame,
    looks: dict[str, Style],
    measured: Path,
    prices: cost.Prices,
) -> Verdict:
    """Makes everything of one set of records.

    runs: the frame of all records with the columns of `selection.select`. shown: of those that count, with their
    labels. measured: the bench's folder, there or not. prices: what costs are computed with.
    """
    made: dict[str, list[Table]] = {section: [] for section in SECTIONS}
    drawn: dict[str, dict[str, Drawn]] = {}
    kernels, gradients = bench.content(measured, "kernels"), bench.content(measured, "gradients")
    made["liquid"] = [liquid.table(liquid.read(), kernels, gradients)]
    if shown.empty:
        return Verdict(made, drawn, {}, [])
    claims, whole = literature.read(), bench.content(measured, "models")
    timed = whole.get("rows", [])
    names = [*models.catalogue(), *sorted(set(runs["model"]) - models.catalogue().keys())]
    standing = {name: field.standing(shown, name) for name in names}
    chosen = [record for record, counts in zip(records, runs["chosen"], strict=True) if counts]
    made["quality"] = differences.quality_tables(chosen, shown, claims)
    made["field"] = [field.table(standing, shown, timed, claims)]
    made["cost"] = cost.tables(standing, cost.timed(timed), prices)
    tried = select(records, runs)  # by the learning rate alone, whatever else was tuned
    if rates := grids.table(tried):
        made["learning-rates"] = [rates]
        drawn["learning-rates"] = grids.plots(tried, looks)
    laws = _laws(chosen, shown)
    made["scaling"], drawn["scaling"] = _scaling(laws, looks)
    return Verdict(made, drawn, laws, serving.tables(standing, whole, prices))


def _laws(chosen: Sequence[Record], shown: pd.DataFrame) -> dict[tuple[str, str], list[scaling.Fit]]:
    """The laws of each task scored in bits per byte, and of each data of it."""
    known = shown.assign(ladder=families(chosen, LADDER)).groupby(["task", "digest"], sort=True)
    return {
        (str(task), str(digest)): scaling.fits(group)
        for (task, digest), group in known
        if group["test_bits_per_byte"].notna().any()
    }


def _scaling(
    laws: dict[tuple[str, str], list[scaling.Fit]], looks: dict[str, Style]
) -> tuple[list[Table], dict[str, Drawn]]:
    """A table and a figure for each text."""
    tables, drawn, tasks = [], {}, [task for task, _ in laws]
    for (task, digest), fits in laws.items():
        name = f"scaling-{task}" + (f"-{digest[:8]}" if tasks.count(task) > 1 else "")
        title = f"Scaling laws, {task}"
        tables.append(scaling.table(name, title, fits))
        if any(len(one.losses) > 1 for one in fits):
            drawn[name] = title, partial(scaling.draw, fits, looks)
    return tables, drawn


def sections(made: Verdict, images: dict[str, str]) -> dict[str, list[str]]:
    """The parts of each section: its tables, then its figures. images: each figure as a page shows it, by its stem."""
    return {
        section: together(made.tables[section]) + [f"{images[stem]}\n" for stem in made.figures.get(section, {})]
        for section in SECTIONS
    } | {"serving": together(made.serving)}


def everything(made: Verdict) -> tuple[list[Table], dict[str, Drawn]]:
    """All tables, and all figures by their stems."""
    figures = {stem: one for drawn in made.figures.values() for stem, one in drawn.items()}
    return [table for section in SECTIONS for table in made.tables[section]], figures
