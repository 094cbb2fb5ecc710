"""A model built anew from its spec in an interpreter started anew, which holds nothing but the numbers it is given.

A fork, or a copy in the same process, also has whatever a model has put elsewhere: in a global variable, an attribute
of a tensor, memory that processes share.
"""

import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Collection
from tempfile import TemporaryFile
from typing import Any, Self

import torch
from torch import Tensor

from harness.model.backbone import LanguageModel


class AnewError(RuntimeError):
    """What the other process did not do, and why."""


class Blueprint:
    """How a model is built and in what environment, as it stands now: what is put into its spec later is no part of it.

    seed: that the model was built under. Raises AnewError for a spec that cannot be pickled: its classes are defined in
    a function, say.
    """

    def __init__(self, model: LanguageModel, seed: int = 0):
        try:
            self.written = pickle.dumps((seed, model.spec, model.interface, model.n_layers, model.width))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AnewError(f"the model cannot be sent to another process ({error})") from error
        # the parent's path, so that plugins are found; not its working directory, which may be anything
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class Anew:
    """The other process, from its start to `close`.

    It builds the model and gives its parameters their numbers, and the buffers that are named, all where None; whatever
    else a model holds is as a build makes it. seconds: what one answer may take.
    """

    def __init__(
        self, blueprint: Blueprint, model: LanguageModel, seconds: float, buffers: Collection[str] | None = None
    ):
        self.seconds, self._awaited = seconds, 0
        chosen = {name: buffer for name, buffer in model.named_buffers() if buffers is None or name in buffers}
        held = dict(model.named_parameters()) | chosen
        # no more of their storages, and nothing that hangs on them
        numbers = {name: tensor.detach().as_subclass(Tensor).cpu().clone() for name, tensor in held.items()}
        where = {"device": model.head.weight.device, "dtype": model.head.weight.dtype}
        self._said = TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=blueprint.environment,
        )  # fmt: skip
        self._write(pickle.dumps((blueprint.written, where, numbers, torch.get_num_threads())))

    def ask(self, function: Callable, *given: Any, seconds: float | None = None) -> Any:
        """What `function` of the model there and of what is given answers.

        function: one that a module defines. seconds: what it may take, None for the process's own. Raises AnewError
        where the process does not answer, and RuntimeError with what the function raised.
        """
        assert self._process.stdout is not None
        limit = seconds or self.seconds
        self._write(pickle.dumps((function, given)))
        self._awaited += 1
        while self._awaited:  # an answer that came too late for its own question comes first
            if not select.select([self._process.stdout], [], [], limit)[0]:
                raise AnewError(f"it took more than {limit:g} s")
            try:
                failure, answer = pickle.load(self._process.stdout)
            except EOFError:
                raise self._ended() from None
            self._awaited -= 1
        if failure is not None:
            raise RuntimeError(f"in another process: {failure}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, content: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(content)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _ended(self) -> AnewError:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        return AnewError(f"the other process ended with {code}: {said[-200:]}")


def _main() -> None:
    """Builds the model and answers until the questions end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks decides
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a model prints is no answer
    written, where, numbers, threads = pickle.load(sys.stdin.buffer)
    seed, *build = pickle.loads(written)
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = LanguageModel(*build).to(**where).eval()
    _fill(model, numbers)
    del numbers
    while True:
        try:
            function, given = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply: tuple[str | None, Any] = None, function(model, *given)
        except Exception as error:  # whatever an architecture under test may raise
            reply = f"{type(error).__name__}: {error}"[:500], None
        pickle.dump(reply, answers)
        answers.flush()


@torch.no_grad()
def _fill(model: LanguageModel, numbers: dict[str, Tensor]) -> None:
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, values in numbers.items():
        if name not in held or held[name].shape != values.shape:
            raise ValueError(f"a build of the model has no {name} of shape {tuple(values.shape)}")
        held[name].copy_(values)


if __name__ == "__main__":
    _main()
