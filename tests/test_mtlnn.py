"""MT-LNN: against what its authors' code computed, against its equations in numpy, and each path against the others."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import configs
import golden
from analysis import mtlnn as described
from arch.mtlnn.attention import MTAttention
from arch.mtlnn.mixer import MTLNN
from arch.mtlnn.oracle import Bounds, arrays, layer
from harness.checks import runner
from harness.checks.case import CHECKS
from harness.checks.oracles import find_oracle
from harness.checks.runner import run_checks
from harness.config.errors import ConfigError
from harness.model.backbone import ModelSpec, Width
from harness.model.mixer import Call, Flops, Mixer
from harness.model.mlp import SwiGLU
from harness.model.sizing import SizeConfig, count
from harness.model.state import state_bytes
from harness.ops.attention import attention as operation
from harness.training.optimizer import parameter_groups
from oracles import step_loop

OPTIONS = {
    "published": {},
    "signed": {"transition": "signed", "tau_max": 200.0},
    "signed from mixed signs": {"transition": "signed", "mixed_signs": True},
    "tanh": {"transition": "tanh", "tau_max": 200.0},
    "exp": {"transition": "exp", "tau_max": 200.0},
    "no recurrence": {"recurrence": False},
    "no scale gates": {"scale_gates": False},
    "no lateral coupling": {"lateral": False},
    "no gates": {"map_gate": False},
    "nothing but the bank": {"scale_gates": False, "lateral": False, "map_gate": False},
    "one scale of four filaments": {"n_scales": 1, "n_filaments": 4},
    "two filaments, alone": {"n_filaments": 2, "n_scales": 4, "start": "standalone"},
    "one filament": {"n_filaments": 1, "map_hidden": 7},
}
GIVEN = pytest.mark.parametrize("given", OPTIONS)
SINGLE, DOUBLE = 2e-6, 1e-10


def options_of_authors(name: str, file: dict[str, torch.Tensor]) -> dict:
    """Ours for what a golden file's arguments and weights are; that nothing is carried is an option of their calls."""
    theirs = golden.arguments(name)
    weights = {key.removeprefix("w/").partition(".")[0] for key in file if key.startswith("w/")}
    bank = {key.removeprefix("w/resonance.").partition(".")[0] for key in file if key.startswith("w/resonance.")}
    transition = "signed" if "decay_sign_raw" in bank else "stock"
    return {
        "n_filaments": theirs["n_protofilaments"],
        "n_scales": theirs["n_time_scales"],
        "map_hidden": theirs["map_hidden_dim"],
        "tau_min": theirs.get("tau_min", 0.01),
        "tau_max": theirs.get("tau_max", 10.0),
        "transition": theirs.get("selective_decay_mode", "tanh") if "sel_w" in bank else transition,
        "recurrence": "use_scan=False" not in golden.section(name),
        "scale_gates": "kappa_gate" in bank,
        "lateral": "lateral" in weights,
        "map_gate": "map_gates" in weights,
    }


def of_authors(name: str, file: dict[str, torch.Tensor]) -> Mixer:
    """The mixer with the authors' weights, whose names it shares."""
    d_model = golden.arguments(name)["d_model"]
    make = partial(MTAttention, max_seq_len=golden.arguments(name)["max_seq_len"])
    if name.startswith("a"):
        make = partial(MTLNN, d_ff=d_model, **options_of_authors(name, file))
    mixer = make(d_model=d_model).to(file["x"].dtype)
    mixer.load_state_dict({key[2:]: value for key, value in file.items() if key.startswith("w/")})
    return mixer


def held_in(name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The vectors of a file, in that precision."""
    return {key: value.to(dtype) for key, value in golden.load(name).items()}


def off(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest number where that is above 1."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize(("precision", "tolerance"), [("f64", DOUBLE), ("f32", SINGLE)])
@pytest.mark.parametrize("case", golden.names("a", "d0"))
def test_values_states_and_gradients_are_those_of_the_authors_code(case, precision, tolerance):
    held = held_in(case, {"f64": torch.float64, "f32": torch.float32}[precision])
    mixer, x = of_authors(case, held), held["x"].requires_grad_()
    whole, state = mixer(x)
    steps, stepped = step_loop(mixer, x)
    first, carried = mixer(x[:, :10])
    second, split = mixer(x[:, 10:], carried)
    ours = {"y": whole, "y_steps": steps, "y_split10": torch.cat([first, second], 1)}
    assert max(off(y, held[f"{precision}/{name}"]) for name, y in ours.items()) <= tolerance
    for last in (state, stepped, split):
        parts = {"k": last.keys, "v": last.values} if isinstance(mixer, MTAttention) else last
        known = {name: part for name, part in parts.items() if f"{precision}/state/{name}" in held}
        assert known or not getattr(mixer, "recurrence", True)  # what is not carried is no state of ours
        assert all(off(part, held[f"{precision}/state/{name}"]) <= tolerance for name, part in known.items())
    if precision == "f64":
        leaves = {"x": x} | {f"w/{name}": value for name, value in mixer.named_parameters()}
        grads = torch.autograd.grad((whole * held["cotangent"]).sum(), list(leaves.values()))
        assert {f"f64/grad/{name}" for name in leaves} == {name for name in held if "/grad/" in name}
        for name, grad in zip(leaves, grads, strict=True):
            assert off(grad, held[f"f64/grad/{name}"]) <= tolerance, name


@pytest.mark.parametrize("case", golden.names("a", "d0"))
def test_the_equations_in_numpy_are_the_authors_code(case):
    held = held_in(case, torch.float64)
    found = find_oracle(of_authors(case, held)).forward(held["x"])
    assert off(found, held["f64/y"]) <= DOUBLE


def shaken(mixer: Mixer) -> Mixer:
    """The mixer in float64, every parameter away from a start that would hide a path."""
    with torch.no_grad():
        for parameter in mixer.double().parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def bank(**options) -> MTLNN:
    return shaken(MTLNN(10, **{"d_ff": 12, "n_filaments": 3, **options}))


def tokens(length: int, batch: int = 2, width: int = 10) -> torch.Tensor:
    return torch.randn(batch, length, width, dtype=torch.float64)


def graded(function, mixer: Mixer, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs and the gradients of a fixed weighting of them by the inputs and every parameter."""
    x = x.clone().requires_grad_()
    y = function(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()])]


def in_numpy(mixer: MTLNN, x: torch.Tensor, elapsed: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The equations' y and h."""
    bank = mixer.resonance
    bounds = Bounds(bank.tau_min, bank.tau_max, bank.transition, mixer.recurrence)
    y, h = layer(arrays(mixer), bounds, x.double().numpy(), None if elapsed is None else elapsed.numpy())
    return torch.from_numpy(y), torch.from_numpy(h)


@GIVEN
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_a_sequence_is_its_equations(given, kernel):
    mixer, x = bank(**OPTIONS[given], kernel=kernel), tokens(11)
    (y, state), (expected, h) = mixer(x), in_numpy(mixer, x)
    assert_close(y, expected, rtol=0, atol=1e-12)
    assert set(state) == {name for name, held in (("h", mixer.recurrence), ("clock", mixer.lateral)) if held}
    if mixer.recurrence:
        assert_close(state["h"], h, rtol=0, atol=1e-12)


@GIVEN
@pytest.mark.parametrize(("batch", "length"), [(2, 13), (1, 1)])
def test_a_sequence_is_a_loop_of_steps_in_values_and_gradients(given, batch, length):
    mixer, x = bank(**OPTIONS[given]), tokens(length, batch)
    both = [graded(function, mixer, x) for function in (lambda x: mixer(x)[0], lambda x: step_loop(mixer, x)[0])]
    for fast, slow in zip(*both, strict=True):
        assert_close(fast, slow, rtol=0, atol=1e-12)


@GIVEN
def test_chunks_carry_the_state_and_its_gradients(given):
    mixer, x = bank(**OPTIONS[given]), tokens(11)

    def in_chunks(x):
        first, state = mixer(x[:, :4])
        second, state = mixer(x[:, 4:5], state)
        third, state = step_loop(mixer, x[:, 5:7], state)
        return torch.cat([first, second, third, mixer(x[:, 7:], state)[0]], 1)

    for part, whole in zip(graded(in_chunks, mixer, x), graded(lambda x: mixer(x)[0], mixer, x), strict=True):
        assert_close(part, whole, rtol=0, atol=1e-12)


def test_the_clock_counts_all_tokens_and_begins_anew_after_its_period():
    mixer, x = bank(), tokens(270)
    expected = in_numpy(mixer, x)[0][:, 250:]
    _, state = mixer(x[:, :250])
    assert state["clock"].tolist() == [250]
    for read in (mixer, partial(step_loop, mixer)):
        assert_close(read(x[:, 250:], state)[0], expected, rtol=0, atol=1e-12)
    unwound = state | {"clock": torch.zeros_like(state["clock"])}
    assert not torch.allclose(mixer(x[:, 250:], unwound)[0], expected, atol=1e-3)
    again = mixer(x[:, 250:], state | {"clock": state["clock"] + 7 * 256})[0]
    assert_close(again, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("transition", ["stock", "signed", "tanh", "exp"])
def test_time_enters_the_decay_where_it_is_asked_to(transition):
    mixer, x, elapsed = bank(transition=transition, timed=True), tokens(9), 3 * torch.rand(2, 9, dtype=torch.float64)
    expected, _ = in_numpy(mixer, x, elapsed)
    for y in (mixer(x, call=Call(elapsed))[0], step_loop(mixer, x, elapsed=elapsed)[0]):
        assert_close(y, expected, rtol=0, atol=1e-12)
    assert_close(mixer(x, call=Call(torch.ones_like(elapsed)))[0], mixer(x)[0], rtol=0, atol=1e-12)
    mixer.timed = False  # as published
    assert torch.equal(mixer(x, call=Call(elapsed))[0], mixer(x)[0])
    assert torch.equal(step_loop(mixer, x, elapsed=elapsed)[0], step_loop(mixer, x)[0])


SCORES = {
    "published": {},
    "no decay": {"decay": False},
    "no polarity": {"polarity": False},
    "neither": {"decay": False, "polarity": False},
    "three key-value heads": {"n_heads": 6, "n_kv_heads": 3, "head_dim": 4},
}


def heads(**options) -> MTAttention:
    return shaken(MTAttention(10, **{"max_seq_len": 16, "rope_theta": 50.0, **options}))


@pytest.mark.parametrize("given", SCORES)
def test_attention_is_its_equations(given):
    mixer, x = heads(**SCORES[given]), tokens(9)
    assert_close(mixer(x)[0], find_oracle(mixer).forward(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("given", SCORES)
def test_attention_is_a_loop_of_steps_in_values_and_gradients_and_so_are_its_chunks(given, monkeypatch):
    monkeypatch.setattr(operation, "BLOCK", 3)
    mixer, x = heads(**SCORES[given]), tokens(11)

    def in_chunks(x):
        first, state = mixer(x[:, :4])
        second, state = step_loop(mixer, x[:, 4:6], state)
        return torch.cat([first, second, mixer(x[:, 6:], state)[0]], 1)

    slow = graded(lambda x: step_loop(mixer, x)[0], mixer, x)
    for function in (lambda x: mixer(x)[0], in_chunks):
        for fast, expected in zip(graded(function, mixer, x), slow, strict=True):
            assert_close(fast, expected, rtol=0, atol=1e-12)


def test_a_cut_cache_is_attention_to_a_window():
    mixer, x = heads(), tokens(12)
    state, outputs = mixer.init_state(2, dtype=torch.float64), []
    with torch.no_grad():
        for x_t in x.unbind(1):
            y, state = mixer.step(x_t, mixer.truncate_state(state, 4))
            outputs.append(y)
        windowed = operation.reference(*mixer._project(x, 0), 5, mixer.slopes(x.dtype))
        expected = mixer.out_proj(windowed.transpose(1, 2).flatten(2))
    assert_close(torch.stack(outputs, 1), expected, rtol=0, atol=1e-12)
    assert state.position == 12


def test_scores_stay_exact_over_a_long_sequence():
    """In float32, where a slope times a position in thousands is rounded by 1e-4 and more."""
    mixer = heads(decay=True, polarity=False).float()
    x = torch.randn(1, 3000, 10)
    with torch.no_grad():
        assert off(mixer(x)[0], mixer.double()(x.double())[0]) < 1e-5


@pytest.mark.parametrize("mixer", [MTAttention(10, n_heads=4), *(partial(bank, **OPTIONS[given]) for given in OPTIONS)])
def test_matrix_products_are_counted_as_a_step_makes_them(mixer):
    mixer = (mixer if isinstance(mixer, Mixer) else mixer()).double()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer.step(tokens(1, 1)[:, 0], mixer.init_state(1, 6, dtype=torch.float64))
    assert mixer.flops_per_token(7).matmul == counter.get_total_flops()


def test_the_published_layer_starts_as_published():
    mixer, alone = MTLNN(832, 832), MTLNN(832, 832, start="standalone")
    assert (mixer.shape, mixer.hidden) == ((13, 5, 64), 64)
    state = mixer.init_state(1)
    assert state_bytes(state["h"]) == 16_640
    named = dict(mixer.named_parameters())
    normal = {"in_proj.weight": 0.02, "out_proj.weight": 0.01, "resonance.W_in": 0.02, "map_gates.fc1_weight": 0.02}
    normal |= {"map_gates.fc2_weight": 0.02, "resonance.kappa_gate.weight": 0.02, "lateral.k_proj.weight": 0.02}
    for name, std in normal.items():
        assert named[name].std().item() == pytest.approx(std, rel=0.2)
    constant = {"in_proj.bias": 0.0, "out_proj.bias": 0.0, "resonance.b_in": 0.0, "resonance.blend_weights": 0.0}
    constant |= {"resonance.kappa_gate.bias": 2.0, "map_gates.fc2_bias": 2.0, "gtp_gamma": 0.1, "lateral.nn_eta": 0.1}
    for name, value in (constant | {"lateral.rmc_gate": -3.0}).items():
        assert torch.equal(named[name], torch.full_like(named[name], value)), name
    assert (named["lateral.W_lat"] - torch.eye(13)).std().item() == pytest.approx(0.005, rel=0.2)
    assert torch.equal(alone.lateral.W_lat, torch.eye(13))
    assert alone.lateral.rmc_gate == 0
    assert alone.in_proj.weight.abs().max() <= 832**-0.5  # torch's own
    tau = torch.nn.functional.softplus(named["resonance.log_tau"][0].double()) + 0.01
    assert_close(tau, torch.tensor([0.010001, 0.0562341, 0.316228, 1.77828, 10.0]).double(), rtol=1e-4, atol=0)
    slopes = MTAttention(832).slopes(torch.float64)
    assert MTAttention(832).head_dim == 64
    assert_close(slopes, 0.1 * 2 ** torch.linspace(3, -3, 13).double(), rtol=5e-3, atol=1e-4)


def test_parameters_train_at_the_rates_of_the_authors():
    model = configs.spec("mtlnn").build(16, 1, Width(26, 26))
    names = {id(parameter): name.removeprefix("blocks.0.") for name, parameter in model.named_parameters()}
    groups = {group["name"]: {names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.1)}
    slow = {"mixer.gtp_gamma", "channel_mixer.gtp_gamma", "channel_mixer.resonance.log_tau"}
    assert groups["no_decay_lr_0.33"] == slow | {"channel_mixer.lateral.W_lat"}
    assert groups["no_decay_lr_1.67"] == {"mixer.polarity_direction"}


@pytest.mark.parametrize("attention", ["full", "off"])
def test_without_attention_the_state_is_constant(attention, monkeypatch):
    spec = configs.spec("mtlnn", f"attention={attention}")
    model = spec.build(16, 2, Width(26, 26))
    assert model.constant_state is (attention == "off")
    assert len(model.mixers) == (2 if attention == "off" else 4)
    growing = [state_bytes(model.init_state(1, context)) for context in (1, 1000)]
    assert growing[1] - growing[0] == (0 if attention == "off" else 2 * 999 * 2 * 2 * 4)  # layers, keys and values of 2
    assert growing[0] >= 2 * (13 * 5 * 2 * 4)
    names = ("causality", "prefill_and_step", "scan_gradients", "state_shape", "state_growth", "flops", "oracle")
    monkeypatch.setattr(runner, "CHECKS", {name: CHECKS[name] for name in names})
    checks = {check.name: check for check in run_checks(model, spec, 16, SizeConfig(count(model).total, 2)).results}
    assert all(check.passed for check in checks.values())
    assert ("claimed constant" in checks["state_growth"].detail) is (attention == "off")


class Coherence(Mixer):
    """MT-LNN's "coherence" as published, which is left out: sparse attention behind a gate on the mean of all scores.

    gated: whether it has the gate, and keeps a tenth of all keys; without, it is plain causal attention.
    """

    constant_state = False

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1, *, gated: bool = True):
        super().__init__(d_model, layer, n_layers)
        self.gated, self.norm = gated, torch.nn.LayerNorm(d_model)
        self.qkv, self.out = torch.nn.Linear(d_model, 3 * d_model), torch.nn.Linear(d_model, d_model)

    def forward(self, x, state=None, call=None):
        q, k, v = self.qkv(x).chunk(3, 2)
        past = 0 if state is None else state["k"].shape[1]
        k, v = (new if state is None else torch.cat([state[n], new], 1) for n, new in (("k", k), ("v", v)))
        seen = torch.ones(q.shape[1], k.shape[1]).tril(past).bool()
        raw = q @ k.transpose(1, 2) * self.d_model**-0.5
        scores, gate = raw.masked_fill(~seen, -torch.inf), 1.0
        if self.gated:
            kept = scores.topk(max(1, k.shape[1] // 10)).values[..., -1:].detach()
            scores = scores.masked_fill(scores < kept, -torch.inf)
            energy = raw.detach()[:, seen].mean(1)  # over all queries and what each sees
            gate = torch.sigmoid(10 * (energy - 0.5))[:, None, None]
        y = self.norm(x + 0.05 * gate * self.out(scores.softmax(2) @ v))
        return y, {"k": k.clone(), "v": v.clone()}

    def step(self, x_t, state, call=None):
        y, state = self.forward(x_t[:, None], state)
        return y[:, 0], state

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {name: torch.zeros(batch, context, self.d_model, device=device, dtype=dtype) for name in "kv"}

    def flops_per_token(self, context):
        return Flops(2 * self.d_model**2 * 4 + 4 * self.d_model * context)


@pytest.mark.parametrize("gated", [True, False])
def test_coherence_is_refused_for_it_sees_the_future(gated, monkeypatch):
    spec = ModelSpec("coherence", partial(Coherence, gated=gated), SwiGLU)
    model = spec.build(11, 1, Width(8, 6))
    names = ("causality_by_perturbation", "prefill_and_step", "chunks", "scan", "flops", "state_growth")
    monkeypatch.setattr(runner, "CHECKS", {name: CHECKS[name] for name in names})
    checks = run_checks(model, spec, 11, SizeConfig(count(model).total, 1)).results
    refused = {check.name for check in checks if not check.passed}
    assert refused == ({"causality_by_perturbation", "prefill_and_step", "chunks", "scan"} if gated else set())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MTAttention(8, n_heads=3, n_kv_heads=2), "n_kv_heads=2 does not divide n_heads=3"),
        (lambda: MTAttention(8, head_dim=3), "head_dim=3 is odd"),
        (lambda: MTLNN(8, 8, tau_min=10.0), "tau_min=10.0 is not below tau_max=10.0"),
        (lambda: configs.spec("mtlnn", "block=gated").build(16, 1, Width(8, 8)), "cannot stand in a gated block"),
    ],
)
def test_what_makes_no_model_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_bfloat16_autocast_follows_float32():
    for mixer in (MTLNN(32, 39), MTAttention(32)):
        x = torch.randn(2, 40, 32)
        exact, _ = mixer(x)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            prefix, state = mixer(x[:, :31])
            behind, _ = step_loop(mixer, x[:, 31:], state)
        made = torch.cat([prefix, behind], 1)
        assert ((made - exact).norm() / exact.norm()).item() < 0.03


def of_state(mixer: MTLNN, x_t: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The derivatives of the averages after a token by those before it, one row (P, S, D) of its own."""
    state = mixer.init_state(1, dtype=torch.float64)
    h = h.clone().requires_grad_()
    (by_itself,) = torch.autograd.grad(mixer.step(x_t, state | {"h": h})[1]["h"].sum(), h)
    return by_itself


@pytest.mark.parametrize(("transition", "fixed"), [("stock", True), ("signed", True), ("tanh", False), ("exp", False)])
def test_what_is_kept_depends_on_neither_token_nor_state_unless_the_transition_reads_the_token(transition, fixed):
    mixer = bank(transition=transition)
    tokens_, states = tokens(2, 1), torch.randn(2, 1, *mixer.shape, dtype=torch.float64)
    kept = of_state(mixer, tokens_[:, 0], states[0])
    assert torch.equal(of_state(mixer, tokens_[:, 0], states[1]), kept)
    assert torch.allclose(of_state(mixer, tokens_[:, 1], states[0]), kept, rtol=0, atol=1e-3) is fixed
    if transition == "stock":
        assert kept.max() <= np.exp(-1 / 10) + 1e-12


def test_the_page_s_table_is_what_the_layer_starts_with():
    mixer, data = MTLNN(26, 26).double(), described.started()
    taus = mixer.resonance.taus(torch.float64)
    decay = torch.exp(-1 / taus)
    grad = torch.autograd.grad(decay.sum(), mixer.resonance.log_tau)[0][0]
    for found, column in ((taus[0], "tau"), (decay[0], "decay"), (grad, "slope")):
        assert_close(found.detach(), torch.tensor(data[column].to_list()).double(), rtol=1e-3, atol=1e-12)
    assert (data["decay"] < described.NOTHING).sum() == 2
    assert grad[0].abs() < 1e-30
    assert "= 0.905 a token" in described.table().notes[1]
