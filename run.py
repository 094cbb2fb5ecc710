"""compose -> build -> train -> evaluate -> measure -> record. The only file that knows Hydra.

python run.py model=ltc solver=rk4
python run.py --help
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent
os.environ.setdefault("LIQUIDBENCH_ROOT", str(ROOT))
PLUGINS = os.environ.setdefault("LIQUIDBENCH_PLUGINS", str(ROOT))
"""A folder of one's own architectures: NAME.py, and GROUP/CHOICE.yaml as in conf/ (model/NAME.yaml)."""
if PLUGINS not in sys.path:
    sys.path.append(PLUGINS)

import hydra  # noqa: E402  (its configuration reads the two variables)
import yaml  # noqa: E402
from hydra._internal.callbacks import Callbacks  # noqa: E402
from hydra._internal.core_plugins.basic_launcher import BasicLauncher  # noqa: E402
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402
from hydra.core.global_hydra import GlobalHydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from hydra.core.plugins import Plugins  # noqa: E402
from hydra.types import HydraContext, RunMode  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from harness.config.configure import build, checked, locate, own_keys  # noqa: E402
from harness.config.errors import ConfigError, UserError  # noqa: E402
from harness.machine import processes  # noqa: E402
from sweeps.known import Known  # noqa: E402
from sweeps.plan import Plan, Planner, Runs  # noqa: E402
from sweeps.section import Section  # noqa: E402
from sweeps.work import Command, Work, obey, objective, signals_reported  # noqa: E402

BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"
"""Hydra's own sweeper, whose jobs are known before the first one starts."""
IN_PROCESS = f"{BasicLauncher.__module__}.{BasicLauncher.__name__}"
"""Hydra's own launcher: one job after the other, in this process."""
JOBLIB = ("hydra.launcher.n_jobs=-1", "hydra.launcher.batch_size=1", "hydra.launcher.pre_dispatch=n_jobs")
"""How joblib's launcher is set unless the command says otherwise: a process a processor, and a run at a time each."""
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
"""The variables that give each of several workers one thread, unless they are set."""


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
    for part in ("experiment", "debug", "sweep"):
        plain.pop(part, None)
    model = plain.get("model")
    names = model.get("names") if isinstance(model, dict) else None
    composed_only = ("kernel", *(names if isinstance(names, dict) else ()))  # they reach the model by interpolation
    plain = checked(plain, "", extra=composed_only, annotation=locate("harness.config.experiment.Experiment", ""))
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
    launcher = next((o.partition("=")[2] for o in overrides if o.startswith("hydra/launcher=")), None)
    if launcher is not None and "hydra/launcher" in first:
        return ConfigError(
            f"hydra/launcher={launcher} was given, and Hydra has no such launcher here.",
            "joblib, submitit_local, submitit_slurm or ray, its package installed; basic needs none.",
            "pip install -e .[sweeps] for joblib, .[slurm] for submitit; docs/sweeps.md tells of ray.",
        )
    chosen = next((o for o in overrides if o.startswith("model=")), "the model chosen")
    for group, models in groups_of_models().items():
        lacking = chosen.removeprefix("model=") not in models
        if f"override '{group}'" in first or (lacking and f"override '{group}." in first):
            having = ", ".join(f"model={name}" for name in models)
            return ConfigError(
                f"{group}= was given, but {chosen} has no {group}.",
                f"{group}= only where the model has such a part ({having}).",
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


def expanded(overrides: list[str], sweeps: bool = False) -> Plan:
    """Lets Hydra expand a command. sweeps: whether it was given -m. Raises ConfigError for what Hydra cannot read."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # it knows what glob(*) is
            given = parser.parse_overrides(overrides)
            fixed = [o.input_line for o in given if not o.is_sweep_override()]
            composed = hydra.compose("config", fixed, return_hydra_config=True)
            node, sweeper = composed.get("sweep"), composed.hydra.sweeper
            section = Section.of(None if node is None else OmegaConf.to_container(node, resolve=True))
            sweeps = sweeps or str(composed.hydra.mode) == "RunMode.MULTIRUN"
            of_job = [o for o in given if not o.input_line.startswith(("hydra.", "hydra/"))]
            own = sweeper._target_ != BASIC
            if own:
                jobs, runs = [fixed], sweeper.get("n_trials")
                runs = 1 if not sweeps and len(fixed) == len(given) else runs
            else:
                shared = [f"{key}={values}" for key, values in (sweeper.params or {}).items()]
                # the command line overrides the grids of a sweep's file
                grids = [parser.parse_overrides(shared + lines) + of_job for lines in section.lines()]
                jobs = [job for grid in grids for job in BasicSweeper.split_arguments(grid, None)[0]]
                runs = len(jobs)
        except UserError:
            raise
        except Exception as error:  # beside its own errors ValueError (trainer=null), AssertionError (+=) and more
            raise composition_error(error, overrides) from error
    folder, launcher = Path(composed.hydra.sweep.dir), composed.hydra.launcher._target_
    return Plan(jobs, runs, sweeps, folder, name_of(overrides), composed.question, own, launcher, section)


def name_of(overrides: list[str]) -> str:
    """The name of a sweep: that of its file, or one made of what is asked for."""
    of_file = next((o.partition("=")[2] for o in overrides if o.startswith("+sweeps=")), "")
    return of_file or f"sweep-{sha256(' '.join(sorted(overrides)).encode()).hexdigest()[:8]}"


def planned(overrides: list[str], sweeps: bool = False, known: Known | None = None) -> Plan:
    """What a command asks for, each grid extended and each value chosen as the records say.

    sweeps: whether it was given -m. known: the records; None for those of the command's own folder and of results/.
    """
    if known is None:
        known = Known([expanded(overrides, sweeps).folder, ROOT / "results"])
    return Planner(expanded, RUNS).plan(overrides, sweeps, known)


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
    for overrides in [*plan.jobs, *(job for job, _ in plan.waiting)]:
        RUNS.config(overrides)
    if plan.sweeps and processes.count() > 1:
        raise ConfigError(
            f"A sweep was given to {processes.count()} processes that train together.",
            "one run for all of them; a sweep starts its own workers.",
            "start the sweep by python alone with hydra/launcher=joblib, or each of its runs by torchrun.",
        )
    if plan.sweeps:
        check_writable(plan.folder)  # the sweep is noted there before its first job
    return plan


def run_once(config: DictConfig) -> dict:
    """Makes one run and shows it; returns its record."""
    from harness.records.summary import show

    plain = resolve(config)
    result = build(own_keys(plain)).run(plain)
    show(result)
    return result


def launch(arguments: list[str], name: str, jobs: list[list[str]]) -> None:
    """Starts jobs, each given as overrides, by the launcher that the arguments choose; returns when all have ended."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        parsed = OverridesParser.create().parse_overrides(arguments)
        fixed = [o.input_line for o in parsed if not o.is_sweep_override()]
        app = GlobalHydra.instance().hydra
        ours = [f"hydra.job.name={name}", *JOBLIB * ("hydra/launcher=joblib" in fixed)]
        config = app.compose_config(config_name="config", overrides=[*ours, *fixed], run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=app.config_loader, callbacks=Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(context, job, config)
        if config.hydra.launcher._target_ != IN_PROCESS:
            for variable in THREADS:
                os.environ.setdefault(variable, "1")
        for told_elsewhere in ("hydra", "hydra_plugins"):  # which jobs there are
            logging.getLogger(told_elsewhere).setLevel(logging.WARNING)
        launcher.launch(jobs, initial_job_idx=0)


IN_CHARGE: list[Command] = []
"""The command of this process, where it is the one that the user started; a worker has none."""


def job(config: DictConfig) -> float:
    """One job of a command, in this process or in a worker's; returns what a sweeper may minimise."""
    info = HydraConfig.get()
    if OmegaConf.is_missing(info.job, "num"):
        with errors_reported():
            return objective(run_once(config))
    if OmegaConf.select(config, "logger.group", default="") is None:
        config.logger.group = info.job.name  # W&B shows the runs of a sweep together
    work = Work(Path(info.sweep.dir), info.job.name, list(info.overrides.task), lambda: run_once(config))
    return work.attempt(IN_CHARGE[0].display) if IN_CHARGE else work.as_worker(info.job.num)


def hydra_main(name: str = "") -> None:
    """Hands the command to Hydra. name: of a sweep."""
    if name:
        sys.argv.append(f"hydra.job.name={name}")
    hydra.main(config_path=str(ROOT / "conf"), config_name="config", version_base="1.3")(job)()


def configuration(overrides: list[str]) -> dict:
    """The checked configuration of the run that a command with these overrides would make."""
    return resolve(compose(overrides))


RUNS = Runs(configuration, build)
"""The runs that overrides ask for."""


def experiment(overrides: list[str]):
    """The Experiment that a command with these overrides would run."""
    return build(own_keys(configuration(overrides)))


def model_and_size(overrides: list[str]):
    """The ModelSpec and the SizeConfig that a command with these overrides would build."""
    plain = configuration(overrides)
    return build(plain["model"]), build(plain["size"])


def task(overrides: list[str]):
    """The task that a command with these overrides would train on."""
    return build(configuration(overrides)["task"])


@contextmanager
def errors_reported() -> Iterator[None]:
    """Ends the command with one paragraph and a non-zero status where the user made a mistake."""
    try:
        yield
    except UserError as error:
        sys.exit(error.paragraph() if processes.rank() == 0 else 1)  # several processes say it once


def main() -> None:
    """The command."""
    if parent := os.environ.get("LIQUIDBENCH_PARENT"):  # whoever started this process wants it to end with itself
        obey(int(parent))
    arguments = sys.argv[1:]
    with signals_reported(lambda: IN_CHARGE and IN_CHARGE[0].stop_workers()):
        with errors_reported():
            plan = preflight(arguments)
        if plan is None or not plan.sweeps:
            return hydra_main()
        overrides = [argument for argument in arguments if argument not in ("-m", "--multirun")]
        command = Command(plan, RUNS, plan.launcher == IN_PROCESS)
        IN_CHARGE[:] = [command]
        try:
            with errors_reported():
                if plan.own:
                    command.run_by_others(lambda: hydra_main(plan.name))
                else:
                    command.run(lambda jobs: launch(overrides, plan.name, jobs), lambda: planned(overrides, True))
        finally:
            IN_CHARGE.clear()


if __name__ == "__main__":
    import run  # as a module by its name, so that workers find `job` in it

    run.main()
