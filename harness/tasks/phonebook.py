"""A phonebook in running text: names and numbers told somewhere in real prose, and some names asked again at its end.

Phonebook lookup as Jelassi et al. 2024, "Repeat After Me", arXiv:2402.01032, ask it, spread as needles over a haystack
as in RULER (Hsieh et al. 2024, arXiv:2404.06654). The haystack is the corpus of task=sotu.
"""

import re
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.config.errors import ConfigError
from harness.config.ranges import Name
from harness.model.interface import IGNORE
from harness.tasks.sotu import Sotu
from harness.tasks.synthetic import SyntheticTask, distinct
from harness.tasks.task import SPLITS, Batch

CONSONANTS, VOWELS = b"bcdfghjklmnprstvwxyz", b"aeiou"
SYLLABLES = len(CONSONANTS) * len(VOWELS)
NAMES = SYLLABLES**2
"""Names have two syllables, such as Kova."""
BEFORE, BETWEEN, AFTER = b"Call ", b": ", b". "
"""Around the name and the digits of a sentence of the phonebook; the corpus has none of the form of PROMPT."""
BREAK = b"\n"
"""Between the text and the questions."""
PROMPT = re.compile(BEFORE + b"([%b][%b][%b][%b])" % (CONSONANTS.upper(), VOWELS, CONSONANTS, VOWELS) + BETWEEN)
PROMPT_BYTES = len(BEFORE) + 4 + len(BETWEEN)

Names = Annotated[int, Field(ge=1, le=NAMES)]
Digits = Annotated[int, Field(ge=1, le=64)]


class Phonebook(SyntheticTask):
    """Bytes of a split's real text with `entries` sentences "Call Kova: 4821. " in it, and `questions` of them again.

    An example is a passage from anywhere in the split. Each entry stands behind the last white space before a place
    that is drawn from the whole passage, all places alike. The example ends with a line of `questions` different ones
    of the sentences once more, in a drawn order, and only their digits are scored. Names differ within an example;
    names and numbers are drawn anew for each. All lengths have as many entries and questions, so that a longer example
    has more text between them and nothing else: accuracy against length is how far an entry is remembered.

    Digits are answered one after the other behind the right ones, as in generation, where the first may tell the rest.
    So an answer counts in the accuracy if all of its digits are right, and a model that recalls numbers but not whose
    they are is near 1 / entries. Raises ConfigError where there are more questions than entries.
    """

    vocab_size = 256

    def __init__(self, name: Name = "phonebook", entries: Names = 16, digits: Digits = 7, questions: Names = 4):
        self.name, self.entries, self.digits, self.questions = name, entries, digits, questions
        if questions > entries:
            raise ConfigError(
                f"task.questions={questions} asks for more names than task.entries={entries} tells.",
                "at most one question an entry.",
                f"set task.questions={entries} or fewer, or task.entries={questions} or more.",
            )
        self.corpus = Sotu()
        self.sentence = PROMPT_BYTES + digits + len(AFTER)

    def parameters(self) -> dict[str, Any]:
        """The corpus stands here by its digest."""
        names = ("entries", "digits", "questions")
        return {name: getattr(self, name) for name in names} | {"corpus": self.corpus.digest}

    def text(self, length: int) -> int:
        """Bytes of real text in an example, whose last digit is the target of its last input."""
        return length + 1 + len(AFTER) - len(BREAK) - (self.entries + self.questions) * self.sentence

    def shortest(self) -> int:
        """With one byte of text."""
        return 1 - self.text(0)

    def _check_drawn(self, batch_size: int, length: int) -> None:
        """Raises ConfigError, also where no split has as much text."""
        if length < self.shortest():
            raise ConfigError(
                f"task.entries={self.entries} and task.questions={self.questions} do not fit trainer.length={length}.",
                f"{self.sentence} bytes for each with task.digits={self.digits}, and text: {self.shortest()} or more.",
                f"set trainer.length={self.shortest()} or more, or lower task.entries, task.questions or task.digits.",
            )
        most = min(map(self.corpus.tokens, SPLITS))
        if self.text(length) > most:
            raise ConfigError(
                f"Sequences of {length:,} bytes of task={self.name} need {self.text(length):,} bytes of running text.",
                f"at most {most:,}, which the smallest split has.",
                "lower trainer.length, or the last of evaluate.length_factors.",
            )
        super()._check_drawn(batch_size, length)

    def batch(self, split: str, index: int, batch_size: int, length: int, seed: int) -> Batch:
        """Draws from the split's own text, with a generator of (split, seed, index)."""
        self._check_drawn(batch_size, length)
        generator = np.random.default_rng([SPLITS.index(split), seed, index])
        text = _passages(generator, self.corpus.streams[split], batch_size, self.text(length))
        told = self._sentences(generator, batch_size)
        order = distinct(generator, self.entries, batch_size, self.questions)
        asked = np.take_along_axis(told, order[:, :, None], axis=1)
        parts = [_inserted(generator, text, told), _repeated(BREAK, batch_size, 1), asked]
        line = np.concatenate([part.reshape(batch_size, -1) for part in parts], axis=1)[:, : length + 1]
        inputs, targets = line[:, :-1].astype(np.int64), np.full((batch_size, length), IGNORE, dtype=np.int64)
        first = length + len(AFTER) - self.questions * self.sentence + PROMPT_BYTES
        digits = (first + self.sentence * np.arange(self.questions)[:, None] + np.arange(self.digits)).ravel()
        targets[:, digits] = line[:, digits + 1]
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def _sentences(self, generator: np.random.Generator, batch_size: int) -> np.ndarray:
        """The phonebooks, a sentence an entry: uint8 (batch_size, entries, sentence)."""
        first, second = np.divmod(distinct(generator, NAMES, batch_size, self.entries), SYLLABLES)
        digits = ord("0") + generator.integers(10, size=(batch_size, self.entries, self.digits), dtype=np.uint8)
        name = np.stack([*_syllable(first, CONSONANTS.upper()), *_syllable(second, CONSONANTS)], axis=-1)
        fixed = [_repeated(part, *first.shape) for part in (BEFORE, BETWEEN, AFTER)]
        return np.concatenate([fixed[0], name, fixed[1], digits, fixed[2]], axis=-1)

    def total(self, outputs: Tensor, batch: Batch) -> float:
        """How many digits stand in answers that are right as a whole."""
        scored = batch.targets != IGNORE
        right = (outputs.argmax(dim=-1) == batch.targets)[scored].view(-1, self.digits)
        return self.digits * right.all(dim=1).sum().item()

    def oracle(self, inputs: Tensor) -> Tensor:
        answers = torch.zeros_like(inputs)
        for row, line in enumerate(inputs.to(torch.uint8).numpy()):
            book: dict[bytes, bytes] = {}
            text = line.tobytes()
            for prompt in PROMPT.finditer(text):
                if number := book.get(prompt[1]):
                    room = answers[row, prompt.end() - 1 :][: self.digits]
                    room.copy_(torch.tensor(list(number))[: len(room)])
                else:
                    book[prompt[1]] = text[prompt.end() : prompt.end() + self.digits]
        return answers


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8)


def _repeated(text: bytes, *shape: int) -> np.ndarray:
    return np.broadcast_to(_bytes(text), (*shape, len(text)))


def _syllable(number: np.ndarray, consonants: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A consonant and a vowel for each number below SYLLABLES."""
    consonant, vowel = np.divmod(number, len(VOWELS))
    return _bytes(consonants)[consonant], _bytes(VOWELS)[vowel]


def _passages(generator: np.random.Generator, stream: np.ndarray, batch_size: int, size: int) -> np.ndarray:
    """Passages of `size` bytes from anywhere in a stream: (batch_size, size)."""
    starts = generator.integers(len(stream) - size + 1, size=batch_size)
    return np.lib.stride_tricks.sliding_window_view(stream, size)[starts]


def _inserted(generator: np.random.Generator, text: np.ndarray, sentences: np.ndarray) -> np.ndarray:
    """The sentences (B, N, S), in their order, within the texts (B, F), behind white space: (B, F + N S).

    Where no white space stands before a drawn place, its sentence comes first.
    """
    batch_size, size = text.shape
    count, width = sentences.shape[1:]
    is_gap = np.pad((text == ord(" ")) | (text == ord("\n")), ((0, 0), (1, 0)))  # whether one stands behind white space
    gaps = np.maximum.accumulate(np.where(is_gap, np.arange(size + 1), 0), axis=1)  # (B, F + 1)
    places = np.sort(generator.integers(size + 1, size=(batch_size, count)), axis=1)
    places = np.take_along_axis(gaps, places, axis=1)  # (B, N)
    starts = places + width * np.arange(count)
    is_text = np.ones((batch_size, size + count * width), dtype=bool)
    within = (starts[:, :, None] + np.arange(width)).reshape(batch_size, -1)
    np.put_along_axis(is_text, within, False, axis=1)
    line = np.empty(is_text.shape, dtype=np.uint8)
    line[is_text] = text.ravel()
    np.put_along_axis(line, within, sentences.reshape(batch_size, -1), axis=1)
    return line
