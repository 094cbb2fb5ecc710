"""The one training loop. Budgets are counted in tokens and optimizer updates."""

import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.config.errors import UserError
from harness.machine import processes
from harness.machine.energy import EnergyMeter
from harness.machine.hardware import memory_errors_told
from harness.machine.load import LoadMeter
from harness.machine.memory import Increase, reused_memory
from harness.machine.runtime import make_accelerator, seed_all, use_threads
from harness.machine.signals import Held, held_back
from harness.model.backbone import LanguageModel
from harness.model.flops import train_flops_per_token
from harness.records import weights
from harness.records.code import changed_modules, listed
from harness.records.record import Run
from harness.tasks.task import Batch, Task
from harness.training import checkpoint, optimizer, sharing
from harness.training.config import TrainerConfig
from harness.training.ledger import FINAL_UPDATES, Ledger, TrainingResult
from harness.training.loggers import Logger
from harness.training.progress import TrainingProgress

LESS_MEMORY = (
    "lower trainer.batch_size or trainer.length (trainer.accumulate raised as much keeps the tokens of an update), "
    "choose a smaller size.params, or free memory; then the same command goes on."
)


def train(
    model: LanguageModel,
    task: Task,
    config: TrainerConfig,
    seed: int,
    run: Run | None,
    logger: Logger,
    progress: bool = True,
) -> TrainingResult:
    """Trains `model` in place, from the run's checkpoint where it has one, and leaves it on the training device.

    run: None where another process records, with which this one trains (harness/machine/processes.py). Divergence is a
    result, not an error. A signal to stop (SIGINT, SIGTERM) takes effect once the update is made and its checkpoint is
    on the disk. Raises UserError (see TrainerConfig.check), CheckpointError, and MachineError where
    memory does not suffice.
    """
    config.check(task)
    use_threads(config.threads)
    if run is not None:
        run.describe()
    trainer = Trainer(model, task, config, seed, run, logger)
    ledger = trainer.resume()
    with (
        memory_errors_told(f"Training on {trainer.device.type} ({config.shape})", LESS_MEMORY),
        reused_memory(),
        held_back() as signals,
        TrainingProgress(progress, config.updates, ledger.update, in_nats=task.targets.in_nats) as display,
    ):
        memory = Increase(trainer.device)
        while ledger.update < config.updates and ledger.divergence is None:
            with EnergyMeter(trainer.device) as meter, LoadMeter() as load:
                trainer.advance(display, signals)
            ledger.meter(meter.joules, memory.bytes())
            ledger.meter_load(load)
            if ledger.divergence is None:
                trainer.save()
                if signals.number is not None:
                    display.note(f"Told to stop: update {ledger.update:,} of {config.updates:,} is on the disk.")
            signals.deliver()
    trainer.accelerator.end_training()  # several processes part here
    model.zero_grad()  # what comes next needs the weights alone
    return trainer.result()


class Trainer:
    """The parts of training; `train` says in which order they run."""

    def __init__(
        self, model: LanguageModel, task: Task, config: TrainerConfig, seed: int, run: Run | None, logger: Logger
    ):
        self.task, self.config, self.seed, self.run, self.logger = task, config, seed, run, logger
        self.accelerator = make_accelerator(config.device, config.precision, config.accumulate)
        self.device = self.accelerator.device
        self.model = model.to(self.device).train()
        self.model.recompute = config.recompute
        self.rows = processes.rows(config.batch_size)
        self.ledger = Ledger()
        self.lost_lines = 0
        self.snapshot_updates = config.snapshot_updates

    def prepare(self) -> None:
        """Makes of the model as it stands what is trained, and its optimizer."""
        config = self.config
        groups = optimizer.parameter_groups(self.model, config.weight_decay)
        self.group_reports = optimizer.report(groups)
        self.trained = sharing.shared(self.model, self.accelerator, config.shard)
        groups = sharing.matching(groups, self.model, self.trained)
        betas = (config.beta1, config.beta2)
        adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.epsilon, fused=True)
        self.optimizer = self.accelerator.prepare(adamw)
        self.parameters = [p for group in groups for p in group["params"]]

    def resume(self) -> Ledger:
        """Takes up the run's checkpoint, or starts from the seed; later lines of metrics.jsonl are dropped.

        Raises CheckpointError where the checkpoint cannot be read, or was made by code that is another today: half a
        training by each would be nobody's figures.
        """
        run = self.run
        saved = None if run is None else checkpoint.load(run.path / checkpoint.NAME, run.key)
        saved = processes.from_first(saved, self.device.type)
        if saved is None:
            self.prepare()
            seed_all(self.seed)
        elif changed := changed_modules(saved.get("code")):
            why = f"it was made by older code, for {listed(changed)} changed since"
            raise self.unusable(why)
        else:
            try:
                self.model.load_state_dict(saved["model"])
                self.prepare()
                self.optimizer.load_state_dict(sharing.in_parts(saved["optimizer"], self.parameters))
                self.ledger = Ledger(**saved["ledger"])
                checkpoint.restore_random_state(saved["random"])
            except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                why = f"it does not fit this model ({' '.join(str(error).split())[:120]})"
                raise self.unusable(why) from error
        if run is not None:
            self.lost_lines = max(0, self.ledger.lines - run.truncate_metrics(self.ledger.update))
        return self.ledger

    def unusable(self, why: str) -> UserError:
        """The error for a checkpoint that training cannot go on from."""
        return checkpoint.unusable((Path() if self.run is None else self.run.path) / checkpoint.NAME, why)

    def save(self) -> None:
        """Writes the checkpoint; the model has the weights of this moment."""
        sharing.gather(self.trained, self.model)
        kept = {"model": self.model.state_dict(), "optimizer": sharing.whole(self.optimizer.state_dict())}
        if self.run is None:
            return
        content = kept | {"ledger": self.ledger.to_dict(), "code": self.run.code}
        checkpoint.save(self.run.path / checkpoint.NAME, self.run.key, content)

    def keep(self) -> None:
        """Writes the weights of this moment beside the checkpoint, where they stay."""
        sharing.gather(self.trained, self.model)
        if self.run is not None:
            weights.save(weights.snapshot(self.run.path, self.ledger.update), self.model.state_dict())

    def advance(self, display: TrainingProgress, signals: Held) -> None:
        """Makes updates up to the next checkpoint, to divergence or to a signal; validates and logs where it is due."""
        config, ledger = self.config, self.ledger
        while ledger.update < config.updates:
            start = time.perf_counter()
            rate = config.learning_rate_at(ledger.update)
            loss, norm = self.gradients(ledger.update)
            ledger.divergence = ledger.judge(loss, norm, config.divergence_norm, config.divergence_patience)
            if ledger.divergence is not None:
                display.note(f"Diverged at update {ledger.divergence.update}: {ledger.divergence.reason}.")
                return self.log({"update": ledger.divergence.update, "loss": loss, "gradient_norm": norm})
            self.apply(rate)
            ledger.add(loss, time.perf_counter() - start)
            if ledger.update in self.snapshot_updates:
                self.keep()
            display.advance(ledger.update, loss, config.tokens_per_update / ledger.update_seconds[-1])
            if ledger.update % config.log_every == 0 or ledger.update in (1, config.updates):
                self.log(self.figures() | {"gradient_norm": norm, "learning_rate": rate})
            if config.validate_every and ledger.update % config.validate_every == 0:
                loss = self.validate()
                shown = f"{loss / math.log(2):.3f} bits/token" if self.task.targets.in_nats else f"loss {loss:.4g}"
                display.note(f"update {ledger.update:,}: validation {shown}")
                self.log({"update": ledger.update, "validation_loss": loss})
            signals.number = self.stop_signal(signals.number)
            if ledger.update % config.checkpoint_every == 0 or signals.number is not None:
                return None
        return None

    def gradients(self, update: int) -> tuple[float, float]:
        """Leaves the gradients of one update; returns its loss (per scored target) and their norm before clipping.

        The loss is the mean over the scored targets of all its batches together, so accumulation changes nothing.
        """
        config = self.config
        indices = range(update * config.accumulate, (update + 1) * config.accumulate)
        batches = [self.task.batch("train", i, config.batch_size, config.length, self.seed) for i in indices]
        scored = max(1, sum(map(self.task.scored, batches)))
        total = 0.0
        self.optimizer.zero_grad()
        for batch in batches:
            with self.accelerator.accumulate(self.trained):
                loss = self.loss_sum(self.trained, batch) / scored
                # which divides by the number of batches, and averages over the processes
                self.accelerator.backward(loss * config.accumulate * processes.count())
            total += loss.item()
        norm = self.accelerator.clip_grad_norm_(self.parameters, config.clip_norm or math.inf)
        return self.gathered(total).sum().item(), sharing.number(norm)

    def apply(self, rate: float) -> None:
        """Makes the update at this learning rate of the schedule."""
        optimizer.set_rate(self.optimizer.param_groups, rate)
        self.optimizer.step()

    def loss_sum(self, model: nn.Module, batch: Batch) -> Tensor:
        """The task's loss, summed over what it scores in the rows of this process."""
        batch = batch.rows(self.rows).to(self.device)
        with self.accelerator.autocast():
            outputs = batch.read(model)  # (B, T, out_width)
        return self.task.loss(outputs, batch)

    def validate(self) -> float:
        """Returns the loss (per scored target) over the first batches of the validation split."""
        config, total, scored = self.config, 0.0, 0
        self.trained.eval()
        with torch.no_grad():
            for index in range(config.validation_batches):
                batch = self.task.batch("validation", index, config.batch_size, config.length, self.seed)
                total += self.loss_sum(self.trained, batch).item()
                scored += self.task.scored(batch)
        self.trained.train()
        return self.gathered(total).sum().item() / max(1, scored)

    def gathered(self, value: float) -> Tensor:
        """Every process's value: (processes,)."""
        own = torch.tensor([value], dtype=torch.float64, device=self.device)
        return self.accelerator.gather(own) if processes.count() > 1 else own

    def stop_signal(self, number: int | None) -> int | None:
        """A signal that any of the processes was sent, if one was: all of them stop behind the same update."""
        return number if processes.count() == 1 else int(self.gathered(number or 0).max()) or None

    def figures(self) -> dict:
        """The training figures since the last logged line."""
        ledger, config = self.ledger, self.config
        since = (ledger.update - 1) % config.log_every + 1
        loss, seconds = ledger.mean_loss(since), sum(ledger.update_seconds[-since:])
        in_bits = {"bits_per_token": loss / math.log(2)} if loss is not None and self.task.targets.in_nats else {}
        return {
            "update": ledger.update,
            "tokens": ledger.update * config.tokens_per_update,
            "loss": loss,
            **in_bits,
            "tokens_per_second": since * config.tokens_per_update / seconds,
        }

    def log(self, line: dict) -> None:
        """Sends one line of metrics to the record and to the logger."""
        if self.run is None:
            return
        self.run.log(line)
        self.ledger.lines += 1
        self.logger.log({key: value for key, value in line.items() if key != "update"}, line["update"])

    def result(self) -> TrainingResult:
        """The training block of the record."""
        ledger, config = self.ledger, self.config
        tokens = ledger.update * config.tokens_per_update
        pace = ledger.median_seconds()
        return TrainingResult(
            status="finished" if ledger.divergence is None else "diverged",
            processes=processes.count(),
            updates=ledger.update,
            tokens=tokens,
            epochs=self.task.epochs(tokens),
            seconds=sum(ledger.update_seconds),
            tokens_per_second=config.tokens_per_update / pace if pace else None,
            load=ledger.load,
            final_loss=ledger.mean_loss(FINAL_UPDATES),
            flops_per_token=train_flops_per_token(self.model, config.length),
            peak_memory_bytes=ledger.peak_memory_bytes,
            energy_joules=ledger.energy_joules,
            optimizer_groups=self.group_reports,
            lost_lines=self.lost_lines,
            divergence=ledger.divergence,
        )
