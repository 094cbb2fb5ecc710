"""What a trained model is worth, by the task's own metric."""

import torch

from harness.evaluation.batches import EvaluateConfig
from harness.tasks.task import Task


def evaluate(model, task: Task, config: EvaluateConfig, train_length: int, seed: int = 0) -> dict:
    """Returns the record's "evaluation" block. train_length: tokens of a training sequence; seed: of the sample."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return task.evaluate(model, config, train_length, seed)
    finally:
        model.train(was_training)
