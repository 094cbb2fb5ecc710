"""The quality of every architecture with its interval, and its paired differences from the references, tested."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import tables
from analysis.entries import Entry, entries, higher_is_better, main_recipe, plain, quality_of
from analysis.frame import labels
from analysis.literature import Claims
from analysis.records import Record
from analysis.render import MISSING, NOT_MEASURED, Table
from analysis.statistics import ALPHA, LEAST_SEEDS, Difference, holm, interval, paired

REFERENCES = ("transformer", "mamba")
"""The models that every other is compared with."""


@dataclass(frozen=True)
class Comparison:
    """An entry against a reference. adjusted: the p of the difference after Holm's correction over the table.

    verdict: better, worse, not significant, or why that cannot be said.
    """

    entry: Entry
    reference: str
    difference: Difference
    adjusted: float | None
    verdict: str


def compare(known: Sequence[Entry], higher: bool) -> list[Comparison]:
    """Every entry against every reference that the entries hold, itself excepted; all p are adjusted together."""
    pairs = [
        (entry, model, other)
        for model in REFERENCES
        if (other := plain(known, model)) is not None
        for entry in known
        if entry is not other
    ]
    differences = [paired(entry.figures, other.figures) for entry, _, other in pairs]
    tested = [
        None if entry.diverged | other.diverged else difference.p
        for (entry, _, other), difference in zip(pairs, differences, strict=True)
    ]
    return [
        Comparison(entry, model, difference, p, _verdict(entry, other, difference, p, higher))
        for (entry, model, other), difference, p in zip(pairs, differences, holm(tested), strict=True)
    ]


def _verdict(entry: Entry, other: Entry, difference: Difference, p: float | None, higher: bool) -> str:
    """A run that diverged is no smaller sample but a failure: what it leaves is not tested."""
    for side, who in ((entry, ""), (other, f" of {other.label}")):
        if side.diverged:
            return f"{len(side.diverged)} of {side.seeds} runs{who} diverged"
    if difference.count < LEAST_SEEDS:
        return {0: "no seed in common", 1: "one seed"}.get(difference.count, f"{difference.count} seeds")
    if p is None:
        return "the differences do not vary"
    if p >= ALPHA or not difference.mean:
        return "not significant"
    return "better" if (difference.mean > 0) == higher else "worse"


def quality_tables(records: Sequence[Record], runs: pd.DataFrame, claims: Claims) -> list[Table]:
    """A table for each task, size and data: an entry a row, the best first, the diverged last.

    records: those that count (chosen on validation). runs: their rows of `frame.runs`, in their order.
    """
    return [_table(name, records, group, claims) for name, group in tables.groups(runs)]


def _table(name: str, records: Sequence[Record], runs: pd.DataFrame, claims: Claims) -> Table:
    quality = quality_of(runs)
    everyone, higher = entries(runs, quality), higher_is_better(quality)
    runs = runs[runs["recipe"] == main_recipe(everyone)[0].recipe]
    # labelled anew: what sets apart other recipes, which are not shown, says nothing here
    runs = runs.assign(label=labels([records[place] for place in runs.index], runs))
    known = entries(runs, quality)
    found = {(one.entry.label, one.reference): one for one in compare(known, higher)}
    present = {model: plain(known, model) for model in REFERENCES}
    metric = quality.removeprefix("test_").replace("_", " ")
    header = ["model", "seeds", f"{metric} (test)", "95 % interval"]
    for model in REFERENCES:
        header += [f"less {model}", "p", f"than {model}"]
    rows, data = [], []
    for entry in sorted(known, key=lambda entry: _rank(entry, higher)):
        against = [found.get((entry.label, model)) for model in REFERENCES]
        cells = [
            cell for model, one in zip(REFERENCES, against, strict=True) for cell in _cells(entry, present[model], one)
        ]
        rows.append(
            [entry.label, str(entry.seeds), _figure(entry), _interval(entry), *cells, claims.of(entry.model, "quality")]
        )
        data.append(_exact(entry, against))
    title = f"Quality, {runs['task'].iloc[0]}, {runs['size'].iloc[0]} parameters"
    notes = _notes(present, len(everyone) - len(known))
    return Table(
        f"quality-{name}", title, [*header, "literature"], rows, notes, pd.DataFrame(data), prose=("literature",)
    )


def _rank(entry: Entry, higher: bool) -> tuple:
    mean = entry.summary.mean
    return mean is None, bool(entry.diverged), (-1 if higher else 1) * (mean or 0.0), entry.label


def _figure(entry: Entry) -> str:
    mean, diverged = entry.summary.mean, f"{len(entry.diverged)} of {entry.seeds} diverged"
    if mean is None:
        return diverged if entry.diverged else NOT_MEASURED
    return f"{mean:.4f}" + (f" ({diverged})" if entry.diverged else "")


def _interval(entry: Entry) -> str:
    found = interval(entry.figures.values())
    if found is None:
        return "one seed" if entry.figures else MISSING
    return f"{found.low:.4f} to {found.high:.4f}"


def _cells(entry: Entry, reference: Entry | None, one: Comparison | None) -> list[str]:
    """The difference with its interval, the adjusted p, the verdict."""
    if reference is None:
        return [NOT_MEASURED, MISSING, NOT_MEASURED]
    if one is None:
        return [MISSING, MISSING, "the reference"]
    difference = one.difference
    if difference.mean is None:
        return [MISSING, MISSING, one.verdict]
    ends = "" if difference.low is None else f" ({difference.low:+.4f} to {difference.high:+.4f})"
    return [f"{difference.mean:+.4f}{ends}", p_value(one.adjusted), one.verdict]


def p_value(p: float | None) -> str:
    """Two figures, and no more precision than small samples have."""
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _exact(entry: Entry, against: Sequence[Comparison | None]) -> dict:
    summary, ends = entry.summary, interval(entry.figures.values())
    row = {"model": entry.label, "seeds": entry.seeds, "diverged": len(entry.diverged), "parameters": entry.parameters}
    row |= {"mean": summary.mean, "std": summary.std}
    row |= {"low": ends and ends.low, "high": ends and ends.high, "interval": ends and ends.method}
    for model, one in zip(REFERENCES, against, strict=True):
        difference = one.difference if one else None
        for key in ("mean", "low", "high", "p", "count"):
            row[f"less_{model}_{key}"] = getattr(difference, key, None)
        row |= {f"less_{model}_p_holm": one and one.adjusted, f"than_{model}": one and one.verdict}
    return row


def _notes(present: dict[str, Entry | None], elsewhere: int) -> list[str]:
    notes = [
        "Interval: of the mean over seeds, by the bootstrap (BCa). Differences are paired by seed, with the interval "
        f"of Student's t; p: of the paired t-test from {LEAST_SEEDS} seeds on, adjusted by Holm's method over all "
        f"comparisons of this table. One rule: better or worse where p < {ALPHA:g}, else not significant; nothing is "
        "tested where a run diverged.",
    ]
    named = [f"{model} is {entry.label}" for model, entry in present.items() if entry and entry.label != model]
    if named:
        notes.append(f"References: {'; '.join(named)}.")
    missing = [model for model, entry in present.items() if entry is None]
    if missing:
        notes.append(f"No recorded run of {' and '.join(missing)} here.")
    if elsewhere:
        notes.append(f"Trained by another budget or recipe, and not compared here: {elsewhere} other rows.")
    return notes
