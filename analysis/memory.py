"""State bytes against context, by model."""

import pandas as pd

from analysis.render import Table, si_bytes

Curve = dict[int, float]
"""{context: state bytes}"""


def curves(contexts: pd.DataFrame, size: str) -> dict[str, Curve]:
    """One curve a model at one size, from every run's measurement; by name of the model.

    A model whose variants hold different states has a curve for each, named by the variant's label.
    """
    held = contexts[(contexts["size"] == size) & contexts["state_bytes"].notna()]
    found: dict[str, list[tuple[str, Curve]]] = {}
    for names, group in held.groupby(["model", "label"], sort=True):
        model, label = map(str, names)
        curve: Curve = {int(c): int(b) for c, b in zip(group["context"], group["state_bytes"], strict=True)}
        same = next((known for _, known in found.setdefault(model, []) if _agree(known, curve)), None)
        if same is None:
            found[model].append((label, curve))
        else:
            same |= curve
    named = {model if len(known) == 1 else label: curve for model, known in found.items() for label, curve in known}
    return {name: dict(sorted(curve.items())) for name, curve in named.items()}


def _agree(one: Curve, other: Curve) -> bool:
    """Whether two curves share a context and differ in none that they share."""
    shared = one.keys() & other.keys()
    return bool(shared) and all(one[context] == other[context] for context in shared)


def table(contexts: pd.DataFrame, size: str) -> Table | None:
    """State bytes by model and context, the largest first; None where nothing was measured."""
    known = curves(contexts, size)
    if not known:
        return None
    measured = sorted({context for curve in known.values() for context in curve})
    ordered = sorted(known.items(), key=lambda item: (-max(item[1].values()), item[0]))
    rows = [[name, *(si_bytes(curve.get(context)) for context in measured)] for name, curve in ordered]
    exact = [{"model": n, "context": c, "state_bytes": b} for n, curve in ordered for c, b in curve.items()]
    header = ["model", *(f"{context:,}" for context in measured)]
    notes = ["Columns: tokens of context. Bytes of the tensors held at batch 1 (kB = 1,000 bytes)."]
    return Table(f"memory-{size}", f"State by context, {size} parameters", header, rows, notes, pd.DataFrame(exact))
