"""The measurements of `python -m bench` as Markdown tables and figures, from its files alone; imports no torch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import context as contexts
from analysis import figures
from analysis.curve import Curve
from analysis.render import Table, si_bytes
from analysis.styles import styles
from harness.config.errors import RecordError

TRAINED_ALIKE = ["model", "solver", "params", "task", "learning_rate"]
"""What the runs that the subject `dynamics` averages share."""
SUBJECTS = ("kernels", "models", "newton", "checks", "gradients", "sessions", "edge", "dynamics", "context")
FIGURES = (
    "Newton's method over time against the fused sequential scan",
    "Newton's method over time against the fused sequential scan, on a GPU",
)
"""Titles of the figures of Newton's method: on the CPU, on a GPU."""
FORWARD = ", forward alone"
NOT_MEASURED = "*Not measured yet: `make bench`.*\n"
OF_RUNS = {
    subject: f"*Not measured yet: `python -m bench {subject} runs/RUN ...`, with weights.*\n"
    for subject in ("dynamics", "context")
}
"""The same of subjects that measure nothing but trained runs."""
UNITS = {6: "M", 3: "k", 0: ""}
Row = dict[Any, Any]
"""What was measured, by name."""


def sections(measured: Path, images: str) -> dict[str, str]:
    """The generated sections kernels, models, newton, checks, gradients, sessions, edge, dynamics and context.

    measured: the bench's folder. images: where the figures stand, as a page names that folder. A device's tables follow
    the CPU's; a subject that was not measured is the command that measures it.
    """
    made = {}
    for subject in SUBJECTS:
        found = [path for path in files(measured, subject) if path.exists()]
        made[subject] = "\n".join(TABLES[subject](read(path)) for path in found) or OF_RUNS.get(subject, NOT_MEASURED)
    for path, title in _drawn(measured):
        made["newton"] += f"\n![{title}]({images}/{path.stem}.png)\n"
    return made


def draw(measured: Path, output: Path) -> list[Path]:
    """Writes a figure of Newton's method for each device it was measured on: its time over the sequential scan's."""
    written = []
    for path, title in _drawn(measured):
        batches: dict[str, dict[int, float]] = {}
        for row in read(path)["rows"]:
            if row["what"] == "study":
                batches.setdefault(f"batch {row['batch']}", {})[row["length"]] = row["training_ratio"]
        curves = [Curve(batch, "ltc", dict(sorted(points.items()))) for batch, points in batches.items()]
        ylabel = "time, Newton / sequential (below 1 Newton wins)"
        figure = figures.ratio(curves, styles(["ltc"]), title, "length (tokens)", ylabel)
        written += figures.save(figure, output, path.stem)
    return written


def _drawn(measured: Path) -> list[tuple[Path, str]]:
    """The files of Newton's method that exist, with their figures' titles."""
    both = zip(files(measured, "newton"), FIGURES, strict=True)
    return [(path, title) for path, title in both if path.exists()]


def files(folder: Path, subject: str) -> list[Path]:
    """Where a subject's measurements are, by device, there or not.

    Those of a CUDA device may stand in a folder of its name (scripts/gpu.sh); of several the first by name is shown.
    """
    cuda = folder / f"{subject}-cuda.json"
    named = sorted(folder.glob(f"*/{cuda.name}"))
    return [folder / f"{subject}.json", named[0] if named and not cuda.exists() else cuda]


def content(measured: Path, subject: str) -> dict[str, Any]:
    """A subject's file of the CPU; {} where it was not measured."""
    path = files(measured, subject)[0]
    return read(path) if path.exists() else {}


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
        "a file that `python -m bench` wrote.",
        "move the file away and measure again.",
    )


def kernels(content: dict) -> str:
    """A table an operation: milliseconds, tokens/s and the ratio to the first row, by batch x length."""
    frame = pd.DataFrame(content["rows"])
    parts = []
    for operation, rows in frame.groupby("operation", sort=False):
        columns = {}
        for (batch, length), cell in rows.groupby(["batch", "length"], sort=True):
            columns[f"{batch} x {length:,}"] = _cells(cell.to_dict("records"))
        names = dict.fromkeys(name for column in columns.values() for name in column)
        table = {"": list(names)} | {title: [cells.get(name, "") for name in names] for title, cells in columns.items()}
        parts.append(f"**{operation}, {content['channels']} channels.** {content['notes'].get(operation, '')}")
        parts.append(_markdown(pd.DataFrame(table)))
    parts.append(_floors(frame))
    return "\n\n".join([*parts, _targets(content), _footer(content)]) + "\n"


def _cells(rows: list[Row]) -> dict[str, str]:
    """The column of one batch x length, by contestant: training, and beside what only infers the first's inference."""
    column = {}
    for number, row in enumerate(rows):
        infers = pd.isna(row["training_ms"])
        column[row["contestant"] + FORWARD * infers] = _cell(row, "forward" if infers else "training")
        if number == 0 and any(pd.isna(other["training_ms"]) for other in rows[1:]):
            column[row["contestant"] + FORWARD] = _cell(row, "forward")
    return column


def _cell(row: Row, what: str) -> str:
    """`time, tokens/s, times the first's`, scaled to the length where it was not timed there."""
    ms = row[f"{what}_us"] * row["batch"] * row["length"] / 1e3
    at = f" @{row['measured_length']}" if row["measured_length"] != row["length"] else ""
    return f"{_number(ms)} ms{at} · {_count(1e6 / row[f'{what}_us'])}/s · {_number(row[f'{what}_ratio'])}"


def _floors(frame: pd.DataFrame) -> str:
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
    rate = frame["copy_bytes_per_second"].median() / 1e9
    title = f"**Times the bandwidth floor, forward / forward and backward** (copy rate {rate:.1f} GB/s)"
    return f"{title}\n\n{_markdown(pd.DataFrame(table))}"


def models(content: dict) -> str:
    """Training tokens/s and share of the limit by length, and milliseconds a generated token."""
    return "\n\n".join([_markdown(_speeds(content)), _targets(content), _footer(content)]) + "\n"


def speeds(measured: Path) -> list[Table]:
    """The speeds of whole models, a table for each device they were measured on."""
    made = []
    for path in filter(Path.exists, files(measured, "models")):
        content = read(path)
        shown = _speeds(content)
        rows = [[str(cell) for cell in row] for row in shown.itertuples(index=False)]
        header = ["model", *map(str, shown.columns[1:])]
        made.append(Table(f"bench-{path.stem}", "Speeds of whole models", header, rows, [_footer(content)], shown))
    return made


def _speeds(content: dict) -> pd.DataFrame:
    frame = pd.DataFrame(content["rows"])
    training, decoding = (frame[frame["what"] == what] for what in ("training", "decoding"))
    table = {"": list(dict.fromkeys(frame["contestant"]))}
    for length, rows in training.groupby("length"):
        by_name = {row["contestant"]: _of_limit(row) for row in rows.to_dict("records")}
        table[f"training tokens/s at {length:,}"] = [by_name.get(name, "") for name in table[""]]
    by_name = {row["contestant"]: _number(row["decode_ms"]) for row in decoding.to_dict("records")}
    table[f"decode, ms/token after {content['context']:,}"] = [by_name.get(name, "") for name in table[""]]
    return pd.DataFrame(table)


def _of_limit(row: Row) -> str:
    """Tokens/s, and the share of an update's time that its matrix products take by themselves, where measured."""
    limit = row.get("limit_us")
    share = f" · {limit / row['training_us']:.2f}" if limit and not pd.isna(limit) else ""
    return f"{row['tokens_per_second']:,.0f}{share}"


def newton(content: dict) -> str:
    """How Newton's method converges and what it takes, by batch x length."""
    frame = pd.DataFrame(content["rows"]).sort_values(["batch", "length"])
    study, peer = (frame[frame["what"] == what] for what in ("study", "peer"))
    iterations = study["iterations"].map("{:.0f}".format)
    table = pd.DataFrame({"batch x length": _sizes(study), "iterations": iterations})
    table["fallbacks"] = study["fallbacks"].map("{:.0f}".format)
    for key in ("residual", "difference"):
        table[key] = study[key].map("{:.1e}".format)
    for name in ("newton", "sequential", "loop"):
        table[f"{name}, ms"] = study[f"{name}_training_ms"].map(_number)
    table["newton / sequential"] = study["training_ratio"].map(_number)
    parts = [f"**Forward and backward, semi_implicit x 6, {content['channels']} channels**", _markdown(table)]
    if len(peer):
        columns = {"pararnn": "ParaCfC", "pararnn_loop": "its loop", "newton": "newton", "sequential": "sequential"}
        columns |= {"newton_projected": "newton, projecting", "sequential_projected": "sequential, projecting"}
        other = pd.DataFrame({"batch x length": _sizes(peer)})
        for key, title in columns.items():
            other[f"{title}, ms"] = list(peer[f"{key}_ms"].map(_number))
        parts += ["**Against pararnn-torch's ParaCfC**", _markdown(other)]
    return "\n\n".join([*parts, _footer(content)]) + "\n"


def checks(content: dict) -> str:
    """Seconds, and the processor's, of the checks before and after training, by model; and what takes longest."""
    frame = pd.DataFrame(content["rows"])
    most = max(frame["threads"])
    table: dict[str, list] = {"": list(dict.fromkeys(frame["contestant"]))}
    for what in ("before", "after"):
        for threads, rows in frame.groupby("threads"):
            cells = {
                row["contestant"]: f"{row[f'{what}_seconds']:.1f} ({row[f'{what}_cpu_seconds']:.1f})"
                for row in rows.to_dict("records")
            }
            title = f"{what} training, {threads} {'thread' if threads == 1 else 'threads'}"
            table[title] = [cells.get(name, "") for name in table[""]]
    slowest = {row["contestant"]: row["before_slowest"] for row in content["rows"] if row["threads"] == most}
    table["longest before"] = [
        ", ".join(f"{check} {seconds:.1f}" for check, seconds in slowest[name].items()) for name in table[""]
    ]
    title = f"**Seconds, and those of processors, at {content['size']}**"
    return "\n\n".join([title, _markdown(pd.DataFrame(table)), _footer(content)]) + "\n"


def gradients(content: dict) -> str:
    """The memory of a training pass, over its tokens, and the error of the gradients, by implementation."""
    frame = pd.DataFrame(content["rows"])
    table = pd.DataFrame({"": frame["operation"] + ", " + frame["contestant"], "measured at": _sizes(frame)})
    table["bytes a token"] = [_number(value) for value in frame["bytes_per_token"]]
    table["gradient error"] = frame["gradient_error"].map("{:.1e}".format)
    title = f"**Forward and backward, {content['channels']} channels**"
    return "\n\n".join([title, _markdown(table), _footer(content)]) + "\n"


def sessions(content: dict) -> str:
    """What many sessions hold at once, by model and context."""
    frame = pd.DataFrame(content["rows"])
    table = pd.DataFrame({"": frame["contestant"], "context": frame["context"].map("{:,}".format)})
    table["their states"] = frame["state_bytes"].map(si_bytes)
    table["after more tokens"] = frame["state_bytes_after"].map(si_bytes)
    table["the process grew by"] = [si_bytes(None if pd.isna(value) else value) for value in frame["memory_bytes"]]
    table["ms a token"] = [_number(value) for value in frame["decode_ms"]]
    title = f"**{frame['sessions'].iloc[0]:,} sessions at once, {content['tokens']} more tokens each**"
    return "\n\n".join([title, _markdown(table), _footer(content)]) + "\n"


def edge(content: dict) -> str:
    """One token under onnxruntime beside our step, what 8 bits cost, and which models can be graphs."""
    by_what: dict[str, list[Row]] = {}
    for row in content["rows"]:
        by_what.setdefault(row["what"], []).append(row)
    kinds = {"ours": "ours", "onnx": "onnxruntime", "int8": "int8"}
    tokens = [
        {"": row["contestant"], "context": f"{row['context']:,}", "state": si_bytes(row["state_bytes"])}
        | {f"ms a token, {title}": _number(row[f"{kind}_ms"]) for kind, title in kinds.items()}
        | {f"process, {title}": si_bytes(row[f"{kind}_resident_bytes"]) for kind, title in kinds.items()}
        for row in by_what.get("token", [])
    ]
    losses = [
        {"run": f"`{row['contestant']}`", "bytes read": f"{row['bytes']:,}"}
        | {title: f"{row[f'{kind}_bits']:.4f}" for kind, title in kinds.items()}
        | {"int8 costs": f"{row['int8_bits'] - row['onnx_bits']:+.4f}"}
        | {f"file, {kinds[kind]}": si_bytes(row[f"{kind}_graph_bytes"]) for kind in ("onnx", "int8")}
        for row in by_what.get("loss", [])
    ]
    graphs = [
        {"": row["contestant"], "largest difference, or why there is no graph": row.get("reason") or _exponent(row)}
        for row in by_what.get("graph", [])
    ]
    missing = "Not measured: `python -m bench edge runs/RUN`, with weights."
    parts = [
        *("**One token at batch 1, and a process that generates**", _table(tokens, "Not measured.")),
        *("**Bits per byte on the beginning of the test split**", _table(losses, missing)),
        *("**Which models can be a graph**", _table(graphs, "Not measured.")),
    ]
    runtimes = ", ".join(_unique(row["onnxruntime"] for row in content["rows"]))
    return "\n\n".join([*parts, f"onnxruntime {runtimes}; {_footer(content)}"]) + "\n"


def dynamics(content: dict) -> str:
    """The Lyapunov exponents of trained recurrences, and what an all but exact solver changes, over the seeds."""
    frame = pd.DataFrame(content["rows"])
    if frame.empty:
        return "Not measured: `python -m bench dynamics runs/RUN ...`, with weights."
    figures = ["constant", "update", "updates", "lyapunov", "bits", "exact_bits"]
    frame = frame.reindex(columns=[*TRAINED_ALIKE, *figures]).fillna({"solver": ""})
    frame["name"] = (frame["model"] + ", " + frame["solver"]).str.removesuffix(", ")
    frame["error"] = frame["exact_bits"] - frame["bits"]
    ends = frame[frame["update"].isna()]
    rows = []
    for _, runs in ends.groupby(TRAINED_ALIKE, sort=False, dropna=False):
        first, known = runs.iloc[0], runs["lyapunov"].dropna()
        row = {"": first["name"], "text": first["task"]}
        row |= {"parameters": _count(first["params"]), "rate": f"{first['learning_rate']:g}", "runs": str(len(runs))}
        forgets = "nothing is left" if first["constant"] else "its state grows"
        row["nats a token"] = _ends(known, "{:+.3g}") or forgets
        row["forgets by e in"] = f"{-1 / known.mean():,.0f} tokens" if len(known) and known.mean() < 0 else ""
        row["bits per byte"] = _ends(runs["bits"].dropna(), "{:.3f}")
        row["under an exact flow"] = _ends(runs["error"].dropna(), "{:+.4f}")
        rows.append(row)
    title = "**The largest Lyapunov exponent of trained recurrences, and the same weights under an exact flow**"
    parts = [title, _table(rows, "Not measured."), *_on_the_way(frame), _footer(content)]
    return "\n\n".join(parts) + "\n"


def _on_the_way(frame: pd.DataFrame) -> list[str]:
    """Of runs that kept snapshots, the solver's error and the exponent by updates: a table for each learning rate."""
    parts = []
    kept = frame.groupby(TRAINED_ALIKE, dropna=False)["update"].transform(lambda updates: updates.notna().any())
    frame = frame[kept].assign(update=frame["update"].fillna(frame["updates"]))
    for rate, runs in frame.groupby("learning_rate"):
        rows = []
        for update, at in runs.groupby("update"):
            row = {"updates": f"{update:,.0f}"}
            for name, of_one in at.groupby(at["name"], sort=False):
                row[name] = _ends(of_one["error"].dropna(), "{:+.4f}")
                row[f"{name}: nats a token"] = _ends(of_one["lyapunov"].dropna(), "{:+.3g}")
            rows.append(row)
        title = f"**In training at the rate {rate:g}: what an exact flow changes in bits per byte, and the exponent**"
        parts += [title, _markdown(pd.DataFrame(rows).fillna(""))]
    return parts


def context(content: dict) -> str:
    """Bits per byte of trained models of texts by the context that they read, over the seeds: a table a budget."""
    tables = contexts.tables(content)
    if not tables:
        return OF_RUNS["context"]
    parts = [part for title, rows in tables for part in (f"**{title}**", _markdown(pd.DataFrame(rows).fillna("")))]
    return "\n\n".join([*parts, contexts.NOTE, _footer(content)]) + "\n"


def _ends(values: pd.Series, form: str) -> str:
    """The mean and the least and the greatest; nothing of none."""
    ends = f" ({form} to {form})".format(values.min(), values.max()) if len(values) > 1 else ""
    return form.format(values.mean()) + ends if len(values) else ""


def _table(rows: list[Row], otherwise: str) -> str:
    return _markdown(pd.DataFrame(rows)) if rows else otherwise


def _exponent(row: Row) -> str:
    return f"{row['difference']:.0e}"


def _sizes(frame: pd.DataFrame) -> list[str]:
    return [f"{batch} x {length:,}" for batch, length in zip(frame["batch"], frame["length"], strict=True)]


def _targets(content: dict) -> str:
    """The ratios that conf/bench/ asks for, beside those measured."""
    rows = [
        {
            "ratio": f"{target['ratio']} of {target['of']} / {target['than']}",
            "where": _described(target["where"]),
            "target": f"{'≥' if target['ratio'] == 'speed' else '≤'} {target['asked']:g}",
            "measured": "" if target["measured"] is None else _number(target["measured"]),
            "": {True: "met", False: "**missed**", None: "not measured"}[target["met"]],
        }
        for target in content.get("targets", [])
    ]
    return _markdown(pd.DataFrame(rows)) if rows else ""


def _described(where: dict) -> str:
    """`training, length 512`: a name speaks for itself, a number needs its key."""
    return ", ".join(value if isinstance(value, str) else f"{key} {value:,}" for key, value in where.items())


def _footer(content: dict) -> str:
    machine, packages = content["machine"], content["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    device = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    lines = [f"{device}; {versions}; {', '.join(_unique(row['date'] for row in content['rows']))}.", _spread(content)]
    lines += [f"Skipped {name}: {reason}." for name, reason in content["skipped"].items()]
    return "\n".join(line for line in lines if line)


def _spread(content: dict) -> str:
    """By how much the rounds of one figure differ."""
    ranges = [
        value for row in content["rows"] for key, value in row.items() if "_range" in key or key.startswith("range")
    ]
    ratios = sorted(most / least for least, most in filter(None, ranges))
    if not ratios:
        return ""
    middle, most = ratios[len(ratios) // 2], ratios[-1]
    return (
        f"The slowest round of a figure takes {middle:.2f} times the fastest, in the median; at most {most:.1f} times."
    )


def _unique(values: Iterable[str]) -> list[str]:
    return sorted(set(values))


def _count(value: float) -> str:
    """Three digits and a unit."""
    power = next((power for power in (6, 3) if value >= 10**power), 0)
    return f"{_number(value / 10**power)}{UNITS[power]}"


def _number(value: float) -> str:
    """Three digits."""
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)


TABLES = {"kernels": kernels, "models": models, "newton": newton, "checks": checks, "gradients": gradients}
TABLES |= {"sessions": sessions, "edge": edge, "dynamics": dynamics, "context": context}
