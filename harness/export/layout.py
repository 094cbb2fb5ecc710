"""A model's weights under the names and in the shapes that another library has for them, both ways."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config.errors import CheckpointError, ConfigError
from harness.model.backbone import LanguageModel
from harness.model.mlp import SwiGLU
from harness.records import weights

HEAD = "head.weight"


@dataclass(frozen=True)
class Entry:
    """A tensor of a LanguageModel, and the tensors that hold its numbers there.

    split: ours to theirs, in the order of their names. join: back.
    """

    ours: str
    theirs: tuple[str, ...]
    split: Callable[[Tensor], Sequence[Tensor]] = lambda tensor: [tensor]
    join: Callable[[Sequence[Tensor]], Tensor] = lambda tensors: tensors[0]

    def place(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Theirs by their names, of our weights by ours."""
        return dict(zip(self.theirs, self.split(own[self.ours]), strict=True))


def rows(ours: str, theirs: Sequence[str], sizes: Sequence[int] | None = None) -> Entry:
    """The rows of ours are those of theirs in turn: as many of each, unless `sizes` counts them."""

    def split(tensor: Tensor) -> Sequence[Tensor]:
        return tensor.split(list(sizes)) if sizes else tensor.chunk(len(theirs))

    return Entry(ours, tuple(theirs), split, lambda tensors: torch.cat(list(tensors)))


def taps(ours: str, theirs: str) -> Entry:
    """A depthwise convolution's weight: ours (taps, channels), theirs (channels, 1, taps)."""
    return Entry(ours, (theirs,), lambda tensor: [tensor.t().unsqueeze(1)], lambda tensors: tensors[0].squeeze(1).t())


def above_one(ours: str, theirs: str) -> Entry:
    """A norm's weight, of which theirs is what it has above one."""
    return Entry(ours, (theirs,), lambda tensor: [tensor - 1], lambda tensors: tensors[0] + 1)


def mlp(ours: str, theirs: str, gate: str, up: str, down: str) -> list[Entry]:
    """A SwiGLU of ours, whose gate and up are one matrix."""
    joined = rows(f"{ours}gate_up.weight", [f"{theirs}{part}.weight" for part in (gate, up)])
    return [joined, Entry(f"{ours}down.weight", (f"{theirs}{down}.weight",))]


def is_plain(model: LanguageModel) -> bool:
    """Whether RMSNorm, SwiGLU and residual pairs are all that stands around the mixers, as in Llama and its kin."""
    blocks = all(type(block.channel_mixer) is SwiGLU and block.adapter is None for block in model.blocks)
    spec = model.spec
    return blocks and spec.norm == "rmsnorm" and not spec.embedding_norm and not spec.scale_embedding


def backbone(model: LanguageModel, kind: str) -> dict[str, Any]:
    """The sizes of the backbone as configurations of transformers call them, and the class `kind` that has them."""
    return {
        "architectures": [f"{kind}ForCausalLM"],
        "vocab_size": model.head.out_features,
        "hidden_size": model.width.d_model,
        "num_hidden_layers": model.n_layers,
        "tie_word_embeddings": model.spec.tie_embeddings,
    }


def export(model: LanguageModel, entries: Sequence[Entry], library: str) -> dict[str, Tensor]:
    """Our weights by their names; raises ConfigError where the model has one for which `library` has no place."""
    own, placed = model.state_dict(), {entry.ours for entry in entries}
    if left := sorted(own.keys() - placed):
        raise ConfigError(
            f"model={model.spec.name} as configured has {left[0]}, for which {library} has no place.",
            f"the architecture as {library} has it.",
            "export it with format=hf.",
        )
    return {name: tensor for entry in entries for name, tensor in entry.place(own).items()}


def is_tied(said: bool, tensors: Mapping[str, Tensor], embedding: str, head: str = "lm_head.weight") -> bool:
    """Whether the head is the embedding: as the configuration said, unless there are two matrices."""
    return said and (head not in tensors or torch.equal(tensors[head], tensors[embedding]))


def load(model: LanguageModel, entries: Sequence[Entry], tensors: Mapping[str, Tensor]) -> None:
    """Copies weights by their names into a model; raises CheckpointError where names or shapes do not match.

    A tied head may be left out.
    """
    given = dict(tensors)
    if model.spec.tie_embeddings:
        head, embedding = (next(e.theirs[0] for e in entries if e.ours == name) for name in (HEAD, "embedding.weight"))
        if embedding in given:
            given.setdefault(head, given[embedding])
    wanted = {name for entry in entries for name in entry.theirs}
    missing, unknown = sorted(wanted - given.keys()), sorted(given.keys() - wanted)
    try:
        if missing or unknown:
            raise ValueError(
                f"{len(missing)} tensors are missing ({', '.join(missing[:1]) or 'none'}) and {len(unknown)} unknown"
                f" ({', '.join(unknown[:1]) or 'none'})"
            )
        model.load_state_dict({entry.ours: entry.join([given[name] for name in entry.theirs]) for entry in entries})
    except (ValueError, RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"The checkpoint does not fit model={model.spec.name}: {' '.join(str(error).split())[:300]}.",
            "the vocabulary (padded, as saved), width, depth and options that the checkpoint was made with.",
            "build the model with those; harness.load_checkpoint does.",
        ) from error


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes config.json and model.safetensors, of weights in float32, as transformers reads them."""
    unset = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    (folder / "config.json").write_text(json.dumps({**unset, "dtype": "float32", **config}, indent=1) + "\n")
    weights.save(folder / "model.safetensors", dict(tensors))


def require(config: Mapping[str, Any], **wanted: Any) -> None:
    """Raises CheckpointError where a foreign configuration asks for what our model cannot be."""
    for name, value in wanted.items():
        if config[name] != value:
            raise CheckpointError(
                f"The checkpoint has {name}={config[name]}.",
                f"{name}={value}, which is all that the model here computes.",
                "take a checkpoint of that kind.",
            )
