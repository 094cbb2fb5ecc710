"""What the statistics compare: the runs of one variant and code by seed, under one recipe."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from analysis.selection import HIGHER_IS_BETTER
from analysis.statistics import Summary, summarise

QUALITIES = tuple(key.replace("validation_", "test_") for key in HIGHER_IS_BETTER)


@dataclass(frozen=True)
class Entry:
    """One variant and code in one table.

    figures: {seed: test figure} of the runs that finished, a seed's mean where it was run more than once. diverged: the
    seeds that diverged in any run. own: whether the recurrence stands in its model's own block. changed: whether the
    model has other choices than conf/ gives it. recipe: `frame.recipe`. parameters: all that are counted. tokens: the
    most that a run was trained on.
    """

    label: str
    model: str
    size: str
    recipe: str
    own: bool
    changed: bool
    parameters: int
    tokens: int
    figures: dict[int, float]
    diverged: frozenset[int]

    @property
    def seeds(self) -> int:
        """How many seeds were run, the diverged ones included."""
        return len(self.figures.keys() | self.diverged)

    @property
    def summary(self) -> Summary:
        """Of the figures over seeds."""
        return summarise(self.figures.values())


def quality_of(runs: pd.DataFrame) -> str:
    """The column that scores these runs: bits per byte, accuracy or mean squared error on test; the first for none."""
    return next((key for key in QUALITIES if runs[key].notna().any()), QUALITIES[0])


def higher_is_better(quality: str) -> bool:
    """Whether a higher figure of this column is the better one."""
    return HIGHER_IS_BETTER[quality.replace("test_", "validation_")]


def entries(runs: pd.DataFrame, quality: str) -> list[Entry]:
    """An entry for each variant, code and recipe of the runs, by label. Repeated runs of a seed count as one."""
    return sorted(
        (entry(group, quality) for _, group in runs.groupby(["variant", "code"], sort=True)),
        key=lambda one: one.label,
    )


def entry(group: pd.DataFrame, quality: str) -> Entry:
    """The entry of the runs of one variant and code."""
    first = group.iloc[0]
    means = pd.to_numeric(group[quality]).groupby(group["seed"]).mean().dropna()
    diverged = frozenset(int(seed) for seed in group.loc[group["status"] == "diverged", "seed"])
    return Entry(
        str(first["label"]),
        str(first["model"]),
        str(first["size"]),
        str(first["recipe"]),
        bool(pd.isna(first["elsewhere"])),
        bool(first["changed"]),
        int(first["parameters"]),
        int(group["tokens"].max()),
        {int(str(seed)): float(mean) for seed, mean in means.items() if int(str(seed)) not in diverged},
        diverged,
    )


def main_recipe(known: Iterable[Entry]) -> list[Entry]:
    """The entries of the recipe under which the most models were run, of several such the one with the most seeds."""
    recipes: dict[str, list[Entry]] = {}
    for one in known:
        recipes.setdefault(one.recipe, []).append(one)

    def rank(recipe: str) -> tuple:
        members = recipes[recipe]
        return -len({one.model for one in members}), -sum(one.seeds for one in members), recipe

    return recipes[min(recipes, key=rank)] if recipes else []


def plain(known: Iterable[Entry], model: str) -> Entry | None:
    """The entry that stands for `model`: in its own block, as it comes, of the most seeds, of the shortest label."""
    mine = [one for one in known if one.model == model]
    return min(mine, key=lambda one: (not one.own, one.changed, -one.seeds, len(one.label), one.label), default=None)
