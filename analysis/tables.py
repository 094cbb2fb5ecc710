"""The comparison tables: one for every task, size and corpus, every recorded run in it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal

import pandas as pd

from analysis.entries import higher_is_better
from analysis.render import MISSING, Table, count, si_bytes, spread
from analysis.selection import HIGHER_IS_BETTER
from analysis.statistics import Summary, summarise


@dataclass(frozen=True)
class Column:
    """One figure of a run: its column in the frame, its heading, how a summary is shown.

    timed: how the columns begin that say whether other processes disturbed the figure; "" where nothing disturbs it.
    """

    key: str
    heading: str
    show: Callable[[Summary], str]
    timed: Literal["", "train", "decode"] = ""


PARAMETERS = Column("parameters", "parameters", lambda s: count(s.mean))
SPEED = Column("tokens_per_second", "train tokens/s", lambda s: spread(s, 0), "train")
LATENCY = Column("decode_ms_p50_1024", "decode ms/token at 1k", lambda s: spread(s, 2), "decode")
STATE_1K = Column("state_bytes_1024", "state at 1k", lambda s: si_bytes(s.mean))
STATE_32K = Column("state_bytes_32768", "state at 32k", lambda s: si_bytes(s.mean))
MEMORY = Column("generation_memory_bytes_32768", "memory at 32k", lambda s: si_bytes(s.mean))
TOKENS = Column("tokens", "trained tokens", lambda s: count(s.mean))
QUALITY = {
    "test_bits_per_byte": Column("test_bits_per_byte", "bits per byte (test)", lambda s: spread(s, 3)),
    "test_accuracy": Column("test_accuracy", "accuracy (test)", lambda s: spread(s, 4)),
    "test_f1": Column("test_f1", "F1 (test)", lambda s: spread(s, 4)),
    "test_mean_squared_error": Column("test_mean_squared_error", "mean squared error (test)", lambda s: spread(s, 4)),
}
VALIDATION = tuple(HIGHER_IS_BETTER)
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}
BUSY, SOME_BUSY, UNKNOWN = "busy", "*", "?"
AROUND = "Around it: the block, the short convolution on its way or in the mixer, whether the head is the embedding."


def comparisons(runs: pd.DataFrame, quality: str = "test_bits_per_byte") -> list[Table]:
    """The tables of the runs scored by `quality`.

    It is bits per byte for text, "test_accuracy" for classes, "test_f1" where one of two is rare, and
    "test_mean_squared_error" for real vectors. A task none of whose runs finished is counted as text.
    """
    if runs.empty:
        return []
    return [
        _comparison(name, title(group), group, QUALITY[quality])
        for name, group in groups(runs)
        if _quality(group) == quality
    ]


def groups(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The runs of each table by its name: text first, then by task, size and the setting of its data."""
    found = [(str(name), group) for name, group in runs.groupby("table", sort=True)] if len(runs) else []

    def order(item: tuple[str, pd.DataFrame]) -> tuple:
        name, group = item
        first = group.iloc[0]
        return not is_text(group), first["task"], size_order(first["size"]), first["setting"], name

    return sorted(found, key=order)


def is_text(runs: pd.DataFrame) -> bool:
    """Whether the runs of a table are scored by bits per byte, or by nothing yet."""
    return _on_validation(runs) == VALIDATION[0]


def _on_validation(runs: pd.DataFrame) -> str:
    """The column of the task's figure on validation; the first where there is none."""
    return next((key for key in VALIDATION if runs[key].notna().any()), VALIDATION[0])


def size_order(size: str) -> tuple[float, str]:
    """Sorts the names of sizes by what they mean: 250k, 4m, 10m, 1b; those of another form last."""
    number, unit = size[:-1], size[-1:]
    plain = number.replace(".", "", 1).isdecimal() and unit in UNITS
    return (float(number) * UNITS[unit] if plain else inf), size


def title(runs: pd.DataFrame) -> str:
    """What the runs of a table have in common: `cheetah (drop=0.5, elapsed=True), 100k parameters`."""
    first = runs.iloc[0]
    setting = f" ({first['setting']})" if first["setting"] else ""
    return f"{first['task']}{setting}, {first['size']} parameters"


def _quality(group: pd.DataFrame) -> str:
    return next((key for key in QUALITY if group[key].notna().any()), "test_bits_per_byte")


def _comparison(name: str, title: str, runs: pd.DataFrame, quality: Column) -> Table:
    """One row for each variant, code, machine and status; the best first, the diverged last."""
    machines = sorted(runs["machine"].unique())
    columns = [PARAMETERS, quality, SPEED, LATENCY, STATE_1K, STATE_32K]
    if runs.loc[runs["status"] == "finished", "tokens"].nunique() > 1:
        columns.insert(1, TOKENS)
    if _has(runs, MEMORY.key):
        columns.append(MEMORY)
    words = _words(runs, machines)
    rows, data, paths = [], [], []
    for group in _ordered(runs, quality.key):
        paths.append(_paths(group))
        summaries = {column.key: summarise(_values(_quiet(group, column), column.key)) for column in columns}
        cells = [_cell(group, column, summaries[column.key]) for column in columns]
        if group["status"].iloc[0] == "diverged":
            cells[columns.index(quality)] = _divergence(group)
        said = [say(group.iloc[0]) for say in words.values()]
        rows.append([group["label"].iloc[0], str(len(group)), *cells, *said])
        data.append(_exact(group, summaries))
    header = ["model", "seeds", *(column.heading for column in columns), *words]
    notes = _notes(runs, machines, [cell for row in rows for cell in row[1:]])
    return Table(name, title, header, rows, notes, pd.DataFrame(data), paths)


def tuned(runs: pd.DataFrame) -> bool:
    """Whether the learning rate of any row was chosen."""
    return bool(_tuned(runs).any())


def _tuned(runs: pd.DataFrame) -> pd.Series:
    if "choice" not in runs:
        return pd.Series(False, runs.index)
    return runs["choice"].str.contains("learning_rate")


def untuned(runs: pd.DataFrame) -> list[str]:
    """A note that names the rows whose learning rate was not chosen among runs of their table; none where all were."""
    rest = runs[~_tuned(runs)]
    if rest.empty:
        return []
    if len(rest) < len(runs):
        return [f"Learning rates not chosen among runs of this table: {'; '.join(dict.fromkeys(rest['label']))}."]
    rates = _range(rest["learning_rate"], lambda rate: f"{rate:g}")
    if " to " in rates:
        return [f"Learning rates were not chosen among runs of this table: {rates}."]
    return [f"Every row has the learning rate {rates}; others were not tried in this table."]


def _paths(group: pd.DataFrame) -> list[str]:
    """The folders of the runs of a row, by seed."""
    return list(group.sort_values("seed")["path"])


def _words(runs: pd.DataFrame, machines: list[str]) -> dict[str, Callable[[pd.Series], str]]:
    """The columns of words by their headings, each with what it says of a run; those that would say nothing are not."""
    words: dict[str, Callable[[pd.Series], str]] = {"around it": lambda run: run["surroundings"]}
    if _has(runs, "context"):
        words["context"] = lambda run: run["context"] if isinstance(run["context"], str) else MISSING
    if "choice" in runs and runs["choice"].any():
        words["chosen on validation"] = lambda run: run["choice"] or MISSING
    if len(machines) > 1:
        words["machine"] = lambda run: _letter(machines, run["machine"])
    return words


def _has(runs: pd.DataFrame, key: str) -> bool:
    return key in runs and bool(runs[key].notna().any())


def _rows(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """The runs that a row averages: those of one variant, code, machine and status."""
    return [group for _, group in runs.groupby(["variant", "code", "machine", "status"], sort=True)]


def _ordered(runs: pd.DataFrame, quality: str) -> list[pd.DataFrame]:
    better = -1 if higher_is_better(quality) else 1

    def rank(group: pd.DataFrame) -> tuple:
        mean = summarise(_values(group, quality)).mean
        return (group["status"].iloc[0] == "diverged", mean is None, better * (mean or 0.0), group["label"].iloc[0])

    return sorted(_rows(runs), key=rank)


def _quiet(group: pd.DataFrame, column: Column) -> pd.DataFrame:
    """The runs whose figure of a column other processes did not disturb, as far as is known."""
    return group[~group[f"{column.timed}_busy"]] if column.timed else group


def _cell(group: pd.DataFrame, column: Column, summary: Summary) -> str:
    """The summary of the quiet runs as shown, marked where some are left out and where the load of some is not known.

    `busy` where every figure was disturbed.
    """
    left_out = summarise(_values(group, column.key)).count - summary.count
    if left_out and not summary.count:
        return BUSY
    return column.show(summary) + SOME_BUSY * (left_out > 0) + UNKNOWN * _unknown(_quiet(group, column), column)


def _unknown(quiet: pd.DataFrame, column: Column) -> bool:
    """Whether nothing tells what disturbed one of these figures."""
    if not column.timed or column.key not in quiet:
        return False
    return bool((quiet[column.key].notna() & quiet[f"{column.timed}_unknown"]).any())


def _values(group: pd.DataFrame, key: str) -> list[float]:
    return list(pd.to_numeric(group[key])) if key in group else []


def _divergence(group: pd.DataFrame) -> str:
    updates = sorted(f"{update:.0f}" for update in group["diverged_at"].dropna())
    return f"diverged at update {', '.join(updates)}" if updates else "diverged"


def _exact(group: pd.DataFrame, summaries: dict[str, Summary]) -> dict:
    first = group.iloc[0]
    row = {key: first[key] for key in ("label", "model", "solver", "gradient", "size", "task", "status", "machine")}
    row |= {key: first[key] for key in ("code", "context", "choice") if key in first}
    row |= {"seeds": len(group), "runs": " ".join(sorted(group["key"]))}
    row |= {key: summarise(group[key]).mean for key in VALIDATION if key not in summaries and _has(group, key)}
    for key, summary in summaries.items():
        row |= {key: summary.mean, f"{key}_std": summary.std, f"{key}_min": summary.low, f"{key}_max": summary.high}
    return row


def _letter(machines: list[str], machine: str) -> str:
    return chr(ord("A") + machines.index(machine))


def _notes(runs: pd.DataFrame, machines: list[str], cells: list[str]) -> list[str]:
    """What the reader must know: the data, the training, the machine, the meaning of ± and of words in the cells."""
    notes = [f"Data {str(runs['digest'].iloc[0])[:12]}."]
    notes += untuned(runs)
    finished = runs[runs["status"] == "finished"]
    if len(finished):
        endless = finished["epochs"].isna().all()  # a generated task shows no example twice
        epochs = "" if endless else f", {_range(finished['epochs'], _few)} epochs"
        notes.append(f"Trained on {_range(finished['tokens'], count)} tokens{epochs}.")
    if len(machines) == 1:
        notes.append(f"Speeds on {machines[0]}.")
    else:
        named = "; ".join(f"{_letter(machines, machine)} is {machine}" for machine in machines)
        notes.append(f"Machines: {named}. Speeds compare within one machine only.")
    if max(len(group) for group in _rows(runs)) > 1:
        notes.append("Mean ± standard deviation over seeds.")
    if any(cell == BUSY or cell.rstrip(UNKNOWN).endswith(SOME_BUSY) for cell in cells):
        notes.append(
            "Speeds measured while other processes took more than a tenth of the processors are left out: "
            "* marks a mean without them, busy a row that has no others."
        )
    if any(cell.endswith(UNKNOWN) for cell in cells):
        notes.append("Speeds measured while nothing told how busy the machine was are marked ?.")
    if "choice" in runs and runs["choice"].any():
        notes.append(
            "Where runs differ in tuned keys alone, the best on validation is shown (its mean over the seeds that all "
            "ran); at the edge: the best value tried is the least or the greatest, and the grid must be extended."
        )
    notes.append(AROUND)
    if _has(runs, "context"):
        notes.append(
            "Context: what a prediction sees of the past (full: all of it; window: at most so many tokens; state: "
            "what a state of constant size holds); loss, state and latency are those of this policy."
        )
    if "state_bytes_1024" in runs and runs["state_bytes_1024"].notna().any():
        notes.append("State: what generation holds after 1,024 and 32,768 tokens (kB = 1,000 bytes).")
    if "older" in runs and runs["older"].any():
        older = dict.fromkeys(runs.loc[runs["older"], "label"])
        notes.append(f"Recorded by older code than this checkout's: {'; '.join(older)}.")
    if (runs["code"] == "").any():
        unnamed = dict.fromkeys(runs.loc[runs["code"] == "", "label"])
        notes.append(f"Recorded without the name of the code: {'; '.join(unnamed)}.")
    if _has(runs, MEMORY.key):
        notes.append(
            "Memory: what generating after 32,768 tokens takes beyond the loaded model, in a process of its own."
        )
    return notes


def tuning(runs: pd.DataFrame) -> list[Table]:
    """The candidates among which values were chosen, by their figures on validation: a table for each that chose.

    runs: a frame with the columns of `selection.select`, and labels that tell the candidates apart.
    """
    tables = []
    for name, group in groups(runs):
        tried = group[group["choice"] != ""]
        if len(tried):
            tables.append(_tuning(f"tuning-{name}", f"Tuning, {title(group)}", tried, _on_validation(tried)))
    return tables


def _tuning(name: str, title: str, runs: pd.DataFrame, key: str) -> Table:
    rows, data, paths = [], [], []
    for _, family in runs.groupby("family", sort=True):
        for group in _ordered(family, key):
            paths.append(_paths(group))
            summary = summarise(_values(group, key))
            diverged = group["status"].iloc[0] == "diverged"
            figure = _divergence(group) if diverged else spread(summary, 4)
            chosen = bool(group["chosen"].iloc[0])
            rows.append([group["label"].iloc[0], str(len(group)), figure, "chosen" if chosen else ""])
            data.append({"chosen": chosen} | _exact(group, {key: summary}))
    header = ["model", "seeds", f"{key.removeprefix('validation_').replace('_', ' ')} (validation)", ""]
    notes = ["Of runs that differ in tuned keys alone; test figures are shown for what was chosen."]
    return Table(name, title, header, rows, notes, pd.DataFrame(data), paths)


def _range(values: pd.Series, show: Callable[[float], str]) -> str:
    low, high = show(values.min()), show(values.max())
    return low if low == high else f"{low} to {high}"


def _few(value: float) -> str:
    """Two decimals, or two figures where that would show nothing."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
