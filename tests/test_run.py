"""The command itself: what it accepts, what it refuses, and what it leaves behind."""

import json
import sys

import pytest

import run

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
    "wrong value in a pattern": (["model=hybrid", "model.mixer.0.d_state=0"], ["model.mixer.0.d_state=0", "> 0"]),
    "unknown block": (["block=round"], ["round", "gated"]),
    "unknown key of a block": (["model=gru", "block.dconv=3"], ["'block.dconv'", "--help"]),
    "unknown key of a part it lacks": (["model=gru", "solver.substeps=2"], ["model=gru has no solver"]),
    "wrong taps": (["model=transformer", "block.d_conv=-1"], ["block.d_conv=-1"]),
    "negative size": (["size.params=-5"], ["size.params=-5", "> 0"]),
    "missing path": (["task=text"], ["task.path"]),
    "one bad job of a sweep": (["-m", "seed=0,1,-1"], ["seed=-1"]),
}


@pytest.mark.parametrize("case", BAD_CONFIGURATIONS)
def test_a_bad_configuration_is_refused_before_anything_runs(case, monkeypatch, tmp_path):
    arguments, fragments = BAD_CONFIGURATIONS[case]
    message = refused(monkeypatch, *arguments, f"records={tmp_path / 'runs'}")
    for fragment in [*fragments, "error:", "expected:", "remedy:"]:
        assert fragment in message
    assert not (tmp_path / "runs").exists()


# Overrides that compose, and yet cannot run; {} is the test's folder.
BAD_INPUTS = {
    "empty corpus": (["task.path={}/empty.txt"], ["empty.txt", "empty"]),
    "short corpus": (["task.path={}/short.txt"], ["8 bytes", "trainer.length"]),
    "not UTF-8": (["task.path={}/latin.txt"], ["latin.txt", "UTF-8"]),
    "no such path": (["task.path={}/nowhere.txt"], ["nowhere.txt"]),
    "unwritable folder": (["records={}/file/runs"], ["file/runs"]),
    "unreachable size": (["model=transformer", "size.params=1000"], ["size.params=1000", "nearest"]),
    "gate around a mixer with its own": (["model=rwkv", "block=gated"], ["TimeMix", "block=transformer"]),
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
    assert result["evaluation"]["test"]["bits_per_byte"] > 0
    assert result["kernels"] | {"liquid_scan": ["numba"], "rms_norm": ["numba"]} == result["kernels"]
    before = path.stat().st_mtime_ns
    command(monkeypatch, "model=ltc", "solver=rk4", *tiny)
    assert "Already recorded" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before


def test_newtons_method_over_time_is_checked_and_counted(monkeypatch, tmp_path, tiny):
    command(monkeypatch, "model=ltc", "parallel=newton", *tiny)
    (path,) = (tmp_path / "runs").glob("ltc-semi_implicit-checkpoint-newton-*/result.json")
    result = json.loads(path.read_text())
    assert result["checks"]["passed"] is True
    assert result["counts"]["newton_iterations"] > result["counts"]["newton_calls"] > 0
    assert result["kernels"]["liquid_tokens"] == ["numba"]


def test_a_corrupt_record_is_reported(monkeypatch, tmp_path, tiny):
    command(monkeypatch, "model=gru", *tiny)
    (path,) = (tmp_path / "runs").glob("gru-*/result.json")
    path.write_text(path.read_text()[:100])
    message = refused(monkeypatch, "model=gru", *tiny)
    assert str(path) in message
    assert "remedy:" in message


def test_a_corrupt_checkpoint_is_reported(monkeypatch, tmp_path, tiny):
    command(monkeypatch, "model=gru", *tiny)
    (path,) = (tmp_path / "runs").glob("gru-*/checkpoint.pt")
    path.write_bytes(b"not a checkpoint")
    path.with_name("result.json").unlink()
    message = refused(monkeypatch, "model=gru", *tiny)
    assert str(path) in message
    assert "remedy:" in message


@pytest.mark.slow
def test_a_sweep_states_its_grid(monkeypatch, tmp_path, tiny):
    command(monkeypatch, "-m", "model=lstm,gru", "seed=0,1", *tiny)
    names = sorted(path.parent.name.rsplit("-", 1)[0] for path in (tmp_path / "runs").glob("*/result.json"))
    assert len(names) == 4


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((run.ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_composes_and_states_its_question(path):
    jobs = list(run.expanded([f"+sweeps={path.stem}"]))
    assert len(jobs) > 1
    for overrides in jobs:
        assert run.resolve(run.compose(overrides))["question"].endswith("?")


@pytest.mark.parametrize("path", sorted((run.ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_composes(path):
    assert run.resolve(run.compose([f"experiment={path.stem}"]))["model"]["name"]
