"""The queue: pinned code, committed records, and runs that survive whatever kills them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

import run
from harness.config.errors import MachineError
from harness.records import curve
from harness.records.sweep import Sweep
from started import start, wait_for
from sweeps import pinned
from sweeps.pinned import Publisher, git, worktree

ONE_THREAD = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
SEEDS = range(int(os.environ.get("LIQUIDBENCH_SEEDS", "1")))
"""Of each tiny run of a queue; LIQUIDBENCH_SEEDS=3 pytest tests/test_queue.py makes twelve runs."""
RUNS = 4 * len(SEEDS)
TINY = f"""# @package _global_
question: Does the queue survive?
sweep:
  seeds: {list(SEEDS)}
  grids:
    - {{model: [gru, lstm], trainer.learning_rate: [1e-3, 4e-3]}}
"""


@pytest.fixture
def repository(tmp_path):
    """A checkout with some code and one commit."""
    home = tmp_path / "home"
    (home / "harness").mkdir(parents=True)
    (home / "harness" / "code.py").write_text("x = 1\n")
    (home / "page.md").write_text("old\n")
    (home / ".gitignore").write_text("/runs/\n*.pt\n.lock\n")
    git(home, "init", "--quiet", "--initial-branch=main")
    git(home, "config", "user.name", "A Tester")
    git(home, "config", "user.email", "tester@example.org")
    git(home, "add", ".")
    git(home, "commit", "--quiet", "--message", "First")
    return home


def record(root, name, figure=1.0):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"figure": figure}))
    for other in ("config.json", "curve.csv", "checkpoint.pt", ".lock", "failure.json"):
        (folder / other).write_text("{}\n")
    return folder


def test_a_checkout_is_made_at_a_commit_and_stays_there(repository, tmp_path):
    first = git(repository, "rev-parse", "HEAD").strip()
    (repository / "harness" / "code.py").write_text("x = 2\n")
    git(repository, "commit", "--quiet", "--all", "--message", "Second")
    made = worktree(repository, first[:12])
    assert made == repository.parent / f"home-{first[:10]}"
    assert (made / "harness" / "code.py").read_text() == "x = 1\n"
    (made / "page.md").write_text("a page decides no figure\n")
    (repository / "data").mkdir()
    assert worktree(repository, first) == made
    assert (made / "data").samefile(repository / "data")
    with pytest.raises(MachineError, match="is at commit"):
        worktree(repository, "HEAD", made)
    (made / "harness" / "new.py").write_text("")
    with pytest.raises(MachineError, match="has changed code"):
        worktree(repository, first)
    with pytest.raises(MachineError, match="rev-parse"):
        worktree(repository, "no-such-commit")


def test_only_records_are_committed(repository, tmp_path):
    """Not what else is changed or staged, and of a run neither its checkpoint nor its lock."""
    (repository / "harness" / "code.py").write_text("x = 3\n")
    git(repository, "add", "harness/code.py")
    (repository / "page.md").write_text("changed\n")
    (repository / "notes.txt").write_text("untracked\n")
    publisher = Publisher(repository, True)
    publisher.add(record(tmp_path / "runs", "gru-1a2b"))
    publisher.note(Sweep("mine", "Which?"))
    assert publisher.commit("A run is recorded")
    names = git(repository, "show", "--name-only", "--format=%s", "HEAD").split("\n")
    assert names[0] == "A run is recorded"
    assert sorted(filter(None, names[1:])) == [
        *(f"results/gru-1a2b/{name}" for name in ("config.json", "curve.csv", "result.json")),
        "results/sweeps/mine.json",
    ]
    assert git(repository, "diff", "--cached", "--name-only").split() == ["harness/code.py"]
    assert sorted(git(repository, "status", "--porcelain").split("\n")) == [
        "",
        " M page.md",
        "?? notes.txt",
        "M  harness/code.py",
    ]
    assert not publisher.commit("Nothing is new")


def test_a_record_made_again_takes_the_place_of_the_old_one(repository, tmp_path):
    publisher = Publisher(repository, True)
    old = repository / "results" / "gru-1a2b"
    record(repository / "results", "gru-1a2b")
    (old / "refused.json").write_text("{}")
    git(repository, "add", "results")
    git(repository, "commit", "--quiet", "--message", "Old")
    publisher.add(record(tmp_path / "runs", "gru-1a2b", figure=2.0))
    assert publisher.commit("New")
    assert json.loads((old / "result.json").read_text()) == {"figure": 2.0}
    assert not (old / "refused.json").exists()
    assert sorted(path.name for path in (repository / "results").iterdir()) == ["gru-1a2b"]
    assert git(repository, "status", "--porcelain") == ""


def test_what_was_copied_and_not_committed_is_taken_up(repository, tmp_path):
    Publisher(repository, True).add(record(tmp_path / "runs", "gru-1a2b"))
    record(repository / "results", "someone-elses-3c4d")
    again = Publisher(repository, True)
    again.take_up(["1a2b", "5e6f", None])
    assert again.pending == {"gru-1a2b"}
    assert again.commit("A run is recorded")


def test_what_git_refuses_stays_to_be_committed(repository, tmp_path):
    publisher = Publisher(repository, True)
    publisher.add(record(tmp_path / "runs", "gru-1a2b"))
    lock = repository / ".git" / "index.lock"
    lock.touch()  # another git is at work
    with pytest.raises(MachineError, match=r"index\.lock"):
        publisher.commit("A run is recorded")
    lock.unlink()
    assert publisher.commit("A run is recorded")


def test_a_queue_that_does_not_commit_copies_nothing(repository, tmp_path):
    publisher = Publisher(repository, False)
    publisher.add(record(tmp_path / "runs", "gru-1a2b"))
    assert not publisher.commit("A run is recorded")
    assert git(repository, "log", "--format=%s").split() == ["First"]


def test_the_code_that_decides_is_what_a_record_calls_dirty():
    from harness.machine.environment import PRODUCT

    assert set(pinned.CODE) == set(PRODUCT)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The command of a queue of tiny runs into a folder."""
    folder = tmp_path / "plugins" / "sweeps"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(TINY)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog. " * 400)
    monkeypatch.setenv("LIQUIDBENCH_PLUGINS", str(folder.parent))
    overrides = ["debug=tiny", "task=text", f"task.path={corpus}", "trainer.tokens=25600", "trainer.checkpoint_every=5"]

    def command(records, *arguments):
        given = [*overrides, f"records={records}"]
        return [sys.executable, "-m", "sweeps.queue", "tiny", "--nice", "0", *arguments, "--with", *given]

    return command


def results(root):
    return {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/result.json")}


TIMED = {"seconds", "tokens_per_second", "load", "peak_memory_bytes", "energy_joules"}
"""Figures of a record that two equal runs do not share."""
DRAWN = "evaluation_equals_decoding"
"""The check that draws what it reads again by the system's randomness: two equal runs share its verdict alone."""


def figures(result):
    """A record without what depends on the machine and the moment."""

    def without(node):
        if isinstance(node, dict):
            return {key: without(value) for key, value in node.items() if key not in TIMED}
        return [without(item) for item in node] if isinstance(node, list) else node

    for check in result["checks"]["results"]:
        if check["name"] == DRAWN:
            check |= {"value": check["value"] < check["tolerance"], "detail": ""}
    contexts = [(row["context"], row["state_bytes"]) for row in result["measurement"]["contexts"]]
    return without({key: value for key, value in result.items() if key != "measurement"}) | {"contexts": contexts}


def curves(root):
    made = {path.parent.name: curve.read(path.parent) for path in root.glob("*/result.json")}
    assert all(made.values())
    return made


@pytest.mark.slow
@pytest.mark.long
def test_a_queue_killed_three_times_ends_with_the_records_of_one_in_peace(tmp_path, tiny):
    """SIGKILL to all of its processes at once, at random moments; whatever it was doing is resumed.

    The undisturbed sweep is made by one process, so what a record says depends on no process's history either.
    """
    peace, killed = tmp_path / "peace", tmp_path / "killed"
    overrides = tiny(peace)[tiny(peace).index("--with") + 1 :]
    one_process = [sys.executable, "run.py", "-m", "+sweeps=tiny", "progress=false", *overrides]
    subprocess.run(one_process, cwd=run.ROOT, check=True, capture_output=True, env=os.environ | ONE_THREAD)
    choose = random.Random(int(os.environ.get("LIQUIDBENCH_TEST_SEED", "9")))
    for number in range(3):
        process = subprocess.Popen(
            tiny(killed), cwd=run.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        done, deadline = choose.randrange(len(SEEDS)) + number * len(SEEDS), time.monotonic() + 600
        while len(results(killed)) < done and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(choose.uniform(0, 2 * len(SEEDS)))
        assert process.poll() is None, "it ended before it was killed"
        for each in [process, *psutil.Process(process.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
    assert 0 < len(results(killed)) < RUNS
    last = subprocess.run(tiny(killed), cwd=run.ROOT, check=True, capture_output=True, text=True)
    assert f"{len(results(killed))} runs are done" not in last.stdout.splitlines()[0]
    assert len(results(killed)) == RUNS
    assert {n: figures(r) for n, r in results(killed).items()} == {n: figures(r) for n, r in results(peace).items()}
    for name, lines in curves(peace).items():
        assert [line["update"] for line in curves(killed)[name]] == [line["update"] for line in lines]
    again = subprocess.run(tiny(killed), cwd=run.ROOT, check=True, capture_output=True, text=True)
    assert f"{RUNS} runs are done, 0 are left" in again.stdout


@pytest.mark.slow
@pytest.mark.long
def test_a_queue_says_what_fails_and_what_is_left(tmp_path, tiny):
    """A run that another process holds is waited for, one that cannot be built fails, the others are made."""
    dry = subprocess.run(tiny(tmp_path / "runs", "--dry-run"), cwd=run.ROOT, check=True, capture_output=True, text=True)
    assert f"tiny: 0 runs are done, {RUNS} are left; about 0." in dry.stdout
    assert "  tiny: seed=0 model=gru trainer.learning_rate=0.001" in dry.stdout
    command = [
        *tiny(tmp_path / "runs"),
        "seed=0",
        "model=gru,transformer",
        "block=gated",
        "size.params=100",
        "trainer.learning_rate=1e-3",
    ]
    done = subprocess.run(command, cwd=run.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "0 runs made, 2 failed, 0 wait for others." in done.stdout
    assert done.stderr.count("failed: tiny: seed=0 model=") == 2
    assert "size.params=100" in done.stderr


def test_a_queue_begins_with_what_is_urgent(tmp_path, tiny):
    """A run that a less urgent sweep asks for too keeps its place."""
    urgent = "  urgent:\n    - {sweep: tiny, model: lstm, trainer.learning_rate: 4e-3}\n    - {model: lstm}\n"
    for name in ("tiny", "later"):
        (tmp_path / "plugins" / "sweeps" / f"{name}.yaml").write_text(TINY + urgent * (name == "tiny"))
    command = tiny(tmp_path / "runs", "--dry-run")
    command.insert(command.index("tiny") + 1, "later")
    dry = subprocess.run(command, cwd=run.ROOT, check=True, capture_output=True, text=True)
    order = ["lstm 0.004", "lstm 0.001", "gru 0.001", "gru 0.004"]
    runs = [line.replace("model=", "").replace("trainer.learning_rate=", "") for line in dry.stdout.splitlines()[1:]]
    seed = f"  tiny: seed={SEEDS[0]} "
    assert [line.removeprefix(seed).partition(" debug=")[0] for line in runs if line.startswith(seed)] == order
    assert len(runs) == RUNS


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_queue_told_to_stop_leaves_checkpoints(tmp_path, tiny, number):
    """Also where the terminal tells all of its processes at once."""
    process = start([*tiny(tmp_path / "runs"), "trainer.tokens=2560000", "trainer.checkpoint_every=9999"])
    wait_for(lambda: len(list((tmp_path / "runs").glob("*/metrics.jsonl"))) == 2)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert f"Stopped by {number.name}" in err
    assert len(list((tmp_path / "runs").glob("*/checkpoint.pt"))) == 2
    if number == signal.SIGTERM:
        assert out.count("stopped at its checkpoint") == 2
        assert "failed" not in out


@pytest.mark.slow
@pytest.mark.long
def test_a_queue_pauses_and_goes_on(tmp_path, tiny):
    pause = tmp_path / "pause"
    command = tiny(tmp_path / "runs", "--pause", str(pause))
    process = start([*command, "trainer.tokens=2560000", "trainer.checkpoint_every=9999"])
    workers = psutil.Process(process.pid).children
    wait_for(lambda: len(list((tmp_path / "runs").glob("*/metrics.jsonl"))) == 2)
    pause.touch()
    wait_for(lambda: len(list((tmp_path / "runs").glob("*/checkpoint.pt"))) == 2 and not workers())
    pause.unlink()
    wait_for(lambda: len(workers()) == 2)
    time.sleep(1)  # until the queue has noted the second, too
    process.terminate()
    out, _ = process.communicate(timeout=600)
    assert out.count("stopped at its checkpoint") == 4
    assert "failed" not in out
