"""Kernels read and write by address: shapes that do not fit together are reported before one runs."""

import pytest
import torch

import configs
import tiny
from arch.cfc.mixer import CfC
from arch.ltc.mixer import LTC
from arch.ltc.scan import LIQUID_SCAN
from arch.newton import Newton
from baselines.recurrent.mixer import GRU
from baselines.recurrent.scan import GRU_SCAN
from harness.model.backbone import Width
from harness.model.mixer import Call
from harness.model.state import tensors
from harness.ops.elementwise.rms_norm import RMS_NORM
from harness.ops.elementwise.swiglu import SWIGLU
from harness.ops.shapes import expect, expect_tokens, expect_type
from liquid_calls import by_tensors

CPU = torch.device("cpu")


def build(architecture: str, *overrides: str):
    spec = configs.spec(architecture, *overrides)
    return spec.build(tiny.VOCAB, 2, Width(64, 0 if spec.channel_mixer is None else 96)).eval()


def test_the_tensor_and_both_shapes_are_named():
    expect("scan", ("x", torch.zeros(2, 3), (2, 3)), ("nothing", None, (1,)))
    with pytest.raises(ValueError, match=r"scan: h has the shape \(2, 3\), where the other inputs ask for \(2, 4\)"):
        expect("scan", ("x", torch.zeros(2, 3), (2, 3)), ("h", torch.zeros(2, 3), (2, 4)))


def test_the_tensor_and_both_types_are_named():
    expect_type("scan", torch.float32, x=torch.zeros(1), nothing=None)
    with pytest.raises(TypeError, match=r"scan: h is of torch.float64, where the other inputs ask for torch.float32"):
        expect_type("scan", torch.float32, x=torch.zeros(1), h=torch.zeros(1, dtype=torch.float64))


def test_no_token_is_told_by_name():
    expect_tokens("scan", 1)
    with pytest.raises(ValueError, match="scan needs at least one token"):
        expect_tokens("scan", 0)


def test_a_state_of_another_batch_is_refused_by_a_token(architecture):
    model = build(architecture)
    with torch.inference_mode(), pytest.raises((ValueError, RuntimeError), match=r"shape|size"):
        model.frozen_step()(torch.zeros(64, dtype=torch.long), model.init_state(1))


def test_a_state_of_another_batch_is_refused_by_a_sequence(architecture):
    model = build(architecture)
    with torch.no_grad():
        _, state = model(torch.zeros(1, 3, dtype=torch.long))
        with pytest.raises((ValueError, RuntimeError), match=r"shape|size"):
            model(torch.zeros(64, 3, dtype=torch.long), state)


@pytest.mark.parametrize("name", ["A", "inv_tau", "w", "h0", "elapsed"])
def test_the_liquid_scan_checks_every_tensor(name):
    batch, T, D = 2, 4, 5
    shapes = {"a": (batch, T, D), "A": (batch, T, D), "inv_tau": (D, 1), "omega": (D, 1), "w": (D,)}
    given = {key: torch.zeros(shape) for key, shape in shapes.items()} | {"B": None, "C": None}
    given |= {"h0": torch.zeros(batch, D, 1), "elapsed": torch.ones(batch, T)}
    run = LIQUID_SCAN.choose("fused", torch.device("cpu"), torch.float32, solver="rk4", coupling="diagonal", d_state=1)
    run = by_tensors(run)
    run("rk4", 1, "sigmoid", **given)
    short = given[name][..., :1] if name in ("A", "elapsed") else given[name][:1]
    with pytest.raises(ValueError, match=rf"{name} has the shape"):
        run("rk4", 1, "sigmoid", **(given | {name: short}))


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "h"])
def test_the_gru_scan_checks_every_tensor(name):
    width, entry = 4, 3
    shapes = {"x": (2, 5, entry), "h": (2, width), "weight_ih": (3 * width, entry), "weight_hh": (3 * width, width)}
    given = {key: torch.zeros(s) for key, s in (shapes | {"bias_ih": (3 * width,), "bias_hh": (3 * width,)}).items()}
    run = GRU_SCAN.choose("fused", CPU, torch.float32)
    run(**given)
    with pytest.raises(ValueError, match=rf"{name} has the shape"):
        run(**(given | {name: given[name][:1]}))
    with pytest.raises(TypeError, match=rf"{name} is of torch.float64"):
        run(**(given | {name: given[name].double()}))


@pytest.mark.parametrize("mixer", [GRU, CfC])
def test_a_state_of_another_type_is_refused_by_a_sequence(mixer):
    """The kernels would take its numbers for their own type's."""
    with torch.no_grad(), pytest.raises(TypeError, match=r"h is of torch.float64"):
        mixer(8)(torch.randn(2, 3, 8), {"h": torch.randn(2, 8, dtype=torch.float64)})


def test_the_cfc_scan_checks_the_heads():
    mixer = CfC(8, backbone_layers=2)
    mixer.heads.bias = torch.nn.Parameter(torch.zeros(8))
    with torch.no_grad(), pytest.raises(ValueError, match=r"heads' bias has the shape"):
        mixer(torch.randn(2, 3, 8), call=Call(torch.ones(2, 3)))
    mixer = CfC(8, backbone_layers=2)
    mixer.hidden[0].bias = torch.nn.Parameter(torch.zeros(3))
    with torch.no_grad(), pytest.raises(ValueError, match=r"layer 0's bias has the shape"):
        mixer(torch.randn(2, 3, 8))


def test_heads_that_do_not_divide_the_channels_are_refused():
    shapes = (2, 3, 10), (2, 3, 10), (10, 1), (10, 1), (2, 4, 4), (2, 10, 1)
    a, A, inv_tau, omega, w, h0 = (torch.rand(shape) for shape in shapes)
    facts = {"solver": "rk4", "coupling": "heads", "d_state": 1, "head_dim": 4}
    run = by_tensors(LIQUID_SCAN.choose("fused", CPU, torch.float32, **facts))
    with pytest.raises(ValueError, match="do not divide 10 channels"):
        run("rk4", 1, "sigmoid", a, A, None, None, inv_tau, omega, w, h0, None)


def test_the_backbones_kernels_check_their_inputs():
    with pytest.raises(ValueError, match="weight has the shape"):
        RMS_NORM.choose("fused", CPU, torch.float32)(torch.zeros(2, 8), torch.ones(4), 1e-5)
    with pytest.raises(ValueError, match="halves"):
        SWIGLU.choose("fused", CPU, torch.float32)(torch.zeros(2, 7))


def test_a_liquid_token_asks_for_its_convolutions_inputs():
    mixer = LTC(8)
    state = mixer.init_state(2)
    del state["conv"]
    with torch.no_grad(), pytest.raises(KeyError, match="conv"):
        mixer.frozen_step()(torch.zeros(2, 8), state)


def test_a_liquid_token_does_not_depend_on_torchs_default_type():
    mixer, x = LTC(8), torch.randn(2, 8)
    state = mixer.init_state(2)
    with torch.no_grad():
        expected = mixer.step(x, state)[0]
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            got = mixer.frozen_step()(x, state)[0]
        finally:
            torch.set_default_dtype(before)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"d_state": 3}, {"coupling": "none", "parallel": Newton()}], ids=str)
def test_kernels_do_not_depend_on_torchs_default_device(options):
    mixer, x = LTC(8, **options), torch.randn(2, 600, 8)
    gradients = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            y, state = mixer(x)
            gradients.append([y, *torch.autograd.grad(y.sum(), list(mixer.parameters()))])
            with torch.no_grad():
                gradients[-1].append(mixer.frozen_step()(x[:, 0], state)[0])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_an_empty_batch_is_empty(architecture):
    model = build(architecture)
    tokens = torch.zeros(0, 3, dtype=torch.long)
    logits, state = model(tokens)
    assert logits.shape == (0, 3, tiny.VOCAB)
    logits.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    with torch.inference_mode():
        logits, state = model.frozen_step()(tokens[:, 0], state)
    assert logits.shape == (0, tiny.VOCAB)
    assert all(tensor.numel() == 0 for tensor in tensors(state) if tensor.shape != (1,))  # a clock is one for all


def test_no_token_is_told(architecture):
    with pytest.raises(ValueError, match="at least one token"):
        build(architecture)(torch.zeros(2, 0, dtype=torch.long))


RECURRENT = [name for name in configs.MODELS if not name.startswith(("transformer", "lfm2"))]


@pytest.mark.parametrize("name", configs.mostly_long(RECURRENT))
def test_no_token_is_told_by_a_recurrence(name):
    first, *_, last = build(name).blocks
    recurrences = {"rwkv": (first.mixer, first.channel_mixer), "m1": (last.adapter,)}
    recurrences["mtlnn"] = (first.channel_mixer,)
    for mixer in recurrences.get(name, (first.mixer,)):
        with pytest.raises(ValueError, match="at least one token"):
            mixer(torch.zeros(2, 0, 64))


def test_no_token_passes_the_convolution():
    mixer = build("ltc").blocks[0].mixer
    state = mixer.init_state(2)
    state["conv"] += 1
    x, kept = mixer.convolve(torch.zeros(2, 0, 64), state)
    assert x.shape == (2, 0, 64)
    assert kept["conv"].equal(state["conv"])


def test_kernels_hold_the_weights_as_they_stood(architecture):
    model = build(architecture)
    state, token = model.init_state(2), torch.tensor([1, 2])
    with torch.inference_mode():
        step = model.frozen_step()
        before, _ = step(token, state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    with torch.inference_mode():
        after, _ = step(token, state)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_value_of_another_batch_is_refused_by_a_token():
    mixer = build("rwkv").blocks[1].mixer
    with torch.no_grad(), pytest.raises(ValueError, match="v_first has the shape"):
        mixer.frozen_step()(torch.zeros(4, 64), mixer.init_state(4), Call(shared={"v_first": torch.zeros(1, 64)}))
