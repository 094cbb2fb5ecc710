"""Trained models in the formats of others, for every architecture of conf/model."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import configs
import harness
import recorded_run
from harness.config.errors import ConfigError, UserError
from harness.export import hf, onnx_step
from harness.export.__main__ import main
from harness.export.formats import formats
from harness.generation.generate import generate
from harness.generation.library import TrainedModel, build_model
from harness.model.backbone import Width
from harness.model.context import FULL
from harness.model.sizing import SizeConfig, solve

LATER = [pytest.param(name, marks=pytest.mark.long) for name in configs.MODELS if name not in ("ltc", "transformer")]
TRACED = ["ltc", "transformer", *LATER]
"""Every model; tracing one takes seconds, so `make test` traces two."""


def model_of(architecture: str, *overrides: str, width: Width | None = None) -> TrainedModel:
    """A small model of an architecture whose weights are all random, in plain torch where it has kernels."""
    plain = [] if configs.is_torch_alone(architecture) else ["kernel=reference"]
    config = configs.resolved(f"model={architecture}", *plain, *overrides)
    spec = configs.spec(architecture, *overrides)
    layers = max(2, len(spec.pattern))
    width = width or solve(spec, 256, SizeConfig(75_000 * layers, layers))
    model = build_model(config["model"], 256, layers * spec.block.depth_factor, width, seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return TrainedModel(model, config, {}, FULL, reads_text=True, path=Path("nowhere"))


@pytest.mark.slow
def test_an_architecture_generates_in_transformers(architecture, tmp_path):
    ours = model_of(architecture)
    hf.write(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    state = theirs.model.state_dict()
    assert state.keys() == ours.model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.model.state_dict().items())
    tokens = torch.randint(256, (2, 9))
    with torch.no_grad():
        assert_close(theirs(tokens).logits, ours.model(tokens)[0], rtol=0, atol=1e-6)
        cache = theirs(tokens).past_key_values
        before = cache.state_bytes
        theirs(tokens[:, :1], past_key_values=cache)
    assert (cache.state_bytes == before) == ours.model.constant_state
    assert cache.get_seq_length() == 10

    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    padded = theirs.generate(tokens, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, 9:]
    alone = [generate(ours.model, row, 6, temperature=0)[0] for row in (tokens[:1], tokens[1:, 4:])]
    assert torch.equal(padded, torch.stack(alone))

    ways = {"sampling": {"do_sample": True}, "beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False}}
    for way in ways.values():
        drawn = []
        for use_cache in (True, False):
            torch.manual_seed(1)
            drawn.append(theirs.generate(tokens, attention_mask=mask, max_new_tokens=6, use_cache=use_cache, **way))
        assert torch.equal(*drawn)


@pytest.mark.slow
def test_the_trainer_of_transformers_takes_a_step(tmp_path):
    model = hf.LiquidBenchForCausalLM.of(model_of("gru"))
    before = model.model.head.weight.detach().clone()
    tokens = torch.randint(256, (2, 12))
    examples = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    settings = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, save_strategy="no")
    done = Trainer(model, settings, train_dataset=examples).train()
    assert done.training_loss == pytest.approx(5.5, abs=1)
    assert not torch.equal(model.model.head.weight, before)


def test_a_mask_that_is_no_padding_on_the_left_is_refused():
    model = hf.LiquidBenchForCausalLM.of(model_of("gru"))
    tokens = torch.randint(256, (2, 4))
    for mask in ([[1, 1, 1, 1], [1, 1, 0, 1]], [[0, 0, 0, 0], [1, 1, 1, 1]]):
        with pytest.raises(ValueError, match="attention_mask"):
            model(tokens, attention_mask=torch.tensor(mask))
    right = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    trained = model(tokens, attention_mask=right, labels=tokens.where(right.bool(), -100))
    assert_close(trained.logits, model(tokens).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("rwkv", {"rwkv"}),
        ("mamba", {"mamba_ssm", "transformers"}),
        ("lfm2", {"transformers"}),
        ("hybrid", set()),
        ("hawk", set()),
    ],
)
def test_an_architecture_has_the_formats_that_its_folder_lists(model, own):
    config = configs.resolved(f"model={model}")
    found = formats(TrainedModel(None, config, {}, FULL, reads_text=True, path=Path("nowhere")))
    assert set(found) == {"hf", "onnx", "onnx_int8"} | own


@pytest.mark.slow
@pytest.mark.parametrize("model", TRACED)
@torch.no_grad()
def test_a_graph_of_one_token_is_our_step(model, tmp_path):
    pytest.importorskip("onnxruntime")
    ours = model_of(model)
    onnx_step.write(ours, tmp_path)
    tokens = torch.randint(256, (1, 40))
    expected, past = ours.model.scan(tokens)

    def logits(tokens: torch.Tensor, state: dict) -> tuple[torch.Tensor, dict]:
        step, read = onnx_step.OnnxStep(tmp_path / onnx_step.GRAPH), []
        assert set(step.names) == set(state)
        for token in tokens[0]:
            logit, state = step(token[None].numpy(), state)
            read.append(torch.from_numpy(logit))
        return torch.cat(read), state

    close = {"rtol": 0, "atol": 1e-5 * float(expected.abs().max())}
    first = load_file(tmp_path / onnx_step.STATE)
    found, state = logits(tokens, first)
    assert_close(found, expected[0], **close)
    grown = {name for name, array in state.items() if array.shape != first[name].shape}
    assert bool(grown) != ours.model.constant_state

    kept = onnx_step.cut(state, first, 8)
    assert {name for name, array in kept.items() if array.shape != state[name].shape} == grown
    after, _ = ours.model.step(tokens[:, 3], ours.model.truncate_state(past, 8))
    assert_close(logits(tokens[:, 3:4], kept)[0], after, **close)

    size = (tmp_path / onnx_step.GRAPH).stat().st_size
    onnx_step.quantize(tmp_path, tmp_path)
    assert (tmp_path / onnx_step.GRAPH).stat().st_size < 0.75 * size
    assert_close(logits(tokens, first)[0], expected[0], rtol=0, atol=0.1 * float(expected.abs().max()))


def test_a_step_that_is_no_fixed_graph_is_refused_with_its_reason(tmp_path, monkeypatch, capfd):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ConfigError, match=r"model=ltc cannot be an ONNX graph: .+ depends on the numbers of a tensor"):
        onnx_step.write(model_of("ltc", "solver=dopri5"), tmp_path)
    assert capfd.readouterr() == ("", "")  # torch shows the graph as far as it came
    with pytest.raises(ConfigError, match="Python integer"):
        list(onnx_step.named(onnx_step._as_tensors([{"length": 3}])))
    monkeypatch.setattr(onnx_step, "PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"no_such_package.+liquidbench\[edge\]"):
        onnx_step.write(model_of("gru"), tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return recorded_run.make(tmp_path_factory.mktemp("export"), "model=gru", "kernel=reference")


def test_the_command_exports_a_run_once(folder, capsys):
    main([f"run={folder}"])
    made = folder / "export-hf"
    assert str(made) in capsys.readouterr().out
    tokens = torch.randint(256, (1, 5))
    theirs, ours = AutoModelForCausalLM.from_pretrained(made), harness.load(folder)
    # to the bit but for products of weights that lie elsewhere in memory
    assert_close(theirs(tokens).logits, ours.model(tokens)[0], rtol=0, atol=1e-6)
    assert sorted(path.name for path in folder.glob(".export*")) == []
    for arguments in ([f"run={folder}"], [f"run={folder}", "format=rwkv"], ["format=hf"], [f"run={folder}", "too=x"]):
        with pytest.raises(UserError):
            main(arguments)


def test_no_code_comes_out_of_an_exported_folder(tmp_path):
    hf.write(model_of("gru"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["spec"]["mixer"] = {"_target_": "os.system", "command": f"touch {tmp_path / 'touched'}"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"os\.system"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "touched" not in os.listdir(tmp_path)
