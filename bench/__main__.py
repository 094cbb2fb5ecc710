"""The bench's command; see the package."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from analysis.bench import SUBJECTS, TABLES
from analysis.references import REFERENCES
from analysis.references import table as references_table
from bench import checks, context, dynamics, edge, gradients, kernels, models, newton, references, sessions
from bench.store import Store
from bench.targets import Target
from bench.timing import Limits
from harness.config.configure import locate
from harness.config.errors import UserError
from harness.machine.runtime import one_precision, use_threads

ROOT = Path(__file__).resolve().parents[1]
OF_RUNS = {"edge": edge.run, "dynamics": dynamics.run, "context": context.run}
"""Subjects that measure runs, which the command names, on the CPU alone."""
RUN = {
    "kernels": kernels.run,
    "models": models.run,
    "newton": newton.run,
    "checks": checks.run,
    "gradients": gradients.run,
    "sessions": sessions.run,
}


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times kernels and whole models against each other and against other packages, interleaved in one "
        "process, and compares the ratios with the targets of conf/bench/; and what checking a model takes. "
        "Measurements are kept and not repeated. `references` has no times: it measures what a text costs without a "
        "model.",
    )
    parser.add_argument("subject", choices=[*SUBJECTS, REFERENCES])
    parser.add_argument(
        "given",
        nargs="*",
        metavar="task|run",
        help="references: the text, as run.py takes it (default: task=sotu); "
        f"{', '.join(OF_RUNS)}: folders of trained runs",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="where to keep them (default: results/bench; with --quick nowhere)")
    parser.add_argument("--force", action="store_true", help="repeat the measurements that are kept")
    parser.add_argument("--quick", action="store_true", help="one small cell, to see that everything runs")
    options = parser.parse_args(given)
    if options.given and options.subject not in (REFERENCES, *OF_RUNS):
        parser.error(f"{' '.join(options.given)}: only `references` takes a task, and {', '.join(OF_RUNS)} take runs")
    if options.subject in OF_RUNS and options.device != "cpu":
        parser.error(f"{options.subject}: it is measured on the CPU")
    if options.out is None and not options.quick:
        home = ROOT if (ROOT / "results").is_dir() else Path()  # a wheel has no records beside it
        options.out = home / "results" / "bench"
    return options


def main(given: list[str] | None = None) -> None:
    """Measures one subject, prints its tables and keeps them."""
    options = arguments(given)
    config = yaml.safe_load((ROOT / "conf" / "bench" / f"{options.subject}.yaml").read_text())
    if options.quick:
        config |= config["quick"]
    try:
        print(f"\n{_references(options, config) if options.subject == REFERENCES else _timed(options, config)}")
    except UserError as error:
        sys.exit(error.paragraph())


def _references(options: argparse.Namespace, config: dict) -> str:
    """Measures the reference lines of a text; returns their table. With --quick they are of its beginning: not kept."""
    task = locate(config["compose"], "compose")(options.given or ["task=sotu"])
    folder = None if options.quick else options.out / REFERENCES
    return references_table(references.run(task, config, folder, options.force, _say))


def _timed(options: argparse.Namespace, config: dict) -> str:
    """Times the contestants of a subject; returns its tables."""
    targets = [Target(**target) for target in config.get("targets", [])]
    name = options.subject if options.device == "cpu" else f"{options.subject}-{options.device}"
    limits = Limits(seconds=0.2, rounds=1) if options.quick else Limits(**config.get("limits", {}))
    use_threads(None)
    one_precision()
    store = Store(options.out and options.out / f"{name}.json", options.force)
    if store.aside:
        print(f"measurements of another machine or of other packages moved to {store.aside}; measuring again")
    torch.manual_seed(0)
    if options.subject in OF_RUNS:
        OF_RUNS[options.subject](config, store, [Path(run) for run in options.given], _say)
    else:
        RUN[options.subject](config, store, torch.device(options.device), limits, _say)
    store.note(targets=[target.verdict(store.rows) for target in targets], limits=asdict(limits))
    return TABLES[options.subject](store.content)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
