"""What conf/ gives a run unless it is told otherwise, as far as it stands in its files, which are not composed."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parents[1] / "conf"
MIXER = "model.mixer."
"""How the keys of a mixer's own choices begin."""
GROUPS = ("block", "solver", "gradient", "parallel")
"""The parts that a model's file names one choice of."""
RESOLVED = "${"
"""How a value begins that another key gives."""


@cache
def model(name: str) -> dict[str, Any]:
    """Of a run of this model: the trainer's, the backbone's and the model's own keys, flat."""
    shared = flatten({"trainer": _file("trainer/default.yaml"), "model": _file("backbone.yaml")})
    return shared | flatten({"model": _file(f"model/{name}.yaml")})


@cache
def task(name: str) -> dict[str, Any]:
    """Of a run on this task: the task's own keys, flat."""
    return flatten({"task": _file(f"task/{name}.yaml")})


@cache
def _own(name: str) -> dict[str, Any]:
    """What makes a run the model as it comes: the choices of its file, and of the parts that the file names."""
    parts = flatten({"model": {key: value for key, value in _file(f"model/{name}.yaml").items() if key != "names"}})
    for default in _content(f"model/{name}.yaml").get("defaults", ()):
        for where, choice in default.items() if isinstance(default, dict) else ():
            group = where.partition("@")[0].removeprefix("/")
            if group in GROUPS:
                parts |= flatten({group: _file(f"{group}/{choice}.yaml")})
    return {k: v for k, v in parts.items() if not str(v).startswith(RESOLVED) and not k.endswith("_target_")}


def is_changed(name: str, config: dict[str, Any]) -> bool:
    """Whether a flat configuration has other choices than the model as it comes, in the keys that both have."""
    return any(config[key] != value for key, value in _own(name).items() if key in config)


def liquid() -> set[str]:
    """The models whose mixer, or one of several, is of arch/."""
    files = (CONF / "model").glob("*.yaml")
    return {path.stem for path in files if "_target_: arch." in path.read_text(encoding="utf-8")}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists are kept as text."""
    if not isinstance(config, dict):
        return {prefix: str(config) if isinstance(config, list) else config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def _content(path: str) -> dict[str, Any]:
    file = CONF / path
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}


def _file(path: str) -> dict[str, Any]:
    """What a file of conf/ gives itself; nothing where there is no such file."""
    return {key: value for key, value in _content(path).items() if key not in ("defaults", "_target_")}
