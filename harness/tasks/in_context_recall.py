"""Recall in context as MAD has it: keys and values of one token or several, with noise or none (Poli et al. 2024)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config.errors import ConfigError
from harness.config.ranges import Count, Fraction, Length, Name, Taps
from harness.model.interface import IGNORE
from harness.tasks.synthetic import SyntheticTask, Vocabulary, distinct


class InContextRecall(SyntheticTask):
    """Pairs key, value, key, value, ...; whenever a key comes again, so does its value, and it is asked for.

    Keys have `key_tokens` different tokens of their own vocabulary and values 1 to `value_tokens` of theirs (MAD's
    fuzzy recall where there are several). With probability noise_share a pair is noise, tokens of a third vocabulary of
    noise_vocab_size (MAD's noisy recall). The last pair always comes again. Vocabularies are keys, values, a token for
    a beginning too short for a pair where there are motifs of several tokens, and noise: the last token fills it.
    Raises ConfigError where the vocabulary is too small. Poli et al., "Mechanistic design and scaling of hybrid
    architectures", arXiv:2403.17844. Other than MAD this asks in training what it asks when it judges, and no more:
    MAD trains on the next token throughout, most of which nobody can know, and on shorter keys.
    """

    def __init__(
        self,
        name: Name = "in_context_recall",
        vocab_size: Vocabulary = 16,
        key_tokens: Taps = 1,
        value_tokens: Taps = 1,
        noise_vocab_size: Count | None = None,
        noise_share: Fraction = 0.0,
        length: Length | None = None,
        train_examples: Count | None = None,
    ):
        self.name, self.vocab_size = name, vocab_size
        self.key_tokens, self.value_tokens = key_tokens, value_tokens
        self.noise_vocab_size, self.noise_share = noise_vocab_size or 0, noise_share
        self.length, self.train_examples = length, train_examples
        symbols = vocab_size - self.noise_vocab_size - (key_tokens + value_tokens > 2)
        self.keys, self.values = symbols // 2, symbols - symbols // 2
        if self.keys < key_tokens or self.values < value_tokens or (noise_share > 0 and not self.noise_vocab_size):
            raise ConfigError(
                f"task.vocab_size={vocab_size} leaves {self.keys} tokens for keys, {self.values} for values and "
                f"{self.noise_vocab_size} for noise.",
                f"at least {key_tokens} for keys, {value_tokens} for values, and one for noise where there is any.",
                "raise task.vocab_size or task.noise_vocab_size.",
            )

    def parameters(self) -> dict[str, Any]:
        names = ("vocab_size", "key_tokens", "value_tokens", "noise_vocab_size", "noise_share")
        return {name: getattr(self, name) for name in names}

    def shortest(self) -> int:
        return 2 * (self.key_tokens + self.value_tokens) - 1

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws the pairs, more than fit, and lays them out from the end of length + 1 tokens."""
        shape = batch_size, (length + 1) // (self.key_tokens + 1) + 1
        sizes = generator.integers(1, self.value_tokens + 1, size=shape)  # of values
        keys = distinct(generator, self.keys, shape[0] * shape[1], self.key_tokens).reshape(*shape, -1)
        values = self.keys + distinct(generator, self.values, shape[0] * shape[1], self.value_tokens)
        values = values.reshape(*shape, -1)
        noise = generator.random(shape) < self.noise_share
        self._repeat_one(generator, keys, noise, (length + 1) // (self.key_tokens + self.value_tokens))
        alike = (keys[:, :, None] == keys[:, None, :]).all(axis=3) & ~noise[:, None, :]  # (B, pair, other pair)
        first = alike.argmax(axis=2)
        sizes = np.take_along_axis(sizes, first, axis=1)
        tokens = np.concatenate([keys, np.take_along_axis(values, first[..., None], axis=1)], axis=2)
        if self.noise_vocab_size:
            drawn = self.vocab_size - 1 - generator.integers(self.noise_vocab_size, size=tokens.shape)
            tokens = np.where(noise[..., None], drawn, tokens)
        lengths = self.key_tokens + sizes
        starts = length + 1 - lengths[:, ::-1].cumsum(axis=1)[:, ::-1]
        fits = starts >= 0
        earlier = np.tri(shape[1], k=-1, dtype=bool)
        asked = (alike & fits[:, None, :] & earlier).any(axis=2) & fits & ~noise
        line = np.full((batch_size, length + 1), self.vocab_size - 1)
        answers = np.full_like(line, IGNORE)
        for j in range(tokens.shape[2]):
            rows, pairs = np.nonzero(fits & (j < lengths))
            places = starts[rows, pairs] + j
            line[rows, places] = tokens[rows, pairs, j]
            if j >= self.key_tokens:
                answers[rows, places] = np.where(asked[rows, pairs], tokens[rows, pairs, j], IGNORE)
        return line[:, :-1].copy(), answers[:, 1:].copy()

    def _repeat_one(self, generator: np.random.Generator, keys: np.ndarray, noise: np.ndarray, fitting: int) -> None:
        """Makes the last pair's key that of one before it, among the `fitting` last pairs, which have room."""
        rows, last = np.arange(len(keys)), keys.shape[1] - 1
        candidates = generator.random((len(keys), fitting - 1)) + ~noise[:, last + 1 - fitting : last]
        chosen = last + 1 - fitting + candidates.argmax(axis=1)
        noise[rows, chosen] = noise[:, last] = False
        keys[:, last] = keys[rows, chosen]

    def oracle(self, inputs: Tensor) -> Tensor:
        """Remembers what followed each key, and each key with a beginning of its value."""
        answers = torch.zeros_like(inputs)
        for row, symbols in enumerate(inputs.tolist()):
            memory: dict[tuple[int, ...], int] = {}
            context: tuple[int, ...] = ()
            for t, symbol in enumerate(symbols):
                if symbol >= self.keys + self.values:
                    context = ()
                elif symbol < self.keys and (not context or context[-1] >= self.keys):
                    context = (symbol,)
                else:
                    if symbol >= self.keys:
                        memory[context] = symbol
                    context += (symbol,)
                answers[row, t] = memory.get(context, 0)
        return answers
