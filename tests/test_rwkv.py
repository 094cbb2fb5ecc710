"""RWKV-7: the mixers against the `rwkv` package and their own step, and the official initialisation and groups."""

import functools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import configs
from baselines.rwkv import scan as rwkv_scan
from baselines.rwkv.mixer import LARGEST_REMOVAL, ChannelMix, TimeMix, auto_rank
from harness.checks.oracles import find_oracle
from harness.config.errors import ConfigError
from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.mixer import Call
from harness.model.sizing import SizeConfig, count, solve
from harness.model.state import state_bytes, tensors
from harness.training.optimizer import parameter_groups

VOCAB, LAYERS, WIDTH = 32, 3, Width(32, 48)
RANKS = {"decay_rank": 3, "rate_rank": 4, "value_rank": 5, "gate_rank": 6}


def disturbed(module):
    """Moves every parameter off its start, where the zeros hide what they multiply."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def language_model(dtype=torch.float64, mixer=None) -> LanguageModel:
    mixer = mixer or functools.partial(TimeMix, head_dim=16, **RANKS)
    spec = ModelSpec("rwkv", mixer, ChannelMix, norm="layernorm", embedding_norm=True)
    return disturbed(spec.build(VOCAB, LAYERS, WIDTH)).to(dtype)


def tokens(B: int = 2, T: int = 20) -> torch.Tensor:
    return torch.randint(VOCAB, (B, T))


class LoopMix(TimeMix):
    """TimeMix on the torch loop in place of the kernels."""

    def forward(self, x, state=None, call=None):
        state = state or self.init_state(len(x), dtype=x.dtype)
        previous = torch.cat([state["shift"][:, None], x[:, :-1]], dim=1)
        vectors, gate = self._vectors(x, previous, call.shared)
        y, wkv = rwkv_scan.reference(*vectors, state["wkv"])
        return self._read(y, vectors, gate), {"shift": x[:, -1], "wkv": wkv}


def test_bfloat16_weights_give_nearly_what_float32_weights_give():
    model, ids = language_model(torch.float32), tokens()
    exact = model(ids)[0]
    model = model.bfloat16()
    logits, state = model(ids)
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).norm() < 0.05 * exact.norm()
    stepped, _ = model.step(ids[:, 0], state)
    torch.testing.assert_close(stepped, model(ids[:, :1], state)[0][:, 0], rtol=0.02, atol=0.02)


def test_step_and_prefill_agree_with_forward_through_all_layers():
    model, ids = language_model(), tokens()
    logits, state = model(ids)
    stepped, stepped_state = model.scan(ids)
    torch.testing.assert_close(logits, stepped, atol=1e-10, rtol=0)
    first, carried = model(ids[:, :7])
    second, carried = model(ids[:, 7:], carried)
    torch.testing.assert_close(logits, torch.cat([first, second], dim=1), atol=1e-10, rtol=0)
    for whole, one, other in zip(tensors(state), tensors(stepped_state), tensors(carried), strict=True):
        torch.testing.assert_close(whole, one, atol=1e-10, rtol=0)
        torch.testing.assert_close(whole, other, atol=1e-10, rtol=0)


def test_gradients_agree_with_the_loop():
    model, ids = language_model(), tokens()
    oracle = language_model(mixer=functools.partial(LoopMix, head_dim=16, **RANKS))
    oracle.load_state_dict(model.state_dict())
    for net in (model, oracle):
        net(ids)[0].square().mean().backward()
    for (name, a), b in zip(model.named_parameters(), oracle.parameters(), strict=True):
        assert a.grad.abs().max() > 0, name
        torch.testing.assert_close(a.grad, b.grad, atol=1e-11, rtol=1e-9)


def test_gradients_agree_with_finite_differences():
    """Along one direction per parameter, so that the value residual's path between layers is among them."""
    model, ids, step = language_model(), tokens(1, 9), 1e-6

    def loss():
        return model(ids)[0].square().mean()

    gradients = torch.autograd.grad(loss(), list(model.parameters()))
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(step * direction)
            above = loss()
            parameter.sub_(2 * step * direction)
            below = loss()
            parameter.add_(step * direction)
        expected = (gradient * direction).sum().item()
        assert ((above - below) / (2 * step)).item() == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_the_value_of_layer_0_reaches_the_layers_above():
    upper, x = disturbed(TimeMix(32, 1, 3, head_dim=16)).double(), torch.randn(2, 5, 32, dtype=torch.float64)
    one, other = ({"v_first": torch.randn(2, 5, 32, dtype=torch.float64)} for _ in range(2))
    assert not torch.allclose(upper(x, call=Call(shared=one))[0], upper(x, call=Call(shared=other))[0])
    with pytest.raises(ConfigError, match="layer 1"):
        upper(x, call=Call(shared={}))


def test_no_gradient_comes_from_the_future():
    model, ids = language_model(), tokens(1, 12)
    x = model.embedding_norm(model.embedding(ids)).detach().requires_grad_()
    call, h = Call(shared={}), x
    for block in model.blocks:
        h, _ = block.run("forward", h, None, call)
    (gradient,) = torch.autograd.grad(h[:, 6].square().sum(), x)
    assert gradient[:, 7:].abs().max() == 0
    assert (gradient[:, :7].abs().amax(-1) > 0).all()


def test_step_leaves_the_old_state_alone_and_the_state_is_constant():
    model, ids = language_model(), tokens(2, 6)
    _, state = model(ids)
    before = [tensor.clone() for tensor in tensors(state)]
    model.step(ids[:, 0], state)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(state), strict=True))
    assert model.constant_state
    shapes = [tensor.shape for tensor in tensors(state)]
    assert shapes == [tensor.shape for tensor in tensors(model.init_state(2, context=10_000))]
    assert state_bytes(state) == LAYERS * 2 * (32 + 2 * 16 * 16 + 32) * 8


@pytest.mark.parametrize("layer", [0, 1])
def test_flops_are_those_of_step(layer):
    time, channel = TimeMix(32, layer, 3, head_dim=16), ChannelMix(32, 48, layer, 3)
    for mixer in (time, channel):
        counter = FlopCounterMode(display=False)
        with counter:
            call = Call(shared={"v_first": torch.randn(1, 32)} if layer else {})
            mixer.step(torch.randn(1, 32), mixer.init_state(1), call)
        assert counter.get_total_flops() == mixer.flops_per_token(7).matmul > 0


@pytest.mark.parametrize("make", [functools.partial(TimeMix, head_dim=16), functools.partial(ChannelMix, d_ff=48)])
def test_a_mixer_equals_the_rwkv_package(make):
    mixer = disturbed(make(d_model=32, layer=0, n_layers=2))
    oracle, x = find_oracle(mixer), torch.randn(2, 19, 32)
    torch.testing.assert_close(oracle.forward(x), mixer(x)[0].detach(), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        next(mixer.parameters()).add_(0.1)  # the comparison sees the mixer's weights, and sees a difference
    assert not torch.allclose(oracle.forward(x), make(d_model=32, layer=0, n_layers=2)(x)[0], atol=1e-2)


def test_the_official_start():
    C, N, layer, n_layers = 64, 16, 1, 4
    mixer = TimeMix(C, layer, n_layers, head_dim=N)
    for n in (0, 5, 37, 63):
        zigzag = ((n % N) - (N - 1) / 2) / ((N - 1) / 2)
        zigzag, ramp = zigzag * abs(zigzag), n / (C - 1)
        assert mixer.w0[n].item() == pytest.approx(-6 + 6 * ramp ** (1 + (1 / 3) ** 0.3) + 0.5 + 2.5 * zigzag, abs=1e-5)
        assert mixer.a0[n].item() == pytest.approx(-0.19 + 0.3 * zigzag + 0.4 * (ramp - 0.5), abs=1e-5)
        assert mixer.v0[n].item() == pytest.approx(0.73 - 0.4 * (ramp - 0.5), abs=1e-5)
        assert mixer.k_k[n].item() == pytest.approx(0.71 - 0.1 * (ramp - 0.5), abs=1e-5)
        assert mixer.x_w[n].item() == pytest.approx(1 - (n / C) ** (0.9 * 0.75), abs=1e-5)
    key = mixer.key.weight @ mixer.key.weight.T
    torch.testing.assert_close(key, 0.01 * torch.eye(C), atol=1e-6, rtol=0)
    assert (mixer.k_a == 1.02).all()
    assert (mixer.r_k == -0.04).all()
    assert not any(tensor.any() for tensor in (mixer.output.weight, mixer.w1, mixer.a1, mixer.v1, mixer.g1))
    assert mixer.ln_x.weight[0].item() == pytest.approx(0.5**0.7)
    assert mixer.ln_x.eps == 64e-5
    assert not hasattr(TimeMix(C, 0, n_layers, head_dim=N), "v0")
    assert not ChannelMix(C, 96, layer, n_layers).value.weight.any()


def test_ranks_follow_the_official_formula():
    """The authors' factors: 2.5 for decay and rate, 1.7 for value, 5 for gate."""
    assert [auto_rank(2048, factor) for factor in (2.5, 1.7, 5.0)] == [128, 64, 224]
    assert [auto_rank(128, factor) for factor in (2.5, 1.7, 5.0)] == [32, 32, 64]
    with torch.device("meta"):
        narrow, wide = TimeMix(128, 1, 2), TimeMix(2048, 1, 2)
    assert narrow.ranks == {"w": 32, "a": 32, "v": 32, "g": 64}
    assert wide.ranks == {"w": 128, "a": 128, "v": 64, "g": 224}


def test_weight_decay_is_for_the_full_matrices_alone():
    block = language_model().blocks[1]
    decayed = {name for name, p in block.named_parameters() if p.ndim > 1 and not getattr(p, "_no_weight_decay", False)}
    time = {f"mixer.{name}.weight" for name in ("receptance", "key", "value", "output")}
    assert decayed == time | {"channel_mixer.key.weight", "channel_mixer.value.weight"}


def test_the_groups_are_the_authors():
    """Matrices, embedding and head decay; the decay's bias is trained at twice the rate; all else is plain."""
    torch.manual_seed(0)
    model = configs.spec("rwkv").build(256, 2, Width(64, 96))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = {g["name"]: {names[id(p)] for p in g["params"]} for g in parameter_groups(model, 0.1)}
    full = [f"mixer.{name}.weight" for name in ("receptance", "key", "value", "output")]
    full += ["channel_mixer.key.weight", "channel_mixer.value.weight"]
    blocks = {f"blocks.{layer}.{name}" for layer in (0, 1) for name in full}
    assert held["decay"] == blocks | {"embedding.weight", "head.weight"}
    assert held["no_decay_lr_2"] == {"blocks.0.mixer.w0", "blocks.1.mixer.w0"}
    assert set(held) == {"decay", "no_decay", "no_decay_lr_2"}
    assert model.embedding.weight.abs().max() <= 1e-4
    torch.testing.assert_close(torch.linalg.svdvals(model.head.weight), torch.ones(64))  # 0.5 sqrt(256 / 64)


def test_the_decay_stays_within_its_bounds():
    mixer = disturbed(TimeMix(32, 0, 1, head_dim=16)).double()
    x = 100 * torch.randn(1, 50, 32, dtype=torch.float64)
    (_, decay, _, _, removal, _), _ = mixer._vectors(x, torch.zeros_like(x), {})
    assert math.exp(-math.exp(-0.5)) - 1e-12 <= decay.min() < decay.max() <= 1
    torch.testing.assert_close(removal.norm(dim=-1), torch.ones(1, 50, 2, dtype=torch.float64))


@pytest.mark.parametrize(("removal", "least"), [(1.0, math.exp(-math.exp(-0.5)) - 1), (LARGEST_REMOVAL, -1.0)])
def test_a_transition_may_turn_a_sign_and_never_grows_a_state(removal, least):
    mixer = disturbed(TimeMix(32, 0, 1, head_dim=16, removal=removal)).double()
    with torch.no_grad():
        mixer.a0.fill_(50)  # every rate is 1
        mixer.w0[:16], mixer.w0[16:] = 50, -50  # one head forgets as fast as it may, the other not at all
    x = torch.randn(1, 50, 32, dtype=torch.float64)
    (_, decay, _, _, unit, rate), _ = mixer._vectors(x, torch.zeros_like(x), {})
    transitions = torch.diag_embed(decay) + unit[..., :, None] * rate[..., None, :]
    values = torch.linalg.eigvals(transitions).real
    assert values.abs().max() <= 1 + 1e-9
    torch.testing.assert_close(values[:, :, 0].amin(-1), torch.full((1, 50), least, dtype=torch.float64))


def test_bf16_autocast_keeps_the_recurrence_in_float32():
    model, ids = language_model(torch.float32), tokens()
    exact = model(ids)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = model(ids)
        stepped, _ = model.step(ids[:, 0], state)
        logits.float().square().mean().backward()
    assert state[0][0]["wkv"].dtype == torch.float32
    assert stepped.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (logits.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_the_configuration_meets_the_standard_size():
    spec = configs.spec("rwkv")
    width = solve(spec, 256, SizeConfig(1_000_000, 4))
    with torch.device("meta"):
        model = spec.build(256, 4, width)
    assert abs(count(model).total - 1_000_000) <= 20_000
    assert width.d_model == 128
    assert model.blocks[1].mixer.head_dim == 64
    assert model.embedding_norm.bias is not None


def test_a_head_size_that_does_not_divide_the_width_is_told():
    with pytest.raises(ConfigError, match="head_dim=24"):
        TimeMix(64, head_dim=24)
