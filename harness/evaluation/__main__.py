"""Published tasks of a trained run: `python -m harness.evaluation run=runs/RUN tasks=lambada_openai,hellaswag`.

tasks: names that lm-evaluation-harness 0.4.13 knows, such as mmlu, gsm8k, humaneval, lambada_openai, hellaswag; their
data comes from Hugging Face, or from its cache. include_path: a folder of more tasks, whose YAML may name local JSON
files. shots: examples before each question, the task's own number where it is not given. limit: documents of each
task. device: cpu (the default) or cuda. run_code=true: lets HumanEval and its like run what the model wrote, which
belongs in a sandbox. force=true: repeats what is scored already.

A task's scores land in RUN/lm_eval.json as it ends, and in the tables of `python -m analysis`; a killed command goes on
with the next task.
"""

import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch

import harness
from harness.config.command import flag, key_values, whole_number
from harness.config.errors import ConfigError, MachineError, UserError
from harness.machine.runtime import one_precision
from harness.records import scores

KEYS = ("run", "tasks", "include_path", "shots", "limit", "device", "run_code", "force")


def main(arguments: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    given = key_values(arguments, KEYS, "harness.evaluation")
    tasks = [name for name in given.get("tasks", "").split(",") if name]
    if not tasks:
        raise ConfigError("tasks= was not given.", "names of tasks, with commas.", "tasks=lambada_openai, for one.")
    numbers = {key: whole_number(key, given[key], least) for key, least in (("shots", 0), ("limit", 1)) if key in given}
    run_code, force = (flag(key, given.get(key, "false")) for key in ("run_code", "force"))
    run, device, folder = Path(given["run"]), _device(given.get("device", "cpu")), _folder(given.get("include_path"))
    if find_spec("lm_eval") is None:
        raise MachineError(
            "lm-evaluation-harness (lm_eval) cannot be imported.",
            "the extra `lm_eval`.",
            "pip install 'liquidbench[lm_eval]'",
        )
    from harness.evaluation.lm import Settings, evaluate

    settings = Settings(numbers.get("shots"), numbers.get("limit"), run_code)
    one_precision()
    known = harness.load(run).to(device)
    for task in tasks:
        if not force and _is_scored(run, known.result, task, asdict(settings)):
            print(f"{task}: scored already (force=true repeats it)")
            continue
        entries = evaluate(known, task, settings, folder)
        scores.add(run, known.result, entries)
        for name, entry in entries.items():
            said = ", ".join(f"{metric} {score['value']:.4g}" for metric, score in entry["scores"].items())
            print(f"{name}: {said} ({len(entry['documents']):,} documents)")
    print(f"Scores are in {run / scores.NAME}")


def _is_scored(run: Path, result: dict, task: str, settings: dict) -> bool:
    known = scores.read(run, result).values()
    return any(entry["asked"] == task and entry["settings"] == settings for entry in known)


def _device(name: str) -> str:
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device={name[:40]} cannot be used.", "cpu or cuda.", "correct device.")
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineError("There is no CUDA device here.", "device=cpu.", "leave device= out.")
    return name


def _folder(path: str | None) -> Path | None:
    if path is not None and not Path(path).is_dir():
        raise ConfigError(f"include_path={path} is no folder.", "a folder of tasks.", "correct the path.")
    return None if path is None else Path(path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(error.paragraph())
