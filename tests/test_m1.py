"""M1: its authors' golden vectors, its equations once more, its paths against each other, and what it starts from."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import configs
import golden
from arch.m1.fast_weight import FastWeight
from arch.m1.memory import chunked
from arch.m1.mixer import MTv2s
from harness.config.errors import ConfigError
from harness.model.backbone import Adapter, Width
from harness.model.mixer import Call
from harness.model.state import map_tensors, state_bytes, tensors
from harness.training.optimizer import parameter_groups
from oracles import step_loop

OPTIONS = [
    {},
    {"selective": "off", "n_heads": 2},
    {"selective": "exp", "fast_weight": "delta", "chunk": 4},
    {"scale": 0.1, "fast_weight": "delta", "n_heads": 2, "n_scales": 7, "chunk": 1},
    {"scale": 1e-3, "selective": "off", "fast_weight": "off", "n_scales": 1},
    {"scale": 0.7, "selective": "exp", "n_filaments": 1, "rank": 2},
    {"fast_weight": "off", "tau_min": 1.0, "tau_max": 3.0},
]


def mixer(**options) -> MTv2s:
    """A small one in float64, no parameter where it starts."""
    made = MTv2s(10, **{"n_filaments": 3, "d_memory": 4, "chunk": 5} | options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def drawn(made: MTv2s, batch: int, length: int, timed: bool):
    """x, a carried state and times, or None."""
    x = torch.randn(batch, length, 10, dtype=torch.float64, requires_grad=True)
    state = map_tensors(lambda v: torch.rand_like(v).requires_grad_(), made.init_state(batch, dtype=torch.float64))
    return x, state, 2 * torch.rand(batch, length, dtype=torch.float64) if timed else None


# The authors' code.

MODES = {False: "off", True: "mamba"}


def of_authors(name: str, arguments: dict) -> tuple[nn.Module, nn.Module]:
    """The norm before and the module that the authors' arguments make here, for an adapter, ARR or a fast weight."""
    if "d_mem" in arguments:
        given = {
            "d_memory": arguments["d_mem"],
            "n_heads": arguments.get("n_heads", 1),
            "rule": arguments["write_rule"],
        }
        return nn.Identity(), FastWeight(arguments["d_model"], **given, chunk=arguments.get("chunk", 64))
    given = {
        "n_filaments": "n_protofilaments",
        "d_filament": "d_proto",
        "n_scales": "n_time_scales",
        "rank": "proj_rank",
    }
    given |= {"d_memory": "fast_weight_dim", "n_heads": "fast_weight_heads", "chunk": "fast_weight_chunk"}
    given |= {"tau_min": "tau_min", "tau_max": "tau_max", "fast_weight": "fast_weight_rule"}
    options = {ours: arguments[theirs] for ours, theirs in given.items() if theirs in arguments}
    arr = name.startswith("c")
    selective = MODES[arguments.get("selective_decay", arr)]
    options["selective"] = arguments.get("selective_decay_mode", selective) if selective == "mamba" else selective
    if not arguments.get("use_fast_weight", True):
        options["fast_weight"] = "off"
    size = arguments["hidden_size"]
    return nn.Identity() if arr else nn.LayerNorm(size), MTv2s(size, **options, scale=None if arr else 1e-3)


def ours(name: str) -> str:
    """A parameter's name here."""
    return re.sub(r"^(mt|mt_layer)\.", "core.", re.sub(r"^fw\.", "fast_weight.", name))


class Authors:
    """The module of a golden file with its weights, called as theirs is."""

    def __init__(self, name: str, file: dict, dtype: torch.dtype):
        self.norm, self.module = of_authors(name, golden.arguments(name))
        self.adapter = isinstance(self.norm, nn.LayerNorm)
        both = nn.ModuleDict({"norm": self.norm, "module": self.module})
        weights = {key.removeprefix("w/"): value for key, value in file.items() if key.startswith("w/")}
        self.keys = {key if key.startswith("norm.") else f"module.{ours(key)}": key for key in weights}
        both.load_state_dict({key: weights[theirs] for key, theirs in self.keys.items()})
        self.named = dict(both.to(dtype).named_parameters())

    def empty(self, batch: int, dtype: torch.dtype) -> dict:
        if isinstance(self.module, FastWeight):
            return dict(zip(("F", "z"), self.module.init_state(batch, None, dtype), strict=True))
        return self.module.init_state(batch, dtype=dtype)

    def __call__(self, x, state: dict, method: str = "forward"):
        run, n = getattr(self.module, method), self.norm(x)
        if isinstance(self.module, FastWeight):
            y, memory, z = run(n, state["F"], state["z"])
            return y, {"F": memory, "z": z}
        y, state = run(n, state)
        return (x + y if self.adapter else y), state


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
@pytest.mark.parametrize("name", golden.names("b", "c"))
def test_it_is_its_authors_code(name, dtype, tolerance):
    """Values, steps, a split sequence and states, and in float64 the gradients of x and of every weight."""
    file = golden.load(name)
    model = Authors(name, file, dtype)

    def near(got, key):
        want = file[f"f64/{key}"]
        assert (got.double() - want).abs().max() <= tolerance * max(1.0, want.abs().max().item()), key

    x = file["x"].to(dtype).requires_grad_()
    y, state = model(x, model.empty(len(x), dtype))
    near(y, "y")
    assert {f"f64/state/{key}" for key in state} == {key for key in file if key.startswith("f64/state/")}
    for key, value in state.items():
        near(value, f"state/{key}")
    held, steps = model.empty(len(x), dtype), []
    for x_t in x.unbind(1):
        y_t, held = model(x_t, held, "step")
        steps.append(y_t)
    near(torch.stack(steps, 1), "y_steps")
    for key, value in held.items():
        near(value, f"state/{key}")
    head, held = model(x[:, :10], model.empty(len(x), dtype))
    near(torch.cat([head, model(x[:, 10:], held)[0]], 1), "y_split10")
    if dtype == torch.float64:
        loss = (y * file["cotangent"]).sum()
        found = torch.autograd.grad(loss, [x, *model.named.values()], allow_unused=True, materialize_grads=True)
        near(found[0], "grad/x")
        for key, gradient in zip(model.named, found[1:], strict=True):
            near(gradient, f"grad/w/{model.keys[key]}")


# The equations once more, in numpy, from the specification.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def phi(x):
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1) + 1


def core_token(w, x, h, made, elapsed):
    """One token of one sequence: x (d_model), h (P, S, D)."""
    P, S, D = h.shape
    u, h = (w["in_b.weight"] @ (w["in_a.weight"] @ x)).reshape(P, D), h.copy()
    m = np.zeros((P, D))
    for p in range(P):
        blend = np.exp(w["blend"][p]) / np.exp(w["blend"][p]).sum()
        blend = blend * sigmoid(w["kappa_gate.weight"] @ u[p] + w["kappa_gate.bias"])
        blend = blend / max(blend.sum(), 1e-6)
        for s in range(S):
            tau = np.clip(softplus(w["log_tau"][p, s]) + made.tau_min, made.tau_min, made.tau_max)
            dt = elapsed if made.selective == "off" else elapsed * softplus(u[p] @ w["W_dt"][p, :, s] + w["b_dt"][p, s])
            a = np.exp(-dt / tau)
            A = sigmoid(w["scale_gain"][p, s] * (u[p] @ w["W_mix"][p]) + w["scale_bias"][p, s])
            h[p, s] = (2 * a - 1 if made.selective == "exp" else a) * h[p, s] + (1 - a) * A
            m[p] += blend[s] * h[p, s]
    scores = np.exp((m @ w["rmc_q.weight"].T) @ (m @ w["rmc_k.weight"].T).T / np.sqrt(D))
    seen = scores / scores.sum(1, keepdims=True) @ (m @ w["rmc_v.weight"].T)
    m = m + sigmoid(w["rmc_gate"]) * seen @ w["rmc_o.weight"].T
    for p in range(P):
        gate = u[p] @ w["W_gate"][p]
        m[p] *= gate * sigmoid(gate)
    return w["out_b.weight"] @ (w["out_a.weight"] @ m.reshape(-1)), h


def fast_weight_token(w, x, memory, z):
    """One token of one sequence: x (d_model), memory (heads, E, E), z (heads, E)."""
    heads, E = z.shape
    memory, z, reads = memory.copy(), z.copy(), np.zeros((heads, E))
    for i in range(heads):
        rows = slice(i * E, (i + 1) * E)
        k, q, v = phi(w["W_k.weight"][rows] @ x), phi(w["W_q.weight"][rows] @ x), w["W_v.weight"][rows] @ x
        decay = sigmoid(w["decay_raw"][i])
        if "eta_raw" in w:
            k = k / (np.sqrt((k**2).sum()) + 1e-6)
            memory[i] = decay * memory[i] - sigmoid(w["eta_raw"][i]) * np.outer(k, k @ memory[i] - v)
            reads[i] = q @ memory[i]
        else:
            memory[i], z[i] = decay * memory[i] + np.outer(k, v), decay * z[i] + k
            reads[i] = q @ memory[i] / max(q @ z[i], 1e-6)
    return w["W_o.weight"] @ reads.reshape(-1), memory, z


def published(made: MTv2s, x, state, times):
    """The whole mixer over x (T, d_model) from the state of one sequence: y and the last state."""
    w = {name: parameter.detach().numpy() for name, parameter in made.named_parameters()}
    core, memory = ({k.removeprefix(p): v for k, v in w.items() if k.startswith(p)} for p in ("core.", "fast_weight."))
    outputs, state = [], dict(state)
    for t, x_t in enumerate(x):
        y, state["h"] = core_token(core, x_t, state["h"], made.core, 1.0 if times is None else times[t])
        y = w["scale"] * y if "scale" in w else y
        if memory:
            r, state["F"], state["z"] = fast_weight_token(memory, x_t, state["F"], state["z"])
            y = y + (w["fw_scale"] if "scale" in w else sigmoid(w["fw_gate"])) * r
        outputs.append(y)
    return np.stack(outputs), state


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_its_equations(options, timed):
    made = mixer(**options)
    x, state, times = drawn(made, 1, 13, timed)
    expected, last = published(
        made,
        x[0].detach().numpy(),
        {k: v[0].detach().numpy() for k, v in state.items()},
        None if times is None else times[0].numpy(),
    )
    for run in (partial(made, call=Call(times)), partial(step_loop, made, elapsed=times)):
        y, found = run(x, state=state)
        assert_close(y[0], torch.from_numpy(expected), rtol=0, atol=1e-11)
        for key, value in found.items():
            assert_close(value[0], torch.from_numpy(last[key]), rtol=0, atol=1e-11)


# The paths against each other.


def results(run, made, x, state):
    """Outputs and last state, and gradients of a sum of them by every parameter, x and the carried-in state."""
    y, last = run(x, state=state)
    total = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() + sum(
        (t**2).sum() for t in tensors(last)
    )
    leaves = [*made.parameters(), x, *tensors(state)]
    return [y, *tensors(last), *torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize(("batch", "length", "timed"), [(2, 17, True), (1, 1, False), (3, 5, False)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_equals_the_loop_of_step_from_a_carried_state(options, batch, length, timed):
    made = mixer(**options)
    x, state, times = drawn(made, batch, length, timed)
    whole = results(partial(made, call=Call(times)), made, x, state)
    for a, b in zip(whole, results(partial(step_loop, made, elapsed=times), made, x, state), strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_the_frozen_step_knows_elapsed_times(options):
    made = mixer(**options).float()
    x, state, times = (
        None if t is None else map_tensors(lambda v: v.detach().float(), t) for t in drawn(made, 3, 1, True)
    )
    with torch.no_grad():
        expected, after = made.step(x[:, 0], state, Call(times[:, 0]))
        found, held = made.frozen_step()(x[:, 0], state, Call(times[:, 0]))
    for a, b in zip([found, *tensors(held)], [expected, *tensors(after)], strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["outer", "delta"])
def test_the_size_of_a_chunk_changes_no_number(rule):
    made = mixer(fast_weight=rule, n_heads=2)
    x, state, _ = drawn(made, 2, 23, False)
    expected = results(made, made, x, state)
    for made.fast_weight.chunk in (1, 4, 23, 64):
        for a, b in zip(results(made, made, x, state), expected, strict=True):
            assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_bfloat16_autocast_keeps_the_recurrences_in_float32():
    made = MTv2s(16, n_filaments=3, d_memory=8, fast_weight="delta")
    x = torch.randn(2, 12, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = made(x)
        again, stepped = step_loop(made, x)
    assert {t.dtype for t in (*tensors(state), *tensors(stepped))} == {torch.float32}
    for out in (y, again):
        assert ((out - made(x)[0]).norm() / made(x)[0].norm()).item() < 0.02


# What it is for.


def test_the_adapter_remembers_what_the_dropped_cache_held():
    """The protocol of the authors' recall task: read A, drop the keys and values, keep (h, F, z), read B."""
    spec = configs.spec("m1", "model.adapter.mixer.scale=0.1")
    model = spec.build(16, 3, Width(32, 48)).double().eval()
    assert [block.adapter is not None for block in model.blocks] == [False, True, True]
    assert not model.constant_state
    assert model.blocks[1].adapter.constant_state
    first, second = (torch.randint(16, (2, 9)) for _ in range(2))
    with torch.no_grad():
        held = model(first)[1]
        dropped = model.truncate_state(held, 0)
        for block, before, after in zip(model.blocks, held, dropped, strict=True):
            assert after[0].length == 0
            assert state_bytes(after[0]) == 0
            if block.adapter is not None:
                assert set(after[2]) == {"h", "F", "z"}
                assert all(map(torch.equal, tensors(after[2]), tensors(before[2])))
        emptied = [[*parts[:2], *(map_tensors(torch.zeros_like, part) for part in parts[2:])] for parts in dropped]
        kept, forgotten, fresh = (model(second, state)[0] for state in (dropped, emptied, None))
    assert_close(forgotten, fresh, rtol=0, atol=1e-12)  # positions that go on counting turn all angles alike
    assert (kept - fresh).abs().max() > 1e-4


def test_the_delta_rule_replaces_what_a_key_held():
    """Without decay and at a rate of 1; outer products add up."""
    keys, values = torch.eye(4)[[0, 1, 0]].view(1, 3, 1, 4), torch.randn(1, 3, 1, 2)
    empty, still = torch.zeros(1, 1, 4, 2), torch.zeros(1)
    replaced, _ = chunked(keys, keys, values, empty, still, torch.ones(1))
    assert_close(replaced, values)
    added, _ = chunked(keys, keys, values, empty, still)
    assert_close(added[:, 2], values[:, 0] + values[:, 2])


def test_sizes_and_layers_are_those_of_the_authors_adapter():
    """Six adapters in TinyLlama's 22 layers of 2,048: 8,409,288 parameters, 8,320 floats of state each."""
    adapter = Adapter(MTv2s, every=4)
    assert [layer for layer in range(22) if adapter.follows(layer, 22)] == [3, 7, 11, 15, 19, 21]
    options = {"scale": 1e-3, "d_filament": 64, "rank": 128, "d_memory": 64}
    with torch.device("meta"):
        made = MTv2s(2048, **options)
        counted = [*made.parameters(), *nn.LayerNorm(2048).parameters()]
        assert 6 * sum(parameter.numel() for parameter in counted) == 8_409_288
        assert sum(tensor.numel() for tensor in tensors(made.init_state(1))) == 8_320


def test_it_starts_as_its_authors_do():
    made = MTv2s(64, layer=1, n_layers=3, n_scales=7)
    assert_close(made.core.tau[0], torch.tensor([0.5, 2, 8, 32, 90, 90, 90]), rtol=1e-4, atol=0)
    assert_close(nn.functional.softplus(made.core.b_dt), torch.ones(13, 7))
    assert made.core.W_mix.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.sigmoid(made.fast_weight.decay_raw).item() == pytest.approx(0.95)
    assert (made.core.rmc_gate.item(), made.fw_gate.item(), made.scale) == (-1.0, 0.0, None)
    bounds = {made.core.out_b: 12**-0.5, made.fast_weight.W_o: 64**-0.5}  # as linear layers of torch, but by depth
    for projection, bound in bounds.items():
        assert 0.9 * bound < projection.weight.abs().max() * 6**0.5 <= bound + 1e-6
    adapter = MTv2s(64, n_layers=3, scale=1e-3)
    assert (adapter.scale.item(), adapter.fw_scale.item()) == pytest.approx((1e-3, 1e-3))
    assert adapter.core.out_b.weight.abs().max() > 0.9 * 12**-0.5
    spared = {"core.scale_gain", "core.scale_bias", "core.log_tau", "core.b_dt", "core.blend"}
    (decay,) = [group["params"] for group in parameter_groups(made, 0.1) if group["weight_decay"]]
    matrices = {name for name, p in made.named_parameters() if p.dim() > 1}
    assert {name for name, p in made.named_parameters() if any(p is q for q in decay)} == matrices - spared


def test_time_constants_need_a_range():
    with pytest.raises(ConfigError, match=r"tau_min=3\.0 is not below tau_max=2\.0"):
        MTv2s(8, tau_min=3.0, tau_max=2.0)
