"""Publishes finished runs later: `python -m harness.records.publish runs/RUN ...`, to W&B, or with --to tensorboard.

W&B gets what `logger=wandb` sends while a run is made: its configuration, its curve and, as the summary and as an
artifact, its result, under the run's key. Offline, the default, needs neither a key nor a network: `wandb sync` uploads
the files later, and `python -m harness.records.offline` makes the record from them again. A run that is there already
is left as it is.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from harness.config.errors import MachineError, UserError
from harness.records import curve, offline, recorded
from harness.training.loggers import WandbLogger


def to_wandb(folder: Path, options: argparse.Namespace) -> bool:
    """Sends the run in `folder` to W&B; returns whether it was not there yet.

    Group and tags are the run's own where the command gives none. Online, W&B itself keeps one run for a key.
    """
    config, result = recorded.config(folder), recorded.result(folder)
    if options.mode == "offline" and _is_whole(options.folder, result):
        return False
    own = config.get("logger") or {}
    logger = WandbLogger(
        options.project,
        options.entity,
        options.mode,
        str(options.folder),
        options.group or own.get("group"),
        options.tags or own.get("tags"),
    )
    environment, rows = recorded.environment(folder), curve.read(folder)
    logger.start(result["name"], result["key"], config)
    for row in rows:
        logger.log({name: value for name, value in row.items() if name != "update"}, row["update"])
    logger.finish(result, environment)
    return True


def _is_whole(folder: Path, result: dict) -> bool:
    """Whether the offline files in `folder` hold this result, and not half of it or an older one."""
    files = sorted((folder / "wandb").glob(f"offline-run-*/run-{result['key']}.wandb"))
    with tempfile.TemporaryDirectory() as made:
        record = offline.restore(files, Path(made)) if files else None
        return record is not None and recorded.result(record) == result


def to_tensorboard(folder: Path, options: argparse.Namespace) -> bool:
    """Writes the run's curve, configuration and result for TensorBoard; returns whether it was not there yet."""
    if find_spec("tensorboard") is None:
        raise MachineError(
            "TensorBoard cannot be imported.", "the extra `tensorboard`.", "pip install 'liquidbench[tensorboard]'"
        )
    from accelerate.tracking import TensorBoardTracker

    config, result = recorded.config(folder), recorded.result(folder)
    name = f"{result['name']}-{result['key']}"
    made, half_made = options.folder / "tensorboard" / name, options.folder / "tensorboard" / f".{name}.tmp"
    if made.exists():
        return False
    shutil.rmtree(half_made, ignore_errors=True)
    tracker = TensorBoardTracker(half_made.name, half_made.parent)
    tracker.start()
    for row in curve.read(folder):
        tracker.log({key: value for key, value in row.items() if isinstance(value, int | float)}, row["update"])
    for kind, content in (("config", config), ("result", result)):
        tracker.writer.add_text(kind, f"```json\n{json.dumps(content, indent=1)}\n```")
    tracker.finish()
    half_made.rename(made)
    return True


PUBLISH: dict[str, Callable[[Path, argparse.Namespace], bool]] = {"wandb": to_wandb, "tensorboard": to_tensorboard}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 1 where a run could not be published, and publishes the others."""
    made = argparse.ArgumentParser("python -m harness.records.publish", description=__doc__.splitlines()[0])
    made.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    made.add_argument("--to", choices=list(PUBLISH), default="wandb")
    made.add_argument("--mode", choices=("offline", "online"), default="offline", help="of W&B")
    made.add_argument("--project", default="liquidbench", help="of W&B")
    made.add_argument("--entity", help="W&B's account or team; that of the key where none is given")
    made.add_argument("--group", help="of the runs in W&B; each run's own where none is given")
    made.add_argument("--tags", nargs="+", help="of the runs in W&B; each run's own where none are given")
    made.add_argument("--folder", type=Path, default=Path("runs"), help="for W&B's or TensorBoard's files (runs)")
    options = made.parse_args(arguments)
    status = 0
    for run in options.runs:
        try:
            print(f"{run}: {'published' if PUBLISH[options.to](run, options) else 'is there already'}", flush=True)
        except UserError as error:
            print(error.paragraph(), file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
