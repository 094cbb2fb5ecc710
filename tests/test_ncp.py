"""Neural circuit policies: wiring, cells and gradients against ncps and against the published equations."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import configs
from arch.cfc.scan import HEADS
from arch.ncp.cfc import WiredCfC
from arch.ncp.ltc import WiredLTC
from arch.ncp.wiring import auto_ncp
from harness.checks.oracles import find_oracle
from harness.config.errors import ConfigError
from harness.model.mixer import Call
from oracles import step_loop

SIZES = {"inputs": 5, "units": 14, "motors": 4}


def ltc(**options) -> WiredLTC:
    return WiredLTC(6, **{**SIZES, **options}).double()


def cfc(**options) -> WiredCfC:
    return WiredCfC(6, **{**SIZES, **options}).double()


KINDS = pytest.mark.parametrize(
    ("mode", "mixed_memory"),
    [*((mode, True) for mode in HEADS), pytest.param("default", False, marks=pytest.mark.long)],
)


def tokens(batch=3, length=7, width=6):
    return torch.randn(batch, length, width, dtype=torch.float64)


def by_x(function, x):
    return torch.autograd.grad(function(x).sin().sum(), x)[0]


@pytest.mark.parametrize(("inputs", "units", "motors", "sparsity", "seed"), [
    (32, 64, 20, 0.5, 22222), (1, 6, 3, 0.5, 1), (50, 8, 1, 0.9, 3), (7, 100, 30, 0.1, 0), (2, 100, 30, 0.9, 5),
])  # fmt: skip
def test_the_wiring_is_that_of_ncps(inputs, units, motors, sparsity, seed):
    wirings = pytest.importorskip("ncps.wirings")
    theirs = wirings.AutoNCP(units, motors, sparsity, seed)
    theirs.build(inputs)
    ours = auto_ncp(inputs, units, motors, sparsity, seed)
    assert np.array_equal(ours.sensory, theirs.sensory_adjacency_matrix)
    assert np.array_equal(ours.recurrent, theirs.adjacency_matrix)
    assert [ours.inter, ours.command, ours.motor] == [len(theirs.get_neurons_of_layer(layer)) for layer in range(3)]


def test_too_few_units_are_refused():
    with pytest.raises(ConfigError, match="no inter and command neurons"):
        auto_ncp(3, 6, 4, 0.5, 0)


def test_a_wiring_has_as_many_parameters_as_synapses():
    mixer, wiring = ltc(), auto_ncp(*SIZES.values(), 0.5, 22222)
    synapses = np.count_nonzero(wiring.sensory) + np.count_nonzero(wiring.recurrent)
    ends = mixer.in_proj.weight.numel() + mixer.in_proj.bias.numel() + mixer.out_proj.weight.numel() + SIZES["motors"]
    assert sum(p.numel() for p in mixer.parameters()) == 4 * synapses + 3 * SIZES["units"] + ends


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_the_wired_ltc_equals_ncps_in_values_and_gradients(kernel):
    pytest.importorskip("ncps")
    mixer, x = ltc(kernel=kernel), tokens().requires_grad_()
    expected = find_oracle(mixer).forward(x.detach())
    torch.testing.assert_close(mixer(x)[0], expected, rtol=0, atol=1e-13)
    theirs = by_x(find_oracle(mixer).forward, x)
    torch.testing.assert_close(by_x(lambda x: mixer(x)[0], x), theirs, rtol=1e-10, atol=1e-13)


def test_the_weights_gradients_of_the_wired_ltc_equal_those_of_ncps():
    ncps = pytest.importorskip("ncps.torch")
    from arch.ncp.oracle import ltc_weights, ncps_wiring

    mixer, x = ltc(), tokens()
    layer = ncps.LTC(SIZES["inputs"], ncps_wiring(mixer)).double()
    layer.rnn_cell.load_state_dict(ltc_weights(mixer, layer.rnn_cell.state_dict()))
    mixer(x)[0].sin().sum().backward()
    seen = torch.nn.functional.linear(x, mixer.in_proj.weight)
    mixer.out_proj(layer(seen, seen.new_zeros(3, 14))[0]).sin().sum().backward()
    theirs = dict(layer.rnn_cell.named_parameters())
    for name in ("gleak", "vleak", "cm"):
        torch.testing.assert_close(getattr(mixer, name).grad, theirs[name].grad, rtol=1e-10, atol=1e-13)
    for prefix, synapses in (("sensory_", mixer.sensory), ("", mixer.recurrent)):
        for name in ("w", "mu", "sigma", "erev"):
            by_theirs = theirs[prefix + name].grad[synapses.source, synapses.target]
            assert by_theirs.abs().max() > 0
            torch.testing.assert_close(getattr(synapses, name).grad, by_theirs, rtol=1e-10, atol=1e-13)


def test_the_wired_ltc_follows_the_published_equation():
    """The fused step of Hasani et al. 2021 for the conductances of Lechner et al. 2020, neuron by neuron in numpy."""
    mixer, x, elapsed = ltc(ode_unfolds=2), tokens(1, 3), torch.tensor([[1.0, 0.3, 2.0]], dtype=torch.float64)
    softplus, sigmoid = lambda a: np.log1p(np.exp(a)), lambda a: 1 / (1 + np.exp(-a))
    p = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    v, outputs = np.zeros(14), []
    for x_t, time in zip(x[0].numpy(), elapsed[0].numpy(), strict=True):
        seen = p["in_proj.weight"] @ x_t + p["in_proj.bias"]
        for _ in range(2):
            rate, drive = softplus(p["gleak"]), softplus(p["gleak"]) * p["vleak"]
            for kind, at in (("sensory", seen), ("recurrent", v)):
                synapses = getattr(mixer, kind)
                for k, (source, target) in enumerate(zip(synapses.source, synapses.target, strict=True)):
                    gate = sigmoid(p[f"{kind}.sigma"][k] * (at[source] - p[f"{kind}.mu"][k]))
                    conductance = softplus(p[f"{kind}.w"][k]) * gate
                    rate[target] += conductance
                    drive[target] += conductance * p[f"{kind}.erev"][k]
            c, dt = softplus(p["cm"]), time / 2
            v = (v + dt * drive / c) / (1 + dt * rate / c)
        outputs.append(p["out_proj.weight"] @ (v[:4] + p["output_bias"]))
    expected = torch.tensor(np.array(outputs))[None]
    torch.testing.assert_close(mixer(x, call=Call(elapsed))[0], expected, rtol=0, atol=1e-7)  # ncps' epsilon


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (9, 5)])
def test_the_wired_ltc_equals_its_step_loop(timed, batch, length):
    mixer, x = ltc(), tokens(batch, length).requires_grad_()
    elapsed = torch.rand(batch, length, dtype=torch.float64) * 3 if timed else None
    state = {"v": torch.randn(batch, 14, dtype=torch.float64)}
    y, last = mixer(x, state, Call(elapsed))
    stepped, stepped_last = step_loop(mixer, x, state, elapsed)
    torch.testing.assert_close(y, stepped, rtol=0, atol=1e-13)
    torch.testing.assert_close(last["v"], stepped_last["v"], rtol=0, atol=1e-13)
    for a, b in zip(*(torch.autograd.grad(out.sin().sum(), [x, *mixer.parameters()]) for out in (y, stepped)),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_flops_of_the_wired_ltc_are_those_of_a_real_step():
    mixer = ltc().float()
    with FlopCounterMode(display=False) as counter:
        mixer.step(torch.randn(1, 6), mixer.init_state(1))
    assert mixer.flops_per_token(7).matmul == counter.get_total_flops()


@pytest.mark.parametrize("name", ["ltc_ncp", "cfc_ncp"])
def test_the_wiring_does_not_depend_on_the_seed_of_a_run(name):
    make = configs.spec(name).mixer
    buffers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        buffers.append(list(make(d_model=8).buffers()))
    assert len(buffers[0]) >= 3
    assert all(map(torch.equal, *buffers))


@KINDS
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_the_wired_cfc_equals_ncps_in_values_and_gradients(mode, mixed_memory, kernel):
    pytest.importorskip("ncps")
    from arch.ncp.oracle import ncps_cfc_layer

    mixer = cfc(mode=mode, mixed_memory=mixed_memory, kernel=kernel)
    x, layer = tokens().requires_grad_(), ncps_cfc_layer(mixer)
    h, c = x.new_zeros(2, 3, 14)
    theirs = mixer.out_proj(layer(mixer.in_proj(x), (h, c) if mixed_memory else h)[0])
    ours = mixer(x)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    by_ours, by_theirs = (torch.autograd.grad(y.sin().sum(), x, retain_graph=True)[0] for y in (ours, theirs))
    torch.testing.assert_close(by_ours, by_theirs, rtol=1e-11, atol=1e-14)
    ours.sin().sum().backward()
    theirs.sin().sum().backward()
    for number, cell in enumerate(mixer.cells):
        cell_of_ncps = getattr(layer.rnn_cell, f"layer_{number}")
        whole = cell_of_ncps.ff1.weight.grad.flatten()
        torch.testing.assert_close(cell.wired.grad[0], whole[cell.places], rtol=1e-11, atol=1e-14)
        assert whole.count_nonzero() == len(cell.places)  # what the wiring masks has no gradient there
        if mode != "pure":
            torch.testing.assert_close(cell.gates.grad[1], cell_of_ncps.time_b.weight.grad, rtol=1e-11, atol=1e-14)
    if mixed_memory:
        torch.testing.assert_close(mixer.memory.grad, layer.lstm.recurrent_map.weight.grad, rtol=1e-11, atol=1e-14)


@KINDS
def test_the_wired_cfc_equals_ncps_at_irregular_times(mode, mixed_memory):
    pytest.importorskip("ncps")
    from arch.ncp.oracle import ncps_cfc_layer

    mixer, x = cfc(mode=mode, mixed_memory=mixed_memory), tokens(1, 5)
    elapsed = torch.tensor([[0.1, 1.0, 7.0, 0.0, 2.0]], dtype=torch.float64)
    h, c = x.new_zeros(2, 1, 14)
    layer = ncps_cfc_layer(mixer)
    theirs = mixer.out_proj(layer(mixer.in_proj(x), (h, c) if mixed_memory else h, timespans=elapsed)[0])
    torch.testing.assert_close(mixer(x, call=Call(elapsed))[0], theirs, rtol=0, atol=1e-14)


@KINDS
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (5, 4)])
def test_the_wired_cfc_equals_its_step_loop(mode, mixed_memory, timed, batch, length):
    mixer, x = cfc(mode=mode, mixed_memory=mixed_memory), tokens(batch, length).requires_grad_()
    elapsed = torch.rand(batch, length, dtype=torch.float64) * 3 if timed else None
    state = {key: torch.randn_like(value) for key, value in mixer.init_state(batch, dtype=torch.float64).items()}
    (y, last), (stepped, stepped_last) = mixer(x, state, Call(elapsed)), step_loop(mixer, x, state, elapsed)
    for key, value in last.items():
        torch.testing.assert_close(value, stepped_last[key], rtol=0, atol=1e-13)
    outputs = [out + sum(value.sum() for value in held.values()) for out, held in ((y, last), (stepped, stepped_last))]
    for a, b in zip(*(torch.autograd.grad(out.sin().sum(), [x, *mixer.parameters()]) for out in outputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@KINDS
def test_flops_of_the_wired_cfc_are_those_of_a_real_step(mode, mixed_memory):
    mixer = cfc(mode=mode, mixed_memory=mixed_memory).float()
    with FlopCounterMode(display=False) as counter:
        mixer.step(torch.randn(1, 6), mixer.init_state(1))
    assert mixer.flops_per_token(7).matmul == counter.get_total_flops()
    if mixed_memory:  # gates of its own
        assert mixer.flops_per_token(7).other > cfc(mode=mode, mixed_memory=False).flops_per_token(7).other


def test_the_pure_wired_cfc_starts_uniform_within_each_layer_s_bounds_of_xavier():
    torch.manual_seed(0)
    mixer = cfc(mode="pure", units=200, motors=40)
    bounds = torch.tensor([(6 / (1 + cell.n)) ** 0.5 for cell in mixer.cells for _ in range(cell.n)])
    for started in (mixer.w_tau, mixer.amplitude):
        scaled = started.detach() / bounds
        assert scaled.abs().max() <= 1
        assert scaled.min() < -0.95
        assert scaled.max() > 0.95
