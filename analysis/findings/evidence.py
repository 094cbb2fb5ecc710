"""What findings are made from: the chosen runs by variant, their figures by seed, and commands that repeat them."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis import frame, tables, usual
from analysis.cost import Prices
from analysis.entries import Entry, entry
from analysis.records import Record
from analysis.references import Line
from analysis.scaling import Fit
from analysis.selection import HIGHER_IS_BETTER, is_tuned
from analysis.statistics import summarise
from harness.records.identity import meaning

METRICS = {
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "f1": "F1",
    "mean_squared_error": "mean squared error",
}
"""{metric of a task: what it is called}, the first that a run has."""

BLOCKS = {"transformer": "the Transformer's block", "gated": "Mamba's gated block"}
"""{block of conf/block: what it is called in a sentence}"""
RESIDUAL = ("canon",)
"""The blocks that are a Transformer's but for a convolution whose output is added to its input."""


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seed. validation: the task's metric by seed, of what finished.

    entry: what the statistics compare; its figures are those on test, none where they may not be seen. setting: the
    block and the convolution around the recurrence; None for its own.
    """

    entry: Entry
    table: str
    metric: str
    validation: dict[int, float]
    setting: str | None
    records: tuple[Record, ...]

    @property
    def label(self) -> str:
        return self.entry.label

    @property
    def test(self) -> dict[int, float]:
        """The task's metric on test by seed, of what finished."""
        return self.entry.figures

    @property
    def result(self) -> dict:
        """The result of the first run."""
        return self.records[0].result

    @property
    def model(self) -> str:
        return self.result["model"]

    @property
    def spoken(self) -> str:
        """The label in a sentence, `ltc, rk4` as ltc with rk4; a model as it comes without what sets variants apart."""
        label = self.label if self.entry.changed else self.label.partition(" (")[0]
        return label.replace(", ", " with ", 1)

    @property
    def block(self) -> str | None:
        """The block that it stands in, its own or not."""
        return self.result.get("block")

    @property
    def convolution(self) -> int:
        """The taps of the short convolution before the recurrence, its own or the block's; 0 for none."""
        return frame.convolution(self.config)

    @property
    def around(self) -> str:
        """The block and the convolution in words."""
        if self.block in RESIDUAL:
            return f"in the Transformer's block with a residual convolution ({self.block})"
        block = BLOCKS.get(self.block or "", f"the {self.block} block" if self.block else "a block not recorded")
        return f"in {block} {'with' if self.convolution else 'without'} a convolution"

    @property
    def head(self) -> str:
        """Whether the head is the embedding, in words."""
        return f"embeddings {'tied' if self.config.get('model.tie_embeddings') else 'untied'}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The meaning of its configuration, flat: {"trainer.learning_rate": 0.003}."""
        return frame.flatten(meaning(self.records[0].config))

    @property
    def diverged(self) -> int:
        return sum(record.result["status"] == "diverged" for record in self.records)

    @property
    def where(self) -> str:
        """`sotu at 1m parameters`."""
        return f"{self.result['task']} at {self.result['size']} parameters"

    @property
    def text(self) -> tuple[str, str]:
        """The task, and the digest of its data."""
        return self.result["task"], str(self.result["data"].get("digest"))

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(str(record.path) for record in self.records)

    def mean(self, seeds: Iterable[int] | None = None) -> float | None:
        """The mean test figure, over these seeds or over all."""
        return summarise(self.test.values() if seeds is None else (self.test.get(seed) for seed in seeds)).mean

    def by(self, seeds: set[int]) -> "Variant":
        """The same runs, of these seeds alone."""
        records = tuple(record for record in self.records if record.result["seed"] in seeds)
        validation = {seed: figure for seed, figure in self.validation.items() if seed in seeds}
        return replace(self, validation=validation, records=records)

    @property
    def on_validation(self) -> float:
        """The mean on validation, the best least, and infinite where nothing finished: what variants are ordered by."""
        mean = summarise(self.validation.values()).mean
        return float("inf") if mean is None else -mean if HIGHER_IS_BETTER[f"validation_{self.metric}"] else mean


@dataclass(frozen=True)
class Evidence:
    """variants: the chosen ones. tried: all of them, of which only validation may be read. headline: the main table.

    measured: the folder of the bench. lines: {(task, digest of its data): the best of each method without a model}.
    laws: {(task, digest of its data): the scaling law of each model}. costs: the exact figures of the tables of cost,
    by their names. prices: what they are computed with.
    """

    variants: list[Variant]
    tried: list[Variant]
    measured: Path
    headline: str = ""
    lines: dict[tuple[str, str], list[Line]] = field(default_factory=dict)
    laws: dict[tuple[str, str], list[Fit]] = field(default_factory=dict)
    costs: dict[str, pd.DataFrame] = field(default_factory=dict)
    prices: Prices | None = None

    def of(self, table: str, *models: str) -> list[Variant]:
        """The chosen variants of a table, of these models or of all."""
        return [v for v in self.variants if v.table == table and (not models or v.model in models)]

    def tables(self) -> list[str]:
        """The names of all tables, the main one first."""
        found = list(dict.fromkeys(variant.table for variant in self.variants))
        return sorted(found, key=lambda name: name != self.headline)


def gather(records: Sequence[Record], runs: pd.DataFrame, measured: Path, headline: str) -> Evidence:
    """The evidence of all records.

    runs: their frame, with what `selection.select` adds. headline: the name of the main table.
    """
    if not len(runs):
        return Evidence([], [], measured)
    chosen = [place for place, counts in enumerate(runs["chosen"]) if counts]
    shown = runs.iloc[chosen].reset_index(drop=True)
    members = [records[place] for place in chosen]
    shown["label"] = frame.labels(members, shown)
    tried = _variants(records, runs.reset_index(drop=True), test=False)
    return Evidence(_variants(members, shown), tried, measured, headline)


def _variants(records: Sequence[Record], runs: pd.DataFrame, test: bool = True) -> list[Variant]:
    """test: whether the figures on test may be seen."""
    made = []
    for name, group in tables.groups(runs):
        metric = next((m for m in METRICS if group[f"validation_{m}"].notna().any()), next(iter(METRICS)))
        for _, members in group.groupby(["variant", "code"], sort=False):
            members = members.sort_values("seed")
            known = tuple(records[int(place)] for place in members.index)
            compared = entry(members, f"test_{metric}")
            compared = compared if test else replace(compared, figures={})
            validation = _by_seed(members, f"validation_{metric}")
            made.append(Variant(compared, name, metric, validation, frame.block(known[0]), known))
    return made


def _by_seed(members: pd.DataFrame, column: str) -> dict[int, float]:
    means = members.groupby("seed")[column].mean().dropna()
    return {int(str(seed)): float(mean) for seed, mean in means.items()}


def same_code(ours: Variant, theirs: Variant) -> bool:
    """Whether the modules that both record are the same; True where one of them names none."""
    one, other = ((v.result.get("code") or {}).get("modules") or {} for v in (ours, theirs))
    return all(other[name] == digest for name, digest in one.items() if name in other)


OVERRIDES = {
    "model.name": "model",
    "block.name": "block",
    "solver.name": "solver",
    "gradient.name": "gradient",
    "parallel.name": "parallel",
}
"""{key of a configuration: the group that sets it}; any other key is set by its own name."""
ALWAYS = ("solver.name", "solver.substeps", "trainer.tokens", "trainer.learning_rate")
RECIPE = (*frame.RECIPE, "trainer.length", "trainer.accumulate")
"""Told where they are not as conf/ has them today, since a run may be older than the recipe."""


def commands(variants: Sequence[Variant], keys: Iterable[str] = ()) -> tuple[str, ...]:
    """The commands that repeat the runs of these variants: one where their values are a grid, else one for each.

    keys: the keys of their configurations in which they are compared, set besides what names every run.
    """
    wanted = [_overrides(variant, keys) for variant in variants]
    together = _merged(wanted)
    return tuple(_command(values) for values in ([together] if together else wanted))


def _overrides(variant: Variant, keys: Iterable[str]) -> dict[str, list[str]]:
    """{name on the command line: values} of the runs of one variant."""
    config, result = variant.config, variant.result
    values = {"model": [variant.model]}
    if variant.setting is not None and "block.name" in config:
        keys = (*keys, "block.name", "block.d_conv")
    if config.get("parallel.name") not in (None, "sequential"):
        keys = (*keys, "parallel.name")
    for key in dict.fromkeys((*keys, *ALWAYS)):
        if config.get(key) is not None and not key.endswith("_target_"):
            values[OVERRIDES.get(key, key)] = [str(config[key])]
    today = usual.model(variant.model)
    for key in sorted(today.keys() & config.keys() - values.keys()):
        # likewise what a mixer was given that its file does not give it
        told = is_tuned(key, RECIPE) or (key.startswith(usual.MIXER) and not str(today[key]).startswith(usual.RESOLVED))
        if told and not key.endswith("_target_") and config[key] != today[key]:
            values[key] = [_written(config[key])]
    values |= {"size": [result["size"]], "task": [result["task"]]}
    for key, given in sorted(usual.task(result["task"]).items()):
        if key in config and config[key] != given and not str(given).startswith(usual.RESOLVED):
            values[key] = [_written(config[key])]
    return values | {"seed": [str(record.result["seed"]) for record in variant.records]}


def _written(value: Any) -> str:
    """A value of a flat configuration as a command gives it."""
    return value if isinstance(value, str) else yaml.safe_dump(value).partition("\n")[0]


def _merged(wanted: list[dict[str, list[str]]]) -> dict[str, list[str]] | None:
    """One grid with the same runs; None where there is none."""
    if len({tuple(values) for values in wanted}) != 1:
        return None
    together = {key: list(dict.fromkeys(v for values in wanted for v in values[key])) for key in wanted[0]}
    runs = {combination for values in wanted for combination in product(*values.values())}
    return together if prod(map(len, together.values())) == len(runs) else None


def _command(values: dict[str, list[str]]) -> str:
    many = "-m " if any(len(known) > 1 for known in values.values()) else ""
    given = (shlex.quote(f"{key}={','.join(known)}") for key, known in values.items())
    return f"python run.py {many}" + " ".join(given)
