"""The bench: what it times, what it keeps, what it skips, and how it compares ratios with targets."""

import copy
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import harness
import recorded_run
import run
from analysis import bench as table
from analysis.__main__ import main as analyse
from bench import __main__ as command
from bench import checks, edge, gradients, kernels, liquid, models, sessions, timing
from bench.bandwidth import floor_ms
from bench.comparison import Comparison, layer
from bench.peers import rwkv_package_decoder
from bench.products import Products, update_flops
from bench.store import Store
from bench.targets import Target
from bench.timing import Call, Contestant, Limits
from harness.checks.runner import CheckResult, CheckResults
from harness.config.configure import locate
from harness.config.errors import ConfigError, RecordError
from harness.config.experiment import CheckError
from harness.model import sizing
from harness.model.context import FULL
from test_rwkv import language_model, tokens

CPU = torch.device("cpu")
CONFIGS = {subject: yaml.safe_load((run.ROOT / f"conf/bench/{subject}.yaml").read_text()) for subject in table.SUBJECTS}


class Clock:
    """A clock that goes on only where a test says so: no test depends on how busy the machine is."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def sleeper(clock: Clock, seconds_per_token: float, **options) -> Contestant:
    """Something that takes a known time a token, forward and again with its backward."""

    def make(batch: int, length: int, channels: int) -> Call:
        x = torch.ones(batch, length, channels, requires_grad=True)

        def run() -> torch.Tensor:
            clock.sleep(seconds_per_token * length)
            return 2 * x

        return Call(run, [x])

    return Contestant(f"{seconds_per_token} s", make, **options)


def test_contestants_are_timed_interleaved_and_a_slow_one_at_the_length_it_can_afford(clock):
    quick, slow = sleeper(clock, 0), sleeper(clock, 0.002)
    short = sleeper(clock, 1e-5, most_tokens=20, training=False)
    times = timing.measure([quick, slow, short], 1, 512, 3, Limits(seconds=0.6, rounds=3), CPU)
    assert [times[c.name].length for c in (quick, slow, short)] == [512, 128, 20]
    assert len(times[quick.name].training_ms) == 3
    assert times[slow.name].median(True) == pytest.approx(2 * 128)
    assert len(times[slow.name].training_ms) < 3
    assert times[short.name].median(True) is None
    assert times[short.name].call.inputs[0].grad is None
    assert times[quick.name].call.inputs[0].grad.sum() == 2 * 512 * 3


def test_what_a_contestant_does_first_at_its_length_is_not_timed(clock):
    seen = set()

    def make(batch: int, length: int, channels: int) -> Call:
        x = torch.ones(batch, length, channels, requires_grad=True)

        def run() -> torch.Tensor:
            if (length, torch.is_grad_enabled()) not in seen:
                seen.add((length, torch.is_grad_enabled()))
                clock.sleep(0.1)
            return 2 * x

        return Call(run, [x])

    times = timing.measure([Contestant("compiles", make)], 1, 64, 3, Limits(), CPU)["compiles"]
    assert seen >= {(64, False), (64, True)}
    assert max(times.forward_ms + times.training_ms) == 0


def test_a_time_that_grows_faster_than_the_length_shortens_it(clock):
    def make(batch: int, length: int, channels: int) -> Call:
        x = torch.ones(batch, length, channels, requires_grad=True)

        def run() -> torch.Tensor:
            clock.sleep(1e-5 * length**2)
            return 2 * x

        return Call(run, [x])

    times = timing.measure([Contestant("square", make)], 1, 512, 3, Limits(seconds=0.3), CPU)["square"]
    assert times.length == 64
    assert len(times.training_ms) >= timing.LEAST_ROUNDS


def test_the_floor_counts_every_byte_that_must_move():
    x = torch.zeros(10, 100, requires_grad=True)  # 4,000 bytes
    call = Call(lambda: x[:, :25] * 2, [x])  # gives 1,000
    assert floor_ms(call, 1e6, training=False) == pytest.approx(5.0)
    assert floor_ms(call, 1e6, training=True) == pytest.approx(5.0 + 9.0)


def test_rows_relate_a_tokens_time_to_the_firsts(clock):
    fast, slow = sleeper(clock, 1e-4), sleeper(clock, 4e-4, most_tokens=64)
    times = timing.measure([fast, slow], 2, 64, 3, Limits(rounds=1), CPU)
    first, second = kernels.as_rows("sleep", 2, 64, times, rate=1e9)
    assert (first["training_ratio"], second["measured_length"]) == (1, 32)
    assert second["training_ratio"] == pytest.approx(second["training_us"] / first["training_us"])
    assert second["forward_ratio"] == pytest.approx(4)
    assert first["training_us"] == pytest.approx(1e3 * first["training_ms"] / 128)


class Scaled(torch.autograd.Function):
    """Doubles; its gradient is too large by one part in a hundred where the type is float32, and exact in float64."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (2.02 if gradient.dtype == torch.float32 else 2.0)


def doubling(function) -> Contestant:
    def make(batch: int, length: int, channels: int) -> Call:
        x = torch.randn(batch, length, channels, requires_grad=True)
        return Call(lambda: function(x), [x])

    return Contestant("doubles", make)


def test_a_wrong_gradient_is_measured_and_a_right_one_is_rounding():
    assert gradients.error(doubling(Scaled.apply), 2, 3, 4, CPU) == pytest.approx(0.01, rel=1e-3)
    assert gradients.error(doubling(lambda x: x.sin()), 2, 3, 4, CPU) < 1e-6
    assert torch.get_default_dtype() == torch.float32
    exact = replace(doubling(Scaled.apply), exact=doubling(lambda x: 2.02 * x).make)
    assert gradients.error(exact, 2, 3, 4, CPU) < 1e-6  # what it is compared with is what it says


def test_the_memory_of_a_pass_is_measured_over_its_tokens():
    def hungry(x):
        kept = [x.exp() for _ in range(8)]  # each keeps its output for the backward pass
        return sum(kept)

    limited = replace(doubling(hungry), most_tokens=2 * 2**11)
    row = gradients.memory(limited, 2, 2**14, 256, CPU)
    assert (row["batch"], row["length"]) == (2, 2**11)
    if row["bytes_per_token"] is not None:  # a system that resets the peak
        assert 8 * 1024 <= row["bytes_per_token"] <= 24 * 1024


@pytest.mark.slow
@pytest.mark.long
def test_memory_and_gradients_of_the_published_cell_are_measured_once(capsys):
    config = CONFIGS["gradients"] | CONFIGS["gradients"]["quick"] | {"comparisons": ["bench.liquid.published_ltc"]}
    store = Store(None)
    for _ in range(2):
        gradients.run(config, store, CPU, Limits(), print)
    assert [row["contestant"] for row in store.rows] == ["fused", "torch loop", "ncps LTC"]
    assert all(0 < row["gradient_error"] < 1e-5 for row in store.rows)
    assert "| published LTC, ncps LTC" in table.gradients(store.content)


def test_a_target_is_met_missed_or_not_measured():
    rows = [
        {"operation": "scan", "length": 4, "contestant": name, "training_us": us}
        for name, us in (("ours", 2.0), ("theirs", 30.0), ("untrained", None))
    ]
    where = {"operation": "scan", "length": 4}
    faster = [Target(where, "ours", "theirs", at_least=by).verdict(rows) for by in (15, 15.1)]
    dearer = [Target(where, "theirs", "ours", at_most=by).verdict(rows) for by in (15, 14.9)]
    for verdicts in (faster, dearer):
        assert [verdict["met"] for verdict in verdicts] == [True, False]
        assert verdicts[0]["measured"] == 15
    for bounds in ({}, {"at_least": 1, "at_most": 2}):
        with pytest.raises(ConfigError, match="one of them"):
            Target(where, "ours", "theirs", **bounds)
    assert Target(where, "ours", "untrained", at_least=1).verdict(rows)["met"] is None
    assert Target(where | {"length": 5}, "ours", "theirs", at_least=1).verdict(rows)["met"] is None


def test_a_peer_that_is_not_installed_is_skipped_with_a_line(tmp_path):
    said, store = [], Store(tmp_path / "kernels.json")
    absent = Contestant("theirs", sleeper(Clock(), 0).make, needs=("no_such_package",))
    found = kernels.present(Comparison("sleep", [sleeper(Clock(), 0), absent], ""), store, said.append)
    assert [contestant.name for contestant in found] == ["0 s"]
    assert "skipped theirs (sleep): no_such_package not installed (make peers)" in said
    assert "no_such_package" in store.content["skipped"]["theirs (sleep)"]


@pytest.mark.slow
def test_measurements_are_kept_taken_up_again_and_measured_again_by_force(tmp_path, monkeypatch, capsys):
    quick = ["kernels", "--quick", "--out", str(tmp_path)]
    config = CONFIGS["kernels"] | {"comparisons": ["bench.baselines.gru"]}
    monkeypatch.setattr(command.yaml, "safe_load", lambda _: config)
    command.main(quick)
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert [row["contestant"] for row in rows] == ["fused", "torch loop", "torch.nn.GRU + Linear"]
    assert "**GRU, 16 channels.**" in capsys.readouterr().out
    command.main(quick)
    assert json.loads((tmp_path / "kernels.json").read_text())["rows"] == rows
    command.main([*quick, "--force"])
    assert json.loads((tmp_path / "kernels.json").read_text())["rows"] != rows


def test_a_cell_of_other_contestants_is_measured_anew_and_no_other_cell():
    store = Store(None)
    store.add([{"contestant": name, "length": length} for length in (4, 8) for name in ("ours", "theirs")])
    assert store.holds(["theirs", "ours"], length=4)
    assert len(store.rows) == 4
    assert not store.holds(["ours", "theirs", "another"], length=4)
    assert [row["length"] for row in store.rows] == [8, 8]
    assert store.holds(["ours", "theirs"], length=8)
    assert not store.holds(["ours"], length=16)


def test_rows_of_another_machine_or_of_other_packages_are_moved_aside(tmp_path):
    path = tmp_path / "kernels.json"
    Store(path).note(machine={"cpu": "Another (R)", "threads": 8, "gpu": None}, rows=[{"ms": 1}])
    store = Store(path)
    assert (store.rows, store.aside) == ([], tmp_path / "kernels.another-r-8.json")
    assert table.read(store.aside)["rows"] == [{"ms": 1}]
    store.add([{"ms": 2}])
    assert [row["ms"] for row in Store(path).rows] == [2]
    Store(path).note(packages={"torch": "0.1"})
    again = Store(path)
    assert again.rows == []
    assert table.read(again.aside)["packages"] == {"torch": "0.1"}
    assert again.aside.name.startswith("kernels.")
    path.write_text("{")
    with pytest.raises(RecordError, match="cannot be read"):
        Store(path)


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["models", "newton", "checks"])
def test_every_subject_runs(subject, monkeypatch, capsys):
    config = copy.deepcopy(CONFIGS[subject])
    if subject == "models":
        few = {name: [f"model={name}"] for name in ("ltc", "transformer", "mamba", "rwkv")}
        monkeypatch.setattr(models, "contestants", lambda config: few)
        config["peers"] = {"mamba by transformers": config["peers"]["mamba by transformers"]}
    monkeypatch.setattr(command.yaml, "safe_load", lambda _: config)
    command.main([subject, "--quick"])
    printed = capsys.readouterr().out
    wanted = {"models": "| rwkv by the rwkv package", "newton": "| 1 x 16", "checks": "| gru | "}
    assert wanted[subject] in printed


@pytest.mark.parametrize("path", CONFIGS["kernels"]["comparisons"])
def test_every_comparison_has_contestants_that_run_and_targets_name_them(path):
    comparison = locate(path, "comparisons")(CPU)
    names = [contestant.name for contestant in comparison.contestants]
    assert len(set(names)) == len(names) > 1
    for contestant in comparison.contestants:
        if "compile" in contestant.name or any(importlib.util.find_spec(name) is None for name in contestant.needs):
            continue
        call = contestant.make(2, 3, 16)
        assert call.run().shape[:2] == (2, 3)
    for target in CONFIGS["kernels"]["targets"]:
        if target["where"]["operation"] == comparison.operation:
            assert {target["of"], target["than"]} <= set(names)


def test_the_contestants_of_the_liquid_scan_compute_the_same_thing():
    contestants = {c.name: c for c in locate("bench.liquid.liquid_scan", "comparisons")(CPU).contestants}
    fused, loop = (contestants[name].make(2, 5, 16).run() for name in ("fused, semi_implicit x 6", "torch loop"))
    torch.testing.assert_close(fused, loop)
    rk4, peer = (contestants[n].make(2, 5, 16).run() for n in ("fused, rk4", "torchdiffeq rk4"))
    torch.testing.assert_close(rk4, peer, atol=5e-3, rtol=0)  # theirs is the 3/8 rule
    adjoint = contestants["torchdiffeq rk4, adjoint"]
    torch.testing.assert_close(adjoint.make(2, 5, 16).run(), peer)
    assert gradients.error(contestants["torchdiffeq rk4"], 1, 8, 16, CPU) < 1e-5
    assert gradients.error(adjoint, 1, 8, 16, CPU) > 1e-3


def test_checks_that_fail_are_not_timed(monkeypatch):
    verdict = CheckResult("causality", False, 1.0, 0.0, "", 0.5)
    monkeypatch.setattr(checks.Checked, "before", lambda self: CheckResults([verdict]))
    config = CONFIGS["checks"] | CONFIGS["checks"]["quick"]
    with pytest.raises(CheckError, match="model=gru fails causality"):
        checks.run(config, Store(None), CPU, Limits(), lambda line: None)


def test_the_rwkv_package_decodes_what_our_model_gives():
    pytest.importorskip("rwkv", reason="rwkv is an optional peer")
    model, ids = language_model(torch.float32), tokens(1, 7)
    step = rwkv_package_decoder(model)
    decoded = torch.stack([step(int(token)) for token in ids[0]])
    with torch.no_grad():
        torch.testing.assert_close(decoded, model(ids)[0][0], rtol=1e-3, atol=1e-3)


def test_targets_of_models_name_what_is_measured():
    config = CONFIGS["models"]
    names = {*models.contestants(config), *config["peers"], *config["decoders"]}
    for target in config["targets"]:
        assert {target["of"], target["than"]} <= names


def test_the_bench_knows_every_architecture_by_itself(monkeypatch, tmp_path):
    config = CONFIGS["models"]
    assert models.contestants(config)["ltc"] == ["model=ltc"]
    (tmp_path / "newcomer.yaml").touch()
    monkeypatch.setattr(models, "MODELS", tmp_path)
    assert set(models.contestants(config)) == {"newcomer", *config["variants"]}


def test_matrix_products_of_an_update_are_counted_and_timed():
    layer, x = torch.nn.Linear(8, 3), torch.randn(5, 8, requires_grad=True)
    with Products() as products:
        layer(x).sum().backward()
        torch.bmm(x.detach()[None], torch.ones(1, 8, 2))
    assert sum(products.counts.values()) == 4
    assert products.flops == 3 * 2 * 5 * 8 * 3 + 2 * 5 * 8 * 2
    assert products.seconds(CPU) > 0


def test_a_model_is_held_against_its_products_and_those_its_kernels_hide():
    spec, budget = locate(CONFIGS["models"]["compose"], "compose")(["model=gru", "size=250k"])
    torch.manual_seed(0)
    racer = models.Racer("gru", spec.build(256, 1, sizing.solve(spec, 256, budget)), 16, 8)
    racer.race()
    row = racer.row()
    seen = racer.products.flops
    needed = update_flops(racer.model, 8) * 16
    assert row["each_us"] == [1e6 * taken / 16 for taken in racer.rounds]
    assert needed > seen > 0  # the recurrent products stand inside a kernel
    assert row["limit_us"] == pytest.approx(1e6 * racer.product_seconds[0] / 16 * needed / seen)


def test_sessions_hold_their_states_and_no_more(capsys):
    command.main(["sessions", "--quick"])
    assert "**4 sessions at once, 2 more tokens each**" in capsys.readouterr().out
    cached = sessions._model("transformer", CONFIGS["sessions"] | CONFIGS["sessions"]["quick"])
    a_token = 4 * 2 * cached.model.n_layers * cached.model.width.d_model  # keys and values in float32
    for context in (5, 10):
        row = sessions.measured(cached, 3, context, 2)
        assert (row["state_bytes"], row["state_bytes_after"]) == (3 * context * a_token, 3 * (context + 2) * a_token)
        assert row["decode_ms"] > 0


@pytest.mark.slow
def test_a_graph_is_timed_beside_our_step_and_a_step_that_is_none_says_why(capsys):
    pytest.importorskip("onnxruntime")
    command.main(["edge", "--quick"])
    shown = capsys.readouterr().out
    (row,) = re.findall(r"^\| gru .*", shown, re.MULTILINE)
    assert len(set(re.findall(r"[\d.]+ MB", row))) == 3  # of three processes
    assert "| ltc solver=dopri5 | The step of model=ltc cannot be an ONNX graph: " in shown


@pytest.mark.slow
@pytest.mark.long
def test_what_8_bits_cost_is_of_the_bytes_that_evaluation_reads(tmp_path):
    pytest.importorskip("onnxruntime")
    trained = harness.load(recorded_run.make(tmp_path, "model=transformer", "trainer.length=32"))
    assert trained.policy.window == 32
    row = edge.loss_row(trained, 100)
    assert row["bytes"] == 100
    assert row["onnx_bits"] == pytest.approx(row["ours_bits"], abs=1e-5)  # caches cut alike
    uncut = edge.loss_row(replace(trained, policy=FULL), 100)
    assert abs(uncut["ours_bits"] - row["ours_bits"]) > 1e-4
    assert 1e-7 < abs(row["int8_bits"] - row["onnx_bits"]) < 0.1
    assert row["int8_graph_bytes"] < row["onnx_graph_bytes"]
    store = Store(None)
    store.add([row | {"what": "loss", "contestant": "a run", "onnxruntime": "1"}])
    (shown,) = re.findall(r"^\| `a run` .*", table.edge(store.content), re.MULTILINE)
    assert f"| {row['int8_bits'] - row['onnx_bits']:+.4f} " in shown


def test_sections_of_pages_come_from_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(Path("results/bench/kernels.json"))
    call = layer(torch.nn.Identity(), 1, 4, 2, CPU)
    times = timing.measure([Contestant("fused", lambda *_: call)], 1, 4, 2, Limits(rounds=1), CPU)
    store.note(channels=2, notes={"identity": "Nothing at all."})
    store.add(kernels.as_rows("identity", 1, 4, times, 1e9))
    target = Target({"operation": "identity"}, "fused", "fused", at_least=2.0)
    store.note(targets=[target.verdict(store.rows)])
    sections = "\n".join(f"<!-- generated:{name} -->\n<!-- /generated:{name} -->" for name in table.SUBJECTS)
    Path("README.md").write_text(sections)
    Path("results/none").mkdir()
    assert analyse(["results", "--pages", "README.md"]) == 0
    text = Path("README.md").read_text()
    assert "**identity, 2 channels.** Nothing at all." in text
    assert "| **missed**" in text
    assert text.count("Not measured yet") == len(table.SUBJECTS) - 1


def test_a_cell_says_the_time_of_the_whole_batch_and_the_rate_of_a_token(clock):
    times = timing.measure([sleeper(clock, 4e-6)], 4, 1000, 3, Limits(rounds=1), CPU)
    content = {"channels": 3, "notes": {}, "skipped": {}, "packages": {}, "targets": []}
    content["rows"] = [row | {"date": "today"} for row in kernels.as_rows("sleep", 4, 1000, times, 1e9)]
    content["machine"] = {"gpu": None, "cpu": "a clock", "threads": 1}
    (cell,) = [line for line in table.kernels(content).splitlines() if line.startswith("| 4e-06 s |")][:1]
    assert cell.split("|")[2].strip() == "4 ms · 1M/s · 1"


def test_ncps_reads_as_many_tokens_as_its_backward_holds_in_a_gigabyte():
    kept = CONFIGS["kernels"]["channels"] ** 2 * liquid.SUBSTEPS * liquid.NCPS_TOKENS  # numbers of float32
    assert 0.5e9 < 4 * kept < 1e9


def test_measurements_are_kept_where_they_are_shared_unless_a_place_is_given_or_it_was_a_quick_look():
    assert command.arguments(["kernels"]).out == run.ROOT / "results" / "bench"
    assert command.arguments(["kernels", "--quick"]).out is None
    assert command.arguments(["kernels", "--out", "mine"]).out == Path("mine")
    assert command.arguments(["kernels", "--quick", "--out", "mine"]).out == Path("mine")
