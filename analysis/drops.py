"""What dropped steps cost: a task's figure against the share of the steps that was left in its series."""

from collections import defaultdict
from collections.abc import Iterable

from analysis.curve import Curve
from analysis.quality import LIMITS, METRICS
from analysis.records import Record


def curves(records: Iterable[Record]) -> dict[tuple[str, str], tuple[str, list[Curve]]]:
    """{(task, size): (metric, a curve a model)}, where a series was dropped from: mean and spread over seeds.

    x: per cent of the steps that are left. Of runs that are told the true time, in the feature too; of several with one
    model, share and seed (other learning rates, say) the last counts: hand in those that were chosen.
    """
    found: dict[tuple[str, str], dict[str, dict[int, dict[int, float]]]] = {}
    metrics: dict[tuple[str, str], str] = {}
    for record in records:
        task, scored = record.config.get("task") or {}, (record.result.get("evaluation") or {}).get("test") or {}
        metric = next((name for name in METRICS if scored.get(name) is not None), None)
        if metric is None or task.get("drop") is None or task.get("elapsed") is not True or not task["time_feature"]:
            continue
        place = task["name"], record.result["size"]
        metrics[place] = metric
        models = found.setdefault(place, defaultdict(lambda: defaultdict(dict)))
        models[record.result["model"]][_left(task["drop"])][record.result["seed"]] = scored[metric]
    return {
        place: (
            metrics[place],
            [_curve(model, shares, LIMITS[metrics[place]]) for model, shares in sorted(models.items())],
        )
        for place, models in found.items()
        if any(len(shares) > 1 for shares in models.values())
    }


def _left(drop: float) -> int:
    return round(100 * (1 - drop))


def _curve(model: str, shares: dict[int, dict[int, float]], limits: tuple[float, float]) -> Curve:
    figures = {left: by_seed.values() for left, by_seed in shares.items()}
    return Curve.over_seeds(model, model, figures, limits=limits)
