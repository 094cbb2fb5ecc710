"""Where else a run's metrics go. The record on disk is always written and stays the source of truth."""

import os
from pathlib import Path
from typing import Any, Literal

from harness.config.errors import ConfigError
from harness.config.ranges import PathName, Text
from harness.machine.environment import environment
from harness.records.identity import to_json


class Logger:
    """Receives a run as it goes: `start` once, `log` per logged update, `finish` with the record."""

    def start(self, name: str, key: str, config: dict) -> None:
        """Opens the run. key: the run's key, the same when it is resumed."""
        raise NotImplementedError

    def log(self, metrics: dict, step: int) -> None:
        """Receives one line of metrics; step: optimizer updates done."""
        raise NotImplementedError

    def finish(self, result: dict) -> None:
        """Receives the finished record and closes the run."""
        raise NotImplementedError


class NoLogger(Logger):
    """Logs nowhere."""

    def start(self, name: str, key: str, config: dict) -> None:
        pass

    def log(self, metrics: dict, step: int) -> None:
        pass

    def finish(self, result: dict) -> None:
        pass


class WandbLogger(Logger):
    """Weights & Biases through its own client; `offline`, the default, needs neither a key nor a network.

    directory: where wandb keeps its own files; `wandb sync DIRECTORY/wandb/offline-run-*` uploads them later.
    """

    def __init__(
        self,
        project: Text = "liquidbench",
        entity: Text | None = None,
        mode: Literal["offline", "online", "disabled"] = "offline",
        directory: PathName = "runs",
        group: Text | None = None,
        tags: list[Text] | None = None,
    ):
        self.project, self.entity, self.mode = project, entity, mode
        self.directory, self.group, self.tags = Path(directory), group, tags
        self._run: Any = None  # wandb's, once started

    def start(self, name: str, key: str, config: dict) -> None:
        """Raises ConfigError where wandb is missing or refuses (online without a key, no network)."""
        try:
            import wandb

            self.directory.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                dir=str(self.directory),
                group=self.group,
                tags=self.tags,
                name=name,
                id=key,
                resume="allow" if self.mode == "online" else None,  # offline, the parts meet under one id when synced
                config=config,
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:  # wandb's own errors, ImportError and OSError: none may end in a traceback
            raise ConfigError(
                f"logger=wandb with logger.mode={self.mode} cannot start: {' '.join(str(error).split())}.",
                "wandb installed and, for mode=online, a key and a network.",
                "run `wandb login`, or use logger.mode=offline or logger=none.",
            ) from error

    def log(self, metrics: dict, step: int) -> None:
        self._run.log(metrics, step=step)

    def finish(self, result: dict, made_on: dict | None = None) -> None:
        """Returns once wandb's files are on the disk. made_on: the environment of the run; None for this process's.

        Offline, wandb's own `finish` returns while its service still writes them. So the end of the service is waited
        for, and then the system's own write to the disk.
        """
        import wandb

        self._run.summary.update(result | {"environment": made_on or environment()})
        self._keep(result, wandb.Artifact(f"record-{self._run.id}", type="record"))
        folder = Path(self._run.dir).parent  # .../wandb/offline-run-DATE-KEY/files
        self._run.finish()
        self._run = None
        wandb.teardown()
        for file in folder.glob("*.wandb"):
            with file.open("rb") as written:
                os.fsync(written.fileno())

    def _keep(self, result: dict, artifact: Any) -> None:
        """Keeps the record as an artifact: its result, and the configuration that made it."""
        for name, content in {"result.json": result, "config.json": dict(self._run.config)}.items():
            with artifact.new_file(name) as file:
                file.write(to_json(content, indent=1))
        self._run.log_artifact(artifact)
