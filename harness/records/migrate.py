"""Brings records of an earlier schema to today's: `python -m harness.records.migrate results runs`.

Schema 3 (from 2): a record names the code that made it, which an earlier one cannot (`code` is null), and how often
training is looked at (log_every and the like) has left the run's key.

Schema 2 (from 1): a run's key hashes names and values, where it hashed the dotted paths of classes too; `certificates`
and its `gates` are `checks` and `results`; the block is a part of the configuration, a model says which parts name its
runs, and Mamba is the selective recurrence in a gated block.

Figures are never touched, and a migrated record is found by the command that made it, unless conf/ has gained keys.

Whatever its schema, a record that still has all of its metrics.jsonl is made light, as finished runs are
(harness/records/curve.py).
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from harness.config.errors import RecordError, UserError
from harness.records import curve
from harness.records.files import replacing
from harness.records.identity import SCHEMA_VERSION, run_key, to_json

FIRST_SCHEMA = 1
BACKBONE = "harness.model.backbone.ModelSpec"
TARGETS = {
    "arch.cfc.CfC": "arch.cfc.mixer.CfC",
    "arch.ltc.LTC": "arch.ltc.mixer.LTC",
    "arch.newton.Newton": "arch.ltc.newton.Newton",
    "arch.recurrence.Sequential": "arch.ltc.recurrence.Sequential",
    "baselines.mamba.Mamba": "baselines.mamba.mixer.Selective",
    "baselines.recurrent.GRU": "baselines.recurrent.mixer.GRU",
    "baselines.recurrent.LSTM": "baselines.recurrent.mixer.LSTM",
    "baselines.rwkv.ChannelMix": "baselines.rwkv.mixer.ChannelMix",
    "baselines.rwkv.TimeMix": "baselines.rwkv.mixer.TimeMix",
    "baselines.transformer.Attention": "baselines.transformer.mixer.Attention",
    "harness.evaluate.EvaluateConfig": "harness.evaluation.evaluate.EvaluateConfig",
    "harness.loggers.NoLogger": "harness.training.loggers.NoLogger",
    "harness.loggers.WandbLogger": "harness.training.loggers.WandbLogger",
    "harness.measure.MeasureConfig": "harness.measurement.measure.MeasureConfig",
    "harness.mlp.SwiGLU": "harness.model.mlp.SwiGLU",
    "harness.model.ModelSpec": BACKBONE,
    "harness.sizing.SizeConfig": "harness.model.sizing.SizeConfig",
    "harness.trainer.TrainerConfig": "harness.training.trainer.TrainerConfig",
}
"""Where classes of schema 1 stand today; what is not named stands where it stood."""


def migrate(folder: Path) -> Path | None:
    """Rewrites the finished record in `folder` and renames the folder after its new key; None where nothing is to do.

    The new folder is whole before it takes its name, and the old one goes last: a kill in between loses nothing, and
    the next call ends what it began. Raises RecordError for a record that cannot be read, and where another one of the
    same run is there already.
    """
    result, config = _read(folder / "result.json"), _read(folder / "config.json")
    if result.get("schema_version") == SCHEMA_VERSION:
        return None
    try:
        config, result = _today(config, result)
        target = folder.with_name(folder.name.removesuffix(result.pop("was")) + result["key"])
    except (KeyError, TypeError, AttributeError) as error:
        raise _unusable(folder, f"lacks {error}") from error
    half_made = target.with_name(f".{target.name}.migrating")
    shutil.rmtree(half_made, ignore_errors=True)
    shutil.copytree(folder, half_made)
    (half_made / "certificates.json").unlink(missing_ok=True)
    for name, value in (("checks", result["checks"]), ("config", config), ("result", result)):
        _write(half_made / f"{name}.json", value)
    if not target.exists():
        half_made.rename(target)
    elif _read(target / "result.json") == _read(half_made / "result.json"):  # a kill before the old folder was gone
        shutil.rmtree(half_made)
    else:
        shutil.rmtree(half_made)
        raise _unusable(folder, f"is the same run as {target.name}, which is there already")
    shutil.rmtree(folder)
    return target


def _today(config: dict, result: dict) -> tuple[dict, dict]:
    """Configuration and result under today's schema, and the result's former key as `was`."""
    if result["schema_version"] == FIRST_SCHEMA:
        config = _config(config)
        result = _named(result, config) | {"checks": _checks(result["certificates"])}
        del result["certificates"]
    key = run_key(config, result["data"]["digest"])
    return config, result | {"schema_version": SCHEMA_VERSION, "key": key, "code": None, "was": result["key"]}


def lightened(folder: Path) -> bool:
    """Makes the finished record in `folder` light; returns whether anything was to do. Raises RecordError."""
    before = {path.name for path in folder.iterdir()}
    try:
        curve.lighten(folder, _read(folder / "result.json"))
    except (OSError, ValueError) as error:
        raise _unusable(folder, f"cannot be made light ({error})") from error
    return {path.name for path in folder.iterdir()} != before


def _read(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _unusable(path.parent, f"has a {path.name} that cannot be read ({error})") from error


def _unusable(folder: Path, why: str) -> RecordError:
    return RecordError(
        f"The record {folder} {why}.",
        "one whole record for a run.",
        "keep one of them, or restore it from a copy; it was left as it is.",
    )


def _config(old: dict) -> dict:
    """The configuration as today's command would resolve it: the paths of classes, the block, and what names a run."""
    config = _moved(old)
    model, mixer = config["model"], config["model"]["mixer"]
    del model["depth_factor"]
    if old["model"]["mixer"]["_target_"] == "baselines.mamba.Mamba":  # whose block had no configuration of its own
        block: dict[str, Any] = {"_target_": "harness.model.block.GatedBlock", "name": "gated"}
        block |= {"expand": mixer.pop("expand"), "d_conv": mixer.pop("d_conv"), "depth_factor": 2}
        swiglu = {"_target_": "harness.model.mlp.SwiGLU", "_partial_": True, "kernel": config["kernel"]}
        model |= {"channel_mixer": swiglu, "d_ff_ratio": 2.6667}  # what a block with an MLP would take
    else:
        block = {"_target_": "harness.model.block.TransformerBlock", "name": "transformer"}
        block |= {"d_conv": 0, "depth_factor": 1}
    usual = {"solver": None, "gradient": None, "parallel": "sequential"}
    names = {"block": block["name"]} | {group: choice for group, choice in usual.items() if group in config}
    return config | {"model": model | {"block": block, "names": names}, "block": block}


def _moved(node: Any) -> Any:
    """`node` with the paths of its classes as they are today."""
    if isinstance(node, dict):
        return {k: TARGETS.get(v, v) if k == "_target_" else _moved(v) for k, v in node.items()}
    return [_moved(item) for item in node] if isinstance(node, list) else node


def _named(result: dict, config: dict) -> dict:
    """The result with the name of every part that names the model's runs, and of no other."""
    kept = {k: v for k, v in result.items() if k not in ("solver", "gradient")}
    return kept | {group: config[group]["name"] for group in config["model"]["names"]}


def _checks(certificates: dict) -> dict:
    """The verdicts under today's names; the check `trusted` is `oracle`."""
    results = [gate | {"name": {"trusted": "oracle"}.get(gate["name"], gate["name"])} for gate in certificates["gates"]]
    return {"passed": certificates["passed"], "results": results}


def _write(path: Path, value: dict) -> None:
    with replacing(path) as file:
        file.write((to_json(value, indent=1) + "\n").encode())


def main(arguments: list[str] | None = None) -> None:
    """The command: every finished record in the folders named; one that cannot be migrated does not stop the others."""
    parser = argparse.ArgumentParser("python -m harness.records.migrate", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    left = []
    for root in parser.parse_args(arguments).folders:
        for folder in sorted(path.parent for path in root.glob("[!.]*/result.json")):
            try:
                if moved := migrate(folder):
                    print(f"{folder} -> {moved.name}")
                if lightened(moved or folder):
                    print(f"{moved or folder} is light")
            except UserError as error:
                left.append(f"error: {error}")
    if left:
        sys.exit("\n".join(left))


if __name__ == "__main__":
    main()
