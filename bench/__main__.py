"""The bench's command; see the package."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from analysis.bench import SUBJECTS, TABLES
from bench import checks, gradients, kernels, models, newton
from bench.store import Store
from bench.targets import Target
from bench.timing import Limits
from harness.errors import UserError
from harness.machine.runtime import one_precision, use_threads

ROOT = Path(__file__).resolve().parents[1]
RUN = {
    "kernels": kernels.run,
    "models": models.run,
    "newton": newton.run,
    "checks": checks.run,
    "gradients": gradients.run,
}


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times kernels and whole models against each other and against other packages, interleaved in one "
        "process, and compares the ratios with the targets of conf/bench/; and what checking a model takes. "
        "Measurements are kept and not repeated.",
    )
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="where to keep them (default: results/bench; with --quick nowhere)")
    parser.add_argument("--force", action="store_true", help="repeat the measurements that are kept")
    parser.add_argument("--quick", action="store_true", help="one small cell, to see that everything runs")
    options = parser.parse_args(given)
    if options.out is None and not options.quick:
        options.out = ROOT / "results" / "bench"
    return options


def main(given: list[str] | None = None) -> None:
    """Measures one subject, prints its tables and keeps them."""
    options = arguments(given)
    config = yaml.safe_load((ROOT / "conf" / "bench" / f"{options.subject}.yaml").read_text())
    if options.quick:
        config |= config["quick"]
    targets = [Target(**target) for target in config.get("targets", [])]
    name = options.subject if options.device == "cpu" else f"{options.subject}-{options.device}"
    limits = Limits(seconds=0.2, rounds=1) if options.quick else Limits()
    use_threads(None)
    one_precision()
    try:
        store = Store(options.out and options.out / f"{name}.json", options.force)
        if store.aside:
            print(f"measurements of another machine or of other packages moved to {store.aside}; measuring again")
        torch.manual_seed(0)
        RUN[options.subject](config, store, torch.device(options.device), limits, lambda line: print(line, flush=True))
    except UserError as error:
        sys.exit(f"error: {error.what}\nexpected: {error.expected}\nremedy: {error.remedy}")
    store.note(targets=[target.verdict(store.rows) for target in targets], limits=asdict(limits))
    print(f"\n{TABLES[options.subject](store.content)}")


if __name__ == "__main__":
    main()
