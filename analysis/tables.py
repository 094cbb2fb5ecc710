"""The comparison tables: one for every task, size and corpus, every recorded run in it."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from analysis.render import Table, count, si_bytes, spread
from analysis.statistics import Summary, summarise


@dataclass(frozen=True)
class Column:
    """One figure of a run: its column in the frame, its heading, how a summary is shown."""

    key: str
    heading: str
    show: Callable[[Summary], str]


PARAMETERS = Column("parameters", "parameters", lambda s: count(s.mean))
SPEED = Column("tokens_per_second", "train tokens/s", lambda s: spread(s, 0))
LATENCY = Column("decode_ms_p50_1024", "decode ms/token at 1k", lambda s: spread(s, 2))
STATE_1K = Column("state_bytes_1024", "state at 1k", lambda s: si_bytes(s.mean))
STATE_32K = Column("state_bytes_32768", "state at 32k", lambda s: si_bytes(s.mean))
TOKENS = Column("tokens", "trained tokens", lambda s: count(s.mean))
QUALITY = {
    "test_bits_per_byte": Column("test_bits_per_byte", "bits per byte (test)", lambda s: spread(s, 3)),
    "test_accuracy": Column("test_accuracy", "accuracy (test)", lambda s: spread(s, 4)),
    "test_mean_squared_error": Column("test_mean_squared_error", "mean squared error (test)", lambda s: spread(s, 4)),
}


def comparisons(runs: pd.DataFrame, quality: str = "test_bits_per_byte") -> list[Table]:
    """The tables of the runs scored by `quality`.

    It is bits per byte for text, "test_accuracy" for synthetic tasks, "test_mean_squared_error" for real vectors. A
    task none of whose runs finished is counted as text.
    """
    if runs.empty:
        return []
    tables = []
    for name, group in runs.groupby("table", sort=True):
        if _quality(group) == quality:
            title = f"{group['task'].iloc[0]}, {group['size'].iloc[0]} parameters"
            tables.append(_comparison(str(name), title, group, QUALITY[quality]))
    return tables


def _quality(group: pd.DataFrame) -> str:
    return next((key for key in QUALITY if group[key].notna().any()), "test_bits_per_byte")


def _comparison(name: str, title: str, runs: pd.DataFrame, quality: Column) -> Table:
    """One row for each variant, machine and status; the best first, the diverged last."""
    machines = sorted(runs["machine"].unique())
    columns = [PARAMETERS, quality, SPEED, LATENCY, STATE_1K, STATE_32K]
    if runs.loc[runs["status"] == "finished", "tokens"].nunique() > 1:
        columns.insert(1, TOKENS)
    rows, data = [], []
    for group in _ordered(runs, quality.key):
        summaries = {column.key: summarise(_values(group, column.key)) for column in columns}
        cells = [column.show(summaries[column.key]) for column in columns]
        if group["status"].iloc[0] == "diverged":
            cells[columns.index(quality)] = _divergence(group)
        machine = [_letter(machines, group["machine"].iloc[0])] if len(machines) > 1 else []
        rows.append([group["label"].iloc[0], str(len(group)), *cells, *machine])
        data.append(_exact(group, summaries))
    header = ["model", "seeds", *(column.heading for column in columns), *(["machine"] if len(machines) > 1 else [])]
    return Table(name, title, header, rows, _notes(runs, machines), pd.DataFrame(data))


def _ordered(runs: pd.DataFrame, quality: str) -> list[pd.DataFrame]:
    groups = [group for _, group in runs.groupby(["variant", "machine", "status"], sort=True)]
    better = -1 if quality == "test_accuracy" else 1

    def rank(group: pd.DataFrame) -> tuple:
        mean = summarise(_values(group, quality)).mean
        return (group["status"].iloc[0] == "diverged", mean is None, better * (mean or 0.0), group["label"].iloc[0])

    return sorted(groups, key=rank)


def _values(group: pd.DataFrame, key: str) -> list[float]:
    return list(pd.to_numeric(group[key])) if key in group else []


def _divergence(group: pd.DataFrame) -> str:
    updates = sorted(f"{update:.0f}" for update in group["diverged_at"].dropna())
    return f"diverged at update {', '.join(updates)}" if updates else "diverged"


def _exact(group: pd.DataFrame, summaries: dict[str, Summary]) -> dict:
    first = group.iloc[0]
    row = {key: first[key] for key in ("label", "model", "solver", "gradient", "size", "task", "status", "machine")}
    row |= {"seeds": len(group), "runs": " ".join(sorted(group["key"]))}
    for key, summary in summaries.items():
        row |= {key: summary.mean, f"{key}_std": summary.std, f"{key}_min": summary.low, f"{key}_max": summary.high}
    return row


def _letter(machines: list[str], machine: str) -> str:
    return chr(ord("A") + machines.index(machine))


def _notes(runs: pd.DataFrame, machines: list[str]) -> list[str]:
    """What the reader must know: the data, the training, the machine, the meaning of ±."""
    notes = [f"Data {str(runs['digest'].iloc[0])[:12]}."]
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
    groups = runs.groupby(["variant", "machine", "status"]).size()
    if groups.max() > 1:
        notes.append("Mean ± standard deviation over seeds.")
    if "state_bytes_1024" in runs and runs["state_bytes_1024"].notna().any():
        notes.append("State: what generation holds after 1,024 and 32,768 tokens (kB = 1,000 bytes).")
    return notes


def _range(values: pd.Series, show: Callable[[float], str]) -> str:
    low, high = show(values.min()), show(values.max())
    return low if low == high else f"{low} to {high}"


def _few(value: float) -> str:
    """Two decimals, or two figures where that would show nothing."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"
