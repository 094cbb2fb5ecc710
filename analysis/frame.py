"""Records as data frames: one row a run, and one row a run and context."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis import usual
from analysis.records import Record
from analysis.render import MISSING
from harness.records.identity import IGNORED, meaning

TUNED = ("trainer.learning_rate",)
"""The keys that the protocol tunes: their values are tried, and the best on validation is reported."""
RECIPE = (
    *(f"trainer.{key}" for key in ("batch_size", "schedule", "decay_ratio", "final_learning_rate_ratio")),
    *(f"trainer.{key}" for key in ("warmup_ratio", "warmup_updates", "beta1", "beta2", "epsilon", "weight_decay")),
    *("trainer.clip_norm", "model.embedding", "model.head", "model.tie_embeddings"),
)
"""The keys of the recipe, sought once for all architectures (sweeps/recipe.yaml): likewise chosen on validation."""

NEUTRAL = ("seed", *IGNORED)
"""Configuration keys that do not make a run another experiment: its seed, and where and how it was run."""
SPLITS = ("validation", "test")
MEASURED = ("state_bytes", "generation_memory_bytes", "decode_ms_p50", "decode_tokens_per_second", "first_token_ms")
METRICS = ("bits_per_byte", "accuracy", "f1", "mean_squared_error", "loss")
SHAPE = ("d_model", "n_layers")


def runs(records: Iterable[Record]) -> pd.DataFrame:
    """One row a run, the diverged ones included; figures that a run does not have are missing.

    variant: the same for runs that differ in nothing but the seed, and code: the digest of the code that made them ("":
    unknown); only runs that share both are averaged. label: how a table calls them. machine: the device and its
    threads; rates compare within one machine only. table: runs compare within one task, size and data. setting: what of
    the task's configuration tells a table from others of its task and size, "" where there are none. recipe: the same
    for runs of one budget and trainer, whatever their tuned keys. elsewhere: the block where it is not the model's own.
    changed: whether the model has other choices than conf/ gives it.
    grows: whether the state grows with the context where no policy cuts it. longest: the longest sequences that the
    task was scored at, and test_at_longest the score. train_busy, decode_busy: whether other processes took a good part
    of the processors while speeds were measured. train_unknown, decode_unknown: whether nothing tells that.
    """
    records = list(records)
    frame = pd.DataFrame([_row(record) for record in records])
    if records:
        frame["table"] = _tables(frame)
        frame["setting"] = _settings(records, frame)
        frame["label"] = labels(records, frame)
    return frame


def contexts(records: Iterable[Record], labels: Iterable[str]) -> pd.DataFrame:
    """One row a run and measured context: the run's model, size and label, and the figures of the measurement.

    policy: of its context. per_token: bytes of float32 by which its state grows with a token where nothing is cut.
    """
    rows = []
    for record, label in zip(records, labels, strict=True):
        result = record.result
        for measured in (result.get("measurement") or {}).get("contexts", []):
            where = {"path": str(record.path), "model": result["model"], "size": result["size"], "label": label}
            where |= {"task": result["task"], "policy": _context(result), "per_token": _per_token(result)}
            rows.append(where | measured)
    return pd.DataFrame(rows, columns=None if rows else ["path", "model", "size", "label", "context", "state_bytes"])


def _row(record: Record) -> dict[str, Any]:
    result, training = record.result, record.result["training"]
    measurement = result.get("measurement") or {}
    row: dict[str, Any] = {"path": str(record.path), "variant": variant(record), "machine": machine(record)}
    row |= {"code": record.code, "context": _context(result), "recipe": recipe(record), "elsewhere": block(record)}
    row |= {"grows": _grows(result), "surroundings": surroundings(record)}
    row |= {"changed": usual.is_changed(result["model"], flatten(record.config))}
    trainer = record.config.get("trainer") or {}
    row |= {"learning_rate": _number(trainer.get("learning_rate")), "train_length": _number(trainer.get("length"))}
    row |= {
        key: result.get(key)
        for key in ("key", "name", "status", "model", "solver", "gradient", "block", "size", "task")
    }
    row |= {"seed": result["seed"], "parameters": result["parameters"]["total"]}
    row |= {key: result["parameters"].get(key) for key in ("non_embedding", "embedding")}
    row |= {key: (result.get("width") or {}).get(key) for key in SHAPE}
    row |= {"tied": record.config["model"].get("tie_embeddings")}
    row |= {key: training.get(key) for key in ("tokens", "updates", "epochs", "tokens_per_second", "seconds")}
    row |= {f"train_{key}": training.get(key) for key in ("flops_per_token", "peak_memory_bytes", "energy_joules")}
    for split in SPLITS:
        figures = (result.get("evaluation") or {}).get(split) or {}
        row |= {f"{split}_{key}": figures.get(key) for key in METRICS}
    longest = max(
        (result.get("evaluation") or {}).get("extrapolation") or [{}], key=lambda point: point.get("length", 0)
    )
    at_longest = next((longest[metric] for metric in METRICS if longest.get(metric) is not None), None)
    row |= {"longest": longest.get("length"), "test_at_longest": at_longest}
    for what, part in (("train", training), ("decode", measurement)):
        load = part.get("load") or {}
        row |= {f"{what}_busy": load.get("busy") is True, f"{what}_unknown": load.get("other_cpu") is None}
    row |= {"digest": result["data"].get("digest"), "diverged_at": (training.get("divergence") or {}).get("update")}
    for measured in measurement.get("contexts", []):
        for key in MEASURED:
            row[f"{key}_{measured['context']}"] = measured.get(key)
    return row


def _context(result: dict) -> str | None:
    """What a prediction may see: `state`, `full` or `window 512`; None where the record does not say."""
    policy = result.get("context_policy")
    if not policy:
        return None
    return policy["kind"] if policy.get("tokens") is None else f"{policy['kind']} {policy['tokens']:,}"


def _grows(result: dict) -> bool | None:
    """Whether the state grows with the context where nothing is cut, as the check `state_growth` found."""
    said = _said_of_growth(result)
    return said.startswith("claimed to grow") if said.startswith("claimed") else None


def _per_token(result: dict) -> float:
    """The bytes by which the check `state_growth`, which computes in float64, found the state to grow, in float32."""
    found = re.match(r"claimed to grow: (\S+) bytes a token", _said_of_growth(result))
    return float(found[1]) / 2 if found else 0.0


def _said_of_growth(result: dict) -> str:
    checks = (result.get("checks") or {}).get("results") or []
    return next((check.get("detail") or "" for check in checks if check["name"] == "state_growth"), "")


def variant(record: Record) -> str:
    """The meaning of the configuration without the seed, in a canonical form, with the digest of the data."""
    config = {key: value for key, value in meaning(record.config).items() if key not in NEUTRAL}
    return json.dumps([config, record.result["data"].get("digest")], sort_keys=True)


def recipe(record: Record) -> str:
    """How a run was trained, in a canonical form: its trainer, the budget included, without the tuned keys.

    A key that is null says no more than one that is not there.
    """
    trainer = flatten({"trainer": meaning(record.config).get("trainer") or {}})
    kept = {key: value for key, value in trainer.items() if value is not None and key not in TUNED}
    return json.dumps(kept, sort_keys=True)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _tables(frame: pd.DataFrame) -> pd.Series:
    """task-size, and the digest of the data where that alone would mix two corpora."""
    plain = frame["task"] + "-" + frame["size"]
    mixed = frame.groupby(plain)["digest"].transform("nunique") > 1
    return plain.where(~mixed, plain + "-" + frame["digest"].astype(str).str[:8])


def _settings(records: Sequence[Record], frame: pd.DataFrame) -> list[str]:
    """`drop=0.5, elapsed=permuted` of each run: what tells data of one task and size apart that was made otherwise."""
    places = list(zip(frame["task"], frame["size"], frame["table"], strict=True))
    known: dict[tuple, dict[str, dict]] = defaultdict(dict)
    for record, (task, size, table) in zip(records, places, strict=True):
        known[task, size].setdefault(table, flatten(record.config.get("task") or {}))
    keys = {place: _telling(list(configs.values())) for place, configs in known.items()}
    return [
        ", ".join(f"{short(key)}={known[task, size][table].get(key, 'unset')}" for key in keys[task, size])
        for task, size, table in places
    ]


def _telling(configs: list[dict[str, Any]]) -> list[str]:
    """Keys that tell all of `configs` apart, as few as their order gives; those that some leave open are the last."""
    differing = sorted(differing_keys(configs), key=lambda key: any(config.get(key) is None for config in configs))

    def groups(keys: list[str]) -> int:
        return len({tuple(str(config.get(key)) for key in keys) for config in configs})

    kept: list[str] = []
    for key in differing:
        if groups([*kept, key]) > groups(kept):
            kept.append(key)
    return kept


def machine(record: Record) -> str:
    """The device and its threads, as measured or, for a run that was not, as its environment says."""
    measured, where = record.result.get("measurement"), record.environment
    if measured:
        name, gpu, threads = measured["device_name"], measured["device"] == "cuda", measured["threads"]
    else:
        name, gpu, threads = where.get("gpu") or where.get("cpu"), where.get("gpu"), where.get("threads")
    return str(name) if gpu else f"{name}, {threads} thread{'s' if threads != 1 else ''}"


def labels(records: Sequence[Record], frame: pd.DataFrame) -> list[str]:
    """Model, block and solver; what sets apart variants that share a table and all these; the code where that differs.

    frame: the rows of the records, in their order.
    """
    base = [", ".join(filter(None, (r.result["model"], block(r), r.result.get("solver")))) for r in records]
    homonyms: dict[tuple, dict[str, dict]] = defaultdict(dict)
    codes: dict[tuple, set[str]] = defaultdict(set)
    table = list(zip(frame["table"], base, strict=True))
    for record, where, what in zip(records, table, frame["variant"], strict=True):
        homonyms[where][what] = flatten(meaning(record.config))
        codes[where, what].add(record.code)
    made = []
    for record, where, what, label in zip(records, table, frame["variant"], base, strict=True):
        differing = differing_keys(list(homonyms[where].values()))
        config = homonyms[where][what]
        parts = [f"{short(key)}={config.get(key, 'unset')}" for key in differing]
        if len(codes[where, what]) > 1:
            parts.append(f"code {record.code[:8] or 'unknown'}")
        made.append(" ".join([label, *([f"({', '.join(parts)})"] if parts else [])]))
    return made


def block(record: Record) -> str | None:
    """The block where it is not the model's own, and the convolution that was put before the mixer."""
    name, block = record.result.get("block"), record.config.get("block") or {}
    own = ((record.config.get("model") or {}).get("names") or {}).get("block")
    if name != own:
        return f"{name} block"
    return f"d_conv={block['d_conv']}" if name == "transformer" and block.get("d_conv") else None


def surroundings(record: Record) -> str:
    """What stands around the recurrence, its own or not: `gated, conv 4, tied`, the head being the embedding."""
    model, taps = record.config["model"], convolution(flatten(record.config))
    short = f"conv {taps}" if taps else "no conv"
    return f"{record.result.get('block') or MISSING}, {short}, {'tied' if model.get('tie_embeddings') else 'untied'}"


def convolution(config: dict[str, Any]) -> int:
    """The taps of the short convolution before the recurrence, its own or its block's, of a flat configuration."""
    return max((taps for key, taps in config.items() if key.endswith("d_conv") and taps and taps > 1), default=0)


def flatten(config: Any) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists are kept as text, and neutral keys are left out."""
    return usual.flatten({key: value for key, value in config.items() if key not in NEUTRAL})


def differing_keys(configs: list[dict[str, Any]]) -> list[str]:
    """Keys whose values set `configs` apart, shortest first, each way of setting them apart named once.

    What follows from the name of a part (block.expand from block.name) is not named beside it.
    """
    ways: dict[tuple, str] = {}
    for key in sorted({key for config in configs for key in config}, key=lambda key: (key.count("."), key)):
        values = tuple(str(config.get(key, "unset")) for config in configs)
        names = [config.get(f"{key.rpartition('.')[0]}.name", "unset") for config in configs]
        follows = not key.endswith(".name") and len(set(zip(names, values, strict=True))) == len(set(names))
        if len(set(values)) > 1 and not key.endswith("_target_") and not follows:
            ways.setdefault(values, key)
    return list(ways.values())


def short(key: str) -> str:
    """`gradient.name` -> gradient, `trainer.learning_rate` -> learning_rate."""
    parts = [part for part in key.split(".") if part != "name"]
    return parts[-1] if parts else key
