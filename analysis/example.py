"""The summary of one recorded run, as the command prints it."""

import textwrap
from pathlib import Path

from analysis.records import Record, load
from harness.records.summary import checks_line

FOLDER = "example"
"""Of the records: the run of the README's first command, which no table has."""
LINES = 3
"""Of the sample that are shown."""


def kept(results: Path) -> list[Record]:
    """The run that is kept as the example; none where the records have no such folder."""
    return load([results / FOLDER]).runs if (results / FOLDER).is_dir() else []


def summary(records: list[Record]) -> str:
    """The summary of the liquid model solved by rk4, else of the first run that ends in text; "" for none."""
    ended = [record for record in records if (record.result.get("evaluation") or {}).get("sample")]
    if not ended:
        return ""
    liquid = [r for r in ended if (r.result["model"], r.result.get("solver")) == ("ltc", "rk4")]
    return _summary((liquid or ended)[0].result)


def _summary(result: dict) -> str:
    training, evaluation, sample = result["training"], result["evaluation"], result["evaluation"]["sample"]
    measurement = result.get("measurement") or {}
    speed, busy = training.get("tokens_per_second"), _busy(training)
    lines = [
        result["name"],
        f"  parameters         {result['parameters']['total']:,}",
        f"  checks             {checks_line(result['checks'].get('results') or [])}",
        f"  trained            {training['tokens']:,} tokens, {training['updates']:,} updates"
        + (f", {speed:,.0f} tokens/s{busy}" if speed is not None else ""),
        *(_figure(split, evaluation[split]) for split in ("validation", "test")),
        *(_context(row, _busy(measurement)) for row in _few(list(filter(_measured, measurement.get("contexts", []))))),
        "  sample             " + _indented(sample["prompt"] + sample["text"]),
    ]
    return "\n".join(["```text", *filter(None, lines), "```"])


def _figure(split: str, figures: dict) -> str:
    bits = figures.get("bits_per_byte")
    return "" if bits is None else f"  {split:<18} {bits:.3f} bits per byte"


def _busy(part: dict) -> str:
    """What is said beside a speed that other processes disturbed, or may have."""
    load = part.get("load") or {}
    if load.get("busy") is True:
        return " (busy machine)"
    return " (load not known)" if load.get("other_cpu") is None else ""


def _measured(row: dict) -> bool:
    return row.get("decode_ms_p50") is not None and row.get("state_bytes") is not None


def _few(rows: list[dict]) -> list[dict]:
    """The first, the middle and the last."""
    return [rows[place] for place in sorted({0, len(rows) // 2, len(rows) - 1})] if rows else []


def _context(row: dict, busy: str) -> str:
    where, held = f"after {row['context']:,} tokens", f"{row['state_bytes']:,} bytes of state"
    return f"  {where:<22} {held}, {row['decode_ms_p50']:.2f} ms a token{busy}"


def _indented(text: str) -> str:
    """The text wrapped beneath where it begins, with nothing that could end the fence."""
    lines = [part for line in text.replace("```", "'''").splitlines() for part in textwrap.wrap(line, 96) or [""]]
    told = [*lines[:LINES], "..."] if len(lines) > LINES else lines
    return "\n".join((" " * 21 + line).rstrip() for line in told).lstrip()
