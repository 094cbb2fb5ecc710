"""Published tasks by lm-evaluation-harness: a trained model of bytes behind its interface, and a task's scores.

Needs the package lm_eval 0.4.13, which harness/evaluation/__main__.py asks for.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval import __version__ as lm_eval_version
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from harness.config.errors import ConfigError, TaskError
from harness.evaluation.likelihood import Ids, log_likelihoods, remembered
from harness.generation.library import Past, TrainedModel
from harness.machine.environment import environment
from harness.records.scores import aggregation_of

START: Ids = (ord("\n"),)
"""What stands before a text without a context: a line ends there. Bytes have no token for the beginning of a text."""


@dataclass(frozen=True)
class Settings:
    """How a task is evaluated. shots: examples before each question, None for the task's own number.

    limit: documents of each task, None for all. run_code: whether code that the model wrote may be run, as HumanEval
    asks for.
    """

    shots: int | None = None
    limit: int | None = None
    run_code: bool = False


class BytesLM(LM):
    """A trained model that reads text as bytes: every string is its UTF-8, and a context is read once.

    Raises ConfigError for a model that reads no text.
    """

    def __init__(self, known: TrainedModel):
        super().__init__()
        if not known.reads_text:
            raise ConfigError(
                f"The model of {known.path} was trained on {known.config['task']['name']}, which is no text.",
                "a model of bytes.",
                "evaluate a run of a text task.",
            )
        self.known = known

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the likeliest) of each request's continuation of its context."""
        pairs = [(_ids(context) or START, _ids(continuation)) for context, continuation in _arguments(requests)]
        return self._scored(pairs, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, with as much of its past as the run's evaluation has."""
        pairs = [(START, _ids(text)) for (text,) in _arguments(requests)]
        return [nats for nats, _ in self._scored(pairs, disable_tqdm)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context until one of its ends comes, greedily unless sampling is asked."""
        asked = [(_ids(context) or START, normalize_gen_kwargs(how)) for context, how in _arguments(requests)]
        contexts = list(dict.fromkeys(context for context, _ in asked))
        places: dict[Ids, list[int]] = {context: [] for context in contexts}
        for place, (context, _) in enumerate(asked):
            places[context].append(place)
        written = [""] * len(asked)
        with tqdm(total=len(asked), desc="generating", disable=disable_tqdm) as bar:
            for which, past in remembered(self.known, contexts):
                for place in places[contexts[which]]:  # a task that repeats a question draws anew each time
                    written[place] = self._written(contexts[which], past, asked[place][1], seed=place)
                    bar.update()
        return written

    def _scored(self, pairs: Sequence[tuple[Ids, Ids]], disable_tqdm: bool) -> list[tuple[float, bool]]:
        with tqdm(total=len(pairs), desc="scoring", disable=disable_tqdm) as bar:
            return log_likelihoods(self.known, pairs, bar.update)

    def _written(self, context: Ids, past: Past, how: Any, seed: int) -> str:
        ends = [end for end in how["until"] if end]
        longest = max((len(end.encode()) for end in ends), default=0)
        said = bytearray()
        for token in self.known.generate(
            context[past.read :],
            how["max_gen_toks"],
            how.get("temperature", 1.0) if how["do_sample"] else 0.0,
            how.get("top_k"),
            how.get("top_p", 1.0),
            seed,
            past if past.read else None,
        ):
            said.append(int(token))
            if any(end.encode() in said[-longest:] for end in ends):
                break
        return postprocess_generated_text(said.decode(errors="replace"), ends, None)


def evaluate(known: TrainedModel, task: str, settings: Settings, folder: Path | None = None) -> dict[str, dict]:
    """{name: entry of harness/records/scores.py} of a task, of a group as one, or of each task that a tag stands for.

    folder: where YAML files of more tasks lie. Raises TaskError for a task that is not known, cannot be loaded, or runs
    code that the model wrote without leave.
    """
    manager = TaskManager(include_path=None if folder is None else str(folder))
    if task not in manager.all_tasks:
        raise TaskError(
            f"lm-evaluation-harness has no task {task!r}.",
            "a name that `lm-eval ls tasks` lists, or one of the YAML files below include_path=.",
            "correct tasks=, or give include_path=FOLDER.",
        )
    if settings.run_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    try:
        loaded = manager.load(task)
        found = evaluator.simple_evaluate(
            BytesLM(known),
            tasks=[loaded["groups"][task]] if task in loaded["groups"] else list(loaded["tasks"].values()),
            num_fewshot=settings.shots,
            limit=settings.limit,
            bootstrap_iters=0,  # the analysis draws its own, paired
            task_manager=manager,
            confirm_run_unsafe_code=settings.run_code,
        )
    except (OSError, ValueError, ImportError) as error:  # of the data: no network; of code: no leave
        raise TaskError(
            f"The task {task} cannot be evaluated ({type(error).__name__}: {' '.join(str(error).split())[:300]}).",
            "its data within reach and, for a task that runs the model's code, run_code=true.",
            "run it once with a network, give a local task by include_path=FOLDER, or allow code in a sandbox.",
        ) from error
    assert found is not None, "one process evaluates"
    said = {"asked": task, "settings": asdict(settings), "lm_eval": lm_eval_version, "git": environment()["git"]}
    return {name: said | entry for name, entry in _entries(task, task in loaded["groups"], found).items()}


def _entries(task: str, group: bool, found: Any) -> dict[str, dict]:
    """The entries of a task's results: of a group one, whose documents are those of all its parts."""
    parts = sorted(found["samples"])
    if not group:
        return {name: _entry(name, [name], found) for name in parts}
    return {task: _entry(task, parts, found) | {"parts": {part: _scores(found, part) for part in parts}}}


def _entry(name: str, parts: Sequence[str], found: Any) -> dict:
    """The entry of a task, or of a group with these parts."""
    samples = [sample for part in parts for sample in sorted(found["samples"][part], key=lambda one: one["doc_id"])]
    first, higher = samples[0]["filter"], found["higher_is_better"].get(name, {})
    entry: dict = {"version": found["versions"].get(name), "scores": {}}
    entry["documents"] = [sample["doc_hash"][:12] for sample in samples if sample["filter"] == first]
    for key, value in _scores(found, name).items():
        metric, _, filtered = key.partition(",")
        values = [_plain(sample.get(metric)) for sample in samples if sample["filter"] == filtered]
        aggregation = aggregation_of(values, value)
        entry["scores"][key] = {
            "value": value,
            "higher_is_better": higher.get(metric),
            "aggregation": aggregation,
            "values": aggregation and values,
        }
    return entry


def _scores(found: Any, name: str) -> dict[str, float]:
    """{"metric,filter": value} of a task or a group."""
    scores = {key: value for key, value in found["results"][name].items() if "," in key and "_stderr" not in key}
    return {key: float(value) for key, value in scores.items() if isinstance(value, int | float)}


def _plain(value: Any) -> Any:
    """A document's value as JSON: a number, [sum, weight], or None for anything else."""
    if isinstance(value, tuple | list):
        return [float(part) for part in value] if len(value) == 2 else None
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


def _ids(text: str) -> Ids:
    return tuple(text.encode(errors="replace"))


def _arguments(requests: list[Instance]) -> list[Any]:
    return [request.args for request in requests]
