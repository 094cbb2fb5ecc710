"""State bytes against context, by model."""

import pandas as pd

from analysis.curve import Curve
from analysis.render import Table, si_bytes

Held = dict[int, float]
"""{context: state bytes}"""


def curves(contexts: pd.DataFrame, size: str) -> list[Curve]:
    """One curve a model at one size, from every run's measurement; by name of the model.

    A model whose variants hold different states has a curve for each, named by the variant's label.
    """
    held = contexts[(contexts["size"] == size) & contexts["state_bytes"].notna()]
    found: dict[str, list[tuple[str, Held]]] = {}
    for names, group in held.groupby(["model", "label"], sort=True):
        model, label = map(str, names)
        curve: Held = {int(c): int(b) for c, b in zip(group["context"], group["state_bytes"], strict=True)}
        same = next((known for _, known in found.setdefault(model, []) if _agree(known, curve)), None)
        if same is None:
            found[model].append((label, curve))
        else:
            same |= curve
    return [
        Curve(model if len(known) == 1 else label, model, dict(sorted(curve.items())))
        for model, known in found.items()
        for label, curve in known
    ]


def _paths(held: pd.DataFrame, curve: Curve) -> list[str]:
    """The folders of the runs of a curve: its model's, and of several curves of one model those of its label."""
    ours = held[held["model"] == curve.model]
    return sorted(set(ours["path"] if curve.label == curve.model else ours.loc[ours["label"] == curve.label, "path"]))


def _agree(one: Held, other: Held) -> bool:
    """Whether two curves share a context and differ in none that they share."""
    shared = one.keys() & other.keys()
    return bool(shared) and all(one[context] == other[context] for context in shared)


def table(contexts: pd.DataFrame, size: str) -> Table | None:
    """State bytes by model and context, the largest first; None where nothing was measured."""
    known = curves(contexts, size)
    if not known:
        return None
    measured = sorted({context for curve in known for context in curve.points})
    ordered = sorted(known, key=lambda curve: (-max(curve.points.values()), curve.label))
    rows = [[curve.label, *(si_bytes(curve.points.get(context)) for context in measured)] for curve in ordered]
    exact = [{"model": c.label, "context": at, "state_bytes": b} for c in ordered for at, b in c.points.items()]
    header = ["model", *(f"{context:,}" for context in measured)]
    notes = ["Columns: tokens of context. Bytes of the tensors held at batch 1 (kB = 1,000 bytes)."]
    held = contexts[contexts["size"] == size]
    paths = [_paths(held, curve) for curve in ordered]
    title = f"State by context, {size} parameters"
    return Table(f"memory-{size}", title, header, rows, notes, pd.DataFrame(exact), paths)
