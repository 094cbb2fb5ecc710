"""The table of models: where each comes from, the state it holds, the implementation it was compared with."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from analysis.records import Record
from analysis.render import MISSING, si_bytes

CATALOGUE = Path(__file__).resolve().parents[1] / "docs" / "models.yaml"
CONTEXTS = (1024, 32768)
ORACLE = re.compile(r"\w+ = (.+?) within ([-+.\de]+)")
HEADER = ("`model=`", "architecture and paper", "state at 1k / 32k", "oracle: largest difference")


def catalogue() -> dict[str, dict[str, Any]]:
    """{model: {is, paper, year, at, and sequential where it is}} of docs/models.yaml."""
    return yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))


def table(records: Iterable[Record]) -> str:
    """Markdown, a row a model of the catalogue; state and oracle as the model's recorded runs show them."""
    found: dict[str, list[dict]] = {}
    for record in records:
        found.setdefault(record.result["model"], []).append(record.result)
    lines = [f"| {' | '.join(HEADER)} |", "|---|---|--:|---|"]
    for model, entry in catalogue().items():
        runs = found.get(model, [])
        what = f"[{entry['is']}, {entry['year']}]({entry['at']})" if entry["at"] else entry["is"]
        cells = [f"`{model}`", what, _state(runs), _oracles(runs)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _state(runs: list[dict]) -> str:
    """Bytes at both contexts, of the run that holds the most; one figure where they are the same."""
    held = []
    for run in runs:
        contexts = (run.get("measurement") or {}).get("contexts") or []
        known = {row["context"]: row.get("state_bytes") for row in contexts}
        if all(known.get(context) is not None for context in CONTEXTS):
            held.append([known[context] for context in CONTEXTS])
    if not held:
        return MISSING
    return " / ".join(dict.fromkeys(si_bytes(size) for size in max(held)))


def _oracles(runs: list[dict]) -> str:
    """The third-party implementations that the check `oracle` compared the model with, and how far each was off."""
    checks = [check for run in runs for check in run["checks"].get("results") or [] if check["name"] == "oracle"]
    off: dict[str, float] = {}
    for name, difference in (found for check in checks for found in ORACLE.findall(check.get("detail") or "")):
        off[name] = max(off.get(name, 0.0), float(difference))
    return ", ".join(f"{name}: {difference:.0e}" for name, difference in sorted(off.items())) or MISSING
