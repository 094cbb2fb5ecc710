"""The subject `kernels`: every recurrence, forward and backward, by batch and length."""

from collections.abc import Callable
from importlib.util import find_spec

import torch

from harness.bench.bandwidth import copy_rate, floor_ms
from harness.bench.comparison import Comparison
from harness.bench.store import Store
from harness.bench.table import Row
from harness.bench.timing import Contestant, Limits, Times, measure
from harness.configure import locate
from harness.memory import reused_memory


def run(config: dict, store: Store, device: torch.device, limits: Limits, say: Callable[[str], None]) -> None:
    """Measures the cells that the store lacks; a cell is one operation at one batch and length."""
    rate = store.content.get("copy_bytes_per_second") or copy_rate(device)
    store.note(copy_bytes_per_second=rate, channels=config["channels"])
    for path in config["comparisons"]:
        comparison = locate(path, "comparisons")(device)
        contestants = present(comparison, store, say)
        for batch, length in config["cells"]:
            if not store.has(operation=comparison.operation, batch=batch, length=length):
                with reused_memory():  # as in training
                    times = measure(contestants, batch, length, config["channels"], limits, device)
                rows = as_rows(comparison.operation, batch, length, times, rate)
                store.add(rows)
                say("\n".join(map(described, rows)))


def present(comparison: Comparison, store: Store, say: Callable[[str], None]) -> list[Contestant]:
    """The contestants whose packages are installed; of the others a line is said and kept."""
    found = []
    for contestant in comparison.contestants:
        missing = [name for name in contestant.needs if find_spec(name) is None]
        if missing:
            reason = f"{', '.join(missing)} not installed (pip install -e .[peers])"
            store.content["skipped"][f"{comparison.operation}: {contestant.name}"] = reason
            say(f"skipped {contestant.name}: {reason}")
        else:
            found.append(contestant)
    return found


def as_rows(operation: str, batch: int, length: int, times: dict[str, Times], rate: float) -> list[Row]:
    """A row a contestant, related to the first by the time that a token takes."""
    rows: list[Row] = []
    for name, own in times.items():
        row: Row = {"operation": operation, "contestant": name, "batch": batch, "length": length}
        row["measured_length"] = own.length
        for what, training in (("forward", False), ("training", True)):
            ms = own.median(training)
            row[f"{what}_ms"] = ms
            row[f"{what}_us"] = None if ms is None else 1e3 * ms / (batch * own.length)
            row[f"{what}_rounds"] = len(own.training_ms if training else own.forward_ms)
            row[f"{what}_floor"] = None if ms is None else ms / floor_ms(own.call, rate, training)
            ours = rows[0][f"{what}_us"] if rows else row[f"{what}_us"]
            row[f"{what}_ratio"] = None if ms is None else row[f"{what}_us"] / ours
        rows.append(row)
    return rows


def described(row: Row) -> str:
    """One line of the progress."""
    at = f" at T={row['measured_length']}" if row["measured_length"] != row["length"] else ""
    what = "training" if row["training_ms"] is not None else "forward"
    return (
        f"{row['operation']:12} {row['batch']} x {row['length']:<6} {row['contestant']:36} "
        f"{row[f'{what}_ms']:10.2f} ms {what}{at}, {row[f'{what}_ratio']:.2f} of the first's time a token, "
        f"{row[f'{what}_floor']:.1f} of the bandwidth floor"
    )
