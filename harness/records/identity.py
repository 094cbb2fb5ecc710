"""What makes a run what it is: the meaning of its configuration, and the key that names it. Imports no torch."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 3
IGNORED = ("logger", "records", "force", "progress", "question")
"""Keys of the configuration that change nothing about a run's figures, and so not its key either."""
IGNORED_BY_TRAINER = ("log_every", "validate_every", "checkpoint_every", "snapshots", "shard", "recompute")
"""The same of its `trainer`: how often training is looked at, and what is kept in memory meanwhile, and where.

validation_batches stays: it changes a curve's values.
"""
KEY_LENGTH = 16


def run_key(config: dict, data_digest: str) -> str:
    """Returns the run's key: sha256 over the schema, the configuration's meaning and the digest of the data."""
    canonical = to_json({"schema": SCHEMA_VERSION, "config": meaning(config), "data": data_digest}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]


def meaning(config: dict) -> dict:
    """The names and values of a configuration: what decides the figures of its run.

    Without what changes none of them and a model's `names` (which parts name its runs); of a class the name alone, not
    its module.
    """
    meant = {key: value for key, value in config.items() if key not in IGNORED}
    for part, ignored in (("model", ("names",)), ("trainer", IGNORED_BY_TRAINER)):
        if part in meant:
            meant[part] = {key: value for key, value in meant[part].items() if key not in ignored}
    return _without_modules(meant)


def _without_modules(node: Any) -> Any:
    """`node` with the dotted path under each `_target_` cut to its last name: where code stands changes no run."""
    if isinstance(node, dict):
        return {k: v.rpartition(".")[2] if k == "_target_" else _without_modules(v) for k, v in node.items()}
    return [_without_modules(item) for item in node] if isinstance(node, list | tuple) else node


def to_json(value: Any, **options) -> str:
    """Returns strict JSON: NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, **options)


def _plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
