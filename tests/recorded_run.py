"""A run that was trained and recorded, without the checks and figures that take longer."""

from pathlib import Path

import torch

import configs
import run
from harness.model import sizing
from harness.records.record import Run
from harness.training.loggers import NoLogger
from harness.training.trainer import train

TINY = ("debug=tiny", "size.params=30000", "size.tolerance=0.1", "trainer.tokens=512", "progress=false")


def make(home: Path, *overrides: str) -> Path:
    """The folder, below `home`, of a run of two updates on a text."""
    (home / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    config = configs.resolved(*TINY, "task=text", f"task.path={home / 'corpus.txt'}", *overrides)
    made = run.build(run.own_keys(config))
    width = sizing.solve(made.model, made.task.interface, made.size)
    torch.manual_seed(made.seed)
    model = made.model.build(made.task.interface, made.size.n_layers, width)
    with Run.open(home / "runs", made.model.name, config, made.task.digest) as opened:
        trained = train(model, made.task, made.trainer, made.seed, opened, NoLogger(), progress=False)
        shape = width._asdict() | {"n_layers": model.n_layers}
        opened.finish({"status": "finished", "width": shape, "training": trained.to_dict()})
    return opened.path
