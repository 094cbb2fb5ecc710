"""The quality of every architecture with its interval, and its paired differences from the references, tested."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis import tables
from analysis.entries import QUALITIES, Entry, entries, higher_is_better, main_recipe, plain, quality_of
from analysis.frame import labels
from analysis.literature import Claims
from analysis.records import Record
from analysis.render import MISSING, NOT_MEASURED, Table, spread
from analysis.statistics import ALPHA, LEAST_SEEDS, Difference, holm, interval, paired, summarise

REFERENCES = ("transformer", "mamba", "rwkv")
"""The models that every other is compared with: those that the question names."""


@dataclass(frozen=True)
class Comparison:
    """An entry against another: its figures less the other's, and their p after Holm's correction.

    adjusted: None where the difference was not tested.
    """

    entry: Entry
    other: Entry
    difference: Difference
    adjusted: float | None = None

    @property
    def turned(self) -> "Comparison":
        """The other against this one."""
        return replace(self, entry=self.other, other=self.entry, difference=self.difference.turned)

    @property
    def significant(self) -> bool:
        """The one rule of every table and sentence."""
        return self.adjusted is not None and self.adjusted < ALPHA and bool(self.difference.mean)

    def verdict(self, higher: bool) -> str:
        """Better, worse, not significant, or why that cannot be said. higher: whether a higher figure is better."""
        for side, who in ((self.entry, ""), (self.other, f" of {self.other.label}")):
            if side.diverged:
                return f"{len(side.diverged)} of {side.seeds} runs{who} diverged"
        count, mean = self.difference.count, self.difference.mean
        if count < LEAST_SEEDS or mean is None:
            return {0: "no seed in common", 1: "one seed"}.get(count, f"{count} seeds")
        if self.adjusted is None:
            return "the differences do not vary"
        if not self.significant:
            return "not significant"
        return "better" if (mean > 0) == higher else "worse"


def differ(pairs: Iterable[tuple[Entry, Entry]]) -> list[Comparison]:
    """The differences of these pairs, not yet corrected for their number.

    A run that diverged is no smaller sample but a failure: what it leaves is not tested.
    """
    made = []
    for one, other in pairs:
        found = paired(one.figures, other.figures)
        made.append(Comparison(one, other, replace(found, p=None) if one.diverged or other.diverged else found))
    return made


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with their p adjusted together."""
    adjusted = holm([one.difference.p for one in comparisons])
    return [replace(one, adjusted=p) for one, p in zip(comparisons, adjusted, strict=True)]


def standing(known: Sequence[Entry]) -> dict[str, Entry]:
    """{model: the entry that stands for it}."""
    found = {model: plain(known, model) for model in {entry.model for entry in known}}
    return {model: entry for model, entry in found.items() if entry is not None}


def compare(known: Sequence[Entry]) -> list[Comparison]:
    """Every entry against every reference that the entries hold, itself excepted.

    The p of the entries that stand for their models are adjusted together, and those of all others apart from them: an
    ablation makes no comparison of models less certain. Two of the references, each against the other, are one
    hypothesis, and count once.
    """
    stand = standing(known)
    references = [stand[model] for model in REFERENCES if model in stand]
    pairs = [
        (entry, other)
        for place, other in enumerate(references)
        for entry in known
        if entry not in references[: place + 1]
    ]
    found = []
    for stands in (True, False):
        found += corrected(differ((one, other) for one, other in pairs if (one is stand[one.model]) is stands))
    return [*found, *(one.turned for one in found if one.entry in references)]


def quality_tables(records: Sequence[Record], runs: pd.DataFrame, claims: Claims) -> list[Table]:
    """A table for each text, and other data of several models, and size: an entry a row, the best first, diverged last.

    records: those that count (chosen on validation). runs: their rows of `frame.runs`, in their order.
    """
    compared = [(n, group) for n, group in tables.groups(runs) if tables.is_text(group) or group["model"].nunique() > 1]
    return [_table(name, records, group, claims) for name, group in compared]


def _table(name: str, records: Sequence[Record], runs: pd.DataFrame, claims: Claims) -> Table:
    quality = quality_of(runs)
    everyone, higher = entries(runs, quality), higher_is_better(quality)
    runs = runs[runs["recipe"] == main_recipe(everyone)[0].recipe]
    # labelled anew: what sets apart other recipes, which are not shown, says nothing here
    runs = runs.assign(label=labels([records[place] for place in runs.index], runs))
    known = entries(runs, quality)
    found = {(one.entry.label, one.other.model): one for one in compare(known)}
    present = {model: plain(known, model) for model in REFERENCES}
    metric = quality.removeprefix("test_").replace("_", " ")
    header = ["model", "seeds", f"{metric} (test)", "95 % interval"]
    # of text a figure shows all lengths
    longest = None if quality == QUALITIES[0] else max(runs["longest"].dropna(), default=None)
    header += [] if longest is None else [f"at length {longest:,.0f}"]
    for model in REFERENCES:
        header += [f"less {model}", "p", f"than {model}"]
    rows, data, paths = [], [], []
    for entry in sorted(known, key=lambda entry: _rank(entry, higher)):
        mine = runs[runs["label"] == entry.label].sort_values("seed")
        around, against = mine["surroundings"].iloc[0], [found.get((entry.label, model)) for model in REFERENCES]
        cells = [
            cell for model, one in zip(REFERENCES, against, strict=True) for cell in _cells(present[model], one, higher)
        ]
        said = [around, claims.of(entry.model, "quality")]
        exact = _exact(entry, against, higher) | {"around": around}
        if longest is not None:
            beyond = summarise(mine.loc[mine["longest"] == longest, "test_at_longest"])
            cells.insert(0, spread(beyond, 4))
            exact |= {"longest": longest, "at_longest": beyond.mean}
        rows.append([entry.label, str(entry.seeds), _figure(entry), _interval(entry), *cells, *said])
        data.append(exact)
        paths.append(list(mine["path"]))
    title = f"Quality, {tables.title(runs)}"
    notes = [*_notes(present, len(everyone) - len(known)), *tables.untuned(runs), tables.AROUND]
    header, prose = [*header, "around it", "literature"], ("around it", "literature")
    return Table(f"quality-{name}", title, header, rows, notes, pd.DataFrame(data), paths, prose)


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
        return {0: MISSING, 1: "one seed"}.get(len(entry.figures), f"{len(entry.figures)} seeds")
    return f"{found.low:.4f} to {found.high:.4f}"


def _cells(reference: Entry | None, one: Comparison | None, higher: bool) -> list[str]:
    """The difference with its interval, the adjusted p, the verdict."""
    if reference is None:
        return [NOT_MEASURED, MISSING, NOT_MEASURED]
    if one is None:
        return [MISSING, MISSING, "the reference"]
    difference = one.difference
    if difference.mean is None:
        return [MISSING, MISSING, one.verdict(higher)]
    ends = "" if difference.low is None else f" ({difference.low:+.4f} to {difference.high:+.4f})"
    return [f"{difference.mean:+.4f}{ends}", p_value(one.adjusted), one.verdict(higher)]


def p_value(p: float | None) -> str:
    """Two figures, and no more precision than small samples have."""
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _exact(entry: Entry, against: Sequence[Comparison | None], higher: bool) -> dict:
    summary, ends = entry.summary, interval(entry.figures.values())
    row = {"model": entry.label, "seeds": entry.seeds, "diverged": len(entry.diverged), "parameters": entry.parameters}
    row |= {"mean": summary.mean, "std": summary.std}
    row |= {"low": ends and ends.low, "high": ends and ends.high, "interval": ends and ends.method}
    for model, one in zip(REFERENCES, against, strict=True):
        difference = one.difference if one else None
        for key in ("mean", "low", "high", "p", "count"):
            row[f"less_{model}_{key}"] = getattr(difference, key, None)
        row |= {f"less_{model}_p_holm": one and one.adjusted, f"than_{model}": one and one.verdict(higher)}
    return row


def _notes(present: dict[str, Entry | None], elsewhere: int) -> list[str]:
    notes = [
        f"Interval: of the mean over {LEAST_SEEDS} seeds and more, by the bootstrap (BCa), too narrow for so few. "
        "Differences are paired by seed, with the interval of Student's t, not adjusted; p: of its t-test from "
        f"{LEAST_SEEDS} seeds on, adjusted by Holm's method over all comparisons of this table of the models as they "
        "come, and apart from these over those of their variants. One rule: better or worse where "
        f"p < {ALPHA:g}, else not significant; nothing is tested where a run diverged.",
    ]
    named = [f"{model} is {entry.label}" for model, entry in present.items() if entry and entry.label != model]
    if named:
        notes.append(f"References: {'; '.join(named)}.")
    missing = [model for model, entry in present.items() if entry is None]
    if missing:
        notes.append(f"No recorded run of {', '.join(missing)} here.")
    if elsewhere:
        notes.append(f"Trained by another budget or recipe, and not compared here: {elsewhere} other rows.")
    return notes
