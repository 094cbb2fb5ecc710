"""The subject `kernels`: every recurrence, forward and backward, by batch and length."""

from collections.abc import Callable

import torch

from analysis.bench import Row
from bench.bandwidth import copy_rate, floor_ms
from bench.comparison import Comparison
from bench.store import Store, absent
from bench.timing import Contestant, Limits, Times, measure
from harness.config.configure import locate


def run(config: dict, store: Store, device: torch.device, limits: Limits, say: Callable[[str], None]) -> None:
    """Measures the cells that the store lacks; a cell is one operation at one batch and length."""
    store.note(channels=config["channels"], notes={})
    for path in config["comparisons"]:
        comparison = locate(path, "comparisons")(device)
        operation, contestants = comparison.operation, present(comparison, store, say)
        store.content["notes"][operation] = comparison.note
        for batch, length in config["cells"]:
            cell = {"operation": operation, "batch": batch, "length": length}
            if not store.holds([contestant.name for contestant in contestants], **cell):
                rate = copy_rate(device)
                times = measure(contestants, batch, length, config["channels"], limits, device)
                rows = as_rows(operation, batch, length, times, rate)
                store.add(rows)
                say("\n".join(map(described, rows)))
    store.write()


def present(comparison: Comparison, store: Store, say: Callable[[str], None]) -> list[Contestant]:
    """The contestants whose packages are installed; the others are reported and kept as skipped."""
    found = []
    for contestant in comparison.contestants:
        reason = absent(contestant.needs)
        if reason:
            store.skip(f"{contestant.name} ({comparison.operation})", reason, say)
        else:
            found.append(contestant)
    return found


def as_rows(operation: str, batch: int, length: int, times: dict[str, Times], rate: float) -> list[Row]:
    """A row a contestant, related to the first by the time that a token takes.

    NAME of forward and training: NAME_ms, the median, and NAME_range_ms, the least and the greatest, at
    `measured_length`; NAME_us a token; NAME_floor, times the bandwidth floor; NAME_ratio, times the first's NAME_us.
    """
    rows: list[Row] = []
    for name, own in times.items():
        row: Row = {"operation": operation, "contestant": name, "batch": batch, "length": length}
        row |= {"measured_length": own.length, "copy_bytes_per_second": rate}
        for what, training in (("forward", False), ("training", True)):
            ms, all_ms = own.median(training), own.of(training)
            row[f"{what}_ms"] = ms
            row[f"{what}_range_ms"] = [min(all_ms), max(all_ms)] if all_ms else None
            row[f"{what}_rounds"] = len(all_ms)
            row[f"{what}_us"] = None if ms is None else 1e3 * ms / (batch * own.length)
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
        f"{row['operation']:12} {row['batch']} x {row['length']:<6} {row['contestant']:44} "
        f"{row[f'{what}_ms']:10.2f} ms {what}{at}, {1e6 / row[f'{what}_us']:12,.0f} tokens/s, "
        f"{row[f'{what}_ratio']:.2f} of the first's time a token, {row[f'{what}_floor']:.1f} of the bandwidth floor"
    )
