"""scripts/gpu.sh: its steps, the commands that they run, and how they go on."""

import os
import shlex
import subprocess

import pytest

import bench.__main__ as bench
import run
from analysis.bench import files

SCRIPT = run.ROOT / "scripts" / "gpu.sh"
STUB = """#!/bin/sh
case "$1" in
  -) printf '%s\\n' "$STUB_DEVICE" "facts of it" "$STUB_RECENT" ;;
  *) echo "$@" >> "$STUB_LOG"; [ -z "$STUB_SLOW" ] || exec sleep 30; exit "${STUB_STATUS:-0}" ;;
esac
"""


def script(*steps, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in ("DRY", "CORPUS", "PYTHON")}
    environment |= {name: str(value) for name, value in variables.items()}
    return subprocess.run([SCRIPT, *steps], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def machine(tmp_path):
    """The variables of a machine with a device, whose interpreter notes what it is asked to run."""
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    places = {"PYTHON": stub, "STUB_LOG": tmp_path / "log", "RECORDS": tmp_path / "runs"}
    return places | {"STUB_DEVICE": "nvidia-test", "STUB_RECENT": "yes"}


def test_without_arguments_the_steps_are_listed():
    listed = script()
    assert listed.returncode == 0
    steps = [line.split()[0] for line in listed.stdout.splitlines()]
    assert steps == ["check", "tests", "kernels", "models", "newton", "ladder"]


def test_the_commands_of_a_dry_run_are_ones(tmp_path):
    """They would be read: the bench's by the bench, the ladder's by run.py, and the tests' files are there."""
    corpus = tmp_path / "a corpus.txt"
    made = script("all", DRY="1", CORPUS=corpus, MODELS="ltc mamba", SIZES="16m", PYTHON="python")
    assert made.returncode == 0, made.stderr
    commands = [shlex.split(line) for line in made.stdout.splitlines()]
    timed = [bench.arguments(command[3:]) for command in commands if command[1:3] == ["-m", "bench"]]
    assert [(one.subject, one.device) for one in timed] == [(name, "cuda") for name in ("kernels", "models", "newton")]
    tested = [command[-1] for command in commands if command[1:3] == ["-m", "pytest"]]
    assert {"tests/test_liquid_triton.py", "tests/test_decode.py", "tests/test_operations.py"} <= set(tested)
    ladder = [command[2:] for command in commands if command[1] == "run.py"]
    assert [command[:2] for command in ladder] == [["model=ltc", "size=16m"], ["model=mamba", "size=16m"]]
    for overrides in ladder:
        assert run.resolve(run.compose(overrides))["task"]["path"] == str(corpus)
    assert "ladder" not in script("all", DRY="1").stdout


def test_a_step_that_ran_out_of_time_goes_on_and_one_that_is_done_is_not_repeated(machine):
    late = script("newton", **machine, STEP_SECONDS=1, STUB_SLOW=1)
    assert (late.returncode, late.stdout) == (1, "== newton\nout of time: newton; the same command goes on\n")
    assert "failed: newton" in script("newton", **machine, STUB_STATUS=3).stdout
    assert script("newton", **machine).returncode == 0
    assert "newton: done" in script("newton", **machine, STUB_STATUS=3).stdout
    log = machine["STUB_LOG"].read_text().splitlines()
    assert log == ["-m bench newton --device cuda --out results/bench/nvidia-test"] * 3


@pytest.mark.parametrize(
    ("step", "changed", "said"),
    [
        ("check", {"STUB_DEVICE": "none"}, "There is no CUDA device"),
        ("check", {"STUB_RECENT": "no"}, "torch 2.11 and Triton 3.6"),
        ("check", {"STEP_SECONDS": "soon"}, "a number of seconds"),
        ("ladder", {}, "CORPUS was not given"),
        ("ladder", {"CORPUS": "nowhere"}, "CORPUS=nowhere is not there"),
        ("stroll", {}, "no step stroll"),
    ],
)
def test_what_cannot_be_done_is_told(machine, step, changed, said):
    made = script(step, **machine | changed)
    assert made.returncode == 2
    assert said in made.stderr
    assert not machine["STUB_LOG"].exists()


def test_measurements_in_a_devices_folder_are_found(tmp_path):
    assert files(tmp_path, "newton")[1] == tmp_path / "newton-cuda.json"
    for device in ("nvidia-b", "nvidia-a"):
        (tmp_path / device).mkdir()
        (tmp_path / device / "newton-cuda.json").write_text("{}")
    assert files(tmp_path, "newton")[1] == tmp_path / "nvidia-a" / "newton-cuda.json"
    (tmp_path / "newton-cuda.json").write_text("{}")
    assert files(tmp_path, "newton")[1] == tmp_path / "newton-cuda.json"
