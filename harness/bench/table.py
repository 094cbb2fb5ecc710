"""The bench's tables in Markdown, from its files alone; imports no torch."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import RecordError

SUBJECTS = ("kernels", "models", "newton")
Row = dict[str, Any]


def sections(folder: Path) -> dict[str, str]:
    """Markdown of every subject, by name; of one not measured yet, the command that does it."""
    made = {}
    for subject in SUBJECTS:
        path = folder / f"{subject}.json"
        made[subject] = TABLES[subject](read(path)) if path.exists() else "*Not measured yet: `make bench`.*\n"
    return made


def read(path: Path) -> dict[str, Any]:
    """The content of a subject's file."""
    try:
        content = json.loads(path.read_text())
        if content.keys() >= {"machine", "rows", "skipped"}:
            return content
        problem = "it lacks the machine or the rows"
    except (OSError, ValueError) as error:
        problem = str(error)
    raise RecordError(
        f"{path} cannot be read: {problem}.",
        "a file that `python -m harness.bench` wrote.",
        "move the file away and measure again.",
    )


def kernels(content: dict) -> str:
    """A table an operation: milliseconds forward and backward by batch x length, and the ratio to the first row."""
    frame = pd.DataFrame(content["rows"])
    parts = []
    for operation, rows in frame.groupby("operation", sort=False):
        table = {"": list(dict.fromkeys(rows["contestant"]))}
        for (batch, length), cell in rows.groupby(["batch", "length"], sort=True):
            by_name = {row["contestant"]: _cell(row) for row in cell.to_dict("records")}
            table[f"{batch} x {length:,}"] = [by_name.get(name, "") for name in table[""]]
        parts.append(f"**{operation}, {content['channels']} channels**\n\n{_markdown(pd.DataFrame(table))}")
    parts.append(_floors(frame, content["copy_bytes_per_second"]))
    return "\n\n".join([*parts, _bars(content), _footer(content)]) + "\n"


def _cell(row: Row) -> str:
    """`time (times the first's)` of forward and backward, scaled to the length where it was not timed there."""
    what = "forward" if pd.isna(row["training_ms"]) else "training"
    ms = row[f"{what}_us"] * row["batch"] * row["length"] / 1e3
    marks = ("†" if what == "forward" else "") + ("*" if row["measured_length"] != row["length"] else "")
    return f"{_number(ms)} ms ({_number(row[f'{what}_ratio'])}){marks}"


def _floors(frame: pd.DataFrame, rate: float) -> str:
    """What the first contestant of each operation takes over its bandwidth floor."""
    first = frame.groupby("operation", sort=False)["contestant"].transform("first")
    ours = frame[frame["contestant"] == first]
    table = {"": list(dict.fromkeys(ours["operation"]))}
    for (batch, length), cell in ours.groupby(["batch", "length"], sort=True):
        by_name = {
            r["operation"]: f"{_number(r['forward_floor'])} / {_number(r['training_floor'])}"
            for r in cell.to_dict("records")
        }
        table[f"{batch} x {length:,}"] = [by_name.get(name, "") for name in table[""]]
    title = f"**Times the bandwidth floor, forward / forward and backward (copy rate {rate / 1e9:.1f} GB/s)**"
    return f"{title}\n\n{_markdown(pd.DataFrame(table))}"


def models(content: dict) -> str:
    """Training tokens/s by length, and milliseconds a generated token."""
    frame = pd.DataFrame(content["rows"])
    training, decoding = (frame[frame["what"] == what] for what in ("training", "decoding"))
    table = {"": list(dict.fromkeys(frame["contestant"]))}
    for length, rows in training.groupby("length"):
        by_name = {
            row["contestant"]: f"{row['tokens_per_second']:,.0f}" + ("*" if row["measured_length"] != length else "")
            for row in rows.to_dict("records")
        }
        table[f"training tokens/s at {length:,}"] = [by_name.get(name, "") for name in table[""]]
    by_name = {row["contestant"]: _number(row["decode_ms"]) for row in decoding.to_dict("records")}
    table[f"ms a token after {content['context']:,}"] = [by_name.get(name, "") for name in table[""]]
    return "\n\n".join([_markdown(pd.DataFrame(table)), _bars(content), _footer(content)]) + "\n"


def newton(content: dict) -> str:
    """How Newton's method converges and what it takes, by batch x length."""
    frame = pd.DataFrame(content["rows"])
    study, peer = (frame[frame["what"] == what].dropna(axis=1, how="all") for what in ("study", "peer"))
    cells = [f"{batch} x {length:,}" for batch, length in zip(study["batch"], study["length"], strict=True)]
    table = pd.DataFrame({"batch x length": cells, "iterations": study["iterations"].map("{:.0f}".format)})
    table["fallbacks"] = study["fallbacks"].map("{:.0f}".format)
    for key in ("residual", "difference"):
        table[key] = study[key].map("{:.1e}".format)
    for name in ("newton", "sequential", "loop"):
        table[f"{name}, ms"] = study[f"{name}_training_ms"].map(_number)
    table["sequential / newton"] = study["training_ratio"].map(_number)
    parts = [f"**Forward and backward, semi_implicit x 6, {content['channels']} channels**", _markdown(table)]
    if len(peer):
        columns = {"pararnn": "ParaCfC", "pararnn_loop": "its loop", "newton": "newton", "sequential": "sequential"}
        columns |= {"newton_projected": "newton, projecting", "sequential_projected": "sequential, projecting"}
        other = pd.DataFrame({"batch x length": cells[: len(peer)]})
        for key, title in columns.items():
            other[f"{title}, ms"] = list(peer[f"{key}_ms"].map(_number))
        parts += ["**Against pararnn-torch's ParaCfC**", _markdown(other)]
    return "\n\n".join([*parts, _footer(content)]) + "\n"


def _bars(content: dict) -> str:
    rows = [
        {
            "bar (time a token of the second / of the first)": bar["bar"],
            "where": bar["where"],
            "asked": f">= {bar['asked']:g}",
            "measured": "" if bar["measured"] is None else _number(bar["measured"]),
            "": {True: "met", False: "missed", None: "not measured"}[bar["met"]],
        }
        for bar in content.get("bars", [])
    ]
    return _markdown(pd.DataFrame(rows)) if rows else ""


def _footer(content: dict) -> str:
    machine, packages = content["machine"], content["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    device = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    lines = [f"{device}; {versions}; {content['date']}."]
    lines += [f"Skipped {name}: {reason}." for name, reason in content["skipped"].items()]
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three digits."""
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)


TABLES = {"kernels": kernels, "models": models, "newton": newton}
