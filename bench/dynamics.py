"""The subject `dynamics`: whether trained recurrences are stable, and what they owe to their solver's error.

Of a run that kept weights on its way (trainer.snapshots) every snapshot is measured too.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import harness
from analysis.bench import Row
from bench.edge import bits, text_of
from bench.store import Store, finite
from harness.config.configure import locate
from harness.config.errors import ConfigError
from harness.generation.library import TrainedModel, build_model
from harness.measurement.lyapunov import exponents
from harness.model.sizing import count
from harness.records import recorded, weights


def run(config: dict, store: Store, runs: Sequence[Path], say: Callable[[str], None]) -> None:
    """Measures the runs that the store lacks, folders with trained weights; raises ConfigError for one of no text."""
    exact = locate(config["compose"], "compose")(config["exact"])["solver"]
    for path, update in [(run, update) for run in runs for update in _moments(run)]:
        cell = {"contestant": path.name} | {key: config[key] for key in ("settle", "tokens", "passages", "bytes")}
        cell |= {} if update is None else {"update": update}
        if not store.holds([path.name], **{"update": None} | cell):
            row = cell | _row(harness.load(path, update), config, exact)
            store.add([row])
            say(str(row))
    store.write()


def _moments(path: Path) -> list[int | None]:
    """The updates whose weights a run kept on its way, then None for its end where it has one."""
    result, kept = recorded.result(path), set(weights.snapshots(path))
    if result.get("status") != "finished":
        return sorted(kept)
    return [*sorted(kept - {result["training"]["updates"]}), None]


def _row(trained: TrainedModel, config: dict, exact: dict) -> Row:
    """Figures that are no finite numbers are null: an exponent of what forgets all, a loss that diverges."""
    model, text = trained.model, text_of(trained).streams["test"].astype(np.int64)
    row: Row = {"model": model.spec.name, "params": count(model).total, "task": trained.config["task"]["name"]}
    row |= {"seed": trained.config["seed"], "learning_rate": trained.config["trainer"]["learning_rate"]}
    row |= {"updates": trained.result["training"]["updates"], "status": trained.result["status"]}
    row |= {"constant": model.constant_state, "lyapunov": None, "lyapunov_ends": None}
    if model.constant_state:
        size = config["settle"] + config["tokens"]
        if len(text) < size:
            raise ConfigError(
                f"The test split of {trained.path} has {len(text)} bytes.",
                f"{size} at least: `settle` and `tokens` of conf/bench/dynamics.yaml.",
                "name a run of a longer text.",
            )
        starts = np.linspace(0, len(text) - size, config["passages"]).astype(int)
        passages = torch.from_numpy(np.stack([text[start : start + size] for start in starts]))
        found = exponents(model, passages, config["settle"])
        if found.isfinite().all():
            row |= {"lyapunov": float(found.mean()), "lyapunov_ends": [float(found.min()), float(found.max())]}
    other = with_solver(trained, exact)
    if other is not None:
        row["solver"] = _solver(trained.config["model"])["name"]
        stream = text[: config["bytes"] + 1]
        row |= {key: finite(bits(one, stream)) for key, one in (("bits", trained), ("exact_bits", other))}
    return row


def with_solver(trained: TrainedModel, solver: dict) -> TrainedModel | None:
    """The trained model, its weights as they are, under another solver; None where it has none."""
    node = copy.deepcopy(trained.config["model"])
    if _solver(node) is None:
        return None
    for mixer in _solved(node):
        mixer["solver"] = solver
    model = build_model(node, trained.model.interface, trained.model.n_layers, trained.model.width)
    model.load_state_dict(trained.model.state_dict())
    return replace(trained, model=model.eval())


def _solver(node: dict) -> dict | None:
    """The solver in a model's configuration."""
    return next((mixer["solver"] for mixer in _solved(node)), None)


def _solved(node: dict) -> list[dict]:
    """The mixers of a model's configuration that have a solver."""
    mixers = node["mixer"] if isinstance(node["mixer"], list) else [node["mixer"]]
    return [mixer for mixer in mixers if "solver" in mixer]
