"""One run from start to finish: size, check, train, evaluate, measure, record."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt

from harness.checks.runner import run_checks
from harness.errors import UserError
from harness.evaluation.evaluate import EvaluateConfig, evaluate
from harness.measurement.measure import MeasureConfig, cost, measure
from harness.model import sizing
from harness.model.backbone import LanguageModel, ModelSpec
from harness.model.sizing import SizeConfig
from harness.ops.registry import recording
from harness.records import record
from harness.tasks.task import Task
from harness.training.loggers import Logger
from harness.training.trainer import TrainerConfig, train


class CheckError(UserError):
    """An architecture that broke the contract: its run would not count."""


@dataclass(frozen=True)
class Experiment:
    """Everything one run needs; conf/config.yaml is its configuration."""

    model: ModelSpec
    size: SizeConfig
    task: Task
    trainer: TrainerConfig
    evaluate: EvaluateConfig
    measure: MeasureConfig
    logger: Logger
    seed: NonNegativeInt = 0
    records: str = "runs"
    force: bool = False
    progress: bool = True
    question: str = ""

    def run(self, config: dict, say=print) -> dict:
        """Runs what is not yet recorded and returns the record.

        config: the resolved configuration, recorded and hashed into the run's key. say: receives lines for the user.
        Raises UserError (before training starts) for what a user can mend.
        """
        width = sizing.solve(self.model, self.task.interface, self.size)
        self.trainer.check(self.task)
        names = self._names(config)
        with record.Run.open(Path(self.records), names["name"], config, self.task.digest) as run:
            if self.force:
                run.clear()
            if run.is_finished():
                say(f"Already recorded in {run.path}; force=true runs it again.")
                return run.result()
            torch.manual_seed(self.seed)
            model = self.model.build(self.task.interface, self.size.n_layers, width)
            result = names | {
                "width": {"d_model": width.d_model, "d_ff": width.d_ff, "n_layers": model.n_layers},
                "parameters": sizing.count(model).to_dict(),
                "data": self.task.describe(),
                "checks": self._check(model, run, say),
            }
            self.logger.start(names["name"], run.key, config)
            with recording() as served:
                result |= self._measured(model, run, say)
            result |= {"kernels": served.on(model.head.weight.device), "counts": model.counts()}
            result = run.finish(result)
            self.logger.finish(result)
            return result

    def _names(self, config: dict) -> dict[str, Any]:
        chosen = {group: config[group]["name"] for group in self.model.names if group in config}
        named = [name for group, name in chosen.items() if name != self.model.names[group]]
        parts = [self.model.name, *named, self.size.label, self.task.name, f"seed{self.seed}"]
        return {
            "name": "-".join(parts),
            "model": self.model.name,
            **chosen,
            "size": self.size.label,
            "task": self.task.name,
            "seed": self.seed,
        }

    def _check(self, model: LanguageModel, run: record.Run, say) -> dict:
        say(f"Checking {self.model.name} ...")
        checks = run_checks(model, self.model, self.task.interface, self.size).to_dict()
        run.write_json("checks.json", checks)
        failed = [check for check in checks["results"] if check["passed"] is False]
        if failed:
            raise CheckError(
                f"model={self.model.name} fails {', '.join(check['name'] for check in failed)}: {failed[0]['detail']}",
                "an architecture that keeps the contract of harness/model/mixer.py.",
                f"mend the mixer; every check's figures are in {run.path / 'checks.json'}.",
            )
        return checks

    def _measured(self, model: LanguageModel, run: record.Run, say) -> dict:
        """Trains, evaluates and measures; a diverged run is recorded with neither evaluation nor measurement."""
        training = train(model, self.task, self.trainer, self.seed, run, self.logger, self.progress).to_dict()
        if training["status"] == "diverged":
            return {"status": "diverged", "training": training, "evaluation": None, "measurement": None}
        say("Evaluating ...")
        evaluation = evaluate(model, self.task, self.evaluate, self.trainer.length, self.seed)
        say("Measuring ...")
        measurement = measure(model, self.measure)
        measurement["cost"] = cost(self.measure, measurement, training["tokens_per_second"])
        return {"status": "finished", "training": training, "evaluation": evaluation, "measurement": measurement}
