"""The command itself: what it accepts, what it refuses, and what it leaves behind."""

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from types import ModuleType
from typing import ClassVar

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

import run
from harness.checks.names import AFTER_TRAINING, BEFORE_TRAINING
from harness.config.errors import RecordError
from harness.config.experiment import Experiment
from harness.records import code
from harness.records.summary import show
from harness.training import checkpoint
from harness.training.progress import SweepProgress
from tests import configs

TINY = ["debug=tiny", "trainer.tokens=1024", "progress=false"]


def command(monkeypatch, *arguments: str) -> None:
    """Runs `python run.py ARGUMENTS` in this process."""
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    run.main()


def refused(monkeypatch, *arguments: str) -> str:
    """The message that a refused command ends with."""
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, *arguments)
    assert end.value.code not in (0, None)
    return str(end.value.code)


@pytest.fixture
def corpus(tmp_path):
    """A small text to train on."""
    path = tmp_path / "corpus.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 400)
    return path


@pytest.fixture
def tiny(tmp_path, corpus):
    """Overrides of a run of a few seconds on the small text."""
    return [*TINY, f"records={tmp_path / 'runs'}", "task=text", f"task.path={corpus}"]


BAD_CONFIGURATIONS = {
    "unknown key": (["trainer.larning_rate=1"], ["trainer.larning_rate"]),
    "unknown added key": (["+trainer.larning_rate=1"], ["trainer.larning_rate", "did you mean 'learning_rate'"]),
    "unknown model": (["model=ltcc"], ["ltcc", "ltc"]),
    "unknown top-level key": (["+sed=1"], ["'sed'", "did you mean 'seed'"]),
    "wrong type": (["trainer.learning_rate=fast"], ["trainer.learning_rate='fast'", "number"]),
    "wrong choice": (["model.mixer.coupling=cubic"], ["model.mixer.coupling='cubic'", "diagonal"]),
    "name in place of an object": (["model.mixer.solver=rk4"], ["model.mixer.solver='rk4'", "Solver"]),
    "solver on a transformer": (["model=transformer", "solver=rk4"], ["model=transformer has no solver", "model=ltc"]),
    "newton on a recurrent net": (["model=lstm", "parallel=newton"], ["model=lstm has no parallel"]),
    "newton on a dense coupling": (["model=ltc", "parallel=newton", "model.mixer.coupling=dense"], ["coupling=dense"]),
    "gradient on a recurrent net": (["model=lstm", "gradient=adjoint"], ["model=lstm has no gradient"]),
    "wrong value in a pattern": (["model=hybrid", "model.mixer.0.d_state=0"], ["model.mixer.0.d_state=0", ">= 1"]),
    "unknown block": (["block=round"], ["round", "gated"]),
    "unknown key of a block": (["model=gru", "block.dconv=3"], ["'block.dconv'", "--help"]),
    "unknown key of a part it lacks": (["model=gru", "solver.substeps=2"], ["model=gru has no solver"]),
    "wrong taps": (["model=transformer", "block.d_conv=-1"], ["block.d_conv=-1"]),
    "negative size": (["size.params=-5"], ["size.params=-5", ">= 1"]),
    "missing path": (["task=text"], ["task.path"]),
    "seed beyond the generators": (["seed=18446744073709551616"], ["seed=18446744073709551616", "< 4,294,967,296"]),
    "truth for a number": (["seed=true"], ["seed=True", "integer"]),
    "text for a number": (["size.params='1000000'"], ["size.params='1000000'", "integer"]),
    "endless rate": (["trainer.learning_rate=inf"], ["trainer.learning_rate=inf", "finite", "<= 100"]),
    "rate beyond floats": (["trainer.learning_rate=1e999"], ["trainer.learning_rate=inf", "finite"]),
    "endless decay": (["trainer.weight_decay=inf"], ["trainer.weight_decay=inf", "finite"]),
    "endless ratio": (["model.d_ff_ratio=inf"], ["model.d_ff_ratio=inf", "finite"]),
    "no number": (["trainer.clip_norm=nan"], ["trainer.clip_norm=nan", "finite"]),
    "one byte": (["evaluate.max_bytes=1"], ["evaluate.max_bytes=1", ">= 2"]),
    "huge multiple": (["model.width_multiple=1000000000"], ["model.width_multiple=1000000000", "<= 65,536"]),
    "a million layers": (["size.n_layers=1000000"], ["size.n_layers=1000000", "<= 128"]),
    "a million threads": (["trainer.threads=1000000"], ["trainer.threads=1000000", "<= 1,024"]),
    "loose budget": (["size.tolerance=1e9"], ["size.tolerance=1000000000.0", "<= 0.1"]),
    "no contexts": (["measure.contexts=[]"], ["measure.contexts=[]", "at least 1"]),
    "contexts out of order": (["measure.contexts=[64,64,1]"], ["measure.contexts=[64, 64, 1]", "ascend"]),
    "no folder": (["records=''"], ["records=''", "characters"]),
    "no name": (["model.name=''"], ["model.name=''"]),
    "name of a path": (["model.name=a/b"], ["model.name='a/b'"]),
    "empty path": (["task=text", "task.path=''"], ["task.path=''"]),
    "absolute pattern": (["task=text", "task.path=.", "task.pattern=/etc/*"], ["task.pattern='/etc/*'"]),
    "another kind of part": (["trainer._target_=harness.tasks.parity.Parity"], ["makes Parity", "TrainerConfig"]),
    "no part": (["trainer=null"], ["trainer"]),
    "no model": (["model=null"], ["model"]),
    "no mixer": (["model.mixer=null"], ["model.mixer=None"]),
    "a key of itself": (["seed=${seed}"], ["'seed'"]),
    "one bad job of a sweep": (["-m", "seed=0,1,-1"], ["seed=-1"]),
}


@pytest.mark.parametrize("case", BAD_CONFIGURATIONS)
def test_a_bad_configuration_is_refused_before_anything_runs(case, monkeypatch, tmp_path):
    arguments, fragments = BAD_CONFIGURATIONS[case]
    message = refused(monkeypatch, f"records={tmp_path / 'runs'}", *arguments)
    for fragment in [*fragments, "error:", "expected:", "remedy:"]:
        assert fragment in message
    assert not (tmp_path / "runs").exists()


def test_a_whole_number_may_be_written_as_a_power_of_ten():
    plain = run.resolve(run.compose(["trainer.tokens=1e6", "trainer.weight_decay=0"]))
    assert repr(plain["trainer"]["tokens"]) == "1000000"
    assert repr(plain["trainer"]["weight_decay"]) == "0.0"


# Overrides that compose, and yet cannot run; {} is the test's folder.
BAD_INPUTS = {
    "empty corpus": (["task.path={}/empty.txt"], ["empty.txt", "empty"]),
    "short corpus": (["task.path={}/short.txt"], ["8 bytes", "trainer.length"]),
    "not UTF-8": (["task.path={}/latin.txt"], ["latin.txt", "UTF-8"]),
    "no such path": (["task.path={}/nowhere.txt"], ["nowhere.txt"]),
    "unwritable folder": (["records={}/file/runs"], ["file/runs"]),
    "size beyond memory": (["size.params=1000000000000"], ["size.params=1000000000000", "16,000 GB"]),
    "more layers than parameters": (["size.params=1000", "size.n_layers=32"], ["size.n_layers=32", "nearest"]),
    "unreachable size": (["model=transformer", "size.params=1000"], ["size.params=1000", "nearest"]),
    "gate around a mixer with its own": (["model=rwkv", "block=gated"], ["TimeMix", "block=transformer"]),
    "two budgets": (["trainer.epochs=2"], ["trainer.tokens=1024 and trainer.epochs=2", "trainer.tokens=null"]),
    "no budget": (["trainer.tokens=null"], ["No budget", "trainer.tokens_per_parameter"]),
    "more than the run": (["trainer.schedule=wsd", "trainer.decay_ratio=1"], ["trainer.decay_ratio=1", "at most 1"]),
    "adjoint of a solver without one": (["model=ltc", "solver=exponential", "gradient=adjoint"], ["adjoint"]),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_a_bad_input_is_refused_before_training(case, monkeypatch, tmp_path, tiny):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "latin.txt").write_bytes("déjà vu ".encode("latin-1") * 5000)
    (tmp_path / "file").write_text("in the way")
    arguments, fragments = BAD_INPUTS[case]
    message = refused(monkeypatch, *tiny, *(argument.format(tmp_path) for argument in arguments))
    for fragment in [*fragments, "error:", "expected:", "remedy:"]:
        assert fragment in message
    assert not list(tmp_path.glob("runs/*/metrics.jsonl"))


@pytest.mark.slow
def test_an_unknown_dataset_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused(monkeypatch, *TINY, "task=text8", f"records={tmp_path / 'runs'}")
    assert "remedy:" in message


def test_a_run_leaves_a_record_and_is_not_run_twice(monkeypatch, tmp_path, tiny, capsys):
    command(monkeypatch, "model=ltc", "solver=rk4", *tiny)
    (path,) = (tmp_path / "runs").glob("ltc-rk4-*/result.json")
    result = json.loads(path.read_text())
    assert result["status"] == "finished"
    assert result["checks"]["passed"] is True
    names = {check["name"] for check in result["checks"]["results"]}
    assert {*BEFORE_TRAINING, *AFTER_TRAINING} <= names  # or the analysis would refuse every record from now on
    assert result["code"]["checks"] == code.checks_digest()
    assert result["evaluation"]["test"]["bits_per_byte"] > 0
    assert result["kernels"] | {"liquid_scan": ["numba"], "rms_norm": ["numba"]} == result["kernels"]
    before = path.stat().st_mtime_ns
    command(monkeypatch, "model=ltc", "solver=rk4", *tiny)
    assert "Already recorded" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before


@pytest.mark.slow
def test_newtons_method_over_time_is_checked_and_counted(monkeypatch, tmp_path, tiny):
    command(monkeypatch, "model=ltc", "parallel=newton", *tiny)
    (path,) = (tmp_path / "runs").glob("ltc-semi_implicit-checkpoint-newton-*/result.json")
    result = json.loads(path.read_text())
    assert result["checks"]["passed"] is True
    assert result["counts"]["newton_iterations"] > result["counts"]["newton_calls"] > 0
    assert result["kernels"]["liquid_tokens"] == ["numba"]


@pytest.mark.slow
def test_a_sweep_states_its_grid(monkeypatch, tmp_path, tiny):
    command(monkeypatch, "-m", "model=lstm,gru", "seed=1", *tiny)
    names = sorted(path.parent.name.rsplit("-", 1)[0] for path in (tmp_path / "runs").glob("*/result.json"))
    assert [name[:4] for name in names] == ["gru-", "lstm"]


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_sweep_goes_on(monkeypatch, tmp_path, tiny, capsys):
    """One model cannot stand in the block, one run is held by another process: the third is made."""
    command(monkeypatch, "model=gru", "block=gated", *tiny)
    (finished,) = (tmp_path / "runs").glob("gru-gated-*/result.json")
    finished.unlink()
    capsys.readouterr()
    with finished.with_name(".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        message = refused(monkeypatch, "-m", "model=rwkv,gru,lstm", "block=gated", *tiny)
    out, err = capsys.readouterr()
    assert "error: 2 of 3 runs failed:" in message
    assert "model=rwkv block=gated" in message
    assert "Another process is making the run" in message
    assert "Run 2 of 3: model=gru block=gated" in out
    assert err.count("remedy:") == 2
    assert "Traceback" not in err
    assert [path.parent.name[:10] for path in (tmp_path / "runs").glob("*/result.json")] == ["lstm-gated"]


def fake_runs(monkeypatch, make) -> list[int]:
    """Replaces the run of an experiment by `make(seed)`, a record's status; returns the seeds that were asked for."""
    seeds = []

    def record(self, config, say=print):
        seeds.append(self.seed)
        status = make(self.seed)
        figures = {"validation": {"bits_per_byte": 1.0 + self.seed}} if status == "finished" else None
        return {"status": status, "training": {"seconds": 0.0}, "evaluation": figures}

    monkeypatch.setattr(Experiment, "run", record)
    monkeypatch.setattr("harness.records.summary.show", lambda result: None)
    return seeds


def test_whatever_fails_in_a_sweep_stops_no_other_run(monkeypatch, tmp_path, capsys):
    def make(seed):
        if seed == 0:
            raise ZeroDivisionError("in the mixer")
        return "diverged" if seed == 1 else "finished"

    seeds = fake_runs(monkeypatch, make)
    message = refused(monkeypatch, "-m", "seed=0,1,2", "debug=tiny", f"records={tmp_path}")
    assert seeds == [0, 1, 2]
    assert (
        message
        == f"error: 1 of 3 runs failed:\n  seed=0 debug=tiny records={tmp_path}: ZeroDivisionError: in the mixer"
    )
    out, err = capsys.readouterr()
    assert "Traceback" in err
    assert "Run 2 of 3: seed=1" in out
    assert "Run 3 of 3 (about 0:00 left): seed=2" in out


def test_a_sweep_that_failed_nowhere_ends_well(monkeypatch, tmp_path):
    seeds = fake_runs(monkeypatch, lambda seed: "finished")
    command(monkeypatch, "-m", "seed=0,1", f"records={tmp_path}")
    assert seeds == [0, 1]


def test_wandb_shows_the_runs_of_a_sweep_as_a_group(monkeypatch, tmp_path):
    groups = []
    fake_runs(monkeypatch, lambda seed: "finished")
    make = Experiment.run
    monkeypatch.setattr(Experiment, "run", lambda self, config: groups.append(self.logger.group) or make(self, config))
    for arguments in (["-m", "seed=0,1"], ["-m", "seed=0", "logger.group=mine"], ["seed=0"]):
        command(monkeypatch, *arguments, "logger=wandb", f"records={tmp_path}")
    assert groups[0] == groups[1]
    assert groups[0].startswith("sweep-")
    assert groups[2:] == ["mine", None]


def test_the_time_left_is_judged_by_the_runs_that_were_made():
    progress = SweepProgress(4)
    assert progress.start(["a=1"]) == "Run 1 of 4: a=1"
    progress.made(seconds=2, training_seconds=100)  # it was recorded already
    assert progress.start(["a=2"]) == "Run 2 of 4: a=2"
    progress.made(seconds=120, training_seconds=100)
    assert progress.start(["a=3"]) == "Run 3 of 4 (about 4:00 left): a=3"
    progress.failed()
    assert progress.start(["a=4"]) == "Run 4 of 4 (about 2:00 left): a=4"
    assert SweepProgress(None).start(["a=1"]) == "Run 1: a=1"


def test_workers_share_the_time_that_is_left():
    progress = SweepProgress(5)
    progress.start(["a=1"])
    progress.start(["a=2"])
    progress.made(seconds=120, training_seconds=100)
    assert progress.start(["a=3"]) == "Run 3 of 5 (about 4:00 left): a=3"  # four runs, two at a time


class Halving(Sweeper):
    """A sweeper with ideas of its own: it tries learning rates that no grid lists, and keeps what came of them."""

    returned: ClassVar[list[float]] = []

    def __init__(self, params=None, n_trials=2):
        self.n_trials = n_trials

    def setup(self, *, hydra_context, task_function, config):
        parts = {"hydra_context": hydra_context, "task_function": task_function, "config": config}
        self.config, self.launcher = config, Plugins.instance().instantiate_launcher(**parts)

    def sweep(self, arguments):
        fixed = [argument for argument in arguments if "interval" not in argument]
        jobs = [[*fixed, f"trainer.learning_rate={0.001 * number}", f"seed={number}"] for number in (1, 2)]
        self.returned[:] = [job.return_value for job in self.launcher.launch(jobs, initial_job_idx=0)]


def test_a_sweeper_of_ones_own_expands_its_own_sweep(monkeypatch, tmp_path, capsys):
    known = Plugins.instance()
    plugins = ModuleType("hydra_plugins")  # where Hydra looks for them
    plugins.halving = ModuleType("hydra_plugins.halving")
    plugins.halving.Halving = Halving
    monkeypatch.setitem(sys.modules, "hydra_plugins", plugins)
    monkeypatch.setitem(sys.modules, "hydra_plugins.halving", plugins.halving)
    monkeypatch.setattr(Halving, "__module__", "hydra_plugins.halving")
    known.register(Halving)
    node = {"_target_": "hydra_plugins.halving.Halving", "params": None, "n_trials": 2}
    ConfigStore.instance().store(group="hydra/sweeper", name="halving", node=node)
    given = ["-m", "hydra/sweeper=halving", "trainer.learning_rate=interval(0.001,0.01)", f"records={tmp_path}"]
    fake_runs(monkeypatch, lambda seed: "finished" if seed == 1 else "diverged")
    command(monkeypatch, *given)
    assert Halving.returned == [2.0, math.inf]
    assert "Run 2 of 2" in capsys.readouterr().out
    message = refused(monkeypatch, *given, "trainer.batch_size=-1")
    assert "trainer.batch_size=-1" in message
    assert "but not for a sweep" in refused(monkeypatch, *given[1:])
    assert "does not support sweep type" in refused(monkeypatch, given[0], *given[2:])  # Hydra's own sweeper


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_a_signal_ends_the_command_with_one_line(monkeypatch, tmp_path, capsys, number, status, flags):
    # a test run that was started in the background ignores SIGINT, and so would the command
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    inherited = signal.signal(number, before)
    seeds = fake_runs(monkeypatch, lambda seed: signal.raise_signal(number))
    try:
        with pytest.raises(SystemExit) as end:
            command(monkeypatch, *flags, "seed=3", f"records={tmp_path}")
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, inherited)
    assert end.value.code == status
    assert seeds == [3]
    assert capsys.readouterr().err == f"Stopped by {number.name}. The same command takes the run up where it stands.\n"


@pytest.mark.slow
def test_a_stopped_command_leaves_a_checkpoint_and_resumes(tmp_path, corpus):
    """The command itself, stopped in the middle of training, long before a checkpoint is due."""
    arguments = [
        "model=gru",
        "debug=tiny",
        "trainer.tokens=51200",
        "trainer.log_every=1",
        "trainer.checkpoint_every=9999",
    ]
    arguments += [f"records={tmp_path}", "task=text", f"task.path={corpus}"]
    process = subprocess.Popen([sys.executable, "run.py", *arguments], cwd=run.ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/metrics.jsonl")) or not next(tmp_path.glob("*/metrics.jsonl")).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert process.stderr.read().strip().splitlines()[-1].startswith("Stopped by SIGTERM.")
    (path,) = tmp_path.glob("gru-*/checkpoint.pt")
    saved = checkpoint.load(path, path.parent.name.rpartition("-")[2])
    logged = (path.parent / "metrics.jsonl").read_text().splitlines()
    assert saved["ledger"]["update"] == len(logged) > 0
    assert {"harness.training.trainer", "baselines.recurrent.gru_numba"} <= set(saved["code"]["modules"])
    assert not (path.parent / "failure.json").exists()


def test_a_sweep_into_a_folder_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refused(monkeypatch, "-m", "seed=0,1", f"records={tmp_path / 'file' / 'runs'}")
    assert "cannot be written to" in message
    assert "set records=FOLDER" in message


def test_toy_runs_have_a_folder_of_their_own():
    assert run.resolve(run.compose(["debug=tiny"]))["records"] == "runs/tiny"
    assert run.resolve(run.compose(["debug=tiny", "records=mine"]))["records"] == "mine"
    assert run.resolve(run.compose(["+sweeps=solvers", "debug=tiny"]))["question"]
    assert run.resolve(run.compose([]))["records"] == "runs"


def test_a_corrupt_record_is_reported(monkeypatch, recorded):
    whole = recorded.read_text()
    recorded.write_text(whole[:100])
    message = refused(monkeypatch, *recorded_by(recorded))
    recorded.write_text(whole)
    assert str(recorded) in message
    assert "remedy:" in message


def test_a_corrupt_checkpoint_is_reported(monkeypatch, recorded):
    whole, path = recorded.read_text(), recorded.with_name("checkpoint.pt")
    saved = path.read_bytes()
    path.write_bytes(b"not a checkpoint")
    recorded.unlink()
    message = refused(monkeypatch, *recorded_by(recorded))
    path.write_bytes(saved)
    recorded.write_text(whole)
    recorded.with_name("failure.json").unlink(missing_ok=True)
    assert str(path) in message
    assert "remedy:" in message


def test_a_gutted_record_is_told(monkeypatch, recorded):
    whole = recorded.read_text()
    result = json.loads(whole)
    for part in ("training", "checks", "evaluation", "measurement", "parameters", "status"):
        for content in ({key: value for key, value in result.items() if key != part}, result | {part: None}):
            with pytest.raises(RecordError, match="is not whole"):
                show(content)
    recorded.write_text(json.dumps(result | {"training": {}}))
    message = refused(monkeypatch, *recorded_by(recorded))
    assert f"{result['name']}-{result['key']} is not whole (KeyError: 'epochs')" in message
    assert "force=true" in message
    recorded.write_text(whole)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The result of a run that `recorded_by` asks for."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    with pytest.MonkeyPatch.context() as patch:
        command(patch, *recorded_by(folder / "runs" / "x" / "result.json"))
    return next(folder.glob("runs/*/result.json"))


def recorded_by(result) -> list[str]:
    """The command whose run left this result."""
    folder = result.parents[2]
    return ["model=gru", *TINY, f"records={folder / 'runs'}", "task=text", f"task.path={folder / 'corpus.txt'}"]


@pytest.mark.slow
def test_a_run_of_older_code_is_told_and_repeated_only_when_asked(monkeypatch, recorded, capsys):
    whole = recorded.read_text()
    made = json.loads(whole)["code"]
    assert {"baselines.recurrent.mixer", "baselines.recurrent.step_numba"} <= set(made["modules"])  # a late import
    assert "harness.config.experiment" in made["modules"]
    command(monkeypatch, *recorded_by(recorded), "force=stale")
    assert "force=true runs it again" in capsys.readouterr().out
    assert recorded.read_text() == whole
    for older in (made | {"modules": made["modules"] | {"baselines.recurrent.mixer": "0123456789abcdef"}}, None):
        recorded.write_text(json.dumps(json.loads(whole) | {"code": older}))
        command(monkeypatch, *recorded_by(recorded))
        said = " ".join(capsys.readouterr().out.split())
        assert "force=stale repeats it" in said
        assert ("older code: baselines.recurrent.mixer changed since" in said) is (older is not None)
        assert json.loads(recorded.read_text())["code"] == older
        command(monkeypatch, *recorded_by(recorded), "force=stale")
        assert json.loads(recorded.read_text())["code"] == made


@pytest.mark.slow
def test_a_lost_curve_is_told(monkeypatch, recorded, capsys):
    curve = recorded.with_name("curve.csv")
    lines = curve.read_text()
    curve.unlink()
    command(monkeypatch, *recorded_by(recorded))
    assert "has no curve" in " ".join(capsys.readouterr().out.split())
    result = recorded.read_text()
    recorded.unlink()
    command(monkeypatch, *recorded_by(recorded))
    lost = json.loads(recorded.read_text())["training"]["lost_lines"]
    assert lost >= len(lines.splitlines()) - 1 > 0
    assert f"has lost {lost} lines" in " ".join(capsys.readouterr().out.split())
    recorded.write_text(result)
    curve.write_text(lines)


def test_a_budget_stated_otherwise_is_the_same_run_and_recorded_in_tokens(monkeypatch, recorded, capsys):
    budget = json.loads(recorded.with_name("config.json").read_text())["trainer"]
    assert (budget["tokens"], budget["tokens_per_parameter"], budget["epochs"]) == (1024, None, None)
    epoch = json.loads(recorded.read_text())["data"]["train_tokens"]
    for stated in ("tokens_per_parameter=0.00853334", f"epochs={1024 / epoch}"):  # of 120,000 parameters
        command(monkeypatch, *recorded_by(recorded), "trainer.tokens=null", f"trainer.{stated}")
        assert "Already recorded" in capsys.readouterr().out
    assert len(list(recorded.parents[1].glob("*/result.json"))) == 1


def test_a_record_says_how_busy_the_machine_was(recorded):
    result = json.loads(recorded.read_text())
    for part in ("training", "measurement"):
        assert set(result[part]["load"]) == {"other_cpu", "busy"}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((run.ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_composes_and_states_its_question(path):
    plan = run.expanded([f"+sweeps={path.stem}"], sweeps=True)
    assert plan.question.endswith("?")
    assert len(plan.jobs) > 1 or plan.section.parts
    few = int(os.environ.get("LIQUIDBENCH_RUNS", "4"))  # the first: each takes a sixth of a second
    for overrides in plan.jobs[:few] if not plan.section.parts else ():
        assert run.RUNS.config(overrides)["question"] == plan.question


def test_a_sweep_of_all_models_needs_no_list_of_them():
    jobs = run.expanded(["model=glob(*)", "seed=3"], sweeps=True).jobs
    assert jobs == [[f"model={name}", "seed=3"] for name in configs.MODELS]


EXPERIMENTS = sorted((run.ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if "/task:" not in p.read_text()], ids=lambda path: path.stem)
def test_every_experiment_composes(path):
    """Those that choose a task are built in tests/test_tasks_synthetic.py."""
    assert run.resolve(run.compose([f"experiment={path.stem}"]))["model"]["name"]
