"""A finished record as others read it: its files are taken from anywhere, so nothing in them is believed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.config.errors import RecordError
from harness.records import code, curve

MOVED = {"harness.experiment.Experiment": "harness.config.experiment.Experiment"}
"""What configurations of records name and where it stands today."""


def config(folder: Path) -> dict:
    """The configuration of the run in `folder`; raises RecordError where it cannot be read or is not to be trusted."""
    found = _moved(_json(folder, "config.json"))
    trust(found, str(folder / "config.json"))
    return found


def environment(folder: Path) -> dict:
    """The environment that the run in `folder` was made in; raises RecordError where it cannot be read."""
    return _json(folder, "environment.json")


def trust(node: Any, source: str) -> None:
    """Raises RecordError where a configuration, which came from `source`, names code that is not ours.

    What it names is called when it is built, so every name must be of our packages or of the plugins' folder.
    """
    for target in _targets(node):
        module = target.rpartition(".")[0] if isinstance(target, str) else ""
        if not re.fullmatch(r"[A-Za-z_][\w.]*", module) or code.find(module) is None:
            raise RecordError(
                f"{source} asks for {str(target)[:80]!r}, which is no part of LiquidBench.",
                "classes of arch, baselines, harness, or of the folder LIQUIDBENCH_PLUGINS.",
                "use a record that you trust; for a model of your own set LIQUIDBENCH_PLUGINS to its folder.",
            )


def result(folder: Path) -> dict:
    """The result of the run in `folder`; raises RecordError where it has none."""
    if not (folder / "result.json").is_file() and (folder / "config.json").is_file():
        raise RecordError(
            f"The run {folder} is not finished.",
            "a run that trained to its end and passed its checks.",
            f"finish it: python -m harness.records.again {folder} --records {folder.parent}",
        )
    return _json(folder, "result.json")


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not folder.is_dir():
        raise RecordError(
            f"{folder} is no folder.", "the folder of a recorded run.", "correct the path: ls runs results."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise curve.unreadable(path, str(error)) from error
    if not isinstance(value, dict):
        raise curve.unreadable(path, "it is no JSON object")
    return value


def _moved(node: Any) -> Any:
    """The configuration with every `_target_` by its name of today."""
    if isinstance(node, list):
        return [_moved(part) for part in node]
    if not isinstance(node, dict):
        return node
    target = node.get("_target_")
    known = {"_target_": MOVED[target]} if isinstance(target, str) and target in MOVED else {}
    return {key: _moved(part) for key, part in node.items()} | known


def _targets(node: Any) -> Iterator[Any]:
    """Every value under a key `_target_`."""
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]
    for part in parts:
        yield from _targets(part)
