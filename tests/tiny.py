"""A language model and a task small enough to train in a test, and a run of them."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.interface import IGNORE
from harness.model.mixer import Flops, Mixer
from harness.model.mlp import SwiGLU
from harness.ops.registry import Choice
from harness.records.record import Run
from harness.tasks.task import Batch, Task
from harness.training.loggers import NoLogger
from harness.training.trainer import TrainerConfig, train

VOCAB = 13


class LeakySum(Mixer):
    """h_t = decay * h_{t-1} + x_t, y = W dropout(h): a state, a parameter that must not decay, and random numbers."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1, *, dropout: float = 0.0):
        super().__init__(d_model, layer, n_layers)
        self.rate = nn.Parameter(torch.zeros(d_model, 1))
        self.rate._no_weight_decay = True
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, x, state=None, call=None):
        h = self.init_state(x.shape[0], device=x.device, dtype=x.dtype)["h"] if state is None else state["h"]
        decay = torch.sigmoid(self.rate[:, 0])
        outputs = []
        for x_t in x.unbind(1):
            h = decay * h + x_t
            outputs.append(h)
        return self.output(self.dropout(torch.stack(outputs, 1))), {"h": h}

    def step(self, x_t, state, call=None):
        y, state = self.forward(x_t[:, None], state)
        return y[:, 0], state

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {"h": torch.zeros(batch, self.d_model, device=device, dtype=dtype)}

    def flops_per_token(self, context):
        return Flops(2 * self.d_model**2, 2 * self.d_model)


class Counting(Task):
    """x_{t+1} = x_t + 3 mod VOCAB, from a start that depends on the row; the first few positions are not scored."""

    name, vocab_size, metric = "counting", VOCAB, "bits_per_byte"
    digest = "counting-1"

    def tokens(self, split):
        return 1000

    def check(self, batch_size, length):
        pass

    def batch(self, split, index, batch_size, length, seed):
        rows = torch.arange(index * batch_size, (index + 1) * batch_size)  # (B,)
        line = (rows[:, None] * 7 + seed + 3 * torch.arange(length + 1)) % VOCAB  # (B, T + 1)
        targets = line[:, 1:].clone()
        targets[torch.arange(length) < (rows % 3)[:, None]] = IGNORE
        return Batch(line[:, :-1], targets)


CONFIG = {"tokens": 480, "batch_size": 2, "length": 8, "learning_rate": 1e-2, "device": "cpu", "validation_batches": 2}
CONFIG |= {"checkpoint_every": 4, "validate_every": 6, "log_every": 1, "threads": 1}


def config(**changes) -> TrainerConfig:
    """30 updates of 16 tokens."""
    return TrainerConfig(**CONFIG | changes)


def model(dropout: float = 0.0, tie_embeddings: bool = False, seed: int = 0, kernel: Choice = "auto") -> LanguageModel:
    torch.manual_seed(seed)
    parts = partial(LeakySum, dropout=dropout), partial(SwiGLU, kernel=kernel)
    spec = ModelSpec("tiny", *parts, tie_embeddings=tie_embeddings, kernel=kernel)
    return spec.build(VOCAB, 2, Width(8, 12))


def run_once(root: Path, net: LanguageModel | None = None, task=None, seed: int = 0, **changes):
    """Trains under `root`, as the same command would; returns (model, result dict, metrics)."""
    settings = config(**changes)
    net = net or model(dropout=0.2)
    with Run.open(root, "tiny", {"trainer": changes, "seed": seed}, Counting.digest) as run:
        result = train(net, task or Counting(), settings, seed, run, NoLogger(), progress=False)
        return net, result.to_dict(), run.metrics()


def untimed(metrics: list[dict]) -> list[dict]:
    """The lines without what a clock gave."""
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in metrics]
