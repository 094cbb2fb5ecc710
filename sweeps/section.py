"""The section `sweep:` of a sweep's file: which runs it asks for. Knows neither Hydra nor records."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.config.errors import ConfigError


class Part(BaseModel):
    """A part of the section: keys that it does not know are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(Part):
    """How the value of a key is chosen, on validation, among the runs of another sweep.

    sweep: the one that tried values of the key. by: keys of the configuration, or whole parts of it (model), in which
    its runs must agree with the run that the value is for. trend: the key of the size along which the best values are
    carried on, where the other sweep did not try this size; "" for none. times: a factor on what was chosen, to try a
    neighbour.
    """

    sweep: str
    by: list[str] = Field(min_length=1)
    trend: str = ""
    times: float = Field(1.0, gt=0)


class Budget(Part):
    """What the sweep spends. tokens: of each run, in words where its size decides. runs: before any extension."""

    tokens: int | str
    runs: int = Field(ge=1)


class Cost(Part):
    """hours: of one worker. tokens_per_second: its stated speed in training a model of 1M parameters."""

    hours: float = Field(gt=0)
    tokens_per_second: float = Field(gt=0)


class Section(Part):
    """grids: of each, every combination is run; a list holds the values of its key. seeds: of every run.

    tune: a key whose values are extended until the best on validation lies inside. choose: how keys get values that
    other sweeps found. parts: sweeps that this one consists of, in order of priority. urgent: what is made before all
    else, the most urgent first: of each, the values that an override of the run must have, and `sweep` its sweep.
    """

    grids: list[dict[str, Any]] = []
    seeds: list[int] = []
    tune: str = ""
    choose: dict[str, Choice] = {}
    parts: list[str] = []
    urgent: list[dict[str, Any]] = []
    budget: Budget | None = None
    cost: Cost | None = None

    @classmethod
    def of(cls, node: Any) -> "Section":
        """Reads the section; raises ConfigError for what it cannot use."""
        try:
            section = cls.model_validate(node or {})
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            key = ".".join(["sweep", *map(str, first["loc"])])
            raise ConfigError(
                f"{key}={str(first['input'])[:80]} cannot be used: {first['msg']}.",
                "a section `sweep:` as CONTRIBUTING.md describes it.",
                f"correct {key} in the sweep's file.",
            ) from error
        if section.parts and (section.grids or section.seeds or section.tune or section.choose):
            raise ConfigError(
                "sweep.parts is given beside grids, seeds, tune or choose.",
                "a sweep of its own grids, or one that consists of other sweeps.",
                "move the grids to a file of their own, and name it among the parts.",
            )
        return section

    def urgency(self, sweep: str, job: list[str]) -> int:
        """The place of a run of the sweep `sweep` among what is urgent, behind all of it where it is none of that."""
        has = dict(override.lstrip("+").split("=", 1) for override in job) | {"sweep": sweep}
        places = (at for at, asked in enumerate(self.urgent) if all(_is_among(has.get(k), asked[k]) for k in asked))
        return next(places, len(self.urgent))

    @property
    def keys(self) -> set[str]:
        """The keys that its grids give values to."""
        return {line.partition("=")[0] for lines in self.lines() for line in lines}

    def lines(self) -> list[list[str]]:
        """The overrides of each grid, its seeds included: `key=value,value`."""
        seeds = {"seed": self.seeds} if self.seeds else {}
        return [[f"{key}={_choices(values)}" for key, values in (seeds | grid).items()] for grid in self.grids or [{}]]


def _is_among(value: str | None, values: Any) -> bool:
    return value in [_written(one) for one in (values if isinstance(values, list) else [values])]


def _choices(values: Any) -> str:
    return ",".join(map(_written, values)) if isinstance(values, list) else _written(values)


def _written(value: Any) -> str:
    """A value as the command line has it; a list among the values of a key is one value."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return str(value)
