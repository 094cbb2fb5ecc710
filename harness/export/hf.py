"""Our models as transformers has them: a configuration, a causal language model, and its state as a cache.

Importing this module registers both with the Auto classes, and `AutoModelForCausalLM.from_pretrained(FOLDER)` then
loads an exported folder without `trust_remote_code`.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from harness.generation.library import TrainedModel, build_model
from harness.model.backbone import Width
from harness.model.interface import Tokens
from harness.model.state import State, map_tensors, state_bytes

FORMAT = "hf"
MODEL_TYPE = "liquidbench"


class LiquidBenchConfig(PreTrainedConfig):
    """What a model is built from: `spec` is the `model` of its run's configuration, `build_seed` the run's seed."""

    model_type = MODEL_TYPE

    spec: dict | None = None
    width: dict | None = None
    build_seed: int = 0
    vocab_size: int = 256
    hidden_size: int = 0
    num_hidden_layers: int = 0
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


class StateCache(Cache):
    """What generation keeps of the past: our state, constant in size wherever the model's is.

    groups: (rows of the batch, their state), one for each length of the past among the rows, since padding is never
    read. read: tokens of the longest past, padding counted.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.groups: list[tuple[list[int], State]] = []
        self.read = 0

    @property
    def state_bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(state_bytes(state) for _, state in self.groups)

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        """A recurrent state cannot forget its last tokens."""
        return False

    @property
    def is_initialized(self) -> bool:
        return bool(self.groups)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.read

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def reset(self) -> None:
        self.groups, self.read = [], 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was."""
        wanted, groups = beam_idx.tolist(), []
        for rows, state in self.groups:
            place = {row: index for index, row in enumerate(rows)}
            kept = [row for row, old in enumerate(wanted) if old in place]
            if kept:
                taken = torch.tensor([place[wanted[row]] for row in kept])
                groups.append((kept, map_tensors(partial(_rows, taken), state)))
        self.groups = groups

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        count = sum(len(rows) for rows, _ in self.groups)
        self.reorder_cache(torch.arange(count).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("a recurrent state cannot forget its last tokens: read the kept ones anew.")


class LiquidBenchForCausalLM(PreTrainedModel, GenerationMixin):
    """A LanguageModel, its input and output tokens of one vocabulary, behind transformers' interface."""

    config_class = LiquidBenchConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _is_stateful = True
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012  (where the config ties them)

    def __init__(self, config: LiquidBenchConfig):
        super().__init__(config)
        width = Width(**(config.width or {}))
        # on the CPU even where transformers asks for the meta device: what a build computes is in no file of weights
        self.model = build_model(
            config.spec or {}, config.vocab_size, config.num_hidden_layers, width, config.build_seed
        )
        self.post_init()

    @classmethod
    def of(cls, trained: TrainedModel) -> "LiquidBenchForCausalLM":
        """A trained model of ours; it shares no memory with the result."""
        model = trained.model
        assert isinstance(model.interface.inputs, Tokens), "harness.export refuses any other"
        config = LiquidBenchConfig(
            spec=trained.config["model"],
            width=model.width._asdict(),
            build_seed=trained.config["seed"],
            vocab_size=model.interface.inputs.vocab_size,
            hidden_size=model.width.d_model,
            num_hidden_layers=model.n_layers,
            tie_word_embeddings=model.spec.tie_embeddings,
        )
        made = cls(config)
        made.model.load_state_dict(model.state_dict())
        return made.eval()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: a LanguageModel starts its own weights."""

    def named_non_persistent_buffers(self, recurse: bool = True, remove_duplicate: bool = True):
        """None, as loading would empty them: they are as they were built."""
        return iter(())

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.model.head

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs: dict[str, Any], generation_mode, batch_size: int, max_cache_length: int
    ) -> bool:
        made = model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False
        if made:
            model_kwargs["past_key_values"] = StateCache()
        return made

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: StateCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits of input_ids (B, T), and the loss where there are labels (B, T), which are shifted here.

        attention_mask: (B, T or all tokens so far), 0 where a row is padded on its left, and on its right only where no
        cache is asked for. logits_to_keep: of the last positions; 0 for all. Raises ValueError for another mask.
        """
        if use_cache is None:
            use_cache = labels is None and not self.training and self.config.use_cache
        cache = StateCache() if past_key_values is None and use_cache else past_key_values
        logits = self._read(input_ids, attention_mask, cache)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits[:, -logits_to_keep:], past_key_values=cache)

    def _read(self, tokens: Tensor, mask: Tensor | None, cache: StateCache | None) -> Tensor:
        """Logits (B, T, vocab_size); the cache, if any, is brought up to date."""
        length = tokens.shape[1]
        groups: list[tuple[list[int], int, State]]
        if cache is not None and cache.groups:
            if mask is not None and not mask[:, -length:].all():
                raise ValueError("attention_mask pads tokens that follow others: only the left of a prompt can be.")
            groups = [(rows, 0, state) for rows, state in cache.groups]
        else:
            groups = [(rows, start, None) for start, rows in _by_padding(tokens, mask, cache is not None).items()]
        parts = [self._advance(tokens[rows, start:], state) for rows, start, state in groups]
        if cache is not None:
            cache.groups = [(rows, state) for (rows, _, _), (_, state) in zip(groups, parts, strict=True)]
            cache.read += length
        logits = parts[0][0]
        if logits.shape[:2] == tokens.shape:  # one group, without padding
            return logits
        whole = logits.new_zeros(*tokens.shape, logits.shape[-1])
        for (rows, start, _), (part, _) in zip(groups, parts, strict=True):
            whole[rows, start:] = part
        return whole

    def _advance(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        if state is None or tokens.shape[1] > 1:
            return self.model(tokens, state)
        logits, state = self.model.step(tokens[:, 0], state)
        return logits[:, None], state


def _rows(indices: Tensor, tensor: Tensor) -> Tensor:
    """These rows of a tensor of a state, whose first dimension is the batch."""
    return tensor.index_select(0, indices.to(tensor.device))


def _by_padding(tokens: Tensor, mask: Tensor | None, cached: bool) -> dict[int, list[int]]:
    """The rows of a batch by the padding on their left."""
    batch, length = tokens.shape
    if mask is None:
        return {0: list(range(batch))}
    real = mask[:, -length:].bool()
    left = (real.cumsum(1) == 0).sum(1)
    if (left == length).any() or (cached and (left + real.sum(1) != length).any()):
        raise ValueError("attention_mask leaves a row empty, or pads it elsewhere than on its left.")
    rows: dict[int, list[int]] = {}
    for row, start in enumerate(left.tolist()):
        rows.setdefault(start, []).append(row)
    return rows


def write(trained: TrainedModel, folder: Path) -> None:
    """Writes config.json and model.safetensors into `folder`."""
    LiquidBenchForCausalLM.of(trained).save_pretrained(folder)


AutoConfig.register(MODEL_TYPE, LiquidBenchConfig, exist_ok=True)
AutoModelForCausalLM.register(LiquidBenchConfig, LiquidBenchForCausalLM, exist_ok=True)
