"""A run in users' hands: what `harness.load` gives, and what it refuses."""

import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import harness
import recorded_run
import run
from harness.config.configure import checked, own_keys
from harness.config.errors import CheckpointError, ConfigError, RecordError, UserError
from harness.config.experiment import Experiment
from harness.generation.generate import generate
from harness.records import again, recorded, weights
from harness.training import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return recorded_run.make(tmp_path_factory.mktemp("library"), "model=gru", "kernel=reference")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The same run, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "run"))


def test_a_run_is_loaded_with_its_trained_weights_and_its_record(folder):
    model = harness.load(folder)
    trained = checkpoint.load(folder / checkpoint.NAME, model.result["key"])["model"]
    assert {name: t.dtype for name, t in model.model.state_dict().items()} == dict.fromkeys(trained, torch.float32)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.model.state_dict().items())
    assert model.result == json.loads((folder / "result.json").read_text())
    assert model.result["weights"]["bytes"] == (folder / weights.NAME).stat().st_size
    assert model.config["model"]["name"] == "gru"


def test_a_run_recorded_before_weights_were_kept_is_loaded_from_its_checkpoint(copy):
    (copy / weights.NAME).unlink()
    assert harness.load(copy).model.head.weight.equal(harness.load(copy).model.head.weight)
    (copy / checkpoint.NAME).unlink()
    with pytest.raises(RecordError, match=f"holds no weights.*python -m harness.records.again {copy}"):
        harness.load(copy)


def test_weights_on_the_way_are_loaded_by_their_update(tmp_path):
    folder = recorded_run.make(tmp_path, "model=gru", "kernel=reference", "trainer.snapshots=2")
    first, second, last = harness.load(folder, 1).model, harness.load(folder, 2).model, harness.load(folder).model
    assert torch.equal(second.head.weight, last.head.weight)
    assert not torch.equal(first.head.weight, last.head.weight)
    with pytest.raises(RecordError, match=r"no weights of update 3\..*one of 1, 2\."):
        harness.load(folder, 3)


def test_a_diverged_run_is_loaded_by_an_update_alone(tmp_path):
    folder = recorded_run.make(tmp_path, "model=gru", "kernel=reference", "trainer.snapshots=1")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"status": "diverged"}))
    with pytest.raises(RecordError, match="it has no trained model"):
        harness.load(folder)
    assert harness.load(folder, 2).model.head.weight.isfinite().all()


def test_a_run_without_snapshots_says_how_to_have_them(folder):
    with pytest.raises(RecordError, match=r"no weights of update 1\..*trainer\.snapshots=N"):
        harness.load(folder, 1)


def test_a_stream_is_what_generation_gives(folder):
    model = harness.load(folder)
    prompt = torch.tensor([list("the quick é".encode())])
    settings = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 3}
    expected = generate(model.model, prompt, 60, policy=model.policy, **settings)[0].tolist()
    assert list(model.generate(prompt[0], 60, **settings)) == expected
    stream = model.generate("the quick é", 60, **settings)
    first = next(stream)
    assert bytes(stream.tokens).decode("utf-8", "replace").startswith(first)
    assert first + "".join(stream) == bytes(expected).decode("utf-8", "replace")
    assert stream.tokens == expected
    assert harness.state_bytes(stream.state) == harness.state_bytes(model.model.init_state(1, 70))
    assert "".join(model.generate("a", 0)) == ""


@pytest.mark.parametrize("model", ["gru", "transformer"])
def test_a_generation_goes_on_where_another_ended_as_if_it_had_read_all_at_once(model, folder, tmp_path):
    known = harness.load(
        folder if model == "gru" else recorded_run.make(tmp_path, f"model={model}", "kernel=reference")
    )
    first = known.generate("the quick brown fox jumps", 9, seed=1)
    said = "".join(first)
    past = first.past
    more = "over the lazy dog. " * 8  # beyond the window of a state that is cut
    assert model == "gru" or known.policy.window < 25 + 9 + len(more)
    assert (past.read, past.last) == (25 + 8, first.tokens[-1])
    behind = known.generate(more, 20, temperature=0, after=past)
    whole = list(known.generate([*b"the quick brown fox jumps", *first.tokens, *more.encode()], 20, temperature=0))
    assert said
    assert (list(behind) and behind.tokens) == whole
    assert known.generate("", 5, seed=2, after=past).past.read == past.read + 1
    with pytest.raises(ConfigError):
        known.generate("", 5, after=known.generate("a", 0).past)


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_k": 0}, {"max_new_tokens": -1}]
    + [{"prompt": prompt} for prompt in ("", [256], [-1], [[1, 2]], torch.zeros(2, 2))],
)
def test_a_generation_out_of_range_is_refused_before_it_begins(folder, bad):
    with pytest.raises(ConfigError):
        harness.load(folder).generate(**{"prompt": "a"} | bad)


class Malicious:
    """What touches a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def planted_pickle(folder: Path, touched: Path) -> None:
    (folder / weights.NAME).write_bytes(pickle.dumps(Malicious(touched)))


def planted_checkpoint(folder: Path, touched: Path) -> None:
    (folder / weights.NAME).unlink()
    key = json.loads((folder / "result.json").read_text())["key"]
    checkpoint.save(folder / checkpoint.NAME, key, {"model": Malicious(touched)})


def planted_target(folder: Path, touched: Path, target: str = "os.system") -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["mixer"] = {"_target_": target, "command": f"touch {touched}"}
    (folder / "config.json").write_text(json.dumps(config))


def planted_function(folder: Path, touched: Path) -> None:
    planted_target(folder, touched, "harness.records.record.os.system")


@pytest.mark.parametrize("plant", [planted_pickle, planted_checkpoint, planted_target, planted_function])
def test_no_code_comes_out_of_a_run_that_was_tampered_with(copy, tmp_path, plant):
    plant(copy, tmp_path / "touched")
    with pytest.raises(UserError):
        harness.load(copy)
    assert not (tmp_path / "touched").exists()


def spoil(folder: Path, name: str, change) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


SPOILT = {
    "other weights": (CheckpointError, lambda f: weights.save(f / weights.NAME, {"a": torch.ones(2)})),
    "no result": (RecordError, lambda f: (f / "result.json").unlink()),
    "diverged": (RecordError, lambda f: spoil(f, "result.json", lambda r: r.update(status="diverged"))),
    "half a record": (RecordError, lambda f: spoil(f, "result.json", lambda r: r.pop("width"))),
    "another width": (UserError, lambda f: spoil(f, "result.json", lambda r: r["width"].update(d_model=40))),
    "no JSON": (RecordError, lambda f: (f / "config.json").write_text("[" * 100_000)),
    "no folder": (RecordError, shutil.rmtree),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_run_is_refused_with_what_to_do(copy, case):
    kind, change = SPOILT[case]
    change(copy)
    with pytest.raises(kind) as error:
        harness.load(copy)
    assert str(copy) in str(error.value) or case == "another width"


def test_every_published_record_could_be_made_again():
    for path in (run.ROOT / "results").glob("*/config.json"):
        checked(own_keys(recorded.config(path.parent)), "", annotation=Experiment)


@pytest.mark.slow
def test_the_command_named_makes_a_record_without_weights_again(copy, folder, monkeypatch, tmp_path, capsys):
    (copy / weights.NAME).unlink()
    (copy / checkpoint.NAME).unlink()
    with pytest.raises(RecordError) as error:
        harness.load(copy)
    command = re.search(r"python -m harness\.records\.again (.*)", error.value.remedy)[1].split()
    monkeypatch.setattr(sys, "argv", ["again", *command, "--records", str(tmp_path / "runs")])
    again.main()
    (made,) = map(harness.load, (tmp_path / "runs").glob("gru-*"))
    assert made.model.head.weight.equal(harness.load(folder).model.head.weight)


def test_the_page_of_the_library_and_its_public_names_agree():
    named = re.findall(r"^### `(\w+)", (run.ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    typed = re.findall(r" as (\w+)$", (run.ROOT / "harness" / "__init__.py").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(typed)
    assert 8 <= len(named) <= 12
    for name in named:
        assert getattr(harness, name).__doc__, name
    with pytest.raises(AttributeError):
        _ = harness.nothing
