"""One run from start to finish: size, check, train, evaluate, measure, record."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from harness.checks.anew import CheckAnew
from harness.checks.conditions import Conditions
from harness.checks.runner import CheckResults, run_checks
from harness.checks.trained import Memory, Watch, check_trained
from harness.config.errors import UserError
from harness.config.ranges import PathName, Seed
from harness.evaluation.evaluate import EvaluateConfig, evaluate
from harness.evaluation.passage import observing
from harness.machine import processes
from harness.machine.hardware import memory_errors_told
from harness.machine.load import LoadMeter
from harness.measurement.measure import MeasureConfig, cost, measure
from harness.model import sizing
from harness.model.backbone import LanguageModel, ModelSpec
from harness.model.sizing import SizeConfig, Width
from harness.ops.registry import OPERATIONS, recording
from harness.records import code, curve, record
from harness.tasks.task import Batch, Task
from harness.training import checkpoint
from harness.training.loggers import Logger, NoLogger
from harness.training.trainer import TrainerConfig, train

TRAIN_ANEW = "mend the mixer and give force=true, for its checkpoint was trained by what failed"


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
    seed: Seed = 0
    records: PathName = "runs"
    force: bool | Literal["stale"] = False
    progress: bool = True
    question: str = ""

    def run(self, config: dict, say=print) -> dict:
        """Runs what is not yet recorded and returns the record.

        config: the resolved configuration, recorded and hashed into the run's key with the budget in tokens, however it
        was stated. say: receives lines for the user. force: makes a finished run again, always or (stale) where code
        that made it is another today. Raises UserError, before training starts where that can be, for what a user can
        mend.
        """
        trainer = self.trainer.resolved(self.size.params, self.task)
        if trainer != self.trainer:
            config = config | {"trainer": config["trainer"] | trainer.budget}
            return replace(self, trainer=trainer).run(config, say)
        code.remember()
        width = sizing.solve(self.model, self.task.interface, self.size)
        self.trainer.check(self.task)
        for remark in [*processes.remarks(), *self.task.remarks()]:
            say(remark)
        names = self._names(config)
        if processes.rank() > 0:
            self._train_along(width)
        with record.Run.open(Path(self.records), names["name"], config, self.task.digest) as run:
            if self.force is True or (self.force == "stale" and _is_stale(run)):
                run.clear()
            if run.is_finished():
                recorded = run.result()
                processes.from_first(False, self.trainer.device_type)
                say(_already_recorded(run.path, recorded))
                return recorded
            if (run.path / record.REFUSED).exists():
                self._refuse_failed(json.loads((run.path / record.REFUSED).read_text())["checks"], run, TRAIN_ANEW)
            torch.manual_seed(self.seed)
            model = self.model.build(self.task.interface, self.size.n_layers, width)
            result = names | {
                "width": width._asdict() | {"n_layers": model.n_layers},
                "parameters": sizing.count(model).to_dict(),
                "data": self.task.describe(),
                "context_policy": self.evaluate.policy(self.trainer.length).describe(model),
                "checks": self._check(model, run, say),
            }
            run.code = code.describe(config, _modules_of_kernels(_candidates(config), self.trainer.device_type))
            self.logger.start(names["name"], run.key, config)
            processes.from_first(True, self.trainer.device_type)
            with recording(say) as served:
                result = self._measured(model, run, result, say)
            device = model.head.weight.device
            kernels = served.on(device)
            result |= {"kernels": kernels, "counts": model.counts()}
            result["code"] = code.describe(config, _modules_of_kernels(kernels, device.type))
            result = run.finish(result)
            self.logger.finish(result)
            return result

    def _train_along(self, width: Width) -> NoReturn:
        """The part of a process that trains with another one, which records: it waits for that one, and then ends."""
        if processes.from_first(False, self.trainer.device_type):
            torch.manual_seed(self.seed)
            model = self.model.build(self.task.interface, self.size.n_layers, width)
            train(model, self.task, self.trainer, self.seed, None, NoLogger(), progress=False)
        raise SystemExit

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
        checks = run_checks(model, self.model, self.task.interface, self.size, 0, self._conditions()).to_dict()
        run.write_json("checks.json", checks)
        self._refuse_failed(checks, run)
        return checks

    def _refuse_failed(self, checks: dict, run: record.Run, remedy: str = "mend the mixer") -> None:
        failed = [check for check in checks["results"] if check["passed"] is False]
        if failed:
            raise CheckError(
                f"model={self.model.name} fails {', '.join(check['name'] for check in failed)}: {failed[0]['detail']}",
                "an architecture that keeps the contract of harness/model/mixer.py.",
                f"{remedy}; every check's figures are in {run.path / 'checks.json'}.",
            )

    def _check_trained(self, checks: dict, trained: CheckResults, run: record.Run, evidence: dict) -> dict:
        """The checks before and after training as one; a run that fails leaves its evidence, and never a result."""
        after = trained.to_dict()
        checks = {"passed": checks["passed"] and after["passed"], "results": [*checks["results"], *after["results"]]}
        run.write_json("checks.json", checks)
        if not checks["passed"]:
            run.write_json(record.REFUSED, evidence | {"status": "refused", "checks": checks})
        self._refuse_failed(checks, run, TRAIN_ANEW)
        return checks

    def _conditions(self) -> Conditions:
        """The batches of this run, as the checks meet them."""
        trainer = self.trainer

        def batch(index: int) -> Batch:
            return self.task.batch("train", index, trainer.batch_size, trainer.length, self.seed)

        return Conditions(trainer.length, trainer.batch_size, trainer.precision, trainer.device_type, batch)

    def _measured(self, model: LanguageModel, run: record.Run, result: dict, say) -> dict:
        """Trains, evaluates, checks again and measures; a diverged run is recorded with training alone."""
        before = Memory(model, self.seed)
        training = train(model, self.task, self.trainer, self.seed, run, self.logger, self.progress).to_dict()
        if training["status"] == "diverged":
            return result | {"status": "diverged", "training": training, "evaluation": None, "measurement": None}
        if lost := training["lost_lines"]:
            say(f"{run.path / 'metrics.jsonl'} has lost {lost} lines: the curve of this run has a gap.")
        say("Evaluating ...")
        with memory_errors_told("Evaluation", "lower evaluate.streams, or free memory; then the same command goes on."):
            with observing(watch := Watch()):
                evaluation = evaluate(model, self.task, self.evaluate, self.trainer.length, self.seed)
            result = result | {"training": training, "evaluation": evaluation}
            say("Checking the trained model ...")
            trained = check_trained(model, self.task, watch, before, self._conditions())
        checks = self._check_trained(result["checks"], trained, run, result)
        with CheckAnew(model, before, self.trainer.tokens or 0) as anew:
            say("Measuring ...")
            with LoadMeter() as meter:
                measurement = measure(model, self.measure, self.evaluate.policy(self.trainer.length), anew.process)
            measurement["load"] = asdict(meter.load)
            measurement["cost"] = cost(self.measure, measurement, training["tokens_per_second"])
            again = anew.check(self.task, watch, self._conditions())
        result["checks"] = self._check_trained(checks, again, run, result | {"measurement": measurement})
        return result | {"status": "finished", "measurement": measurement}


def _is_stale(run: record.Run) -> bool:
    """Whether code that made a finished run, or an unfinished run's checkpoint, is another today or not known."""
    if run.is_finished():
        made = run.result().get("code")
        return made is None or bool(code.changed_modules(made))
    saved = checkpoint.load(run.path / checkpoint.NAME, run.key)
    return saved is not None and bool(code.changed_modules(saved.get("code")))


def _already_recorded(path: Path, recorded: dict) -> str:
    """What is said of a finished run that is asked for again."""
    made, told = recorded.get("code"), f"Already recorded in {path}"
    if not curve.kept(path):
        told += " (its metrics are lost, so it has no curve)"
    if changed := code.changed_modules(made):
        return f"{told} by older code: {code.listed(changed)} changed since; force=stale repeats it."
    if made is None:
        return f"{told}, which does not say by what code; force=stale repeats it."
    return f"{told}; force=true runs it again."


def _candidates(config: dict) -> dict[str, list[str]]:
    """All backends of the operations that this run may call, by operation."""
    reached = code.describe(config)["modules"]
    called = [operation for operation in OPERATIONS.values() if operation.reference.__module__ in reached]
    return {operation.name: [kernel.backend for kernel in operation.kernels] for operation in called}


def _modules_of_kernels(backends: dict[str, list[str]], device: str) -> set[str]:
    """The modules of these backends (by operation) on this type of device."""
    kernels = [
        kernel for name, named in backends.items() for kernel in OPERATIONS[name].kernels if kernel.backend in named
    ]
    return {kernel.path.partition(":")[0] for kernel in kernels if kernel.device == device}
