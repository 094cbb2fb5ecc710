"""The only backbone: encoder -> [norm, mixer, norm, channel mixer] x L -> norm -> head."""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.config.ranges import Dimension, Layers, Name, Ratio
from harness.model.block import CanonBlock, Factory, GatedBlock, NoMixer, TransformerBlock
from harness.model.ends import EMBEDDING, HEAD, End
from harness.model.interface import Interface, interface
from harness.model.mixer import Call, Flops, Mixer
from harness.model.norm import RMSNorm
from harness.model.state import State
from harness.ops.registry import Choice


class Width(NamedTuple):
    """The widths that sizing solves for. d_inner: of a gated block; None for its own expand * d_model."""

    d_model: int
    d_ff: int
    d_inner: int | None = None


Norm = Literal["rmsnorm", "layernorm"]


@dataclass(frozen=True)
class Adapter:
    """A further residual pair, norm and mixer, that ends some blocks: the last of every `every`, and the last of all.

    mixer: factory called with (d_model, layer, n_layers).
    """

    mixer: Factory
    norm: Norm = "layernorm"
    every: Layers = 1

    def follows(self, layer: int, n_layers: int) -> bool:
        """Whether block `layer` of `n_layers` ends in the adapter."""
        return (layer + 1) % self.every == 0 or layer == n_layers - 1


@dataclass(frozen=True)
class ModelSpec:
    """What makes one architecture: everything but its size.

    mixer: factory called with (d_model, layer, n_layers), or a list of them that the blocks take in turn, from the
    first on. block: what surrounds them (harness/model/block.py). channel_mixer: a factory called with d_ff too, for
    blocks that have a channel mixer, or a list likewise; None for none. adapter: what some blocks end in; None for
    nothing. embedding: of tokens (real vectors have torch's linear layer). embedding_norm, scale_embedding: whether
    what is read passes a norm, and whether an embedding is read times sqrt(d_model) (Vaswani et al. 2017, section 3.4).
    head: its own unless tie_embeddings makes it the embedding's weight, where the model says what it reads next.
    width_multiple: d_model is a multiple of it, or, where none meets the budget, d_inner (see `expand`).
    d_ff_ratio: the architecture's own d_ff / d_model. names: the groups of the configuration whose choice names a run
    of this model, in order, each with the choice that goes unnamed (None: every choice is named). kernel: of norms and
    blocks; mixers have their own.
    """

    name: Name
    mixer: Factory | list[Factory]
    channel_mixer: Factory | list[Factory | None] | None = None
    adapter: Adapter | None = None
    block: TransformerBlock | CanonBlock | GatedBlock = field(default_factory=TransformerBlock)
    norm: Norm = "rmsnorm"
    embedding_norm: bool = False
    scale_embedding: bool = False
    embedding: End = EMBEDDING
    head: End = HEAD
    tie_embeddings: bool = False
    width_multiple: Dimension = 8
    d_ff_ratio: Ratio = 8 / 3
    names: dict[str, str | None] = field(default_factory=dict)
    kernel: Choice = "auto"

    @property
    def pattern(self) -> list[Factory]:
        """The mixers that the blocks take in turn."""
        return self.mixer if isinstance(self.mixer, list) else [self.mixer]

    @property
    def has_channel_mixer(self) -> bool:
        """Whether its blocks have a channel mixer, whose width takes up what the budget leaves."""
        return self.channel_mixer is not None and self.block.has_channel_mixer

    @property
    def expand(self) -> int | None:
        """d_inner / d_model where d_inner may be chosen: of a gated block, or of mixers that take one; else None."""
        if isinstance(self.block, GatedBlock):
            return self.block.expand
        parameters = {} if isinstance(self.mixer, list) else inspect.signature(self.mixer).parameters
        return parameters["expand"].default if "d_inner" in parameters else None

    def build(self, given: Interface | int, n_layers: int, width: Width) -> "LanguageModel":
        """Returns the model with `n_layers` x depth_factor blocks of `width`, initialised from torch's generator.

        given: its inputs and targets; a number means a language model of that vocabulary.
        """
        return LanguageModel(self, interface(given), n_layers * self.block.depth_factor, width)

    def build_mixer(self, width: Width, layer: int, n_layers: int) -> Mixer:
        """The token mixer of block `layer`, as its block surrounds it."""
        size = {"d_model": width.d_model, "layer": layer, "n_layers": n_layers}
        size |= {} if width.d_inner is None else {"d_inner": width.d_inner}
        return self.block.build(_in_turn(self.mixer, layer), self.kernel, **size)

    def build_channel_mixer(self, width: Width, layer: int, n_layers: int) -> Mixer | None:
        """The channel mixer of block `layer`; None where it has none."""
        make = _in_turn(self.channel_mixer, layer) if self.has_channel_mixer else None
        return make and make(d_model=width.d_model, d_ff=width.d_ff, layer=layer, n_layers=n_layers)

    def build_norm(self, width: int, kind: Norm | None = None) -> nn.Module:
        """A fresh norm over vectors of `width`, the model's own kind where None."""
        return RMSNorm(width, 1e-5, self.kernel) if (kind or self.norm) == "rmsnorm" else nn.LayerNorm(width, 1e-5)


class Block(nn.Module):
    """x + mixer(norm(x)) of a token mixer, a channel mixer and an adapter in turn, where there is one (pre-norm)."""

    def __init__(self, spec: ModelSpec, width: Width, layer: int, n_layers: int):
        super().__init__()
        mixer = spec.build_mixer(width, layer, n_layers)
        absent = isinstance(mixer, NoMixer)
        self.norm = None if absent else spec.build_norm(width.d_model)
        self.mixer = None if absent else mixer
        self.channel_mixer = spec.build_channel_mixer(width, layer, n_layers)
        self.channel_norm = spec.build_norm(width.d_model) if self.channel_mixer else None
        self.adapter_norm: nn.Module | None = None
        self.adapter: Mixer | None = None
        if spec.adapter is not None and spec.adapter.follows(layer, n_layers):
            self.adapter_norm = spec.build_norm(width.d_model, spec.adapter.norm)
            self.adapter = spec.adapter.mixer(d_model=width.d_model, layer=layer, n_layers=n_layers)

    def parts(self) -> list[tuple[nn.Module, Mixer]]:
        """The (norm, mixer) pairs of the block, in order."""
        pairs = (self.norm, self.mixer), (self.channel_norm, self.channel_mixer), (self.adapter_norm, self.adapter)
        return [(norm, mixer) for norm, mixer in pairs if norm is not None and mixer is not None]

    def run(self, method: str, x: Tensor, state: State, call: Call) -> tuple[Tensor, State]:
        """Applies `forward` or `step` of each part around its residual."""
        parts = self.parts()
        new_state = []
        for (norm, mixer), old in zip(parts, state or [None] * len(parts), strict=True):
            function = mixer if method == "forward" else mixer.step  # through __call__, so that hooks run
            y, new = function(norm(x), old, call)
            x = x + y
            new_state.append(new)
        return x, new_state


class Times(nn.Module):
    """x times a constant."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class LanguageModel(nn.Module):
    """Tokens or vectors in, an output for each out, with the state that generation must keep.

    interface: its inputs and targets, which decide the encoder (`embedding`) and the head. Beside language models it
    serves tasks of real vectors and of classes; shapes below are those of a language model. recompute: whether training
    keeps of each block its inputs alone, and computes the rest again in the backward pass.
    """

    recompute = False

    def __init__(self, spec: ModelSpec, interface: Interface, n_layers: int, width: Width):
        super().__init__()
        self.spec, self.interface, self.n_layers, self.width = spec, interface, n_layers, width
        self.embedding = interface.inputs.encoder(width.d_model)
        if isinstance(self.embedding, nn.Embedding):
            spec.embedding.initialise(self.embedding.weight)
        scaled = spec.scale_embedding and isinstance(self.embedding, nn.Embedding)
        unnormed = Times(width.d_model**0.5) if scaled else nn.Identity()
        self.embedding_norm = spec.build_norm(width.d_model) if spec.embedding_norm else unnormed
        blocks = nn.ModuleList(Block(spec, width, layer, n_layers) for layer in range(n_layers))
        self.blocks = cast(Sequence[Block], blocks)
        self.norm = spec.build_norm(width.d_model)
        self.head = interface.targets.head(width.d_model)
        if spec.tie_embeddings and interface.language:
            self.head.weight = self.embedding.weight
        else:
            spec.head.initialise(self.head.weight)

    @property
    def mixers(self) -> list[Mixer]:
        """Every token mixer, channel mixer and adapter, in order."""
        return [mixer for block in self.blocks for _, mixer in block.parts()]

    @property
    def constant_state(self) -> bool:
        """Whether every mixer claims a state whose bytes do not depend on the context."""
        return all(mixer.constant_state for mixer in self.mixers)

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold `step`."""
        return all(mixer.capturable for mixer in self.mixers)

    def _run(self, method: str, tokens: Tensor, state: State, elapsed: Tensor | None) -> tuple[Tensor, State]:
        x = self.embedding_norm(self.embedding(self._as_read(tokens)))
        call, new_state = Call(elapsed, shared={}), []
        recompute = self.recompute and self.training and torch.is_grad_enabled()
        for block, old in zip(self.blocks, state or [None] * self.n_layers, strict=True):
            run = partial(checkpoint, block.run, use_reentrant=False) if recompute else block.run
            x, new = run(method, x, old, call)
            new_state.append(new)
        return self.head(self.norm(x)), new_state

    def _as_read(self, inputs: Tensor) -> Tensor:
        """The inputs as the encoder takes them: ids as they are, vectors in the precision of its weights."""
        return inputs if isinstance(self.embedding, nn.Embedding) else inputs.to(self.embedding.weight.dtype)

    def forward(self, tokens: Tensor, state: State = None, elapsed: Tensor | None = None) -> tuple[Tensor, State]:
        """tokens (B, T), T >= 1 -> logits (B, T, vocab_size) and the state after the last token."""
        if tokens.shape[1] == 0:
            raise ValueError("a model reads at least one token; tokens (B, T) has T = 0.")
        return self._run("forward", tokens, state, elapsed)

    def step(self, tokens: Tensor, state: State, elapsed: Tensor | None = None) -> tuple[Tensor, State]:
        """tokens (B,) -> logits (B, vocab_size) and the new state; pure."""
        return self._run("step", tokens, state, elapsed)

    def frozen_step(self) -> Callable[[Tensor, State], tuple[Tensor, State]]:
        """`step` for the weights as they stand, without gradients: (tokens (B,), state) -> (logits, new state)."""
        embedding, head = _frozen_map(self.embedding), _frozen_map(self.head)
        first, last = _frozen(self.embedding_norm), _frozen(self.norm)
        blocks = [[(_frozen(norm), mixer.frozen_step()) for norm, mixer in block.parts()] for block in self.blocks]

        def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
            x, call, new_state = first(embedding(self._as_read(tokens))), Call(shared={}), []
            for parts, held in zip(blocks, state, strict=True):
                made: list[State] = []
                new_state.append(made)
                for (norm, run), old in zip(parts, held, strict=True):
                    y, new = run(norm(x), old, call)
                    x = x + y
                    made.append(new)
            return head(last(x)), new_state

        return step

    def scan(self, tokens: Tensor, state: State = None, elapsed: Tensor | None = None) -> tuple[Tensor, State]:
        """The oracle of `forward`: a loop of `step` over the tokens (B, T)."""
        state = state or self.init_state(tokens.shape[0])
        logits = []
        for t in range(tokens.shape[1]):
            logit, state = self.step(tokens[:, t], state, None if elapsed is None else elapsed[:, t])
            logits.append(logit)
        return torch.stack(logits, dim=1), state

    def init_state(self, batch: int, context: int = 0) -> State:
        """The state held after `context` tokens, zero-filled, in the dtype and on the device of the weights."""
        where = {"device": self.head.weight.device, "dtype": self.head.weight.dtype}
        return [[mixer.init_state(batch, context, **where) for _, mixer in block.parts()] for block in self.blocks]

    def truncate_state(self, state: State, keep: int) -> State:
        """Forgets all but the last `keep` tokens where the state grows with them."""
        return self._by_part("truncate_state", state, keep)

    def fixed_state(self, state: State, room: int) -> State:
        """A copy of `state` whose tensors keep their shapes for `room` more tokens."""
        return self._by_part("fixed_state", state, room)

    def _by_part(self, method: str, state: State, number: int) -> State:
        return [
            [getattr(mixer, method)(part, number) for (_, mixer), part in zip(block.parts(), parts, strict=True)]
            for block, parts in zip(self.blocks, state, strict=True)
        ]

    def counts(self) -> dict[str, int]:
        """The sum of what the mixers have counted of their work."""
        total: Counter[str] = Counter()
        for mixer in self.mixers:
            total.update(mixer.counts())
        return dict(total)

    def flops_per_token(self, context: int) -> Flops:
        """Forward operations of one token that sees `context` tokens; training costs three times as many."""
        norms = sum(len(block.parts()) for block in self.blocks) + 1
        read = 0 if isinstance(self.embedding, nn.Embedding) else self.embedding.in_features
        ends = Flops(2 * self.width.d_model * (read + self.head.out_features), 5 * self.width.d_model * norms)
        return sum((mixer.flops_per_token(context) for mixer in self.mixers), ends)


def _in_turn(made: Any, layer: int) -> Any:
    """What block `layer` takes: of a list, which the blocks take in turn, its own."""
    return made[layer % len(made)] if isinstance(made, list) else made


def _frozen(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    return norm.frozen() if isinstance(norm, RMSNorm) else copy.deepcopy(norm)


def _frozen_map(layer: nn.Embedding | nn.Linear) -> Callable[[Tensor], Tensor]:
    """The encoder or the head for its weights as they stand."""
    weight = layer.weight.detach().clone()
    if isinstance(layer, nn.Embedding):
        return lambda tokens: F.embedding(tokens, weight)
    bias = None if layer.bias is None else layer.bias.detach().clone()
    return lambda x: F.linear(x, weight, bias)
