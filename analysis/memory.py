"""State bytes against context, by model."""

from collections import Counter
from dataclasses import dataclass

import pandas as pd

from analysis.curve import Curve
from analysis.render import Table, si_bytes

Held = dict[int, float]
"""{context: state bytes}"""
WINDOW = "window "
"""How the policy of what is cut to its last tokens begins."""


@dataclass(frozen=True)
class _Line:
    """Runs of one model that held the same. policy: of their context. per_token: what it grows by uncut, or 0."""

    model: str
    label: str
    policy: str
    task: str
    per_token: float
    held: Held
    paths: set[str]


def curves(contexts: pd.DataFrame, size: str) -> list[Curve]:
    """One curve a model at one size, from every run's measurement; by name of the model.

    A model whose runs hold different states has a curve for each, named by what sets them apart: variant, policy of
    the context, task. Where a policy cuts a cache, another curve has it uncut, computed from the bytes a token that the
    run's check found.
    """
    return [curve for curve, _ in _curves(contexts, size)]


def _curves(contexts: pd.DataFrame, size: str) -> list[tuple[Curve, list[str]]]:
    """The curves, each with the folders of its runs."""
    made = []
    for lines in _lines(contexts, size).values():
        named = zip(_names(lines), lines, strict=True)
        made += [(Curve(name, one.model, dict(sorted(one.held.items()))), sorted(one.paths)) for name, one in named]
        cut: dict[float, list[_Line]] = {}
        for one in lines:
            if one.policy.startswith(WINDOW) and one.per_token:
                cut.setdefault(one.per_token, []).append(one)
        for per_token, these in cut.items():
            name = f"{these[0].model if len(cut) == 1 else these[0].label}, uncut (computed)"
            spanned = sorted({context for one in these for context in one.held})
            whole = Curve(name, these[0].model, {context: per_token * context for context in spanned})
            made.append((whole, sorted(set.union(*(one.paths for one in these)))))
    return made


def _lines(contexts: pd.DataFrame, size: str) -> dict[str, list[_Line]]:
    """{model: what its runs held, those that held the same together}."""
    found: dict[str, list[_Line]] = {}
    for _, run in contexts[(contexts["size"] == size) & contexts["state_bytes"].notna()].groupby(
        ["model", "label", "path"], sort=True
    ):
        held: Held = {int(c): int(b) for c, b in zip(run["context"], run["state_bytes"], strict=True)}
        first = run.iloc[0]
        policy, task = (said if isinstance(said := first.get(key), str) else "" for key in ("policy", "task"))
        known = found.setdefault(str(first["model"]), [])
        same = next((one for one in known if one.policy == policy and _agree(one.held, held)), None)
        if same is None:
            per_token = first.get("per_token", 0.0)
            names = str(first["model"]), str(first["label"])
            known.append(_Line(*names, policy, task, per_token, held, {str(first["path"])}))
        else:
            same.held.update(held)
            same.paths.add(str(first["path"]))
    return found


def _names(lines: list[_Line]) -> list[str]:
    """The model, and of several lines the variant; the window that cuts it; then what else sets names apart."""
    names = [one.model if len(lines) == 1 else one.label for one in lines]
    names = [name + f" ({one.policy})" * one.policy.startswith(WINDOW) for name, one in zip(names, lines, strict=True)]
    for apart in ([one.task for one in lines], [si_bytes(max(one.held.values())) for one in lines]):
        count = Counter(names)
        names = [f"{name}, {more}" if count[name] > 1 else name for name, more in zip(names, apart, strict=True)]
    return names


def _agree(one: Held, other: Held) -> bool:
    """Whether two curves share a context and differ in none that they share."""
    shared = one.keys() & other.keys()
    return bool(shared) and all(one[context] == other[context] for context in shared)


def table(contexts: pd.DataFrame, size: str) -> Table | None:
    """State bytes by model and context, the largest first; None where nothing was measured."""
    known = _curves(contexts, size)
    if not known:
        return None
    measured = sorted({context for curve, _ in known for context in curve.points})
    ordered = sorted(known, key=lambda one: (-max(one[0].points.values()), one[0].label))
    rows = [[curve.label, *(si_bytes(curve.points.get(context)) for context in measured)] for curve, _ in ordered]
    exact = [{"model": c.label, "context": at, "state_bytes": b} for c, _ in ordered for at, b in c.points.items()]
    header = ["model", *(f"{context:,}" for context in measured)]
    notes = [
        "Columns: tokens of context. Bytes of the tensors held at batch 1 (kB = 1,000 bytes). Window: the run's policy "
        "keeps at most so many tokens. Uncut: computed, the bytes a token by which its check found the state to grow."
    ]
    title = f"State by context, {size} parameters"
    paths = [paths for _, paths in ordered]
    return Table(f"memory-{size}", title, header, rows, notes, pd.DataFrame(exact), paths)
