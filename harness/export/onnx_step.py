"""One token of a model as an ONNX graph: the token and the state in, the logits and the new state out.

The folder holds `step.onnx` and `state.safetensors`, the state before the first token, whose tensors bear the names of
the inputs. The plain torch step is exported with every number of the state in a tensor: a counter that generation keeps
as a Python integer is an input too, such as the position that queries and keys are turned by. A cache of all tokens has
a dynamic axis, `past`, and leaves a step longer by one; it may be cut on that axis, since its position stays.
`onnx_int8` has matrices and the embedding in 8 bits, and quantizes activations as they come (dynamic quantization).
"""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from harness.config.errors import ConfigError
from harness.generation.library import TrainedModel, build_model
from harness.model.backbone import LanguageModel
from harness.model.fixed_cache import FixedCache
from harness.model.state import State, map_tensors, tensors

GRAPH, STATE = "step.onnx", "state.safetensors"
TOKEN, LOGITS, NEW = "token", "logits", "new_"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PAST = 3
"""Tokens of the cache that a step is traced with; torch.export would take 0 and 1 for constants."""
TRIED, TOLERANCE = 48, 1e-5
"""Tokens that a graph must agree with our step on before it is written, and how closely, over the largest logit."""


@dataclass(frozen=True)
class GrowingCache:
    """Keys and values (batch, heads, length, head_dim) of all tokens that were read, the next of position `position`.

    position: a tensor of one integer. Its shapes are all that a graph has to know of its length.
    """

    keys: Tensor
    values: Tensor
    position: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[2]

    @property
    def seen(self) -> Tensor:
        """Which places hold a token: all, (length,)."""
        return torch.ones(self.length, dtype=torch.bool)

    def append(self, keys: Tensor, values: Tensor) -> "GrowingCache":
        """Returns a cache with one more token. keys, values: (batch, heads, 1, head_dim)."""
        keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        return GrowingCache(keys, values, self.position + 1)

    def tensors(self) -> Iterator[Tensor]:
        """Keys, values and position."""
        yield from (self.keys, self.values, self.position)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "GrowingCache":
        """A cache of `function` of every tensor."""
        return GrowingCache(*map(function, self.tensors()))


class OnnxStep:
    """A graph under onnxruntime, on the CPU with one thread unless told otherwise; `names` are those of the state.

    path: of the graph. threads: of one operation.
    """

    def __init__(self, path: Path, threads: int = 1):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3  # 3: errors alone
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [given.name for given in self.session.get_inputs() if given.name != TOKEN]

    def __call__(self, token: Any, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """token (1,), an array of int64, and the state by name -> logits (1, vocab_size) and the new state."""
        logits, *new = self.session.run([LOGITS, *(NEW + name for name in self.names)], {TOKEN: token, **state})
        return logits, dict(zip(self.names, new, strict=True))


class _Step(nn.Module):
    """`model.step` of a token and of the tensors of a state, in the order of `template`'s."""

    def __init__(self, model: LanguageModel, template: State):
        super().__init__()
        self.model, self.template = model, template

    def forward(self, token: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(map(id, tensors(self.template)), state, strict=True))
        # copies, as some caches write in place, and a graph may not write to its inputs
        logits, new = self.model.step(token, map_tensors(lambda tensor: given[id(tensor)].clone(), self.template))
        return (logits, *tensors(new))


def write(trained: TrainedModel, folder: Path) -> None:
    """Writes the graph and the first state of a trained model into `folder`.

    Raises ConfigError where the packages are missing, where a step cannot be exported (and says why), and where the
    graph disagrees with our step.
    """
    check_packages()
    name = trained.model.spec.name
    model = in_plain_torch(trained)
    template = shaped(model, PAST)
    names = [name for name, _ in named(template)]
    growing = {id(tensor) for cache in _growing(template) for tensor in (cache.keys, cache.values)}
    past = torch.export.Dim("past")
    axes = tuple({2: past} if id(tensor) in growing else {} for tensor in tensors(template))
    step = _Step(model, template).eval()
    arguments = (torch.tensor([1]), *tensors(template))
    outputs = [LOGITS, *(NEW + name for name in names)]
    try:
        with _quiet():
            # not strict: Python runs as it is, and what depends on the numbers of a tensor is an error
            traced = torch.export.export(step, arguments, dynamic_shapes=({}, axes), strict=False)
            program = torch.onnx.export(
                traced, dynamo=True, input_names=[TOKEN, *names], output_names=outputs, verbose=False
            )
    except Exception as error:  # torch's own and those of its libraries, of any class
        raise ConfigError(
            f"The step of model={name} cannot be an ONNX graph: {_reason(error)}.",
            "a step that calls the same operations whatever its numbers are.",
            "export another format, or choose another solver where the model has one.",
        ) from error
    assert program is not None
    program.save(str(folder / GRAPH))
    write_state(model, 0, folder)
    found = difference(model, folder, TRIED)
    if not found <= TOLERANCE:
        raise ConfigError(
            f"The ONNX graph of model={name} differs from its step by {found:.1e} of the largest logit.",
            f"at most {TOLERANCE:.0e} over {TRIED} tokens.",
            "report it with the versions of torch, onnxscript and onnxruntime.",
        )


def write_state(model: LanguageModel, context: int, folder: Path) -> None:
    """Writes the state after `context` tokens, zero-filled, by the names of the graph's inputs."""
    save_file({name: tensor.contiguous() for name, tensor in named(shaped(model, context))}, folder / STATE)


def write_int8(trained: TrainedModel, folder: Path) -> None:
    """Writes the same with weights of 8 bits; raises as `write`."""
    write(trained, folder)
    quantize(folder, folder)


def quantize(exact: Path, folder: Path) -> None:
    """Writes into `folder` the graph of the folder `exact` with weights of 8 bits, a scale for each row of a matrix.

    Weights are unsigned: sums of products with signed ones saturate on x86 processors without VNNI
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    made = folder / f"int8-{GRAPH}"
    with _quiet():
        quantize_dynamic(exact / GRAPH, made, weight_type=QuantType.QUInt8, per_channel=True)
    made.replace(folder / GRAPH)
    if folder != exact:
        (folder / STATE).write_bytes((exact / STATE).read_bytes())


def in_plain_torch(trained: TrainedModel) -> LanguageModel:
    """A copy of a trained model whose step calls torch alone, without kernels."""
    result = build_model(
        _without_kernels(trained.config["model"]),
        trained.model.interface,
        trained.model.n_layers,
        trained.model.width,
        trained.config.get("seed", 0),
    )
    result.load_state_dict(trained.model.state_dict())
    return result.eval().requires_grad_(False)


def shaped(model: LanguageModel, context: int) -> State:
    """The state of batch 1 after `context` tokens, zero-filled, as a graph takes it: all numbers in tensors."""
    return _as_tensors(model.fixed_state(model.init_state(1, context), 0))


def named(state: State, path: str = "state") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state in their order, each with its name: `state.BLOCK.PART.KEY`."""
    if isinstance(state, Tensor):
        yield path, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from named(value, f"{path}.{key}")
    elif isinstance(state, list | tuple):
        for index, value in enumerate(state):
            yield from named(value, f"{path}.{index}")
    elif state is not None:
        attributes = {id(value): key for key, value in vars(state).items()}
        for index, tensor in enumerate(state.tensors()):
            yield f"{path}.{attributes.get(id(tensor), index)}", tensor


def cut(state: dict[str, Any], first: dict[str, Any], keep: int) -> dict[str, Any]:
    """A graph's state with the last `keep` tokens of its caches alone. first: the state before the first token."""
    growing = {name for name, array in first.items() if 0 in array.shape}
    return {name: array[:, :, -keep:] if name in growing else array for name, array in state.items()}


@torch.no_grad()
def difference(model: LanguageModel, folder: Path, tokens: int) -> float:
    """The largest difference between logits of a graph and of our step over so many tokens, over the largest logit."""
    step, state, ours = OnnxStep(folder / GRAPH), load_file(folder / STATE), model.init_state(1, 0)
    worst, largest = 0.0, 1e-30
    for token in torch.randint(256, (tokens, 1), generator=torch.Generator().manual_seed(0)):
        token = token % model.embedding.num_embeddings
        expected, ours = model.step(token, ours)
        logits, state = step(token.numpy(), state)
        worst = max(worst, float((torch.from_numpy(logits) - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return worst / largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Logs, warns and prints nothing: torch shows at length what is refused here, and onnxruntime advises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)


def check_packages() -> None:
    """Raises ConfigError where the packages of the extra `edge` are not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The format needs {', '.join(missing)}, not installed here.",
            f"{', '.join(PACKAGES)}.",
            "pip install -c constraints.txt 'liquidbench[edge]'",
        )


def _without_kernels(node: Any) -> Any:
    """A model's configuration with kernel=reference wherever it names a choice."""
    if isinstance(node, dict):
        return {key: "reference" if key == "kernel" else _without_kernels(value) for key, value in node.items()}
    return [_without_kernels(part) for part in node] if isinstance(node, list) else node


def _as_tensors(state: State) -> State:
    """A fixed state with a cache that grows where it has room; raises ConfigError for a number that is no tensor."""
    if isinstance(state, FixedCache):
        return GrowingCache(state.keys, state.values, state.position)
    if isinstance(state, dict):
        return {key: _as_tensors(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        parts = [_as_tensors(value) for value in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    if isinstance(state, int):
        raise ConfigError(
            "The model keeps a Python integer in its state, which a graph would take for a constant.",
            "a mixer whose `fixed_state` holds tensors alone.",
            "give the mixer such a `fixed_state`, as baselines/transformer/mixer.py has.",
        )
    return state


def _growing(state: State) -> Iterable[GrowingCache]:
    """The caches of a state that grow."""
    if isinstance(state, GrowingCache):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _growing(value)


def _reason(error: BaseException) -> str:
    """What went wrong in one line, of the error that was first."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, GuardOnDataDependentSymNode):
        return "what it does next depends on the numbers of a tensor, as in a solver of adaptive steps"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"[:300].rstrip(".")
