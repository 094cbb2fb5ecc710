"""The learning-rate grids behind each choice: what was tried, what was chosen, and whether the optimum is inside."""

from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, tables
from analysis.curve import Series
from analysis.render import MISSING, Table
from analysis.selection import HIGHER_IS_BETTER
from analysis.statistics import interval, summarise
from analysis.styles import Style


@dataclass(frozen=True)
class Grid:
    """One architecture's rates at one size.

    figures: {rate: {seed: figure on validation}} of the runs that finished. diverged: the rates of which a run
    diverged. chosen: the rate that counts, as `selection.select` chose it.
    """

    label: str
    model: str
    figures: dict[float, dict[int, float]]
    diverged: frozenset[float]
    chosen: float

    @property
    def tried(self) -> list[float]:
        """Every rate, the diverged ones too, from the least."""
        return sorted(self.figures.keys() | self.diverged)

    @property
    def compared(self) -> dict[float, list[float]]:
        """The figures of each rate with the seeds that all rates ran; all of its own where they share none."""
        ran = [frozenset(by_seed) for by_seed in self.figures.values()]
        shared = frozenset.intersection(*ran) if ran else frozenset()
        return {
            rate: [figure for seed, figure in by_seed.items() if seed in (shared or by_seed)]
            for rate, by_seed in sorted(self.figures.items())
        }

    @property
    def means(self) -> dict[float, float]:
        """The mean of the figures that are compared, by rate."""
        found = {rate: summarise(figures).mean for rate, figures in self.compared.items()}
        return {rate: mean for rate, mean in found.items() if mean is not None}

    @property
    def place(self) -> str:
        """Where the chosen rate lies among those tried: inside, or at which edge."""
        if self.chosen == self.tried[0]:
            return "at the lower edge"
        return "at the upper edge" if self.chosen == self.tried[-1] else "inside"


def grids(runs: pd.DataFrame) -> list[Grid]:
    """A grid for each family of runs that differ in the learning rate and seed alone, of two rates or more, by label.

    runs: all of one table, the columns of `selection.select` among them.
    """
    metric = next((key for key in HIGHER_IS_BETTER if runs[key].notna().any()), next(iter(HIGHER_IS_BETTER)))
    found = []
    for _, family in runs[runs["learning_rate"].notna()].groupby("family", sort=True):
        if family["learning_rate"].nunique() > 1:
            diverged = frozenset(map(float, family.loc[family["status"] == "diverged", "learning_rate"]))
            known = pd.to_numeric(family[metric]).groupby([family["learning_rate"], family["seed"]]).mean().dropna()
            by_rate: dict[float, dict[int, float]] = {}
            for row in known.reset_index().to_dict("records"):
                by_rate.setdefault(float(row["learning_rate"]), {})[int(row["seed"])] = float(row[metric])
            chosen = family.loc[family["chosen"]].iloc[0]
            found.append(Grid(_label(family), str(chosen["model"]), by_rate, diverged, float(chosen["learning_rate"])))
    return sorted(found, key=lambda grid: grid.label)


def _label(family: pd.DataFrame) -> str:
    """The label of what was chosen, without the rate that sets it apart from the others tried."""
    label = str(family.loc[family["chosen"], "label"].iloc[0])
    head, bracket, inside = label.partition(" (")
    kept = [part for part in inside.removesuffix(")").split(", ") if part and not part.startswith("learning_rate=")]
    return head + (f"{bracket}{', '.join(kept)})" if kept else "")


def table(runs: pd.DataFrame) -> Table | None:
    """A row an architecture and size: the rates tried, the chosen one, and whether it lies inside; None for no grid."""
    metrics, rows, data = set(), [], []
    for name, group in tables.groups(runs):
        for grid in grids(group):
            metric = next((key for key in HIGHER_IS_BETTER if group[key].notna().any()), "")
            metrics.add(metric.removeprefix("validation_").replace("_", " "))
            means = grid.means
            tried = ", ".join(f"{rate:g}: {_figure(grid, rate, means)}" for rate in grid.tried)
            cells = [group["task"].iloc[0], group["size"].iloc[0], f"{grid.chosen:g}"]
            rows.append([grid.label, *cells, _figure(grid, grid.chosen, means), grid.place, tried])
            for rate in grid.tried:
                seeds = sorted(grid.figures.get(rate, {}))
                row = {"table": name, "model": grid.label, "learning_rate": rate, "mean": means.get(rate)}
                row |= {"seeds": " ".join(map(str, seeds)), "diverged": rate in grid.diverged}
                data.append(row | {"chosen": rate == grid.chosen, "place": grid.place})
    if not rows:
        return None
    header = ["model", "task", "size", "chosen", "validation", "optimum", "rate: figure"]
    notes = [
        f"Figures on validation ({', '.join(sorted(metrics))}), means over the seeds that all rates of a grid ran; the "
        "best is chosen, of those none of whose runs diverged. At an edge: the grid must be extended before the choice "
        "counts."
    ]
    prose = ("optimum", "rate: figure")
    return Table("learning-rates", "Learning rates", header, rows, notes, pd.DataFrame(data), prose=prose)


def _figure(grid: Grid, rate: float, means: dict[float, float]) -> str:
    if rate in grid.diverged:
        return "diverged"
    return f"{means[rate]:.4f}" if rate in means else MISSING


def draw(known: list[Grid], looks: dict[str, Style], title: str, ylabel: str) -> Figure:
    """Every architecture's figure on validation against the learning rate; the chosen rate is ringed.

    Points and their intervals are of the seeds that all rates of a grid ran: more seeds of the chosen rate are no part.
    """
    series = []
    for grid in known:
        means = grid.means
        ends = {rate: interval(ran) for rate, ran in grid.compared.items()}
        bars = {rate: (end.low, end.high) for rate, end in ends.items() if end is not None}
        lost = ", ".join(f"{rate:g}" for rate in sorted(grid.diverged))
        note = f"{grid.chosen:g}, {grid.place}" + (f"; diverged at {lost}" if lost else "")
        series.append(Series(grid.label, grid.model, means, bars, means, grid.chosen, note))
    seeds = "the seeds that all rates of a model ran" + "; bar: 95 % interval" * any(one.bars for one in series)
    xlabel = f"learning rate (the chosen one ringed)\npoint: mean over {seeds}"
    return figures.scatter(series, looks, title, (xlabel, ylabel), tried=True)


def plots(runs: pd.DataFrame, looks: dict[str, Style]) -> dict[str, tuple[str, partial[Figure]]]:
    """{stem: (title, what draws it)}, a figure for each table that has a grid."""
    made = {}
    for name, group in tables.groups(runs):
        if known := grids(group):
            metric = next((key for key in HIGHER_IS_BETTER if group[key].notna().any()), "validation_bits_per_byte")
            ylabel = f"{metric.removeprefix('validation_').replace('_', ' ')} (validation)"
            title = f"Learning rates, {group['task'].iloc[0]}, {group['size'].iloc[0]} parameters"
            made[f"learning-rates-{name}"] = (title, partial(draw, known, looks, ylabel=ylabel))
    return made
