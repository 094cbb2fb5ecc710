"""W&B through its own client, offline; and the logger that logs nowhere."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from harness.configure import checked
from harness.errors import ConfigError
from harness.training.loggers import NoLogger, WandbLogger


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no ~/.netrc
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_no_logger_takes_everything():
    logger = NoLogger()
    logger.start("name", "key", {})
    logger.log({"loss": 1.0}, 1)
    logger.finish({})


def test_wandb_offline_keeps_config_metrics_and_result(tmp_path):
    logger = WandbLogger(directory=str(tmp_path / "logs"), group="g", tags=["t"])
    logger.start("ltc-tiny", "a1b2c3d4e5f6", {"model": {"name": "the-model"}})
    logger.log({"loss": 1.25}, 10)
    logger.log({"loss": 1.125}, 20)
    logger.finish({"status": "finished", "evaluation": {"test": {"bits_per_byte": 2.0625}}})
    (file,) = (tmp_path / "logs" / "wandb").glob("offline-run-*/run-a1b2c3d4e5f6.wandb")
    stored = file.read_bytes()
    for expected in (b"ltc-tiny", b"the-model", b"loss", b"1.25", b"1.125", b"bits_per_byte", b"2.0625"):
        assert expected in stored
    for expected in (b"record-a1b2c3d4e5f6", b"result.json", b"config.json"):  # the record as an artifact
        assert expected in stored


def test_wandb_offline_has_stopped_writing_when_finish_returns(tmp_path):
    """A file that its service still holds open may lack what was logged last."""
    logger = WandbLogger(directory=str(tmp_path))
    logger.start("name", "key", {})
    service = {child.pid for child in psutil.Process().children(recursive=True)}
    assert service
    logger.finish({"status": "finished"})
    assert not service & set(psutil.pids())


def test_wandb_offline_keeps_the_result_of_a_process_killed_right_after(tmp_path):
    code = (
        "import os, signal; from harness.training.loggers import WandbLogger; logger = WandbLogger(directory='.');"
        "logger.start('name', 'key', {}); logger.log({'loss': 1.25}, 1); logger.finish({'bits_per_byte': 2.0625});"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[1]
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)})
    assert killed.returncode == -signal.SIGKILL
    (file,) = tmp_path.glob("wandb/offline-run-*/run-key.wandb")
    assert all(part in file.read_bytes() for part in (b"1.25", b"2.0625"))


def test_wandb_disabled_writes_nothing(tmp_path):
    logger = WandbLogger(directory=str(tmp_path / "logs"), mode="disabled")
    logger.start("name", "key", {})
    logger.log({"loss": 1.0}, 1)
    logger.finish({"status": "finished"})
    assert not list((tmp_path / "logs").glob("wandb/*run*"))


def test_wandb_online_without_a_key_is_told(tmp_path):
    with pytest.raises(ConfigError) as error:
        WandbLogger(directory=str(tmp_path), mode="online").start("name", "key", {})
    assert all(part in str(error.value) for part in ("logger.mode=online", "wandb login", "logger=none"))


@pytest.mark.parametrize("name", ["none", "wandb"])
def test_the_configuration_files_are_checked(name):
    from run import ROOT

    node = yaml.safe_load((ROOT / "conf" / "logger" / f"{name}.yaml").read_text())
    assert checked(node, "logger") == node
    if name == "wandb":
        with pytest.raises(ConfigError, match="one of offline, online, disabled"):
            checked(node | {"mode": "sometimes"}, "logger")
