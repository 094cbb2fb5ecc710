"""What a mixer and a model start from: initial weights, empty states, defaults, and the work stated by hand."""

import dataclasses
import inspect
from functools import partial

import pytest
import torch
import yaml
from torch.testing import assert_close

import run
from arch.cfc.mixer import CfC
from arch.cfc.scan_torch import cfc_scan
from arch.ltc.mixer import LTC
from baselines.mamba.mixer import Selective
from baselines.mamba.scan import reference as selective_reference
from baselines.recurrent.mixer import GRU, LSTM
from baselines.rwkv.mixer import TimeMix
from baselines.transformer.mixer import Attention
from harness.config.experiment import Experiment
from harness.machine import hardware
from harness.model.backbone import ModelSpec
from harness.model.block import Gated, ShortConvolution
from harness.model.mixer import Flops
from harness.model.state import state_bytes
from harness.tasks.parity import Parity


def test_the_defaults_of_a_model_are_those_of_its_configuration():
    stated = yaml.safe_load((run.ROOT / "conf" / "backbone.yaml").read_text())
    defaults = {field.name: field.default for field in dataclasses.fields(ModelSpec)}
    for name in ("norm", "embedding_norm", "width_multiple"):  # a tied head is of the recipe
        assert defaults[name] == stated[name], name


def test_the_defaults_of_an_experiment_are_those_of_its_configuration():
    stated = yaml.safe_load((run.ROOT / "conf" / "config.yaml").read_text())
    defaults = {field.name: field.default for field in dataclasses.fields(Experiment)}
    for name in ("seed", "records", "force", "progress"):
        assert defaults[name] == stated[name], name


@pytest.mark.parametrize("kind", [Attention, CfC, GRU, LSTM, LTC, Selective, TimeMix])
def test_a_mixer_by_itself_is_the_first_and_only_layer(kind):
    defaults = {name: value.default for name, value in inspect.signature(kind).parameters.items()}
    assert (defaults["layer"], defaults["n_layers"]) == (0, 1)


def test_low_rank_projections_of_rwkv_start_at_the_official_gain():
    """A tenth, and for a rank above the width by the root of their ratio; the larger side orthogonal."""
    mixer = TimeMix(8, layer=1, n_layers=2, head_dim=8, decay_rank=32, rate_rank=2, value_rank=8, gate_rank=18)
    for name, rank in {"w": 32, "a": 2, "v": 8, "g": 18}.items():
        gains = torch.linalg.svdvals(getattr(mixer, f"{name}2"))
        assert_close(gains, torch.full_like(gains, 0.1 * max(1.0, rank / 8) ** 0.5))


def test_the_cell_of_cfc_starts_within_xavier_s_bound_of_the_joined_matrix():
    mixer = CfC(24, backbone_units=40, expand=2)
    bound = (6 / (40 + 24 + 48)) ** 0.5
    for weight in (mixer.input.weight, mixer.recurrent):
        assert 0.97 * bound < weight.abs().max().item() <= bound


@pytest.mark.parametrize("block", [Gated, ShortConvolution])
def test_a_block_s_empty_state_holds_no_token(block):
    made = block(partial(Attention, head_dim=4), 8)
    assert state_bytes(made.init_state(2)) == state_bytes(made.init_state(2, 0))
    assert made.init_state(2)["core"].length == 0


def test_a_selective_scan_without_a_state_starts_at_zero():
    batch, length, channels, states = 2, 3, 5, 4
    x, dt = torch.randn(batch, length, channels), torch.rand(batch, length, channels)
    A, D = -torch.rand(channels, states), torch.randn(channels)
    B, C = torch.randn(batch, length, states), torch.randn(batch, length, states)
    started = selective_reference(x, dt, A, B, C, D, torch.zeros(batch, channels, states))
    for fresh, zero in zip(selective_reference(x, dt, A, B, C, D), started, strict=True):
        assert torch.equal(fresh, zero)


def test_one_token_of_cfc_by_torch_is_the_cell_s_step():
    mixer = CfC(6).double()
    u, h = torch.randn(1, 2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    cell = mixer._cell(merged=True)
    assert_close(cfc_scan(cell, u, h, None)[0], cell.step(u[0], h, None), rtol=0, atol=1e-12)


def test_the_recurrence_of_cfc_is_computed_in_the_precision_of_its_weights():
    mixer, x = CfC(8, kernel="reference"), torch.randn(3, 8)
    exact = mixer.double().step(x.double(), mixer.init_state(3, dtype=torch.float64))[1]["h"]
    mixer.float()
    steps = (lambda: mixer.step(x, mixer.init_state(3))[1]["h"], lambda: mixer(x[:, None])[1]["h"])
    for step in steps:
        assert_close(step().double(), exact, rtol=0, atol=1e-6)  # bfloat16 would be off by 1e-3
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        u = mixer.input(x).float()  # bfloat16's projection alone
        made = [step() for step in steps]
    with torch.no_grad():
        expected = mixer._cell(merged=False).step(u, torch.zeros(3, 8), torch.ones(3, 1))
    for h in made:
        assert h.dtype == torch.float32
        assert_close(h, expected, rtol=0, atol=1e-6)


def test_the_work_beside_matrix_products_is_counted_by_hand():
    """Per channel and state seven operations; D x takes two and its sum one, softplus four."""
    assert Selective(8, d_state=3, dt_rank=2).flops_per_token(1) == Flops(2 * (8 * 8 + 2 * 8 + 8 * 8), 8 * (7 * 3 + 7))


def test_a_processor_without_a_name_is_called_by_its_architecture(monkeypatch):
    monkeypatch.setattr(hardware.Path, "read_text", lambda self: "flags: none")
    for processor, shown in (("", "x86_64"), ("Intel", "Intel")):
        monkeypatch.setattr(hardware.platform, "processor", lambda name=processor: name)
        monkeypatch.setattr(hardware.platform, "machine", lambda: "x86_64")
        assert hardware.device_name("cpu") == shown


def test_the_digest_of_a_generated_task_is_the_one_that_records_carry():
    assert Parity().digest == "1fbaa6dfbadc3f3739d55ff79b165bd08b55265542fbae70d08caa400df7e63c"
