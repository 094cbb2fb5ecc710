"""Weights to and from the official x070 files of RWKV-7.

Names in a file: emb, head, ln_out, and per block ln1, att, ln2, ffn (ln0 in block 0); vectors of a mix are (1, 1, C).
"""

import functools
from pathlib import Path

import torch
from torch import Tensor

from baselines.rwkv.mixer import ChannelMix, TimeMix
from harness.config.errors import CheckpointError
from harness.export.pretrained import layers, read_tensors
from harness.model.backbone import LanguageModel, ModelSpec, Width

OUTSIDE = {"embedding": "emb", "embedding_norm": "blocks.0.ln0", "norm": "ln_out", "head": "head"}
INSIDE = {"norm": "ln1", "mixer": "att", "channel_norm": "ln2", "channel_mixer": "ffn"}
IGNORED = {f"blocks.0.att.v{i}" for i in range(3)}
"""Some official files carry a value residual for layer 0, which has none."""


def x070_name(name: str) -> str:
    """blocks.3.mixer.key.weight -> blocks.3.att.key.weight, and so on."""
    first, rest = name.split(".", 1)
    if first != "blocks":
        return f"{OUTSIDE[first]}.{rest}"
    layer, part, tensor = rest.split(".", 2)
    return f"blocks.{layer}.{INSIDE[part]}.{tensor}"


def export_x070(model: LanguageModel) -> dict[str, Tensor]:
    """The weights of an RWKV-7 model under the names and shapes of an x070 file."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        vector_of_a_mix = tensor.dim() == 1 and not name.endswith((".weight", ".bias"))
        tensors[x070_name(name)] = (tensor.view(1, 1, -1) if vector_of_a_mix else tensor).clone()
    return tensors


def import_x070(model: LanguageModel, tensors: dict[str, Tensor]) -> None:
    """Copies x070 weights into `model`; raises CheckpointError where names or sizes do not match."""
    own = {x070_name(name): tensor for name, tensor in model.state_dict().items()}
    given = {name: tensor for name, tensor in tensors.items() if name not in IGNORED}
    wrong = sorted(own.keys() ^ given.keys())
    wrong += [name for name in own.keys() & given.keys() if own[name].squeeze().shape != given[name].squeeze().shape]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors do not fit the model, {wrong[0]!r} first.",
            "an x070 (RWKV-7) checkpoint of the model's own vocabulary, depth, widths and ranks.",
            "build the model from the checkpoint: harness.load_checkpoint(PATH).",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name].view_as(tensor))


def build_x070(tensors: dict[str, Tensor]) -> LanguageModel:
    """The model that x070 weights belong to, carrying them; its sizes are read from the shapes."""
    try:
        vocab_size, d_model = tensors["emb.weight"].shape
        n_layers = layers(tensors, "blocks.")
        ranks = {key: tensors[f"blocks.{n_layers - 1}.att.{x}1"].shape[1] for key, x in _rank_keys(n_layers)}
        head_dim = tensors["blocks.0.att.r_k"].shape[1]
        width = Width(d_model, tensors["blocks.0.ffn.key.weight"].shape[0])
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"Not an x070 checkpoint: {error}.", "the weights of an RWKV-7 model.", "check the file."
        ) from error
    mixer = functools.partial(TimeMix, head_dim=head_dim, **ranks)
    spec = ModelSpec("rwkv", mixer, ChannelMix, norm="layernorm", embedding_norm=True, width_multiple=head_dim)
    model = spec.build(vocab_size, n_layers, width)
    import_x070(model, tensors)
    return model


def _rank_keys(n_layers: int) -> list[tuple[str, str]]:
    keys = [("decay_rank", "w"), ("rate_rank", "a"), ("gate_rank", "g")]
    return [*keys, ("value_rank", "v")] if n_layers > 1 else keys


def load_x070(path: Path) -> LanguageModel:
    """Reads an x070 .pth file; raises CheckpointError where it is not one."""
    return build_x070(read_tensors(path))


def write_x070(model: LanguageModel, folder: Path) -> None:
    """Writes model.pth for the rwkv package; load it as RWKV(model="FOLDER/model", strategy="cpu fp32")."""
    torch.save(export_x070(model), folder / "model.pth")


FORMATS = {"rwkv": write_x070}
"""What `python -m harness.export` writes."""
READERS = {"pth": load_x070}
"""What `harness.load_checkpoint` reads."""
