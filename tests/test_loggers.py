"""W&B through its own client, offline; and the logger that logs nowhere."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from analysis import records
from harness.config.configure import checked
from harness.config.errors import ConfigError
from harness.records import curve, offline
from harness.training.loggers import NoLogger, WandbLogger

ROOT = Path(__file__).parents[1]


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
    before = psutil.Process().children(recursive=True)  # of other tests in this process
    logger.start("name", "key", {})
    started = {child: child.cmdline() for child in psutil.Process().children(recursive=True) if child not in before}
    writers = {child: told for child, told in started.items() if "wandb-core" in told[0]}  # others watch the machine
    assert writers
    logger.finish({"status": "finished"})
    assert not [told for child, told in writers.items() if child.is_running()]


def test_wandb_offline_keeps_the_result_of_a_process_killed_right_after(tmp_path):
    code = (
        "import os, signal; from harness.training.loggers import WandbLogger; logger = WandbLogger(directory='.');"
        "logger.start('name', 'key', {}); logger.log({'loss': 1.25}, 1); logger.finish({'bits_per_byte': 2.0625});"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    (file,) = tmp_path.glob("wandb/offline-run-*/run-key.wandb")
    assert all(part in file.read_bytes() for part in (b"1.25", b"2.0625"))


def test_a_record_comes_back_from_the_offline_files(tmp_path, capsys):
    """Also of a run that was taken up again, and of values longer than a block of the file."""
    source, *_ = sorted((ROOT / "results").glob("ltc-rk4-*"))
    result, config = (json.loads((source / f"{name}.json").read_text()) for name in ("result", "config"))
    config["question"] = "why? " * 20_000
    lines = [{"update": n, "loss": 1 / n, "tokens_per_second": 7.0 * n} for n in range(1, 9)]
    for part in (lines[:4], lines[4:]):
        logger = WandbLogger(directory=str(tmp_path))
        logger.start("ltc", result["key"], config)
        for line in part:
            logger.log({name: value for name, value in line.items() if name != "update"}, line["update"])
        if part[-1] is lines[-1]:
            logger.finish(result)
        else:
            assert offline.main([str(tmp_path), str(tmp_path / "early")]) == 0
            assert "the run did not finish" in capsys.readouterr().out
            logger._run.finish()
        time.sleep(1.1)  # wandb names folders by the second
    assert offline.main([str(tmp_path), str(tmp_path / "restored")]) == 0
    (made,) = (tmp_path / "restored").iterdir()
    assert made.name == source.name
    record = records.read(made)
    assert (record.result, record.config) == (result, config)
    assert record.environment["git"]
    assert [row["loss"] for row in curve.read(made)] == pytest.approx([line["loss"] for line in lines], rel=1e-5)
    assert offline.main([str(tmp_path), str(tmp_path / "restored")]) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_damaged_offline_file_is_named(tmp_path, capsys):
    (tmp_path / "run-a.wandb").write_bytes(b"no")
    (tmp_path / "run-b.wandb").write_bytes(b":W&B\0\0\0" + bytes([0, 0, 0, 0, 3, 0, 1]) + b"\xff\xff\xff")
    assert offline.main([str(tmp_path), str(tmp_path / "restored")]) == 1
    told = capsys.readouterr().err
    assert "run-a.wandb cannot be read: it does not begin as W&B's files do" in told
    assert "run-b.wandb cannot be read" in told


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
