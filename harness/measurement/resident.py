"""What generation adds to the resident memory of a process that holds nothing but the model.

A process that has trained and evaluated holds freed memory of both, which says nothing of generation. So another one
loads the model, generates once from an empty state, notes its resident memory, and generates from each context in turn.
"""

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from harness.generation.decode import Decoder
from harness.machine.memory import Increase
from harness.model.backbone import LanguageModel
from harness.model.context import ContextPolicy

STEPS = 8
"""Tokens generated behind a context: the first few take what every later one takes anew."""


@dataclass(frozen=True)
class Generation:
    """What is generated: a few tokens of each of `batch` sequences behind each of `contexts`, which rise."""

    batch: int
    contexts: list[int]
    policy: ContextPolicy


def generation_memory(model: LanguageModel, what: Generation, seconds: float) -> list[int] | str:
    """Bytes that generation adds to the loaded model at its peak, for each context; else why it was not measured.

    seconds: the most that the other process may take. Of a model that cannot be sent to one (its classes are defined
    in a function, say) nothing is measured.
    """
    with TemporaryDirectory() as folder:
        task, answer = Path(folder) / "task.pickle", Path(folder) / "answer.pickle"
        try:
            task.write_bytes(pickle.dumps((*_described(model), what, torch.get_num_threads())))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            return f"the model cannot be sent to another process ({error})"
        # the parent's path, so that plugins are found; not its working directory, which may be anything
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", __name__, str(task), str(answer)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return f"it took more than {seconds:g} s"
        if done.returncode or not answer.exists():
            return f"the other process ended with {done.returncode}: {done.stderr.strip()[-200:]}"
        return pickle.loads(answer.read_bytes())


def _described(model: LanguageModel) -> tuple:
    weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return model.spec, model.interface, model.n_layers, model.width, model.head.weight.dtype, weights


@torch.inference_mode()
def _increases(model: LanguageModel, what: Generation) -> list[int] | str:
    """The peaks over the loaded model, in this process. The contexts rise, so each peak is its own context's."""
    _generate(model, what, 0)
    increase, found = Increase(), []
    for context in sorted(what.contexts):
        _generate(model, what, context)
        found.append(increase.bytes())
    known = [peak for peak in found if peak is not None]
    return known if len(known) == len(found) else "this system does not let the peak of a process's memory be reset"


def _generate(model: LanguageModel, what: Generation, context: int) -> None:
    token = model.interface.inputs.random(what.batch, 1, torch.Generator().manual_seed(0))[:, 0]
    decoder = Decoder(model, model.init_state(what.batch, what.policy.held(context)), what.policy, context)
    for _ in range(STEPS):
        token = model.interface.following(decoder.step(token), token)


def _main(task: str, answer: str) -> None:
    spec, interface, n_layers, width, dtype, weights, what, threads = pickle.loads(Path(task).read_bytes())
    torch.set_num_threads(threads)
    model = LanguageModel(spec, interface, n_layers, width).to(dtype).eval()
    model.load_state_dict(weights)
    del weights
    Path(answer).write_bytes(pickle.dumps(_increases(model, what)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
