"""Records: the key, the files, what happens to damaged ones, and one process for a run."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.errors import RecordError
from harness.machine.environment import CODE, environment, git_state
from harness.records import record
from harness.records.identity import run_key
from harness.records.record import Run

CONFIG = {"model": {"d_state": 1}, "size": {"params": 1000}, "logger": {"mode": "offline"}, "records": "runs"}


def test_the_key_is_what_changes_the_figures_and_nothing_else():
    key = run_key(CONFIG, "digest")
    assert len(key) >= 12
    assert key == run_key(dict(reversed(CONFIG.items())), "digest")
    same = {"logger": {"mode": "online"}, "records": "/elsewhere", "force": True, "progress": False, "question": "?"}
    assert key == run_key(CONFIG | same, "digest")
    assert key == run_key(CONFIG | {"model": CONFIG["model"] | {"names": {"block": "gated"}}}, "digest")
    looked_at = CONFIG | {"trainer": {"tokens": 9}}
    often = {"tokens": 9, "log_every": 1, "validate_every": 0, "checkpoint_every": 3}
    assert run_key(looked_at, "digest") == run_key(CONFIG | {"trainer": often}, "digest")
    for changed in ({"size": {"params": 2000}}, {"model": {"d_state": 2}}, {"seed": 1}, looked_at):
        assert key != run_key(CONFIG | changed, "digest")
    assert key != run_key(CONFIG, "other")


def test_the_key_knows_a_class_by_its_name_wherever_it_stands():
    here = CONFIG | {"model": {"parts": [{"_target_": "arch.ltc.LTC", "d_state": 1}]}}
    moved = CONFIG | {"model": {"parts": [{"_target_": "arch.ltc.mixer.LTC", "d_state": 1}]}}
    another = CONFIG | {"model": {"parts": [{"_target_": "arch.ltc.Other", "d_state": 1}]}}
    assert run_key(here, "digest") == run_key(moved, "digest") != run_key(another, "digest")


def test_a_run_is_finished_once_its_result_lies_there(tmp_path):
    with Run.open(tmp_path, "ltc-hf/tiny stories", CONFIG, "d") as run:
        assert run.path == tmp_path / f"ltc-hf-tiny-stories-{run_key(CONFIG, 'd')}"
        assert not run.is_finished()
        given = {
            "status": "finished",
            "loss": math.nan,
            "list": (1, np.float32(2.5), torch.tensor(3)),
            "path": tmp_path,
        }
        result = run.finish(given)
    assert result == {
        "schema_version": record.SCHEMA_VERSION,
        "key": run.key,
        "status": "finished",
        "loss": None,
        "list": [1, 2.5, 3],
        "path": str(tmp_path),
    }
    with Run.open(tmp_path, "ltc-hf/tiny stories", CONFIG, "d") as again:
        assert again.is_finished()
        assert again.result() == result
    assert json.loads((run.path / "config.json").read_text()) == CONFIG
    assert {"config.json", "environment.json", "result.json"} <= {path.name for path in run.path.iterdir()}


def test_clear_starts_anew(tmp_path):
    with Run.open(tmp_path, "a", CONFIG, "d") as run:
        run.finish({})
        run.log({"update": 1})
        (run.path / "checkpoint.pt").write_bytes(b"old")
    with Run.open(tmp_path, "a", CONFIG | {"force": True}, "d") as run:
        run.clear()
        assert not run.is_finished()
        assert run.metrics() == []
        assert {path.name for path in run.path.iterdir()} == {".lock", "config.json", "environment.json"}
        assert json.loads((run.path / "config.json").read_text())["force"] is True


@pytest.mark.parametrize(
    "content", ["{", "", "[]", "\xff", '{"schema_version": 0, "key": "x"}', '{"schema_version": 3, "key": "another"}']
)
def test_a_damaged_result_is_told(tmp_path, content):
    with Run.open(tmp_path, "a", CONFIG, "d") as run:
        (run.path / "result.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(RecordError) as error:
            run.result()
        assert all(part in str(error.value) for part in (str(run.path / "result.json"), "Expected:", "force=true"))


def test_metrics_survive_a_line_cut_short(tmp_path):
    with Run.open(tmp_path, "a", CONFIG, "d") as run:
        for update in range(1, 6):
            run.log({"update": update, "loss": math.inf if update == 2 else update / 2})
        path = run.path / "metrics.jsonl"
        path.write_bytes(path.read_bytes() + b'{"update": 6, "los')
        assert [line["update"] for line in run.metrics()] == [1, 2, 3, 4, 5]
        assert run.metrics()[1]["loss"] is None
        run.truncate_metrics(3)
        run.log({"update": 4})
        assert [line["update"] for line in run.metrics()] == [1, 2, 3, 4]
        run.truncate_metrics(0)
        assert path.read_bytes() == b""


@pytest.mark.parametrize("line", [b"{nonsense\n", b"3\n"])
def test_a_damaged_line_in_the_middle_is_told(tmp_path, line):
    with Run.open(tmp_path, "a", CONFIG, "d") as run:
        (run.path / "metrics.jsonl").write_bytes(b'{"update": 1}\n' + line + b'{"update": 2}\n')
        with pytest.raises(RecordError, match=r"metrics\.jsonl cannot be used: line 2"):
            run.metrics()


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "failure.json", ".lock"])
def test_a_folder_in_the_place_of_a_file_is_told(tmp_path, name):
    with Run.open(tmp_path, "a", CONFIG, "d") as run:
        path = run.path
    shutil.rmtree(path)
    (path / name / "inside").mkdir(parents=True)

    def use():
        with Run.open(tmp_path, "a", CONFIG, "d") as run:
            if run.is_finished():
                run.result()
            run.truncate_metrics(3)

    with pytest.raises(RecordError, match=f"{name} cannot be"):
        use()
    if name in ("result.json", "metrics.jsonl"):
        with Run.open(tmp_path, "a", CONFIG, "d") as run:
            run.clear()
            assert run.truncate_metrics(3) == 0
            assert not run.is_finished()


def test_a_failed_attempt_is_noted_until_the_next(tmp_path):
    def fail(error):
        with pytest.raises(type(error)), Run.open(tmp_path, "a", CONFIG, "d"):
            raise error

    fail(RecordError("It broke.", "this", "that"))
    (path,) = tmp_path.glob("a-*/failure.json")
    assert json.loads(path.read_text()) == {
        "error": "RecordError",
        "message": "It broke. Expected: this Remedy: that",
        "traceback": None,
    }
    fail(ZeroDivisionError("division"))
    assert "ZeroDivisionError: division" in json.loads(path.read_text())["traceback"]
    fail(KeyboardInterrupt())  # no failure: somebody stopped it
    assert not path.exists()
    with Run.open(tmp_path, "a", CONFIG, "d") as run:
        run.finish({})
    fail(ValueError("of a finished run"))
    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RecordError, match="set records=FOLDER"):
            record.check_writable(root)
        with pytest.raises(RecordError):
            Run.open(root, "a", CONFIG, "d")
    record.check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_one_process_makes_a_run(tmp_path):
    code = "import fcntl, sys; fcntl.flock(f := open(sys.argv[1], 'a'), fcntl.LOCK_EX); print('held', flush=1); input()"
    with Run.open(tmp_path, "a", CONFIG, "d") as run, pytest.raises(RecordError, match="Another process"):
        Run.open(tmp_path, "a", CONFIG, "d")
    command = [sys.executable, "-c", code, str(run.path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RecordError, match="Another process"):
            Run.open(tmp_path, "a", CONFIG, "d")
        other.kill()
        other.wait()
        Run.open(tmp_path, "a", CONFIG, "d").close()  # the lock of a killed process is gone


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    with Run.open(tmp_path, "a", CONFIG, "d") as run:
        run.write_json("checks.json", {"passed": True})
        with pytest.raises(TypeError):
            run.write_json("checks.json", {"passed": object()})
        assert json.loads((run.path / "checks.json").read_text()) == {"passed": True}
        assert not list(run.path.glob("*.tmp"))


def test_the_environment_names_packages_machine_and_code(tmp_path):
    found = environment()
    assert found["packages"]["torch"] == torch.__version__
    assert "mamba-ssm" in found["packages"]
    assert found["threads"] == torch.get_num_threads()
    assert all(found[key] for key in ("python", "platform", "cpu", "cpu_count"))
    assert json.loads(record.to_json(found)) == found
    assert found["git"] is None or len(found["git"]["commit"]) == 40


def test_the_code_of_a_record_is_the_checkout_that_holds_it():
    assert (CODE / "run.py").is_file()


def test_git_state_knows_a_commit_a_change_and_no_checkout(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert git_state(tmp_path) is None
    git("init")
    assert git_state(tmp_path) is None
    (tmp_path / "run.py").write_text("1")
    (tmp_path / "README.md").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    for harmless in ("README.md", "results/a/result.json", "bench/new.py", "arch/notes.txt"):
        (tmp_path / harmless).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / harmless).write_text("2")
    assert git_state(tmp_path)["dirty"] is False
    for new in ("arch/mine/mixer.py", "conf/model/mine.yaml"):
        (tmp_path / new).parent.mkdir(parents=True)
        (tmp_path / new).touch()
        assert git_state(tmp_path)["dirty"] is True
        (tmp_path / new).unlink()
    assert git_state(tmp_path)["dirty"] is False
    (tmp_path / "run.py").write_text("2")
    assert git_state(tmp_path)["dirty"] is True
    (tmp_path / "inside").mkdir()
    assert git_state(tmp_path / "inside") is None
    assert git_state(Path(tmp_path / "missing")) is None
