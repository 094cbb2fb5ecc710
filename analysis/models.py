"""The table of models: where each comes from, the state it holds, the implementation it was compared with."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from analysis.records import Record
from analysis.render import MISSING, NOT_MEASURED, si_bytes
from analysis.tables import size_order

CATALOGUE = Path(__file__).resolve().parents[1] / "docs" / "models.yaml"
CONTEXTS = (1024, 32768)
ASKED = ("ltc", "mtlnn", "m1", "transformer", "mamba", "rwkv")
"""The models that the question names."""
ORACLE = re.compile(r"\w+ = (.+?) within ([-+.\de]+)")
HEADER = ("`model=`", "architecture and paper", "state at 1k / 32k, {size}", "oracle: largest difference")


def catalogue() -> dict[str, dict[str, Any]]:
    """{model: {is, paper, year, at, and sequential where it is}} of docs/models.yaml."""
    return yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))


def table(records: Iterable[Record]) -> str:
    """Markdown, a row a model of the catalogue; state and oracle as the model's recorded runs show them."""
    found: dict[str, list[dict]] = {}
    for record in records:
        found.setdefault(record.result["model"], []).append(record.result)
    size = _size(found)
    header = " | ".join(HEADER).format(size=size or NOT_MEASURED)
    lines = [f"| {header} |", "|---|---|--:|---|"]
    for model, entry in catalogue().items():
        runs = found.get(model, [])
        what = f"[{entry['is']}, {entry['year']}]({entry['at']})" if entry["at"] else entry["is"]
        cells = [f"`{model}`", what, _state([run for run in runs if run["size"] == size]), _oracles(runs)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(found: dict[str, list[dict]]) -> str | None:
    """The size at which the states of the most models were measured, the greatest of several; None for none."""
    count = Counter(size for runs in found.values() for size in {run["size"] for run in runs if _held(run)})
    return max(count, key=lambda size: (count[size], size_order(size)), default=None)


def _held(run: dict) -> list[int]:
    """Bytes at both contexts; none where one is lacking."""
    contexts = (run.get("measurement") or {}).get("contexts") or []
    known = {row["context"]: row.get("state_bytes") for row in contexts}
    return [known[at] for at in CONTEXTS] if all(known.get(at) is not None for at in CONTEXTS) else []


def _state(runs: list[dict]) -> str:
    """Bytes at both contexts, of the run that holds the most; one figure where they are the same; the window's, if."""
    held = [(_held(run), (run.get("context_policy") or {}).get("tokens")) for run in runs if _held(run)]
    if not held:
        return MISSING
    most, window = max(held, key=lambda one: one[0])
    cut = f" (window {window:,})" if window else ""
    return " / ".join(dict.fromkeys(si_bytes(size) for size in most)) + cut


def _oracles(runs: list[dict]) -> str:
    """The third-party implementations that the check `oracle` compared the model with, and how far each was off."""
    checks = [check for run in runs for check in run["checks"].get("results") or [] if check["name"] == "oracle"]
    off: dict[str, float] = {}
    for name, difference in (found for check in checks for found in ORACLE.findall(check.get("detail") or "")):
        off[name] = max(off.get(name, 0.0), float(difference))
    return ", ".join(f"{name}: {difference:.0e}" for name, difference in sorted(off.items())) or MISSING
