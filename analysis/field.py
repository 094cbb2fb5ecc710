"""The comparison of the field: what the literature claims of each architecture, and what was measured here."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import tables
from analysis.entries import Entry, entries, higher_is_better, main_recipe, plain, quality_of
from analysis.literature import Claims
from analysis.render import MISSING, NOT_MEASURED, Table
from analysis.selection import at_edge
from analysis.statistics import Slope, power, summarise

REFERENCE = "transformer"
BYTES = {"state": "state_bytes", "memory": "generation_memory_bytes"}


@dataclass(frozen=True)
class Rank:
    """A model's place in one task: 1 for the best of `of` models, its figure and the best one."""

    task: str
    place: int
    of: int
    figure: float | None
    best: float | None

    @property
    def said(self) -> str:
        """`parity: 3 of 7 (0.51, best 0.99)`."""
        figure, best = ("diverged" if value is None else f"{value:.3g}" for value in (self.figure, self.best))
        return f"{self.task}: {self.place} of {self.of} ({figure}, best {best})"


def standing(runs: pd.DataFrame, model: str) -> pd.DataFrame:
    """The runs that stand for a model: those of its plain entry in the table where it was measured at the largest size.

    runs: those that count. Empty for a model of which nothing was recorded.
    """
    measured = runs[runs["state_bytes_1024"].notna()] if "state_bytes_1024" in runs else runs.iloc[:0]
    for _, group in reversed(tables.groups(measured)):
        mine = group[(group["model"] == model) & group["elsewhere"].isna()]
        if len(mine):
            entry = plain(entries(mine, quality_of(mine)), model)
            return mine[mine["label"] == entry.label] if entry else mine
    return runs.iloc[:0]


def policy(runs: pd.DataFrame) -> str:
    """The context policy of the runs that stand for a model."""
    said = runs["context"].iloc[0] if len(runs) else None
    return said if isinstance(said, str) else MISSING


def by_context(runs: pd.DataFrame, key: str) -> dict[int, float]:
    """{context: mean over runs} of what was measured in every context, as `frame.runs` has it."""
    columns = {column: column.removeprefix(f"{key}_") for column in map(str, runs) if column.startswith(f"{key}_")}
    contexts = {int(rest): column for column, rest in columns.items() if rest.isdecimal()}
    means = {context: summarise(pd.to_numeric(runs[contexts[context]])).mean for context in sorted(contexts)}
    return {context: mean for context, mean in means.items() if mean is not None}


def training_speeds(rows: Sequence[dict]) -> dict[str, dict[int, float]]:
    """{contestant: {length: training tokens/s}} of the bench's rows of whole models."""
    speeds: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["what"] == "training":
            speeds.setdefault(row["contestant"], {})[int(row["length"])] = float(row["tokens_per_second"])
    return {name: dict(sorted(found.items())) for name, found in speeds.items()}


def ranks(runs: pd.DataFrame) -> dict[str, list[Rank]]:
    """{model: its place in each task}, in the table of each task that rests on the most seeds of all its models.

    A table in which learning rates were tuned comes before any in which they were not; of several that are alike in
    this, the one of the larger size counts, and of the longer training. One model alone has no place.
    """
    best: dict[str, tuple[tuple, dict[str, Rank]]] = {}
    for _, group in tables.groups(runs):
        known = _ranked(group)
        rests_on = (
            tables.tuned(group),
            sum(one.seeds for one in known),
            tables.size_order(group["size"].iloc[0]),
            max((one.tokens for one in known), default=0),
        )
        task = str(group["task"].iloc[0])
        if len(known) > 1 and (task not in best or rests_on > best[task][0]):
            best[task] = rests_on, _places(task, known, higher_is_better(quality_of(group)))
    places = [places for _, places in best.values()]
    models = sorted({model for known in places for model in known})
    return {model: [known[model] for known in places if model in known] for model in models}


def _ranked(runs: pd.DataFrame) -> list[Entry]:
    """The entry of each model that ran in one table by its main recipe, whose choice is at no edge of its grid."""
    main = main_recipe(entries(runs, quality_of(runs)))
    edge = set(runs.loc[runs["choice"].map(at_edge), "label"]) if "choice" in runs else set()
    inside = [one for one in main if one.label not in edge]
    known = (plain(inside, model) for model in sorted({one.model for one in inside}))
    return [one for one in known if one is not None]


def _places(task: str, known: Sequence[Entry], higher: bool) -> dict[str, Rank]:
    """The place of each entry's model, the same for the same figure; where every run diverged the last, without one."""
    sign, figures = -1 if higher else 1, {one.model: one.summary.mean for one in known}
    order = {model: (figure is None, sign * (figure or 0.0)) for model, figure in figures.items()}
    best = figures[min(order, key=lambda model: order[model])]
    return {
        model: Rank(task, 1 + sum(other < mine for other in order.values()), len(order), figures[model], best)
        for model, mine in order.items()
    }


def worst(places: Sequence[Rank]) -> Rank | None:
    """The task in which a model stands lowest among those that ran it; None for fewer than two tasks."""
    if len(places) < 2:
        return None
    return max(places, key=lambda rank: ((rank.place - 1) / max(rank.of - 1, 1), rank.place, rank.task))


def table(
    standing_runs: dict[str, pd.DataFrame], runs: pd.DataFrame, bench_rows: Sequence[dict], claims: Claims
) -> Table:
    """A row a model, measured or not.

    standing_runs: those that stand for each model. runs: all that count. bench_rows: of the bench's subject `models`.
    """
    speeds, places = training_speeds(bench_rows), ranks(runs)
    lengths = sorted(speeds.get(REFERENCE, {}))
    header = [
        "model",
        "context",
        "memory, literature",
        "state, uncut",
        "exponent of state",
        "exponent of memory",
        "longest context",
    ]
    header += ["speed, literature", f"training / {REFERENCE}", "exponent of time", "worst task"]
    rows, data = [], []
    for model, mine in standing_runs.items():
        grows = {what: power(by_context(mine, key)) for what, key in BYTES.items()}
        longest = max(by_context(mine, "decode_ms_p50"), default=None)
        own = speeds.get(model, {})
        ratio = {at: own[at] / speeds[REFERENCE][at] for at in lengths if at in own}
        takes = power({at: at / rate for at, rate in own.items()})
        low = worst(places.get(model, []))
        held = [exponent(grows[what]) for what in BYTES]
        reach = NOT_MEASURED if longest is None else f"{longest:,}"
        faster = " / ".join(f"{value:.2f}" for value in ratio.values()) or NOT_MEASURED
        said = NOT_MEASURED if low is None else low.said
        memory, speed = (claims.of(model, aspect) for aspect in ("memory", "speed"))
        rows.append([model, policy(mine), memory, _uncut(mine), *held, reach, speed, faster, exponent(takes), said])
        row = {"model": model, "context": policy(mine), "longest_context": longest, "worst_task": low and low.task}
        for what, slope in (*grows.items(), ("time", takes)):
            row |= {f"{what}_exponent{end}": getattr(slope, key, None) for end, key in _ENDS.items()}
        data.append(row | {f"training_ratio_{at}": value for at, value in ratio.items()})
    counted = f"{len(lengths)} lengths, which leave {max(len(lengths) - 2, 0)} degrees of freedom"
    notes = [
        "Measured beside what the literature says (docs/literature.yaml). Exponents: of bytes, and of the time that "
        "training takes for a sequence, against tokens, by least squares on logarithms, with 95 % intervals (0: "
        "constant, 1: linear, 2: quadratic). State and memory are those of the context policy in the second column: "
        "what is cut to a window does not grow. Memory is what the process of generation grew by, whose libraries take "
        "more for a longer context whatever the state holds: an exponent a little above 0 is theirs. Time is measured "
        f"at {counted}, and the interval wide. Uncut: whether a run's own check found the state to grow by as many "
        "bytes with every token, or to be constant, where nothing is cut.",
        f"Training speed over the {REFERENCE}'s at {', '.join(f'{at:,}' for at in lengths)} tokens, by the bench."
        if lengths
        else "The bench has not timed whole models.",
        "Longest context: the longest after which generation was timed. Worst task: where the model ranks lowest, of "
        "two tasks or more, each by its table of the most seeds: among those that ran it by that table's main recipe "
        "and budget and whose learning rate is at no edge of what was tried; those of one figure share a place.",
        claims.sources(list(standing_runs), ("memory", "speed")),
    ]
    prose = ("memory, literature", "speed, literature", "worst task")
    return Table("field", "The field", header, rows, [note for note in notes if note], pd.DataFrame(data), prose=prose)


def _uncut(runs: pd.DataFrame) -> str:
    grows = runs["grows"].iloc[0] if len(runs) else None
    return NOT_MEASURED if grows is None or pd.isna(grows) else "grows linearly" if grows else "constant"


_ENDS = {"": "value", "_low": "low", "_high": "high"}


def exponent(slope: Slope | None) -> str:
    """Two decimals, with the interval where there is one that is not a point."""
    if slope is None:
        return NOT_MEASURED
    value = f"{round(slope.value, 2) + 0.0:.2f}"  # no minus before a zero
    if slope.low is None or slope.high is None or slope.low == slope.high:
        return value
    low, high = (f"{round(end, 2) + 0.0:.2f}" for end in (slope.low, slope.high))
    return f"{value} ({low} to {high})"
