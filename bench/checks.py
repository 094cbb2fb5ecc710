"""The subject `checks`: what the checks before and after training take, for each model as a run would check it."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from analysis.bench import Row
from bench.store import Store
from bench.timing import Limits
from harness.checks.conditions import Conditions
from harness.checks.runner import CheckResults, run_checks
from harness.checks.trained import Memory, Watch, check_trained
from harness.config.configure import locate
from harness.config.experiment import CheckError
from harness.evaluation.evaluate import evaluate
from harness.evaluation.passage import observing
from harness.machine.runtime import use_threads
from harness.model import sizing

MODELS = Path(__file__).resolve().parents[1] / "conf" / "model"
SLOWEST = 3
"""Checks of a model that are named."""


def run(config: dict, store: Store, device: torch.device, limits: Limits, say: Callable[[str], None]) -> None:
    """Measures the models of conf/model that the store lacks, or those that the configuration names."""
    prepare = locate(config["prepare"], "prepare")
    threads = torch.get_num_threads()
    store.note(size=" ".join(config["size"]))
    try:
        for name in config.get("models") or sorted(path.stem for path in MODELS.glob("*.yaml")):
            if not store.holds([name], contestant=name):
                given = [f"model={name}", f"trainer.device={device.type}", *config["size"]]
                store.add(_rows(name, prepare(given), config, say))
    finally:
        use_threads(threads)
    store.write()


def _rows(name: str, experiment: Any, config: dict, say: Callable[[str], None]) -> list[Row]:
    """A row for each number of threads, after one untimed round that compiles."""
    checked, rows = Checked(experiment, config["bytes"]), []
    for threads in (config["threads"][0], *config["threads"]):
        use_threads(threads)
        row: Row = {"contestant": name, "threads": threads}
        for what, check in (("before", checked.before), ("after", checked.after)):
            begun, used = time.perf_counter(), _cpu_seconds()
            verdicts = check()
            row[f"{what}_seconds"] = time.perf_counter() - begun
            row[f"{what}_cpu_seconds"] = _cpu_seconds() - used
            row[f"{what}_slowest"] = _slowest(name, verdicts)
        rows.append(row)
    for row in rows[1:]:
        seconds = ", ".join(f"{row[f'{what}_seconds']:.1f} s {what}" for what in ("before", "after"))
        say(f"{name:20} threads {row['threads']}: {seconds}")
    return rows[1:]


class Checked:
    """A model as its run builds it, and its checks; the evaluation before the second ones reads a few bytes only.

    experiment: a harness.config.experiment.Experiment. size: bytes of each split that are evaluated.
    """

    def __init__(self, experiment: Any, size: int):
        model, trainer, interface = experiment.model, experiment.trainer, experiment.task.interface
        torch.manual_seed(0)
        width = sizing.solve(model, interface, experiment.size)
        self.model = model.build(interface, experiment.size.n_layers, width).to(trainer.device_type)
        self.experiment = experiment
        self.evaluation = replace(experiment.evaluate, max_bytes=size, position_bytes=1, extrapolation_bytes=1)
        self.memory, self.watch = Memory(self.model), Watch()
        with observing(self.watch):
            evaluate(self.model, experiment.task, replace(self.evaluation, sample_bytes=1), trainer.length)

    def conditions(self) -> Conditions:
        """Those of the run (harness/config/experiment.py)."""
        task, trainer = self.experiment.task, self.experiment.trainer
        shape = trainer.batch_size, trainer.length
        return Conditions(
            trainer.length, trainer.batch_size, trainer.precision, trainer.device_type,
            lambda index: task.batch("train", index, *shape, self.experiment.seed),
        )  # fmt: skip

    def before(self) -> CheckResults:
        """The checks before training."""
        experiment = self.experiment
        return run_checks(
            self.model, experiment.model, experiment.task.interface, experiment.size, 0, self.conditions()
        )

    def after(self) -> CheckResults:
        """The checks after training."""
        return check_trained(self.model, self.experiment.task, self.watch, self.memory, self.conditions())


def _cpu_seconds() -> float:
    """Of this process's threads and of the processes that it has seen end."""
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def _slowest(name: str, verdicts: CheckResults) -> dict[str, float]:
    """Seconds of the checks that take the most. Raises CheckError where one fails, for it may then end early."""
    if failed := [check.name for check in verdicts.results if check.passed is False]:
        raise CheckError(
            f"model={name} fails {', '.join(failed)}.",
            "a model that passes its checks.",
            f"see python run.py model={name}.",
        )
    return {check.name: check.seconds for check in sorted(verdicts.results, key=lambda c: -c.seconds)[:SLOWEST]}
