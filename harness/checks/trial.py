"""The model under test as the run will use it, beside the float64 copy of harness/checks/case.py."""

import copy
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.checks.conditions import Conditions, Inputs, Precision, called
from harness.checks.elsewhere import Elsewhere, continued
from harness.checks.tolerances import UNREPEATABLE, distance, worst
from harness.generation.decode import Decoder
from harness.model.backbone import LanguageModel
from harness.model.state import State

LONG_PREFILL = 1024 + 77
"""Tokens read at once: past a full block of every power of two from 16 to 1,024, and odd."""
SINGLE_STEPS = 130
"""Tokens read by `step` behind them."""
SHORT_PREFILL = 67
"""Tokens read at once before the decoder reads all the others of a long sequence."""
LONG = LONG_PREFILL + SINGLE_STEPS
"""Tokens of the long sequences."""
LONG_ROWS = 2
PROMPTS = (LONG_PREFILL, 600)
"""Tokens of two generations' prompts."""
FOLLOWING = 24
"""Tokens read behind a prompt."""
NOT_JUDGED = "not judged, since two equal calls differ: see repeatability"
POINTS = 9
"""Positions of change tried in a batch of training, as far as four calls hold them: the chosen ones, then random."""


class Moves(NamedTuple):
    """How far outputs move, relative to the largest, that must not: NaN where they are not finite.

    again: in a second, equal call. past: before the position from which the inputs of a row change. rows: in a row
    that does not change, while the others do.
    """

    again: float
    past: float
    rows: float


class Calls:
    """A model as the run calls it: its own dtype, kernels, device and batches."""

    def __init__(self, model: LanguageModel, conditions: Conditions, generator: torch.Generator, seed: int):
        self.model, self.conditions, self.generator, self.seed = model, conditions, generator, seed

    @property
    def adaptive(self) -> bool:
        """Whether the rows of a batch share an adaptive solver's steps, so that each moves with its company."""
        return any(mixer.inexact == "adaptive_steps" for mixer in self.model.mixers)

    @property
    def repeatable(self) -> float:
        """How far two equal calls may lie apart."""
        kind = torch.device(self.conditions.device).type
        return UNREPEATABLE.get((kind, self.conditions.precision), 0.0)

    @cached_property
    def batch(self) -> Inputs:
        """A batch such as the run trains on."""
        return self._batch(0)

    def _batch(self, index: int) -> Inputs:
        wanted = self.conditions
        if wanted.batch is None:
            return Inputs(self.model.interface.inputs.random(wanted.batch_size, wanted.length, self.generator))
        made = wanted.batch(index)
        return Inputs(made.inputs, made.elapsed)

    def outputs(self, inputs: Inputs, training: bool, precision: Precision | None = None) -> Tensor:
        """Outputs (B, T, out_width), on the CPU, of one call as training or evaluation makes it.

        Every call draws the same random numbers. precision: the run's own where None.
        """
        device = self.conditions.device
        torch.manual_seed(self.seed)
        self.model.train(training)
        with called(device, precision or self.conditions.precision, training):
            times = None if inputs.elapsed is None else inputs.elapsed.to(device)
            return self.model(inputs.values.to(device), None, times)[0].detach().float().cpu()

    @property
    def rows(self) -> int:
        """Rows in which each is held against the others: two where the run's batches have one."""
        return max(2, self.conditions.batch_size)

    @cached_property
    def pair(self) -> Inputs:
        """Two rows such as the run trains on, where its batches have one."""
        both = (self.batch, self._batch(1))
        times = [one.elapsed for one in both if one.elapsed is not None]
        return Inputs(torch.cat([one.values for one in both]), torch.cat(times) if times else None)

    @cached_property
    def in_training(self) -> Moves:
        """What moves in training, at the shape of the run's batches."""
        return self._at_shape(training=True, calls=4)

    @cached_property
    def in_evaluation(self) -> Moves:
        """What moves in evaluation, at the shape of the run's batches."""
        return self._at_shape(training=False, calls=2)

    def _at_shape(self, training: bool, calls: int) -> Moves:
        """What moves in the run's own batch and, where that is one row, in two, for one row has no others."""
        found = [self._moves(self.batch, training, calls)]
        if self.conditions.batch_size == 1:
            found.append(self._moves(self.pair, training, calls=1))
        return Moves(*map(worst, zip(*found, strict=True)))

    def _moves(self, inputs: Inputs, training: bool, calls: int) -> Moves:
        rows, length = inputs.values.shape[:2]
        base, again = (self.outputs(inputs, training) for _ in range(2))
        tried = self._calls(rows, length, calls, spare=min(1, rows - 1))
        if rows > 1 and (self.adaptive or length == 1):
            tried.append([length, *[0] * (rows - 1)])
        past, unchanged = zip(*(self._moved(inputs, base, places, training) for places in tried), strict=True)
        return Moves(distance(again, base), worst(past), worst(unchanged))

    def _calls(self, rows: int, length: int, most: int, spare: int) -> list[list[int]]:
        """A position of change for every row of each call; `length`, no change, for `spare` of the rows.

        most: calls at chosen positions; where they hold these alone, one more is at random ones.
        """
        places = places_of_change(length)
        if not places:
            return [[length] * rows]
        if self.adaptive:  # rows that share their steps change together
            drawn = torch.randint(1, length, (1,), generator=self.generator).tolist()
            return [[place] * rows for place in (*places[:most], *drawn)]
        changed = rows - spare
        count = min(most, -(-POINTS // changed))
        chosen = places[: count * changed]
        count += len(chosen) == count * changed
        drawn = torch.randint(1, length, (count * changed - len(chosen),), generator=self.generator).tolist()
        calls = torch.tensor([*chosen, *drawn]).view(count, changed).tolist()
        return [[*call[: n % rows], *[length] * spare, *call[n % rows :]] for n, call in enumerate(calls)]

    def _moved(self, inputs: Inputs, base: Tensor, places: list[int], training: bool) -> tuple[float, float]:
        """How far the outputs before each row's change move, and those of rows without one."""
        found = self.outputs(inputs.spliced(self._other(inputs), places), training)
        length = inputs.values.shape[1]
        moves = ((found - base).abs().amax(-1) / base.abs().max()).split(1)  # (1, T) each
        past = worst(
            move[0, :place].max().item() for move, place in zip(moves, places, strict=True) if 0 < place < length
        )
        rows = worst(move.max().item() for move, place in zip(moves, places, strict=True) if place == length)
        return past, rows

    def _other(self, inputs: Inputs) -> Inputs:
        """Inputs of the same kind that differ at every position: those of another row, as far as they differ."""
        flipped, changed = inputs.values.flip(0), self.model.interface.inputs.changed(inputs.values)
        values = torch.where(flipped == inputs.values, changed, flipped)
        return Inputs(values, None if inputs.elapsed is None else 1.5 * inputs.elapsed.flip(0))


class Trial(Calls):
    """The model under test as the run will use it.

    The parameters are those of the model, moved by a thousandth, so that what waits for a change shows; those that are
    zero are moved off it, for they would hide whatever they multiply. unused: the same model, which no one ever calls.
    """

    def __init__(self, model: LanguageModel, conditions: Conditions, generator: torch.Generator, seed: int):
        self.unused = copy.deepcopy(model).cpu()
        shake(self.unused, generator, relative=1e-3)
        super().__init__(copy.deepcopy(self.unused).to(conditions.device), conditions, generator, seed)
        self.elsewhere = Elsewhere(model, copy.deepcopy(self.unused), conditions)

    @cached_property
    def long(self) -> Inputs:
        """Inputs (LONG_ROWS, LONG, ...): the run's own batches, one behind the other."""
        wanted = self.conditions
        if wanted.batch is None:
            return Inputs(self.model.interface.inputs.random(LONG_ROWS, LONG, self.generator))
        count = -(-LONG_ROWS * LONG // (wanted.batch_size * wanted.length))
        batches = [wanted.batch(index) for index in range(count)]
        values = _long_rows([batch.inputs for batch in batches])
        times = [batch.elapsed for batch in batches if batch.elapsed is not None]
        return Inputs(values, _long_rows(times) if times else None)

    @cached_property
    def read(self) -> tuple[Tensor, State]:
        """The outputs of `long` in evaluation, in the weights' precision and at even times, and the last state."""
        with torch.inference_mode():
            return self.model.eval()(self.long.values.to(self.conditions.device))

    @cached_property
    def whole(self) -> Tensor:
        """The outputs of `long` in evaluation, in the run's precision and at its own times."""
        if self.conditions.precision == "fp32" and self.long.elapsed is None:
            return self.read[0].float().cpu()
        return self.outputs(self.long, training=False)

    @cached_property
    def decoded(self) -> tuple[Tensor, State]:
        """What the decoder gives to `long` behind a short prefill, and its last state."""
        inputs = self.long.values.to(self.conditions.device)
        with torch.inference_mode():
            decoder = Decoder(self.model.eval(), self.model(inputs[:, :SHORT_PREFILL])[1])
            made = [decoder.step(token).clone() for token in inputs[:, SHORT_PREFILL:].unbind(1)]
        return torch.stack(made, 1), decoder.state

    @property
    def prompts(self) -> list[tuple[Tensor, Tensor]]:
        """Two prompts (1, T, ...) of different lengths, and the inputs (1, FOLLOWING, ...) behind each."""
        rows = zip(self.long.values, PROMPTS, strict=True)
        return [(row[None, :read], row[None, read : read + FOLLOWING]) for row, read in rows]

    @cached_property
    def carried(self) -> tuple[State, Tensor, Tensor]:
        """The state of a decoder that has read a prompt and more, the inputs that follow, and what `continued` gives.

        What the decoder gives comes from the very decoder that read all that.
        """
        model, (prompt, following) = copy.deepcopy(self.unused).eval(), self.prompts[0]
        first, second = following.split([FOLLOWING // 2, FOLLOWING - FOLLOWING // 2], dim=1)
        with torch.no_grad():
            decoder = Decoder(model, model(prompt)[1])
            for token in first.unbind(1):
                decoder.step(token)
        state = decoder.state
        return state, second, continued(model, state, second, decoder)

    @cached_property
    def at_length(self) -> float:
        """How far outputs before a change move in the long sequences, in evaluation."""
        calls = self._calls(LONG_ROWS, LONG, most=2, spare=0)
        return worst(self._moved(self.long, self.whole, places, False)[0] for places in calls)

    def close(self) -> None:
        """Ends the other process."""
        self.elsewhere.close()


def places_of_change(length: int) -> list[int]:
    """The positions within a sequence from which its inputs are changed, the most telling first.

    All inputs from there on change, so a leak over any distance crosses the position. 8 before the end of the largest
    full block lies within a full block of every size; that end is an edge of every size, half of it where the block is
    all of the sequence. The last but one begins behind the first token of a quarter of the block.
    """
    block = 2 ** (length.bit_length() - 1)  # the largest power of two that the sequence fills
    wanted = (block - 8, block if block < length else block // 2, length - 1, 8, block - 1, block // 4 + 1, 1)
    return [place for place in dict.fromkeys(wanted) if 0 < place < length]


@torch.no_grad()
def shake(model: LanguageModel, generator: torch.Generator, relative: float = 0.0) -> None:
    """Moves parameters that are zero, and the trainable others by a part of themselves; drops gradients."""
    for parameter in model.parameters():
        parameter.grad = None
        if not parameter.any():
            # a matrix at the scale of a trained one: what stands behind a weak one would pass within rounding
            std = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.02
            nn.init.normal_(parameter, std=std, generator=generator)
        elif relative and parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.mul_(1 + relative * noise)


def _long_rows(parts: list[Tensor]) -> Tensor:
    """Rows of many batches (B, T, ...) as LONG_ROWS long ones."""
    flat = torch.cat([part.flatten(0, 1) for part in parts])
    return flat[: LONG_ROWS * LONG].unflatten(0, (LONG_ROWS, LONG))
