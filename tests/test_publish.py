"""Finished runs published later, and the records that come back from what was published."""

import shutil
from pathlib import Path

import pytest

from harness.records import curve, offline, publish, recorded

ROOT = Path(__file__).parents[1]
(SOURCE,) = sorted((ROOT / "results").glob("ltc-rk4-checkpoint-1m-sotu-*"))


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # no ~/.netrc


def test_a_published_run_comes_back_as_the_same_record(tmp_path, capsys):
    run = Path(shutil.copytree(SOURCE, tmp_path / "run"))
    there = ["--folder", str(tmp_path / "out")]
    assert publish.main([str(run), str(tmp_path / "nowhere"), *there, "--group", "ladder", "--tags", "a-tag"]) == 1
    said = capsys.readouterr()
    assert f"{run}: published" in said.out
    assert "nowhere is no folder" in said.err
    assert offline.main([str(tmp_path / "out"), str(tmp_path / "restored")]) == 0
    (made,) = (tmp_path / "restored").iterdir()
    assert made.name == SOURCE.name
    for read in (recorded.result, recorded.config, recorded.environment):
        assert read(made) == read(SOURCE)
    assert curve.read(made) == curve.read(SOURCE)
    (file,) = (tmp_path / "out").rglob("run-*.wandb")
    assert all(part in file.read_bytes() for part in (b"ladder", b"a-tag", f"record-{SOURCE.name[-16:]}".encode()))

    assert publish.main([str(run), *there]) == 0
    assert "is there already" in capsys.readouterr().out
    assert list((tmp_path / "out").rglob("run-*.wandb")) == [file]
    file.write_bytes(file.read_bytes()[:20_000])  # a publication that was killed
    assert publish.main([str(run), *there]) == 0
    assert "published" in capsys.readouterr().out
    assert offline.main([str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    assert curve.read(tmp_path / "again" / SOURCE.name) == curve.read(SOURCE)


def test_a_run_is_published_for_tensorboard_once(tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = [str(SOURCE), "--to", "tensorboard", "--folder", str(tmp_path)]
    assert publish.main(command) == 0
    (made,) = (tmp_path / "tensorboard").iterdir()
    assert made.name == SOURCE.name
    events = EventAccumulator(str(made)).Reload()
    known = {row["update"]: row["loss"] for row in curve.read(SOURCE) if "loss" in row}
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(known, rel=1e-5)
    assert {"config/text_summary", "result/text_summary"} <= set(events.Tags()["tensors"])
    assert publish.main(command) == 0
    assert "is there already" in capsys.readouterr().out


def test_a_run_that_is_not_finished_is_not_published(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert publish.main([str(tmp_path), "--folder", str(tmp_path / "out")]) == 1
    assert "is not finished" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
