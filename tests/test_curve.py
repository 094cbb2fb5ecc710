"""A finished record is light: its curve has few rows, and what stood in two places stands in one."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

import run
from analysis.__main__ import main as analyse
from harness.config.errors import RecordError
from harness.records import curve, migrate
from harness.records.record import Run

RESULTS = run.ROOT / "results"
RECORDS = sorted(path.parent for path in RESULTS.glob("*/result.json"))
RECORD_BYTES, RESULTS_BYTES, RUNS = 40_000, 25_000_000, 600
"""What a record may take, what all may, and how many runs that is for."""
CONFIG = {"model": {"d_state": 1}}


def trained(updates: int, log_every: int = 10, validate_every: int = 100) -> list[dict]:
    """The lines of a run as the trainer writes them, every figure with all of its digits."""
    made = []
    for update in range(1, updates + 1):
        if update % log_every == 0 or update in (1, updates):
            line = {"update": update, "tokens": 2048 * update, "loss": 1 + 1 / (3 * update), "bits_per_token": 10 / 3}
            made.append(line | {"tokens_per_second": 20000 / 3, "gradient_norm": 2 / 3, "learning_rate": 1e-3 / 3})
        if update % validate_every == 0:
            made.append({"update": update, "validation_loss": 2 + 1 / (3 * update)})
    return made


def finished(root, metrics, checks=None):
    """Makes a finished record of these lines; returns its folder."""
    with Run.open(root, "a", CONFIG, "d") as made:
        for line in metrics:
            made.log(line)
        made.write_json("checks.json", checks or {"passed": True})
        made.finish({"checks": checks or {"passed": True}})
    return made.path


def test_a_finished_run_keeps_a_thin_curve_with_every_validation(tmp_path):
    metrics = trained(21_000)
    folder = finished(tmp_path, metrics)
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.json", "environment.json", "result.json", "curve.csv"
    }  # fmt: skip
    rows = curve.read(folder)
    assert len(rows) == 210 + 1  # all validations, and the first update
    assert (rows[0]["update"], rows[-1]["update"]) == (1, 21_000)
    validations = {line["update"]: line["validation_loss"] for line in metrics if "validation_loss" in line}
    assert {row["update"] for row in rows if "validation_loss" in row} == set(validations)
    losses = {line["update"]: line["loss"] for line in metrics if "loss" in line}
    for row in rows:
        assert row["loss"] == pytest.approx(losses[row["update"]], rel=1e-5)
        assert row["tokens"] == 2048 * row["update"]
        assert row.get("validation_loss", 0) == pytest.approx(validations.get(row["update"], 0), rel=1e-5)
    assert (folder / "curve.csv").stat().st_size < 16_000


def test_rows_are_evenly_spaced_where_validations_are_few(tmp_path):
    rows = curve.thinned(trained(21_000, validate_every=10_000))
    updates = [row["update"] for row in rows]
    assert len(updates) == curve.MOST
    assert updates == sorted(set(updates))
    assert {1, 10_000, 20_000, 21_000} <= set(updates)
    assert max(after - before for before, after in pairwise(updates)) <= 2 * 21_000 / curve.MOST


def test_a_short_curve_keeps_every_line_and_what_is_not_finite_is_null(tmp_path):
    rows = curve.read(finished(tmp_path, [{"update": 1, "loss": 0.1}, {"update": 2, "loss": float("inf"), "more": 3}]))
    assert rows == [{"update": 1, "loss": 0.1}, {"update": 2, "loss": None, "more": 3}]
    assert curve.thinned([]) == []


def test_a_run_that_is_not_finished_keeps_every_line(tmp_path):
    metrics = trained(5000)
    with Run.open(tmp_path, "a", CONFIG, "d") as unfinished:
        for line in metrics:
            unfinished.log(line)
    assert curve.read(unfinished.path) == metrics
    assert not (unfinished.path / "curve.csv").exists()


@pytest.mark.parametrize("last", ["replacing", "METRICS", "checks"])
def test_a_kill_on_the_way_loses_nothing(tmp_path, monkeypatch, last):
    """Killed before the curve is written, before the metrics go, and before the checks do; the next call ends it."""
    folder = finished(tmp_path / "whole", trained(3000))
    expected = (folder / "curve.csv").read_bytes()
    heavy = tmp_path / "heavy"
    shutil.copytree(folder, heavy)
    (heavy / "curve.csv").unlink()
    (heavy / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in trained(3000)))
    (heavy / "checks.json").write_text('{"passed": true}')
    real = Path.unlink

    def killed(path, *given, **options):
        if last == "replacing" or path.name == {"METRICS": "metrics.jsonl", "checks": "checks.json"}[last]:
            raise KeyboardInterrupt
        return real(path, *given, **options)

    with monkeypatch.context() as patch:
        if last == "replacing":
            patch.setattr(curve, "replacing", killed)
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            migrate.lightened(heavy)
    assert curve.kept(heavy)
    assert migrate.lightened(heavy)
    assert {path.name for path in heavy.iterdir()} == {path.name for path in folder.iterdir()}
    assert (heavy / "curve.csv").read_bytes() == expected
    assert not migrate.lightened(heavy)


def test_checks_that_differ_from_the_result_stay(tmp_path):
    folder = finished(tmp_path, trained(10))
    (folder / "checks.json").write_text('{"passed": false}')
    assert not migrate.lightened(folder)
    assert (folder / "checks.json").exists()


@pytest.mark.parametrize("content", ["update,loss\n1,x\n", 'update,loss\n1,"2\n', "update\n1,2\n"])
def test_a_damaged_curve_is_told(tmp_path, content):
    (tmp_path / "curve.csv").write_text(content)
    with pytest.raises(RecordError, match=r"curve\.csv cannot be used"):
        curve.read(tmp_path)


@pytest.mark.parametrize("folder", RECORDS, ids=lambda folder: folder.name)
def test_a_shared_record_is_light_and_has_its_curve(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < RECORD_BYTES
    assert not {"metrics.jsonl", "checks.json"} & {path.name for path in folder.iterdir()}
    training = json.loads((folder / "result.json").read_text())["training"]
    assert curve.read(folder)[-1]["update"] == training["updates"]


def test_the_shared_results_have_room_for_the_whole_verdict():
    """The records as they are, but for their curves as long as the longest that the verdict makes."""
    longest = max(len(curve._to_csv(curve.thinned(trained(21_000)))), 1)
    records = [sum(p.stat().st_size for p in f.iterdir() if p.name != "curve.csv") + longest for f in RECORDS]
    assert max(records) < RECORD_BYTES
    others = (p for p in RESULTS.rglob("*") if p.is_file() and p.suffix != ".pdf" and p.parent not in RECORDS)
    rest = sum(p.stat().st_size for p in others)
    assert RUNS * sum(records) / len(records) + rest < RESULTS_BYTES


def test_tables_and_figures_are_those_of_the_heavy_records(tmp_path, monkeypatch):
    for name in ("heavy", "light"):
        for folder in RECORDS[:2]:
            shutil.copytree(folder, tmp_path / name / "results" / folder.name)
    for folder in (tmp_path / "heavy" / "results").iterdir():
        rows = curve.read(folder)
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (folder / "curve.csv").unlink()
        (folder / "checks.json").write_text(json.dumps(json.loads((folder / "result.json").read_text())["checks"]))
    written = []
    for name in ("heavy", "light"):
        monkeypatch.chdir(tmp_path / name)
        assert analyse(["results", "--output", "out"]) == 0
        written.append({path.name: path.read_bytes() for path in Path("out").iterdir()})
    assert written[0] == written[1]
    migrate.main([str(tmp_path / "heavy" / "results")])
    for folder in (tmp_path / "light" / "results").iterdir():
        assert curve.read(tmp_path / "heavy" / "results" / folder.name) == curve.read(folder)
