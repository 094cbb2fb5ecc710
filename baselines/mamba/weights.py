"""Loads checkpoints of mamba-ssm's and Hugging Face's Mamba-1 language models into ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from harness.errors import CheckpointError
from harness.model.backbone import LanguageModel

_NAMES = (
    (r"backbone\.embeddings?\.weight", "embedding.weight"),  # Hugging Face writes the plural
    (r"backbone\.layers\.(\d+)\.norm\.weight", r"blocks.\1.norm.weight"),
    (r"backbone\.layers\.(\d+)\.mixer\.((?:in_proj|conv1d)\..+)", r"blocks.\1.mixer.\2"),
    (r"backbone\.layers\.(\d+)\.mixer\.(.+)", r"blocks.\1.mixer.core.\2"),
    (r"backbone\.norm_f\.weight", "norm.weight"),
    (r"lm_head\.weight", "head.weight"),
)


def translate(name: str) -> str:
    """The name in a LanguageModel of a tensor of a Mamba checkpoint; raises CheckpointError for any other."""
    for pattern, ours in _NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    raise CheckpointError(
        f"The checkpoint holds a tensor that no Mamba-1 language model has: {name}.",
        "backbone.embedding, backbone.layers.*.norm and .mixer, backbone.norm_f and lm_head.",
        "give the state dict of mamba-ssm's MambaLMHeadModel with Mamba-1 layers and RMSNorm.",
    )


def load_mamba_checkpoint(model: LanguageModel, state_dict: Mapping[str, Tensor]) -> None:
    """Copies every tensor of a checkpoint into a model of conf/model/mamba.yaml's kind.

    Raises CheckpointError when a name is unknown or missing or a shape differs. A tied head may be left out.
    """
    tensors = {translate(name): tensor for name, tensor in state_dict.items()}
    if model.spec.tie_embeddings and "embedding.weight" in tensors:
        tensors.setdefault("head.weight", tensors["embedding.weight"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"The checkpoint does not fit this model: {error}",
            "the vocabulary (padded, as saved), width, depth and mixer options that the checkpoint was made with.",
            "build the model with those; see the checkpoint's config.json.",
        ) from error
