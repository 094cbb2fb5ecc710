"""What training and generation cost: as measured, and extrapolated, said to be so, to another size."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from analysis.field import by_context, policy
from analysis.models import catalogue
from analysis.render import MISSING, NOT_MEASURED, Table, si_bytes
from harness.config.errors import RecordError

FILE = Path(__file__).resolve().parents[1] / "docs" / "prices.yaml"
CONTEXTS = (1024, 32768, 131072)
FLOPS_PER_PARAMETER = 6
"""Of training a token: two forward and four backward for each parameter of a product."""
SHAPE = ("d_model", "n_layers", "parameters", "embedding", "train_flops_per_token", "state_bytes_1024", "train_length")
"""Columns of the frame of runs that an extrapolation needs."""
MILLION, HOUR = 1e6, 3600.0
TOLERANCE = 0.02
"""By which a model may miss its budget of parameters (docs/protocol.md)."""
OWN = "*"
OWNS = f"{OWN}: a recorded run's own figure, one measurement on the machine that trained it, to one figure."
"""Of generation that the bench did not time."""
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class Inputs(BaseModel):
    """Values of docs/prices.yaml; nothing more, nothing missing."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Measured(Inputs):
    dollars_per_hour: Positive


class Utilisation(Inputs):
    """The part of an accelerator's rates that is reached: low, middle, high."""

    training: list[Positive]
    memory: list[Positive]

    @field_validator("training", "memory")
    @classmethod
    def _rises(cls, values: list[float]) -> list[float]:
        if len(values) != 3 or sorted(values) != values or values[-1] > 1:
            raise ValueError("three numbers up to 1 that rise: low, middle, high")
        return values


class Extrapolated(Inputs):
    parameters: Positive
    layers: Count
    train_length: Count
    contexts: list[Count]
    bytes_per_number: Count
    sequences: Count
    accelerator: str
    dollars_per_hour: Positive
    memory_bytes: Positive
    bytes_per_second: Positive
    flops_per_second: Positive
    source: str
    utilisation: Utilisation


class Serving(Inputs):
    """memory_dollars_per_gb_hour: of holding a state. tokens_per_session_hour: that a session generates, pauses too."""

    memory_dollars_per_gb_hour: Positive
    tokens_per_session_hour: Positive


class Prices(Inputs):
    measured: Measured
    serving: Serving
    extrapolated: Extrapolated


def read(path: Path = FILE) -> Prices:
    """Reads the prices; RecordError names the key, its value and what is wrong."""
    try:
        return Prices.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, one['loc']))}={one['input']!r}: {one['msg']}"
            for one in error.errors(include_url=False, include_context=False)
        ]
        problem = "; ".join(wrong)
    except (OSError, yaml.YAMLError) as error:
        problem = str(error)
    raise RecordError(
        f"{path} cannot be used ({problem}).", "prices, sizes and rates as the file's comments describe.", "correct it."
    )


@dataclass(frozen=True)
class Shape:
    """A model as measured. numbers: that its state holds of one sequence, from the measured bytes in float32.

    window: the tokens that the state spans where it grows up to them; None for a state of fixed size. dense: parameters
    that a token is multiplied with (all but the table of embeddings). flops: a token's, of training at `length`.
    """

    d_model: int
    layers: int
    parameters: int
    dense: int
    numbers: float
    window: int | None
    flops: float
    length: int


@dataclass(frozen=True)
class Larger:
    """The same architecture at another size. numbers_at: of its state at a context, of one sequence."""

    shape: Shape
    inputs: Extrapolated

    @property
    def d_model(self) -> float:
        """The width that fills the budget: parameters grow with layers x d_model squared, as many as measured."""
        per_square = self.shape.dense / (self.shape.layers * self.shape.d_model**2)
        return math.sqrt(self.inputs.parameters / (per_square * self.inputs.layers))

    @property
    def growth(self) -> float:
        """Of what is proportional to layers x d_model: states, and operations on single numbers."""
        return self.inputs.layers * self.d_model / (self.shape.layers * self.shape.d_model)

    def numbers_at(self, context: int) -> float:
        """Of one sequence's state, which a growing one holds whole."""
        spanned = 1.0 if self.shape.window is None else context / self.shape.window
        return self.shape.numbers * self.growth * spanned

    @property
    def training_flops(self) -> float:
        """Of a token: six for each parameter, and the measured rest, which grows with layers x d_model and attention's
        with the length too."""
        rest = max(0.0, self.shape.flops - FLOPS_PER_PARAMETER * self.shape.dense) * self.growth
        if self.shape.window is not None:
            rest *= self.inputs.train_length / self.shape.length
        return FLOPS_PER_PARAMETER * self.inputs.parameters + rest

    def training_dollars(self, utilisation: float) -> float:
        """For a million tokens."""
        seconds = MILLION * self.training_flops / (self.inputs.flops_per_second * utilisation)
        return seconds / HOUR * self.inputs.dollars_per_hour

    def together(self, context: int) -> int:
        """Sequences generated at once: as many as fit beside the weights, up to the stated number."""
        weights, state = self._bytes(context)
        return min(self.inputs.sequences, max(0, math.floor((self.inputs.memory_bytes - weights) / state)))

    def step_seconds(self, context: int, utilisation: float) -> float | None:
        """Of one token of each of these sequences after `context`: it reads all weights once and each one's state.

        None where not one sequence fits.
        """
        together = self.together(context)
        if together < 1:
            return None
        weights, state = self._bytes(context)
        reading = (weights + together * state) / (self.inputs.bytes_per_second * utilisation)
        computing = together * 2 * self.inputs.parameters / (self.inputs.flops_per_second * utilisation)
        return max(reading, computing)

    def decoding_dollars(self, context: int, utilisation: float) -> float | None:
        """For a million tokens generated after `context`, by `step_seconds`."""
        seconds = self.step_seconds(context, utilisation)
        if seconds is None:
            return None
        return MILLION * seconds / self.together(context) / HOUR * self.inputs.dollars_per_hour

    def _bytes(self, context: int) -> tuple[float, float]:
        """Of the weights, and of one sequence's state."""
        held = self.inputs.parameters, self.numbers_at(context)
        return held[0] * self.inputs.bytes_per_number, held[1] * self.inputs.bytes_per_number


@dataclass(frozen=True)
class Time:
    """Milliseconds a token, and those of the fastest and the slowest round; without rounds: a run's own figure."""

    ms: float
    rounds: tuple[float, float] | None = None

    def told(self, of: Callable[[float], float], unit: str = "") -> str:
        """What `of` makes of the milliseconds, with the range of the rounds; a run's own to one figure, marked."""
        if self.rounds is None:
            return f"{unit}{_figures(of(self.ms), 1)}{OWN}"
        low, high = (_figures(of(ms), 2) for ms in self.rounds)
        return f"{unit}{_figures(of(self.ms), 2)} ({low} to {high})"


@dataclass(frozen=True)
class Timed:
    """A contestant of the bench. training, decoding: its times by length and by context, nothing cut."""

    parameters: int | None
    training: dict[int, Time]
    decoding: dict[int, Time]


@dataclass(frozen=True)
class Speed:
    """What one size of a model takes under one policy of its context. generation: after each context."""

    cache: str
    parameters: int | None
    training: Time | None
    generation: dict[int, Time]


def timed(rows: Iterable[dict]) -> dict[str, Timed]:
    """{contestant: what was timed} of the bench's rows of whole models."""
    made: dict[str, Timed] = {}
    for row in rows:
        known = made.get(row["contestant"], Timed(None, {}, {}))
        if row["what"] == "training":
            low, high = row.get("range_us", [1e6 / row["tokens_per_second"]] * 2)
            known.training[int(row["length"])] = Time(1e3 / row["tokens_per_second"], (low / 1e3, high / 1e3))
            known = replace(known, parameters=row.get("parameters"))
        elif row["what"] == "decoding":
            low, high = row.get("range_ms", [row["decode_ms"]] * 2)
            known.decoding[int(row["length"])] = Time(row["decode_ms"], (low, high))
        made[row["contestant"]] = known
    return made


def speeds(model: str, runs: pd.DataFrame, bench: dict[str, Timed]) -> list[Speed]:
    """What a model takes: by the bench, and by the runs that stand for it where the bench has no figure.

    One entry a size and policy: figures of runs stand beside the bench's where both are of one size and cut nothing.
    """
    quiet = runs[~runs["decode_busy"]] if len(runs) else runs
    rates = by_context(quiet, "decode_tokens_per_second")
    own, cache = {context: Time(1e3 / rate) for context, rate in rates.items()}, policy(runs)
    ran = round(float(runs["parameters"].mean())) if len(runs) else None
    label = runs["label"].iloc[0] if len(runs) else model
    one = bench.get(label, bench.get(model))
    if one is None:
        return [Speed(cache, ran, None, own)]
    shortest = one.training[min(one.training)] if one.training else None
    alike = same_size(one.parameters, ran)
    if alike and cache == "state":
        return [Speed(cache, one.parameters, shortest, own | one.decoding)]
    made = [Speed(cache if cache in (MISSING, "state") else "full", one.parameters, shortest, one.decoding)]
    if own:
        made.append(Speed(cache, ran, shortest if alike else None, own))
    return made


def same_size(one: int | None, other: int | None) -> bool:
    """Whether two models can be of one budget, within the tolerance of which each of them lies."""
    return one is not None and other is not None and abs(one - other) <= 2 * TOLERANCE * max(one, other)


def tables(standing: dict[str, pd.DataFrame], bench: dict[str, Timed], prices: Prices) -> list[Table]:
    """As measured, and extrapolated.

    standing: the runs that stand for each model, none for one that was not measured. bench: what it timed.
    """
    shapes = [(model, shape(runs.iloc[0]) if len(runs) else None) for model, runs in standing.items()]
    sequential = {model for model, entry in catalogue().items() if entry.get("sequential")}
    return [measured_table(standing, bench, prices), extrapolated_table(shapes, prices, sequential)]


def shape(run: pd.Series) -> Shape | None:
    """The shape of a run; None where its record lacks a part of it."""
    known = pd.to_numeric(run.reindex(SHAPE))
    if known.isna().any():
        return None
    d_model, layers, parameters, embedding, flops, state, length = (float(value) for value in known)
    table = 0.0 if run.get("tied") is True else embedding / 2  # untied: a table, and a head
    dense = round(parameters - table)
    return Shape(int(d_model), int(layers), int(parameters), dense, state / 4, spanned(run), flops, int(length))


def spanned(run: pd.Series) -> int | None:
    """The tokens that a state which grows spans after 1,024; None for a state of fixed size."""
    kind, _, tokens = str(run.get("context")).partition(" ")
    return {"window": int(tokens.replace(",", "") or 0), "full": 1024}.get(kind) or None


def measured_dollars(ms: float, dollars_per_hour: float) -> float:
    """For a million tokens that take so many milliseconds each."""
    return MILLION * ms / 1e3 / HOUR * dollars_per_hour


def measured_table(standing: dict[str, pd.DataFrame], bench: dict[str, Timed], prices: Prices) -> Table:
    """Dollars for a million tokens, as measured: training, and generation after each context; one size a row."""
    price = prices.measured.dollars_per_hour
    header = ["model", "context", "parameters", "training"]
    header += [f"generation at {context // 1024}k" for context in CONTEXTS]
    cells, data = [], []

    def of(ms: float) -> float:
        return measured_dollars(ms, price)

    for model, runs in standing.items():
        for one in speeds(model, runs, bench):
            times = {"training": one.training} | {f"generation_{at}": one.generation.get(at) for at in CONTEXTS}
            shown = [NOT_MEASURED if time is None else time.told(of, "$") for time in times.values()]
            size = NOT_MEASURED if one.parameters is None else f"{one.parameters:,}"
            cells.append([model, one.cache, size, *shown])
            row: dict[str, Any] = {"model": model, "context": one.cache, "parameters": one.parameters}
            for what, time in times.items():
                row |= {what: time and of(time.ms)}
                row |= {f"{what}_{end}": None for end in ("low", "high")}
                if time is not None and time.rounds is not None:
                    row |= {f"{what}_{end}": of(ms) for end, ms in zip(("low", "high"), time.rounds, strict=True)}
            data.append(row)
    notes = [
        f"Dollars for a million tokens at ${price:.2f} an hour (docs/prices.yaml), batch 1 in generation, of models of "
        "the parameters named. By the bench, which cuts no cache: the median of its rounds, and the fastest and the "
        f"slowest; training at its shortest length. {OWNS}"
    ]
    labels = {model: runs["label"].iloc[0] for model, runs in standing.items() if len(runs)}
    if named := [f"{model} is {label}" for model, label in labels.items() if label != model]:
        notes.append(
            f"Standing for their models: {'; '.join(named)}; the bench's figures are of these where it timed them, "
            "else of the model as it comes."
        )
    return Table("cost-measured", "Cost, measured", header, cells, notes, pd.DataFrame(data))


def extrapolated_table(
    rows: Iterable[tuple[str, Shape | None]], prices: Prices, sequential: Collection[str] = ()
) -> Table:
    """Dollars for a million tokens at another size, with the range that the stated utilisation gives.

    sequential: the models whose training goes token by token, for which the best utilisation is a bound and no more.
    """
    inputs = prices.extrapolated
    size = f"{inputs.parameters / 1e9:g}B"
    header = ["model", "d_model", "training", *(f"generation at {c // 1024}k" for c in inputs.contexts)]
    header.append("state at the last")
    cells, data = [], []
    for model, known in rows:
        if known is None:
            cells.append([model, *[NOT_MEASURED] * (len(header) - 1)])
            continue
        large = Larger(known, inputs)
        training = [large.training_dollars(part) for part in inputs.utilisation.training]
        generation = {
            c: [large.decoding_dollars(c, part) for part in inputs.utilisation.memory] for c in inputs.contexts
        }
        state = large.numbers_at(inputs.contexts[-1]) * inputs.bytes_per_number
        trained = f"above {dollars(training[-1])}" if model in sequential else span(training)
        cells.append([model, f"{large.d_model:,.0f}", trained, *map(span, generation.values()), si_bytes(state)])
        row: dict[str, float | str | None] = {
            "model": model,
            "d_model": large.d_model,
            "state_bytes": state,
            "flops_per_token": large.training_flops,
        }
        bound = [None, None, training[-1]] if model in sequential else training
        ranges: dict[str, Sequence[float | None]] = {"training": bound}
        ranges |= {f"generation_{context}": three for context, three in generation.items()}
        for key, (dear, middle, cheap) in ranges.items():
            row |= {key: middle, f"{key}_low": cheap, f"{key}_high": dear}
        data.append(row)
    low, _, high = (f"{100 * part:.0f}" for part in inputs.utilisation.training)
    notes = [
        f"Extrapolation, not a measurement: dollars for a million tokens of {size} parameters on one "
        f"{inputs.accelerator} at ${inputs.dollars_per_hour:.2f} an hour (docs/prices.yaml). From the measured model: "
        "parameters a layer and d_model², state a layer and d_model, and operations beyond six a parameter; "
        f"{inputs.layers} layers, the width solved for. Training: those operations at {low} to {high} % of the peak; "
        "six a parameter are nearly all of them but for attention, so that figures agree by assumption. Above: where a "
        "token's state is no linear function of the last one's, training goes token by token, or by Newton's method, "
        f"and {high} % is a bound that nothing says can be reached. Generation: the time to read the weights once a "
        f"step and each sequence's state, for as many of {inputs.sequences} sequences as fit. A growing state is taken "
        "to hold the whole context. Range: of the utilisation alone; that an architecture can be run so well, or "
        "trains to the same quality, is not known.",
    ]
    return Table("cost-extrapolated", f"Cost at {size}, extrapolated", header, cells, notes, pd.DataFrame(data))


def _figures(value: float, count: int) -> str:
    """A number to so many figures, without an exponent of ten: 0.0073, 12."""
    return f"{float(f'{value:.{count}g}'):,.6g}"


def dollars(value: float | None) -> str:
    """Two figures."""
    return NOT_MEASURED if value is None else f"${value:.2g}"


def span(three: Sequence[float | None]) -> str:
    """`middle (low to high)`, from dear to cheap; `does not fit` for None."""
    dear, middle, cheap = three
    if dear is None or middle is None or cheap is None:
        return "does not fit"
    return f"${middle:.2g} ({cheap:.2g} to {dear:.2g})"
