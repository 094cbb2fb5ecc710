"""The implementations of liquid cells beside each other: speed, memory and gradients by the bench, and features."""

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from analysis import schema
from analysis.render import MISSING, NOT_MEASURED, Table, si_bytes

FILE = Path(__file__).resolve().parents[1] / "docs" / "implementations.yaml"
CELL = (8, 512)
"""Batch and length at which speeds are shown."""
Name = Field(min_length=1)


class Claim(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    claim: str = Name
    source: str = Name
    at: str = Name


class Implementation(BaseModel):
    """What an implementation is; see docs/implementations.yaml."""

    model_config = ConfigDict(strict=True, extra="forbid")
    cell: str = Name
    gradient: str = Name
    features: str = Name
    claim: Claim | None


Catalogue = dict[str, dict[str, Implementation]]
"""{operation: {contestant of the bench: what it is}}"""


def read(path: Path = FILE) -> Catalogue:
    """Reads the file; RecordError names what cannot be used."""
    expected = "operation: {contestant: {cell, gradient, features, claim}}, the claim null or with its source."
    return schema.from_yaml(path, Catalogue, expected, "complete the entry.")


def table(known: Catalogue, kernels: dict[str, Any], gradients: dict[str, Any]) -> Table:
    """A row an implementation, measured or not. kernels, gradients: the bench's subjects of that name, {} for none."""
    timed = {
        (row["operation"], row["contestant"]): row
        for row in kernels.get("rows", [])
        if (row["batch"], row["length"]) == CELL
    }
    weighed = {(row["operation"], row["contestant"]): row for row in gradients.get("rows", [])}
    channels = kernels.get("channels", "no")
    header = ["implementation", "operation", "cell", "µs a token", "times ours", "memory a token", "gradient error"]
    header += ["gradient", "features", "literature"]
    rows, data = [], []
    sources: dict[str, None] = {}
    for operation, contestants in known.items():
        for name, one in contestants.items():
            row, other = timed.get((operation, name), {}), weighed.get((operation, name), {})
            us, ratio = row.get("training_us"), row.get("training_ratio")
            held, error = other.get("bytes_per_token"), other.get("gradient_error")
            said = MISSING if one.claim is None else f"{one.claim.claim} ({one.claim.source})"
            if one.claim is not None:
                sources[f"{one.claim.source.rpartition(',')[0]} {one.claim.at}"] = None
            cells = [_number(us), _number(ratio), NOT_MEASURED if held is None else si_bytes(held)]
            cells.append(NOT_MEASURED if error is None else f"{error:.1e}")
            rows.append([name, operation, one.cell, *cells, one.gradient, one.features, said])
            row = {"operation": operation, "implementation": name, "training_us": us, "ratio": ratio}
            data.append(row | {"bytes_per_token": held, "gradient_error": error})
    notes = [
        f"Forward and backward at {CELL[0]} x {CELL[1]} tokens of {channels} channels, by the bench. Times ours: over "
        "the first row of the operation (above 1: slower; scaled by the tokens where an implementation was timed at a "
        "shorter length). Memory: what forward and backward add at their peak, over the tokens. Gradient error: the "
        "largest deviation of a float32 gradient from the same implementation's in float64, over the largest gradient. "
        "What differs besides is said under the bench's own tables (kernels.md).",
        f"Sources: {'; '.join(sources)}." if sources else "",
    ]
    prose = ("operation", "cell", "gradient", "features", "literature")
    kept = [note for note in notes if note]
    return Table("liquid", "Implementations of liquid cells", header, rows, kept, pd.DataFrame(data), prose=prose)


def _number(value: float | None) -> str:
    if value is None or pd.isna(value):
        return NOT_MEASURED
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
