"""Brings records of an earlier schema to today's: `python -m harness.records.migrate results runs`.

Schema 2 (from 1): a run's key hashes names and values, where it hashed the dotted paths of classes too; `certificates`
and its `gates` are `checks` and `results`; the block is a part of the configuration, a model says which parts name its
runs, and Mamba is the selective recurrence in a gated block. Figures are never touched, and a migrated record is found
by the command that made it.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from harness.errors import UserError
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
    the next call ends what it began.
    """
    result = json.loads((folder / "result.json").read_text())
    if result["schema_version"] == SCHEMA_VERSION:
        return None
    config = _config(json.loads((folder / "config.json").read_text()))
    key = run_key(config, result["data"]["digest"])
    target = folder.with_name(folder.name.removesuffix(result["key"]) + key)
    half_made = target.with_name(f".{target.name}.migrating")
    shutil.rmtree(half_made, ignore_errors=True)
    shutil.copytree(folder, half_made)
    checks = _checks(result.pop("certificates"))
    _write(half_made / "checks.json", checks)
    (half_made / "certificates.json").unlink(missing_ok=True)
    _write(half_made / "config.json", config)
    today = {"schema_version": SCHEMA_VERSION, "key": key, "checks": checks}
    _write(half_made / "result.json", _named(result, config) | today)
    if target.exists():  # a kill before the old folder was gone
        shutil.rmtree(half_made)
    else:
        half_made.rename(target)
    shutil.rmtree(folder)
    return target


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
    """The command: every finished record in the folders named."""
    parser = argparse.ArgumentParser("python -m harness.records.migrate", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    try:
        for root in parser.parse_args(arguments).folders:
            for folder in sorted(path.parent for path in root.glob("[!.]*/result.json")):
                if moved := migrate(folder):
                    print(f"{folder} -> {moved.name}")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
