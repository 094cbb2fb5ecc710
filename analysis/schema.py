"""What tables and figures need of a record or a file of docs/: what lacks it, or has another form, is refused."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from harness.config.errors import RecordError

T = TypeVar("T")

Name = Field(min_length=1)


class Part(BaseModel):
    """A part of a record: JSON's own types, finite numbers, and whatever else it holds besides."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Written(BaseModel):
    """A part of a file that is written by hand: keys that it does not know are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Parameters(Part):
    total: int
    non_embedding: int
    embedding: int | None = None


class Width(Part):
    d_model: int | None = None
    n_layers: int | None = None


class Data(Part):
    digest: str | None = None


class Load(Part):
    """other_cpu: the share of the machine's processors that other processes had; null: unknown."""

    other_cpu: float | None = None
    busy: bool | None = None


class Divergence(Part):
    update: int | None = None


class Training(Part):
    tokens: int
    updates: int
    epochs: float | None = None
    tokens_per_second: float | None = None
    flops_per_token: float | None = None
    load: Load | None = None
    divergence: Divergence | None = None


class Metrics(Part):
    bits_per_byte: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    mean_squared_error: float | None = None
    loss: float | None = None


class AtPosition(Metrics):
    position: int


class AtLength(Metrics):
    length: int


class Split(Metrics):
    loss_by_position: list[AtPosition] | None = None


class Sample(Part):
    prompt: str
    text: str


class Evaluation(Part):
    validation: Split
    test: Split
    extrapolation: list[AtLength] | None = None
    sample: Sample | None = None


class Context(Part):
    context: int
    state_bytes: int | None = None
    generation_memory_bytes: int | None = None
    decode_ms_p50: float | None = None
    decode_tokens_per_second: float | None = None
    first_token_ms: float | None = None


class Measurement(Part):
    device: str
    device_name: str
    threads: int
    contexts: list[Context]
    load: Load | None = None


class Check(Part):
    name: str
    passed: bool | None = None
    detail: str | None = None


class Checks(Part):
    passed: Any = None
    results: list[Check] | None = None


class Code(Part):
    """checks: the digest of those that the run passed; null or absent in records of before it was kept."""

    digest: str = Name
    modules: dict[str, str]
    checks: str | None = None


class ContextPolicy(Part):
    kind: str = Name
    tokens: int | None = None


class Result(Part):
    """result.json. code, context_policy and loads: null or absent in records of before they were kept."""

    key: str = Name
    name: str = Name
    status: Literal["finished", "diverged"]
    model: str = Name
    solver: str | None = None
    gradient: str | None = None
    block: str | None = None
    size: str = Name
    task: str = Name
    seed: int
    parameters: Parameters
    width: Width | None = None
    data: Data
    training: Training
    evaluation: Evaluation | None = None
    measurement: Measurement | None = None
    checks: Checks | None
    code: Code | None = None
    context_policy: ContextPolicy | None = None

    @model_validator(mode="after")
    def _finished_is_evaluated(self) -> "Result":
        if self.status == "finished" and self.evaluation is None:
            raise ValueError("a finished run has an evaluation")
        return self


class Block(Part):
    name: str | None = None
    d_conv: int | None = None


class Model(Part):
    names: dict[str, str | None] | None = None
    tie_embeddings: bool | None = None


class Config(Part):
    """config.json."""

    model: Model
    trainer: dict[str, Any] = {}
    block: Block | None = None

    @model_validator(mode="before")
    @classmethod
    def _targets_are_names(cls, content: Any) -> Any:
        nodes = [content]
        while nodes:
            node = nodes.pop()
            if isinstance(node, dict):
                if not isinstance(node.get("_target_", ""), str):
                    raise ValueError("a _target_ is the dotted name of a class")
                nodes += node.values()
            elif isinstance(node, list):
                nodes += node
        return content


class Git(Part):
    commit: str
    dirty: bool


class Environment(Part):
    """environment.json."""

    cpu: str | None = None
    gpu: str | None = None
    threads: int | None = None
    git: Git | None = None


class Score(Part):
    """A score of a published task; values: of each document, a number or [sum, weight]."""

    value: float | None
    higher_is_better: bool | None = None
    aggregation: Literal["mean", "perplexity", "bits_per_byte"] | None = None
    values: list[float | Annotated[list[float], Field(min_length=2, max_length=2)]] | None = None

    @model_validator(mode="after")
    def _values_of_what_is_aggregated(self) -> "Score":
        if (self.aggregation is None) != (self.values is None):
            raise ValueError("values are there where the score is an aggregation of them")
        return self


class ScoredTask(Part):
    documents: list[str]
    scores: dict[str, Score]

    @model_validator(mode="after")
    def _a_value_for_each_document(self) -> "ScoredTask":
        for score in self.scores.values():
            if score.values is not None and len(score.values) != len(self.documents):
                raise ValueError("each document has a value")
        return self


class Scores(Part):
    """What harness/records/scores.py reads."""

    tasks: dict[str, ScoredTask]


def from_yaml(path: Path, kind: type[T], expected: str, remedy: str) -> T:
    """A file of docs/ as what it describes; RecordError names what cannot be used, and says what was expected."""
    try:
        return TypeAdapter(kind).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
        problem = "; ".join(wrong[:3])
    except (OSError, yaml.YAMLError) as error:
        problem = str(error)
    raise RecordError(f"{path} cannot be used ({problem}).", expected, remedy)


def problem(content: dict, part: type[Part]) -> str | None:
    """What of a file's content cannot be used, by key, at most three; None for none."""
    try:
        part.model_validate(content)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        said = [f"{'.'.join(map(str, one['loc'])) or 'the whole'}: {one['msg']}" for one in errors]
        return "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")
    return None
