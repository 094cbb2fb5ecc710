"""compose -> build -> train -> evaluate -> measure -> record. The only file that knows Hydra.

python run.py model=ltc solver=rk4
python run.py --help
"""

import inspect
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent
os.environ.setdefault("LIQUIDBENCH_ROOT", str(ROOT))
PLUGINS = os.environ.setdefault("LIQUIDBENCH_PLUGINS", str(ROOT))
"""A folder of one's own architectures: NAME.py, and GROUP/CHOICE.yaml as in conf/ (model/NAME.yaml)."""
if PLUGINS not in sys.path:
    sys.path.append(PLUGINS)

import hydra  # noqa: E402  (its configuration reads the two variables)
import yaml  # noqa: E402
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from hydra.errors import InstantiationException  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from harness.configure import checked, locate  # noqa: E402
from harness.errors import ConfigError, UserError  # noqa: E402

BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"
"""Hydra's own sweeper, whose jobs are known before the first one starts."""


def compose(overrides: list[str]) -> DictConfig:
    """Composes one run's configuration; raises ConfigError for what Hydra cannot compose."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            return hydra.compose("config", overrides)
        except Exception as error:  # beside its own errors ValueError (trainer=null), AssertionError (+=) and more
            raise composition_error(error, overrides) from error


def resolve(config: DictConfig) -> dict:
    """Resolves and checks a configuration; raises ConfigError naming the first key that cannot be used."""
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"The key {error.full_key!r} has no usable value ({error.msg.splitlines()[0]}).",
            "a value for every key marked ??? in conf/.",
            f"add {error.full_key}=VALUE to the command.",
        ) from error
    for part in ("experiment", "debug"):
        plain.pop(part, None)
    model = plain.get("model")
    names = model.get("names") if isinstance(model, dict) else None
    composed_only = ("kernel", *(names if isinstance(names, dict) else ()))  # they reach the model by interpolation
    plain = checked(plain, "", extra=composed_only, annotation=locate("harness.experiment.Experiment", ""))
    mixers = plain["model"]["mixer"]
    mixers = mixers if isinstance(mixers, list) else [mixers]
    if plain.get("kernel", "auto") != "auto" and not all("kernel" in mixer for mixer in mixers):
        raise ConfigError(
            f"kernel={plain['kernel']} was given, but model={plain['model']['name']} has no kernels to choose from.",
            "kernel=auto where the model's mixer takes no `kernel`.",
            "remove kernel=, or give the mixer a `kernel: ${kernel}` and an operation of harness/ops/registry.py.",
        )
    return plain


def composition_error(error: Exception, overrides: list[str]) -> ConfigError:
    """A failed composition as one paragraph; a group given to a model that lacks it gets its own remedy."""
    first = " ".join(str(error).split())[:500]
    chosen = next((o for o in overrides if o.startswith("model=")), "the model chosen")
    for group, models in groups_of_models().items():
        lacking = chosen.removeprefix("model=") not in models
        if f"override '{group}'" in first or (lacking and f"override '{group}." in first):
            having = ", ".join(f"model={name}" for name in models)
            return ConfigError(
                f"{group}= was given, but {chosen} has no {group}.",
                f"a {group} only where the model has one ({having}).",
                f"remove {group}=, or choose such a model.",
            )
    return ConfigError(
        f"The configuration cannot be composed from {' '.join(overrides)[:300]!r}: {first}",
        "groups, options and keys that conf/ defines.",
        "`python run.py --help` lists the groups with their options and every key.",
    )


def groups_of_models() -> dict[str, list[str]]:
    """The groups that the models' files bring along (block, solver, ...), and the models that do."""
    groups: dict[str, list[str]] = {}
    folders = [ROOT / "conf" / "model", Path(PLUGINS) / "model"]
    for path in sorted(path for folder in folders for path in folder.glob("*.yaml")):
        entries = [entry for entry in yaml.safe_load(path.read_text()).get("defaults", []) if isinstance(entry, dict)]
        for group in (re.match(r"/(\w+)@", key) for entry in entries for key in entry):
            if group:
                groups.setdefault(group[1], []).append(path.stem)
    return groups


class Plan(NamedTuple):
    """What a command asks for. jobs: the overrides of every job, or of what all jobs share where only a sweeper of the
    user's own knows them. runs: how many there will be, None where only the sweeper knows. folder: a sweep's.
    """

    jobs: list[list[str]]
    runs: int | None
    sweeps: bool
    folder: Path


def planned(overrides: list[str], sweeps: bool = False) -> Plan:
    """Lets Hydra expand a command. sweeps: whether it was given -m. Raises ConfigError for what Hydra cannot read."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            parser = OverridesParser.create()
            given = parser.parse_overrides(overrides)
            fixed = [o.input_line for o in given if not o.is_sweep_override()]
            composed = hydra.compose("config", fixed, return_hydra_config=True).hydra
            sweeper, folder = composed.sweeper, Path(composed.sweep.dir)
            sweeps = sweeps or str(composed.mode) == "RunMode.MULTIRUN"
            if sweeper._target_ != BASIC:
                one = not sweeps and len(fixed) == len(given)
                return Plan([fixed], 1 if one else sweeper.get("n_trials"), sweeps, folder)
            grid = parser.parse_overrides([f"{key}={values}" for key, values in (sweeper.params or {}).items()])
            # the command line overrides the grid of a sweep's file
            (jobs,) = BasicSweeper.split_arguments([*grid, *given], max_batch_size=None)
        except Exception as error:  # beside its own errors ValueError (trainer=null), AssertionError (+=) and more
            raise composition_error(error, overrides) from error
    return Plan(jobs, len(jobs), sweeps, folder)


def preflight(arguments: list[str]) -> Plan | None:
    """Composes and checks all that can be checked of a command before its first job starts.

    Returns its plan; None where the command runs nothing (--help, --cfg and their like).
    """
    from harness.records.record import check_writable

    flags = {a for a in arguments if a.startswith("-")}
    if not flags <= {"-m", "--multirun"}:
        return None
    plan = planned([a for a in arguments if a not in flags], sweeps=bool(flags))
    if plan.runs != 1 and not plan.sweeps:
        raise ConfigError(
            f"The command asks for {plan.runs or 'several'} runs, but not for a sweep.",
            "-m wherever a key is given several values.",
            f"python run.py -m {' '.join(arguments)}",
        )
    for overrides in plan.jobs:
        resolve(compose(overrides))
    if plan.sweeps:
        check_writable(plan.folder)  # Hydra writes there before the first job
    return plan


def run_once(config: DictConfig) -> dict:
    """Makes one run and shows it; returns its record."""
    from harness.records.summary import show

    plain = resolve(config)
    result = build(own_keys(plain)).run(plain)
    show(result)
    return result


def objective(result: dict) -> float:
    """What a sweeper may minimise: the loss on validation; infinite where training diverged."""
    figures = (result["evaluation"] or {}).get("validation", {})
    return figures.get("bits_per_byte", figures.get("loss", math.inf))


class Sweep:
    """The jobs of one command after each other: one that fails is told, and the next one starts."""

    def __init__(self, runs: int | None):
        from harness.training.progress import SweepProgress

        self.progress = SweepProgress(runs)
        self.failures: list[str] = []

    def run(self, config: DictConfig) -> float:
        """Makes the run of one job; returns its objective, infinite where it failed."""
        overrides = list(HydraConfig.get().overrides.task)
        print(f"\n{self.progress.start(overrides)}", flush=True)
        start = time.monotonic()
        try:
            result = run_once(config)
            self.progress.made(time.monotonic() - start, result["training"]["seconds"])
            return objective(result)
        except Exception as error:  # whatever ended this job, the others are worth running
            if isinstance(error, UserError):
                print(paragraph(error), file=sys.stderr)
            else:
                traceback.print_exc()
            reason = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.failures.append(f"{' '.join(overrides)}: {reason}")
            return math.inf

    def end(self) -> None:
        """Ends the command with the list of what failed, and a non-zero status, where anything did."""
        if self.failures:
            failed = "".join(f"\n  {line}" for line in self.failures)
            sys.exit(f"error: {len(self.failures)} of {self.progress.started} runs failed:{failed}")


def own_keys(plain: dict) -> dict:
    """The keys of a configuration that its target takes, without those that reached the model by interpolation."""
    taken = inspect.signature(locate(plain["_target_"], "config")).parameters
    return {key: value for key, value in plain.items() if key in taken or key == "_target_"}


def build(node: dict):
    """Instantiates a checked configuration; an error that a constructor raises for the user arrives unwrapped."""
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise error.__cause__ if isinstance(error.__cause__, UserError) else error from None


def experiment(overrides: list[str]):
    """The Experiment that a command with these overrides would run."""
    return build(own_keys(resolve(compose(overrides))))


def model_and_size(overrides: list[str]):
    """The ModelSpec and the SizeConfig that a command with these overrides would build."""
    plain = resolve(compose(overrides))
    return build(plain["model"]), build(plain["size"])


def task(overrides: list[str]):
    """The task that a command with these overrides would train on."""
    return build(resolve(compose(overrides))["task"])


def paragraph(error: UserError) -> str:
    """A mistake of the user's as it is printed."""
    return f"error: {error.what}\nexpected: {error.expected}\nremedy: {error.remedy}"


@contextmanager
def errors_reported() -> Iterator[None]:
    """Ends the command with one paragraph and a non-zero status where the user made a mistake."""
    try:
        yield
    except UserError as error:
        sys.exit(paragraph(error))


class Stopped(SystemExit):
    """A signal that ended the command; its status is the shell's, 128 and the signal's number."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


@contextmanager
def signals_reported() -> Iterator[None]:
    """Ends the command with one line where it is told to stop; training first writes its checkpoint."""

    def stop(number: int, frame) -> None:
        raise Stopped(number)

    handled = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handled.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except Stopped as stopped:
        print(f"Stopped by {stopped.signal}. The same command takes the run up where it stands.", file=sys.stderr)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """The command."""
    with signals_reported():
        with errors_reported():
            plan = preflight(sys.argv[1:])
        sweep = Sweep(plan.runs) if plan and plan.sweeps else None

        @hydra.main(config_path=str(ROOT / "conf"), config_name="config", version_base="1.3")
        def job(config: DictConfig) -> float:
            """Runs one job of the command."""
            if sweep is not None:
                return sweep.run(config)
            with errors_reported():
                return objective(run_once(config))

        job()
        if sweep is not None:
            sweep.end()


if __name__ == "__main__":
    main()
