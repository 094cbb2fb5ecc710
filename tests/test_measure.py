import math
import weakref

import pytest
import torch
from torch import nn

from harness.generation.decode import Decoder
from harness.generation.generate import read
from harness.machine.hardware import available_bytes, device_name
from harness.measurement import forecast, latency, measure
from harness.measurement.cost import dollars_per_million_tokens
from harness.measurement.measure import MeasureConfig, StateMismatchError
from harness.model.backbone import ModelSpec, Width
from harness.model.flops import train_flops_per_token
from harness.model.mixer import Flops, Mixer


class Average(Mixer):
    """Attention of equal weights over everything seen, with all of it kept: a state that grows."""

    constant_state = False

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1):
        super().__init__(d_model, layer, n_layers)
        self.key = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x, state=None, call=None):
        kept = self.key(x) if state is None else torch.cat([state["kept"], self.key(x)], dim=1)
        total = kept.cumsum(1)[:, -x.shape[1] :]
        seen = torch.arange(kept.shape[1] - x.shape[1], kept.shape[1], device=x.device) + 1
        return total / seen[:, None], {"kept": kept}

    def step(self, x_t, state, call=None):
        y, state = self.forward(x_t[:, None], state)
        return y[:, 0], state

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {"kept": torch.zeros(batch, context, self.d_model, device=device, dtype=dtype)}

    def flops_per_token(self, context):
        return Flops(2 * self.d_model**2, context * self.d_model)


class Decay(Average):
    """h <- 0.9 h + W x: a state that does not grow."""

    constant_state = True

    def forward(self, x, state=None, call=None):
        state = state or self.init_state(x.shape[0], device=x.device, dtype=x.dtype)
        y = []
        for t in range(x.shape[1]):
            out, state = self.step(x[:, t], state)
            y.append(out)
        return torch.stack(y, dim=1), state

    def step(self, x_t, state, call=None):
        h = 0.9 * state["h"] + self.key(x_t)
        return h, {"h": h}

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {"h": torch.zeros(batch, self.d_model, device=device, dtype=dtype)}


class Liar(Decay):
    """States one tensor more than it holds."""

    def init_state(self, batch, context=0, device=None, dtype=None):
        return super().init_state(batch, context, device, dtype) | {"more": torch.zeros(1, device=device)}


class Glutton(Decay):
    """Runs out of memory where the context is long."""

    def init_state(self, batch, context=0, device=None, dtype=None):
        if context > 16 and str(device) != "meta":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return super().init_state(batch, context, device, dtype)


class Watched(Decay):
    """Notes which of the states it has handed out are still alive at every step."""

    def init_state(self, batch, context=0, device=None, dtype=None):
        state = super().init_state(batch, context, device, dtype)
        self.__dict__.setdefault("given", []).append(weakref.ref(state["h"]))
        return state

    def step(self, x_t, state, call=None):
        self.__dict__.setdefault("alive", []).append(sum(ref() is not None for ref in self.given))
        return super().step(x_t, state)

    def frozen_step(self):
        return self.step  # not that of a copy, which would take its own notes


class Broken(Glutton):
    """Fails for another reason than memory."""

    def init_state(self, batch, context=0, device=None, dtype=None):
        if context > 16 and str(device) != "meta":
            raise RuntimeError("shapes do not match")
        return Decay.init_state(self, batch, context, device, dtype)


def build(mixer, d_model=8, n_layers=2):
    return ModelSpec(name=mixer.__name__.lower(), mixer=mixer).build(32, n_layers, Width(d_model, 0))


def quick(**changes):
    values = {"contexts": [16, 64], "warmup": 1, "decode_tokens": 4, "repeats": 2, "seconds_per_context": 5.0}
    return MeasureConfig(**(values | changes))


def test_state_bytes_are_those_of_the_tensors_held():
    growing = measure.measure(build(Average), quick(batch_size=3))
    constant = measure.measure(build(Decay), quick(batch_size=3))
    assert [row["state_bytes"] for row in growing["contexts"]] == [2 * 3 * 8 * 4 * 16, 2 * 3 * 8 * 4 * 64]
    assert [row["state_bytes"] for row in constant["contexts"]] == [2 * 3 * 8 * 4] * 2
    assert growing["dtype"] == "float32"
    assert growing["threads"] == torch.get_num_threads()


def test_every_figure_is_measured_where_time_and_memory_allow():
    block = measure.measure(build(Average), quick())
    for row in block["contexts"]:
        assert row["skipped"] is None
        assert row["decode_samples"] == 8
        assert row["prefill_samples"] == 2
        assert row["decode_ms_p50"] > 0
        assert row["decode_ms_p95"] is None  # eight samples say nothing of it
        assert row["first_token_ms"] > 1e3 * row["context"] / row["prefill_tokens_per_second"]
        assert row["generation_memory_bytes"] is None  # asked for by memory_seconds
    assert block["generation_memory"].startswith("not measured")


def test_smallest_context_is_held_to_a_real_prefill():
    with pytest.raises(StateMismatchError, match="init_state"):
        measure.measure(build(Liar), quick())


def test_training_mode_and_generators_are_left_alone():
    model = build(Average)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    measure.measure(model, quick())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(StateMismatchError):
        measure.measure(model := build(Liar), quick())
    assert model.training


def test_decoding_holds_no_state_but_its_own():
    model = build(Watched, n_layers=1)
    measure.measure(model, quick(contexts=[1], repeats=1, warmup=0, decode_tokens=3, seconds_per_context=60.0))
    steps = model.mixers[0].alive[1:4]  # after the prefill of one token
    assert steps == [1, 0, 0]  # the first state is gone once the first step has been taken


def test_what_runs_out_of_memory_is_skipped_with_the_reason():
    small, large = measure.measure(build(Glutton), quick())["contexts"]
    assert small["skipped"] is None
    assert "out of memory" in large["skipped"]
    assert large["state_bytes"] is None
    with pytest.raises(RuntimeError, match="shapes do not match"):
        measure.measure(build(Broken), quick())


def test_state_that_cannot_fit_is_not_allocated(monkeypatch):
    monkeypatch.setattr(measure, "available_bytes", lambda device: 5 * 2 * 8 * 4 * 16)
    small, large = measure.measure(build(Average), quick())["contexts"]
    assert small["state_bytes"] == 2 * 8 * 4 * 16
    assert large["state_bytes"] is None
    assert "are free" in large["skipped"]


def test_prefill_that_would_take_too_long_is_skipped_and_decoding_is_not(monkeypatch):
    monkeypatch.setattr(
        latency, "time_prefill", lambda model, tokens, chunk, policy: (tokens.shape[1] / 8, tokens.shape[1] / 8)
    )
    small, large = measure.measure(build(Average), quick())["contexts"]
    assert small["first_token_ms"] == 2000
    assert small["prefill_tokens_per_second"] == 8
    assert large["first_token_ms"] is None
    assert "would take about 8.0 s" in large["skipped"]
    assert large["decode_ms_p50"] is not None


def test_no_contexts_measure_nothing():
    assert measure.measure(build(Liar), quick(contexts=[]))["contexts"] == []


def test_decode_reports_the_steps_after_the_warm_up(monkeypatch):
    model = build(Decay)
    ticks = iter([0, 9_000_000, 10_000_000, 12_000_000, 15_000_000])
    monkeypatch.setattr(latency, "now", lambda device: next(ticks))
    token = torch.zeros(1, dtype=torch.long)
    assert latency.time_decode(Decoder(model, model.init_state(1)), token, 1, 3, seconds=1.0) == [1, 2, 3]
    ticks = iter([0, 9_000_000, 10_000_000])
    assert latency.time_decode(Decoder(model, model.init_state(1)), token, 5, 3, seconds=0.0095) == [1]


def test_percentiles_interpolate_and_want_samples():
    assert latency.percentiles(range(101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert latency.percentiles([1, 2]) == {"p50": 1.5, "p95": None, "p99": None}


@pytest.mark.parametrize("mixer", [Average, Decay])
@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_prefill_in_chunks_is_the_forward_of_the_whole(mixer, chunk):
    model = build(mixer).double()
    tokens = latency.prompt(model, 2, 16, torch.device("cpu"))
    logits, state = read(model, tokens, chunk)
    whole, end = model(tokens)
    assert torch.allclose(logits, whole[:, -1], atol=1e-12)
    for part, wanted in zip(latency_tensors(state), latency_tensors(end), strict=True):
        assert torch.allclose(part, wanted, atol=1e-12)


def latency_tensors(state):
    return [tensor for block in state for part in block for tensor in part.values()]


def test_forecast_continues_a_quadratic_exactly():
    known = forecast.Forecast()
    assert known.refusal(10**9, 0.0, 0.0) is None
    assert (known.seconds(10**9), known.memory_bytes(10**9)) == (0, 0)
    known.add(100, 2.0, 1000)
    assert known.seconds(400) == 8.0
    known.add(200, 3e-2 * 200 + 1e-4 * 200**2, 2000)
    known.add(300, 3e-2 * 300 + 1e-4 * 300**2, 3000)
    assert known.seconds(1000) == pytest.approx(3e-2 * 1000 + 1e-4 * 1000**2)
    assert known.memory_bytes(1000) == 10_000
    assert "130.0 s" in known.refusal(1000, 100.0, 1e9)
    assert "GB" in known.refusal(1000, 200.0, 9_999)
    assert known.refusal(1000, 200.0, 10_000) is None
    linear = forecast.Forecast(linear=True)
    linear.add(100, 1.0, 0)
    linear.add(200, 3.0, 0)
    assert linear.seconds(400) == 6.0


def test_cost_is_the_price_over_the_rate():
    assert dollars_per_million_tokens(3.6, 1000) == pytest.approx(1.0)
    assert dollars_per_million_tokens(3.6, None) is None
    rows = [{"context": 1024, "decode_tokens_per_second": 500}, {"context": 4096, "decode_tokens_per_second": None}]
    block = measure.cost(quick(dollars_per_hour=3.6), {"contexts": rows}, 1000)
    assert block["train_dollars_per_million_tokens"] == pytest.approx(1.0)
    assert block["decode_dollars_per_million_tokens"] == {"1024": pytest.approx(2.0), "4096": None}


def test_training_flops_are_three_times_the_mean_forward():
    model = build(Average)
    at_the_mean = model.flops_per_token(10).total  # 19 positions: their mean context is 10
    assert train_flops_per_token(model, 19) == pytest.approx(3 * at_the_mean)


def test_memory_available_respects_the_container(tmp_path):
    free = available_bytes("cpu", tmp_path)
    assert free > 0
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert available_bytes("cpu", tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert math.isclose(available_bytes("cpu", tmp_path), free, rel_tol=0.5)
    assert device_name("cpu")
