"""Trained models in users' hands: `harness.load` reads a record, and what it returns generates.

    model = harness.load("runs/ltc-rk4-checkpoint-1m-sotu-seed0-6e7427f1f58441ce")
    for piece in model.generate("The Senate and House", max_new_tokens=200, temperature=0.8, top_p=0.95):
        print(piece, end="", flush=True)

docs/api.md lists the public names.
"""

import codecs
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.config.configure import build, checked
from harness.config.errors import CheckpointError, ConfigError, RecordError
from harness.generation.decode import Decoder
from harness.generation.generate import choose, read
from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.context import ContextPolicy
from harness.model.interface import Interface, Tokens
from harness.model.state import State
from harness.records import recorded, weights
from harness.tasks.task import Task
from harness.tasks.text import TextTask
from harness.training import checkpoint

Prompt = str | bytes | Sequence[int] | Tensor
"""A text, or token ids (T,)."""
Shown = Callable[[int, bool], str | int | None]
"""What a generation yields for a token, the last one or not; None for nothing yet."""
CHUNK = 2048
"""Tokens of a prompt that are read at once."""
MOST_TOKENS = 2**24


@dataclass(frozen=True)
class Past:
    """What a generation leaves to one that goes on from it.

    state: what the model remembers, of batch 1. read: the tokens that it has read. last: a token that was generated and
    is still to be read; None for none.
    """

    state: State
    read: int
    last: int | None = None


class Generation:
    """An iterator over what a model generates: pieces of text, or token ids where the prompt was ids.

    tokens: the ids generated so far.
    """

    def __init__(
        self, steps: Iterator[int], decoder: Decoder, show: Callable[[int, bool], str | int | None], count: int
    ):
        self.tokens: list[int] = []
        self._steps, self._decoder, self._show, self._count = steps, decoder, show, count

    @property
    def state(self) -> State:
        """What the model remembers of all tokens that it has read, the last one generated not among them."""
        return self._decoder.state

    @property
    def past(self) -> Past:
        """What goes on from here: `generate(..., after=generation.past)`. It stays as it is when this goes on."""
        return Past(self._decoder.state, self._decoder.read, self.tokens[-1] if self.tokens else None)

    def __iter__(self) -> "Generation":
        return self

    def __next__(self) -> str | int:
        while True:
            self.tokens.append(next(self._steps))
            piece = self._show(self.tokens[-1], len(self.tokens) == self._count)
            if piece is not None:
                return piece


@dataclass(frozen=True)
class TrainedModel:
    """A model with its trained weights, and the record that tells how it came by them.

    model: in evaluation mode, on the CPU until `to` moves it. config: of the run, as it was resolved. result: the
    record. policy: how much of the past a state that grows keeps, as in the run's evaluation. reads_text: whether its
    tokens are the bytes of a text.
    """

    model: LanguageModel
    config: dict
    result: dict
    policy: ContextPolicy
    reads_text: bool
    path: Path

    def to(self, device: torch.device | str) -> "TrainedModel":
        """Moves the model to a device."""
        self.model.to(device)
        return self

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        after: Past | None = None,
    ) -> Generation:
        """Continues a prompt, token by token: an iterator over pieces of text, or over ids where the prompt is ids.

        temperature: 0 takes the likeliest token. top_k, top_p: sample among the k likeliest, and among the likeliest
        whose probabilities reach p. The seed decides the draws. after: where an earlier generation of this model ended;
        the prompt is read behind it, and may be empty where a token is still to be read. A piece of text ends with a
        whole character; what can become none shows as the replacement character. Raises ConfigError for values out of
        their ranges.
        """
        _check(max_new_tokens, temperature, top_k, top_p)
        text = isinstance(prompt, str | bytes)
        tokens = self._tokens(prompt, after)
        generator = torch.Generator().manual_seed(seed)
        before, known = (0, None) if after is None else (after.read, after.state)
        with torch.inference_mode():
            logits, state = read(self.model, tokens[None], CHUNK, self.policy, known, before)
        decoder = Decoder(self.model, state, self.policy, before + len(tokens))

        def steps() -> Iterator[int]:
            outputs = logits
            for left in range(max_new_tokens - 1, -1, -1):
                with torch.inference_mode():
                    token = choose(outputs, temperature, top_p, top_k, generator)
                yield int(token)
                if left:
                    outputs = decoder.step(token)

        return Generation(steps(), decoder, _Characters() if text else _as_it_is, max_new_tokens)

    def _tokens(self, prompt: Prompt, after: Past | None) -> Tensor:
        """The ids (T,) of a prompt, behind the one that is still to be read, on the model's device."""
        inputs = self.model.interface.inputs
        if not (self.model.interface.language and isinstance(inputs, Tokens)):
            raise ConfigError(
                f"The model of {self.path} says no next token: it reads {inputs}.",
                "a model trained on text or on tokens of one vocabulary.",
                "call its `model` with the task's inputs.",
            )
        if isinstance(prompt, str | bytes):
            if not self.reads_text:
                raise ConfigError(
                    f"The model of {self.path} was trained on {self.config['task']['name']}, which is no text.",
                    f"a prompt of token ids below {inputs.vocab_size}.",
                    "give a list of ids.",
                )
            prompt = list(prompt.encode() if isinstance(prompt, str) else prompt)
        tokens = torch.as_tensor(prompt, dtype=torch.long)
        if after is not None and after.last is not None and tokens.dim() == 1:
            tokens = torch.cat([tokens.new_tensor([after.last]), tokens])
        if tokens.dim() != 1 or len(tokens) == 0 or int(tokens.min()) < 0 or int(tokens.max()) >= inputs.vocab_size:
            raise ConfigError(
                f"A prompt of shape {tuple(tokens.shape)} cannot be continued.",
                f"at least one token, each an id below {inputs.vocab_size}.",
                "begin with a character, such as a newline.",
            )
        return tokens.to(self.model.head.weight.device)


def load(path: str | Path, update: int | None = None) -> TrainedModel:
    """Reads a finished run's folder: its model with the trained weights, its configuration and its record.

    update: takes the weights behind this one instead, which trainer.snapshots keeps, of a diverged run too.

    Nothing in the folder is trusted: weights are read from safetensors, or from a checkpoint without its code, and the
    configuration may name classes of LiquidBench alone. Raises RecordError for what is no finished run or holds no
    weights, CheckpointError for weights that are damaged or fit another model, and ConfigError for a configuration that
    today's code does not take.
    """
    folder = Path(path)
    config, result = recorded.config(folder), recorded.result(folder)
    tensors = _weights(folder, result) if update is None else _snapshot(folder, update)
    task: Task = build(checked(config.get("task", {}), "task", annotation=Task))
    try:
        width = Width(*(result["width"].get(name) for name in Width._fields))
        policy = ContextPolicy.of(config["evaluate"]["context"], config["trainer"]["length"])
        model = build_model(config["model"], task.interface, result["width"]["n_layers"], width, config["seed"])
    except (AttributeError, KeyError, TypeError) as error:
        raise RecordError(
            f"The record {folder} lacks what its model is built from ({type(error).__name__}: {error}).",
            "config.json and result.json as a run of this version wrote them.",
            f"make the run again: python -m harness.records.again {folder}",
        ) from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {folder} do not fit its model: {' '.join(str(error).split())[:300]}.",
            "weights of this run, made by code that builds the same model.",
            f"make the run again: python -m harness.records.again {folder}",
        ) from error
    return TrainedModel(model.eval(), config, result, policy, isinstance(task, TextTask), folder)


def build_model(node: dict, interface: Interface | int, n_layers: int, width: Width, seed: int = 0) -> LanguageModel:
    """The untrained model of a configuration's `model`, as a run with this seed starts from it.

    interface: what it reads and says; a number for a language model of that vocabulary. n_layers: of the model.
    The global random generators are left as they are. Raises ConfigError for a node that cannot be used, and
    RecordError for one that names code outside LiquidBench.
    """
    recorded.trust(node, "The model's configuration")
    plugins = os.environ.get("LIQUIDBENCH_PLUGINS")
    if plugins and plugins not in sys.path:
        sys.path.append(plugins)
    spec: ModelSpec = build(checked(node, "model", annotation=ModelSpec))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return spec.build(interface, n_layers // spec.block.depth_factor, width)


def _weights(folder: Path, result: dict) -> dict[str, Tensor]:
    """The trained weights in a run's folder: the file that the record names, else its last checkpoint."""
    if result.get("status") != "finished":
        raise RecordError(
            f"The run {folder} is {result.get('status')}: it has no trained model.",
            "a run that trained to its end.",
            "load another run, or make this one again with a lower trainer.learning_rate.",
        )
    path = folder / weights.NAME
    if path.exists():
        kept = result.get("weights")
        return weights.load(path, kept.get("sha256") if isinstance(kept, dict) else None)
    saved = checkpoint.load(folder / checkpoint.NAME, str(result.get("key")))
    if saved is None:
        raise RecordError(
            f"The record {folder} holds no weights: {path} is not there.",
            "the folder that the run itself wrote; a record that was committed or copied is text alone.",
            f"make the run again, with weights, below runs/: python -m harness.records.again {folder}",
        )
    return saved["model"]


def _snapshot(folder: Path, update: int) -> dict[str, Tensor]:
    """The weights in a run's folder behind an update."""
    kept = weights.snapshots(folder)
    if update not in kept:
        raise RecordError(
            f"The run {folder} has no weights of update {update}.",
            f"one of {', '.join(map(str, kept))}." if kept else "a run made with trainer.snapshots=N, N above 0.",
            "name such an update, or make the run again with snapshots: "
            f"python run.py ... force=true trainer.snapshots=8 ({folder / 'config.json'} says of what).",
        )
    return weights.load(kept[update])


class _Characters:
    """Bytes to text, a whole character at a time."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, token: int, last: bool) -> str | None:
        return self._decoder.decode(bytes([token]), final=last) or None


def _as_it_is(token: int, last: bool) -> int:
    return token


def _check(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float) -> None:
    bounds = {
        "max_new_tokens": (0 <= max_new_tokens <= MOST_TOKENS, max_new_tokens, f"0 to {MOST_TOKENS:,}"),
        "temperature": (0 <= temperature <= 100, temperature, "0 to 100"),
        "top_k": (top_k is None or top_k >= 1, top_k, "None, or 1 and more"),
        "top_p": (0 < top_p <= 1, top_p, "above 0, up to 1"),
    }
    for name, (kept, value, expected) in bounds.items():
        if not kept:
            raise ConfigError(f"{name}={value} cannot be used.", f"{expected}.", f"set {name} to such a value.")
