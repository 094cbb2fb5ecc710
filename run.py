"""compose -> build -> train -> evaluate -> measure -> record. The only file that knows Hydra.

python run.py model=ltc solver=rk4
python run.py --help
"""

import inspect
import itertools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
os.environ.setdefault("LIQUIDBENCH_ROOT", str(ROOT))
PLUGINS = os.environ.setdefault("LIQUIDBENCH_PLUGINS", str(ROOT))
"""A folder of one's own architectures: NAME.py, and GROUP/CHOICE.yaml as in conf/ (model/NAME.yaml)."""
if PLUGINS not in sys.path:
    sys.path.append(PLUGINS)

import hydra  # noqa: E402  (its configuration reads the two variables)
import yaml  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from hydra.core.override_parser.types import Override  # noqa: E402
from hydra.errors import HydraException, InstantiationException  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from harness.configure import checked, locate  # noqa: E402
from harness.errors import ConfigError, UserError  # noqa: E402


def compose(overrides: list[str]) -> DictConfig:
    """Composes one run's configuration; raises ConfigError for what Hydra cannot compose."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            return hydra.compose("config", overrides)
        except (HydraException, OmegaConfBaseException) as error:
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
    mixers = plain["model"]["mixer"]
    if plain["kernel"] != "auto" and not all("kernel" in m for m in (mixers if isinstance(mixers, list) else [mixers])):
        raise ConfigError(
            f"kernel={plain['kernel']} was given, but model={plain['model']['name']} has no kernels to choose from.",
            "kernel=auto where the model's mixer takes no `kernel`.",
            "remove kernel=, or give the mixer a `kernel: ${kernel}` and an operation of harness/ops/registry.py.",
        )
    composed_only = ("kernel", *plain["model"].get("names", {}))  # they reach the model by interpolation
    return checked(plain, "", extra=composed_only)


def composition_error(error: Exception, overrides: list[str]) -> ConfigError:
    """A failed composition as one paragraph; a group given to a model that lacks it gets its own remedy."""
    first = " ".join(str(error).split())
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
        f"The configuration cannot be composed: {first}",
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


def expanded(overrides: list[str]) -> Iterator[list[str]]:
    """Yields the overrides of every job of a sweep (one job where nothing sweeps)."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            parser = OverridesParser.create()
            given = parser.parse_overrides(overrides)
            fixed = [o.input_line for o in given if not o.is_sweep_override()]
            grid = hydra.compose("config", fixed, return_hydra_config=True).hydra.sweeper.params or {}
            swept = parser.parse_overrides([f"{key}={values}" for key, values in grid.items()])
        except (HydraException, OmegaConfBaseException) as error:
            raise composition_error(error, overrides) from error
    last = {o.key_or_group: o for o in [*swept, *given]}  # the command line overrides the grid of a sweep's file
    yield from (list(job) for job in itertools.product(*map(choices, last.values())))


def choices(override: Override) -> list[str]:
    """The overrides that one element of the grid stands for."""
    if not override.is_sweep_override():
        return [override.input_line]
    key = override.input_line.partition("=")[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def preflight(arguments: list[str]) -> None:
    """Composes and checks every job of the command before the first one starts."""
    flags = {a for a in arguments if a.startswith("-")}
    if not flags <= {"-m", "--multirun"}:
        return  # --help, --cfg and their like run nothing
    jobs = list(expanded([a for a in arguments if a not in flags]))
    if len(jobs) > 1 and not flags:
        raise ConfigError(
            f"The command asks for {len(jobs)} runs, but not for a sweep.",
            "-m wherever a key is given several values.",
            f"python run.py -m {' '.join(arguments)}",
        )
    for overrides in jobs:
        resolve(compose(overrides))


@hydra.main(config_path=str(ROOT / "conf"), config_name="config", version_base="1.3")
def job(config: DictConfig) -> None:
    """Runs one job of the command."""
    from harness.records.summary import show

    with errors_reported():
        plain = resolve(config)
        show(build(own_keys(plain)).run(plain))


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


def model_and_size(overrides: list[str]):
    """The ModelSpec and the SizeConfig that a command with these overrides would build."""
    plain = resolve(compose(overrides))
    return build(plain["model"]), build(plain["size"])


@contextmanager
def errors_reported() -> Iterator[None]:
    """Ends the command with one paragraph and a non-zero status where the user made a mistake."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error.what}\nexpected: {error.expected}\nremedy: {error.remedy}")


def main() -> None:
    """The command."""
    with errors_reported():
        preflight(sys.argv[1:])
    job()


if __name__ == "__main__":
    main()
