"""xLSTM: fast paths against the step loop, the published equations in numpy, and the authors' package."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import configs
from baselines.xlstm.mixer import MLSTM, SLSTM, GatedMLP, by_blocks, per_head
from baselines.xlstm.mlstm_chunks import mlstm_scan
from baselines.xlstm.scan import MLSTM_SCAN, SLSTM_SCAN, mlstm_sample, read_reference, slstm_sample
from baselines.xlstm.slstm_numba import slstm_scan
from harness.checks.oracles import find_oracle
from harness.config.errors import ConfigError
from harness.model.backbone import ModelSpec, Width
from harness.model.sizing import SizeConfig, count, solve
from harness.model.state import state_bytes, tensors
from harness.ops.samples import Draw
from harness.training import optimizer
from oracles import step_loop

MAKE = {
    "mlstm": partial(MLSTM, 12, 1, 3),
    "mlstm of one head": partial(MLSTM, 7, n_heads=1, qkv_block=2, d_conv=2, d_inner=10),
    "slstm": partial(SLSTM, 24, 1, 3),
    "slstm of one head": partial(SLSTM, 5, n_heads=1, d_conv=2),
}
MIXERS = pytest.mark.parametrize("kind", MAKE)


def made(kind: str):
    """A mixer in float64, every parameter away from the zeros and ones that would hide a mistake."""
    mixer = MAKE[kind]().double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def inputs(mixer, batch: int, length: int):
    return torch.randn(batch, length, mixer.d_model, dtype=torch.float64, requires_grad=True)


def gradients(y, mixer, *more):
    return torch.autograd.grad(y.sin().sum(), [*mixer.parameters(), *more])


@MIXERS
@pytest.mark.parametrize(("batch", "length"), [(3, 67), (1, 1), (1, 33)])
def test_forward_is_the_loop_of_steps_in_values_state_and_gradients(kind, batch, length):
    mixer = made(kind)
    x = inputs(mixer, batch, length)
    (whole, state), (stepped, last) = mixer(x), step_loop(mixer, x)
    assert_close(whole, stepped, rtol=0, atol=1e-12)
    for a, b in zip(tensors(state), tensors(last), strict=True):
        assert_close(a, b, rtol=1e-11, atol=1e-12)
    for a, b in zip(gradients(whole, mixer, x), gradients(stepped, mixer, x), strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-9)


@MIXERS
def test_a_carried_state_continues_and_passes_gradients(kind):
    mixer = made(kind)
    x = inputs(mixer, 2, 40)
    whole, last = mixer(x)
    first, state = mixer(x[:, :35])
    rest, end = mixer(x[:, 35:], state)
    assert_close(torch.cat([first, rest], 1), whole, rtol=0, atol=1e-12)
    for a, b in zip(tensors(end), tensors(last), strict=True):
        assert_close(a, b, rtol=1e-11, atol=1e-12)
    by_whole, by_rest = (torch.autograd.grad(y[:, -1].sin().sum(), x)[0] for y in (whole, rest))
    assert_close(by_rest, by_whole, rtol=0, atol=1e-11)
    assert by_rest[:, 0].abs().max() > 0


def published_mlstm(q, k, v, i, f):
    """Equations 19 to 25 of the paper without any stabiliser: h (T, D) of one head."""
    C, n, h = np.zeros((q.shape[1], q.shape[1])), np.zeros(q.shape[1]), []
    for q_t, k_t, v_t, i_t, f_t in zip(q, k / np.sqrt(q.shape[1]), v, i, f, strict=True):
        keep, write = 1 / (1 + np.exp(-f_t)), np.exp(i_t)
        C, n = keep * C + write * np.outer(v_t, k_t), keep * n + write * k_t
        h.append(C @ q_t / max(abs(n @ q_t), 1))
    return np.array(h)


def test_the_mlstm_is_the_published_one():
    """To what 1e-6 in the divisor comes to, as it stands in the authors' code."""
    draw = Draw()
    q, k, v, i, f = (draw.normal(1, 1, 50, 4).detach() for _ in range(5))
    i, f = 2 * i[..., 0], f[..., 0] + 1
    empty = (torch.zeros(shape, dtype=torch.float64) for shape in ((1, 1, 4, 4), (1, 1, 4), (1, 1)))
    answer, m, _, _ = mlstm_scan(q, k, v, i, f, *empty)
    expected = torch.from_numpy(published_mlstm(*(t[0, 0].numpy() for t in (q, k, v, i, f))))
    divisor = torch.maximum(answer[..., -1].abs(), torch.exp(-m))
    assert_close(answer[0, 0, :, :-1] / divisor[0, 0, :, None], expected, rtol=1e-12, atol=1e-12)
    u, z, ones = torch.zeros(1, 50, 4).double(), torch.full((1, 50, 4), 50.0).double(), torch.ones(4).double()
    normed = read_reference(answer, m, u, z, ones, ones)[0] / 50
    centred = expected - expected.mean(1, keepdim=True)
    assert_close(normed, centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt(), rtol=0, atol=1e-4)


def test_the_slstm_is_the_published_one():
    """Equations 8 to 14 of the paper without any stabiliser."""
    draw = Draw()
    u, R = draw.normal(1, 1, 40, 12).detach(), draw.weight(1, 3, 12).detach()
    y, c, n, expected = np.zeros(3), np.zeros(3), np.zeros(3), []
    for u_t in u[0, 0].numpy():
        i, f, z, o = np.split(u_t + y @ R[0].numpy(), 4)
        keep = 1 / (1 + np.exp(-f))
        c, n = keep * c + np.exp(i) * np.tanh(z), keep * n + np.exp(i)
        y = c / n / (1 + np.exp(-o))
        expected.append(y)
    out, c_last, _, m = slstm_scan(u, R, *torch.zeros(4, 1, 1, 3, dtype=torch.float64))
    assert_close(out[0, 0].numpy(), np.array(expected), rtol=0, atol=1e-13)
    assert_close((c_last * m.exp())[0, 0].numpy(), c, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [*MAKE, "mlp"])
def test_the_authors_package_agrees_in_values_and_gradients_and_sees_the_weights(kind):
    pytest.importorskip("xlstm", reason="the authors' package is optional")
    mixer = GatedMLP(12, 20).double() if kind == "mlp" else made(kind)
    x, oracle = inputs(mixer, 2, 45), find_oracle(mixer)
    ours, theirs = mixer(x)[0], oracle.forward(x)
    assert oracle.name.startswith("xlstm ")
    assert_close(theirs, ours, rtol=0, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), x) for y in (ours, theirs)), strict=True):
        assert_close(a, b, rtol=0, atol=1e-10)
    for parameter in mixer.parameters():
        with torch.no_grad():
            parameter.mul_(1.1)
        changed = find_oracle(mixer).forward(x)
        assert (changed - theirs).abs().max() > 1e-9
        theirs = changed


def test_the_package_s_parallel_form_differs_by_no_more_than_its_epsilon():
    pytest.importorskip("xlstm", reason="the authors' package is optional")
    from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

    q, k, v, i, f, *_ = (t.detach() for t in mlstm_sample(Draw(), length=40).arguments)
    empty = torch.zeros(2, 2, 4, 5, dtype=torch.float64)
    answer, m, _, _ = mlstm_scan(q, k, v, i, f, empty[..., :4], empty[..., 4], empty[..., 0, 0])
    h = answer[..., :-1] / (torch.maximum(answer[..., -1].abs(), torch.exp(-m)) + 1e-6).unsqueeze(-1)
    gates = i.unsqueeze(-1), f.unsqueeze(-1)
    assert_close(parallel_stabilized_simple(q, k, v, *gates), h, rtol=3e-5, atol=1e-6)


def test_a_block_diagonal_map_is_one_matrix_for_each_head():
    weight, x = torch.randn(6, 2, 2), torch.randn(3, 12)
    heads = torch.bmm(x.unflatten(1, (3, 4)).transpose(0, 1), per_head(weight, 3))
    assert_close(heads.transpose(0, 1).flatten(1), by_blocks(x, weight))


@pytest.mark.parametrize(("scan", "sample"), [(MLSTM_SCAN, mlstm_sample), (SLSTM_SCAN, slstm_sample)])
@pytest.mark.parametrize("gate", [-300.0, 300.0])
def test_gates_far_beyond_what_exp_holds_leave_finite_values_and_gradients(scan, sample, gate):
    arguments = list(sample(Draw(torch.float32)).arguments)
    place = 3 if scan is MLSTM_SCAN else 0
    arguments[place] = (arguments[place].detach() + gate).requires_grad_()
    outputs = scan.choose("fused", torch.device("cpu"), torch.float32)(*arguments)
    if scan is MLSTM_SCAN:
        u = torch.ones(2, 7, 8)
        outputs = (read_reference(*outputs[:2], u, u, u[0, 0], u[0, 0]), *outputs[2:])
    assert all(t.isfinite().all() for t in outputs)
    wanted = [t for t in arguments if t.requires_grad]
    found = torch.autograd.grad(sum(t.sum() for t in outputs if t.requires_grad), wanted, materialize_grads=True)
    assert all(t.isfinite().all() for t in found)


def test_layers_start_as_the_authors_start_them():
    torch.manual_seed(0)
    mlstm, slstm, mlp = MLSTM(64, 2, 8), SLSTM(64, 7, 8), GatedMLP(64, 86, 2, 8)
    small, down = (2 / (5 * 64)) ** 0.5, 2 / 8 / 8
    for weight in (mlstm.proj_up.weight, mlstm.q, mlstm.k, mlstm.v, slstm.igate, slstm.ogate, mlp.proj_up.weight):
        assert weight.std().item() == pytest.approx(small, rel=0.1)
    for weight in (mlstm.proj_down.weight, mlp.proj_down.weight):
        assert weight.std().item() == pytest.approx(down, rel=0.05)
    assert torch.equal(mlstm.fgate.bias, torch.tensor([3.0, 4.0, 5.0, 6.0]))
    assert 0 < mlstm.igate.bias.abs().max() < 0.5
    assert not any(t.any() for t in (mlstm.igate.weight, mlstm.fgate.weight, slstm.recurrent))
    i, f, z, o = slstm.bias.chunk(4, dim=1)
    assert not any(t.any() for t in (i, z, o))
    assert_close(f, (5 - 12 * (torch.arange(16) / 15) ** 1.6).expand(4, 16))
    assert_close(SLSTM(64, 0, 8).bias[0, 16:32], 5 - 12 * (torch.arange(16) / 15) ** 0.3)


def test_norms_biases_skips_and_recurrent_matrices_do_not_decay():
    model = configs.spec("xlstm").build(16, 4, Width(16, 20))
    names = {id(parameter): name.removeprefix("blocks.") for name, parameter in model.named_parameters()}
    groups = {group["name"]: group["params"] for group in optimizer.parameter_groups(model, 0.1)}
    decayed = {names[id(parameter)] for parameter in groups["decay"]}
    of_mlstm = ("proj_up.weight", "conv1d.weight", "q", "k", "v", "igate.weight", "fgate.weight", "proj_down.weight")
    assert {n.removeprefix("0.mixer.") for n in decayed if n.startswith("0.")} == set(of_mlstm)
    of_slstm = {f"mixer.{name}" for name in ("conv1d.weight", "igate", "fgate", "zgate", "ogate")}
    assert {n.removeprefix("3.") for n in decayed if n.startswith("3.")} == of_slstm | {
        "channel_mixer.proj_up.weight",
        "channel_mixer.proj_down.weight",
    }
    assert "head.weight" in decayed
    assert "embedding.weight" not in decayed


def test_one_block_of_eight_is_an_slstm_and_has_the_only_mlp():
    model = configs.spec("xlstm").build(16, 4, Width(16, 20))
    assert [type(block.mixer) for block in model.blocks] == [*[MLSTM] * 3, SLSTM, *[MLSTM] * 4]
    assert [type(block.channel_mixer) for block in model.blocks].count(GatedMLP) == 1
    assert isinstance(model.blocks[3].channel_mixer, GatedMLP)
    alone = configs.spec("mlstm").build(16, 4, Width(16, 0))
    assert [type(block.mixer) for block in alone.blocks] == [MLSTM] * 8
    assert all(block.channel_mixer is None for block in alone.blocks)


def test_the_state_holds_what_the_paper_says_whatever_the_context():
    mixer = MLSTM(64)
    assert state_bytes(mixer.init_state(1, 10**6)) == 4 * (3 * 128 + 4 * 32 * 32 + 4 * 32 + 4)
    assert state_bytes(SLSTM(64).init_state(1, 10**6)) == 4 * (3 * 64 + 4 * 64)


@pytest.mark.parametrize("kind", ["mlstm", "slstm"])
def test_autocast_keeps_gates_and_memory_in_float32(kind):
    mixer = MAKE[kind]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(torch.randn(2, 9, mixer.d_model))
        _, stepped = mixer.step(torch.randn(2, mixer.d_model), state)
        y.float().square().sum().backward()
    for held in (state, stepped):
        assert all(held[key].dtype == torch.float32 for key in held if key != "conv")
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match=r"d_inner=24, which is not a multiple of 16"):
        MLSTM(12, d_inner=24)
    with pytest.raises(ConfigError, match=r"4 heads, which do not divide d_model=6"):
        SLSTM(6)
    assert MLSTM(9).d_inner == 32


@pytest.mark.parametrize("params", [92_500, 100_000, 107_500])
def test_any_budget_is_met_by_the_width_between_the_projections(params):
    """Whole heads leave gaps between the widths at twice d_model, which another d_inner fills."""
    spec, size = ModelSpec("mlstm", MLSTM, width_multiple=2), SizeConfig(params, 4)
    width = solve(spec, 64, size)
    with torch.device("meta"):
        assert abs(count(spec.build(64, 4, width)).total - params) <= 0.02 * params
