"""What a trained model is worth, by the task's own metric: how much is evaluated, and tasks that are batches.

A task imports this module, and not the reverse: `task` below is a harness.tasks.task.Task.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from harness.config.ranges import Batch, Count, Factors, Probability, ScoredBytes, Temperature, Tokens
from harness.evaluation.passage import Passage, observe
from harness.model.context import Context, ContextPolicy
from harness.model.interface import Tokens as TokenIds

EVALUATION_SEED = 0
"""Every run is evaluated on the same examples, whatever its own seed."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How much is evaluated, and with how much context.

    context: tokens that a state which grows keeps, for the losses of the splits, for the text that is generated and for
    the measurement alike (harness/model/context.py): train (the training length), full, or a number.
    streams: rows that a split is cut into, advanced side by side; also the train-length sequences of one batch.
    max_bytes: of each split, None for all of it. position_buckets, position_bytes: buckets, and bytes read for them.
    length_factors: lengths evaluated, in training lengths. extrapolation_bytes: read at the longest length.
    synthetic_examples: examples of a synthetic task at each length, beyond the trained one fewer where these would be
    more than extrapolation_bytes tokens. sample_*: the text that is generated.
    """

    context: Context = "train"
    streams: Batch = 16
    max_bytes: ScoredBytes | None = None
    position_buckets: Count = 10
    position_bytes: Tokens = 131_072
    length_factors: Factors = (1, 2, 4, 8)
    extrapolation_bytes: Tokens = 131_072
    synthetic_examples: Count = 256
    sample_prompt_bytes: Count = 64
    sample_bytes: Count = 256
    sample_temperature: Temperature = 0.8
    sample_top_p: Probability = 0.95

    def policy(self, train_length: int) -> ContextPolicy:
        """The context policy of a run with this training length."""
        return ContextPolicy.of(self.context, train_length)


def evaluate(model, task: Any, config: EvaluateConfig, train_length: int, seed: int = 0) -> dict:
    """Returns the record's "evaluation" block. train_length: tokens of a training sequence; seed: of the sample."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return task.evaluate(model, config, train_length, seed)
    finally:
        model.train(was_training)


def by_batches(model, task: Any, config: EvaluateConfig, train_length: int) -> dict:
    """The figures of validation and test at the training length, and of test at every length (`extrapolation`)."""
    result: dict = {split: _figures(model, task, split, config, train_length) for split in ("validation", "test")}
    result["extrapolation"] = [
        {"length": factor * train_length, **_figures(model, task, "test", config, train_length, factor)}
        for factor in config.length_factors
    ]
    return result


def _figures(model, task: Any, split: str, config: EvaluateConfig, train_length: int, factor: int = 1) -> dict:
    """The metric and the loss, means over the scored targets, and how many those are.

    Of an accuracy of tokens, `sequence_accuracy` too: the share of sequences whose scored targets are all right.
    """
    device, length = next(model.parameters()).device, factor * train_length
    examples = config.synthetic_examples
    if factor > 1:
        examples = max(1, min(examples, config.extrapolation_bytes // length))
    batch_size = max(1, min(config.streams // factor, examples))
    loss = torch.zeros((), dtype=torch.float64, device=device)
    scored, total, right, asked = 0, 0.0, 0, 0
    of_sequences = task.metric == "accuracy" and isinstance(task.targets, TokenIds)
    count = math.ceil(examples / batch_size)
    for index in range(count):
        batch = task.batch(split, index, batch_size, length, EVALUATION_SEED).to(device)
        outputs = batch.read(model)
        if split == "test":
            observe(Passage(index, count, batch, outputs, main=factor == 1))
        loss += task.loss(outputs, batch).double()
        scored += task.scored(batch)
        total += task.total(outputs, batch)
        if of_sequences:
            whole, rows = task.targets.whole(outputs, batch.targets)
            right, asked = right + whole, asked + rows
    figures = {task.metric: total / scored, "loss": loss.item() / scored, "targets": scored}
    return figures | ({"sequence_accuracy": right / asked} if of_sequences else {})
