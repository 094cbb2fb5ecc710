"""The Lyapunov exponent of recurrences whose exponent is known, and the bench's subject `dynamics`."""

import math
import re

import pytest
import torch
import yaml

import configs
import harness
import recorded_run
import run
import tiny
from analysis import bench as tables
from bench import __main__ as command
from bench import dynamics, edge
from bench.store import Store
from harness.config.errors import ConfigError
from harness.measurement.lyapunov import exponents
from harness.model.backbone import ModelSpec, Width
from harness.model.mixer import Flops, Mixer


class Logistic(Mixer):
    """h' = 4 h (1 - h), whatever it reads: its exponent is log 2."""

    def forward(self, x, state=None, call=None):
        h, outputs = (self.init_state(len(x), dtype=x.dtype) if state is None else state)["h"], []
        for _ in range(x.shape[1]):
            h = 4 * h * (1 - h)
            outputs.append(h)
        return torch.stack(outputs, 1), {"h": h}

    def step(self, x_t, state, call=None):
        y, state = self.forward(x_t[:, None], state)
        return y[:, 0], state

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {"h": torch.linspace(0.1, 0.7, self.d_model, dtype=dtype).expand(batch, -1).clone()}

    def flops_per_token(self, context):
        return Flops(0, 3 * self.d_model)


TOKENS = torch.randint(tiny.VOCAB, (3, 640), generator=torch.Generator().manual_seed(0))
CONFIG = yaml.safe_load((run.ROOT / "conf" / "bench" / "dynamics.yaml").read_text())
CONFIG |= CONFIG["quick"]


def test_the_slowest_decay_of_all_layers_is_the_exponent_of_a_linear_recurrence():
    model = tiny.model(dropout=0.2)
    with torch.no_grad():
        model.blocks[1].mixer.rate[3] = 5.0  # all others forget by a half
    found = exponents(model, TOKENS, settle=100)
    torch.testing.assert_close(
        found, torch.full((3,), math.log(torch.sigmoid(torch.tensor(5.0)))).double(), atol=1e-6, rtol=0
    )


def test_the_exponent_of_a_chaotic_map_is_found():
    model = ModelSpec("logistic", Logistic).build(tiny.VOCAB, 1, Width(8, 0))
    found = exponents(model, TOKENS, settle=40)
    torch.testing.assert_close(found, torch.full((3,), math.log(2)).double(), atol=0.08, rtol=0)


def test_what_remembers_a_few_tokens_leaves_no_difference():
    spec = configs.spec("transformer_window", "model.mixer.window=16", "kernel=reference")
    found = exponents(spec.build(tiny.VOCAB, 2, Width(32, 16)), TOKENS[:, :200], settle=100)
    assert (found == -math.inf).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{model: a run of two updates}."""
    homes = {name: tmp_path_factory.mktemp(name) for name in ("ltc", "gru", "transformer")}
    return {name: harness.load(recorded_run.make(home, f"model={name}")) for name, home in homes.items()}


@pytest.mark.slow
def test_the_weights_stay_and_the_solver_changes(trained):
    own = trained["ltc"].config["model"]["mixer"]["solver"]
    same, exact = (dynamics.with_solver(trained["ltc"], solver) for solver in (own, own | {"substeps": 500}))
    tokens = torch.randint(256, (1, 60))
    with torch.no_grad():
        ours, equal, other = (model.model(tokens)[0] for model in (trained["ltc"], same, exact))
    assert torch.equal(ours, equal)
    assert 1e-7 < (ours - other).abs().max() < 0.05
    assert dynamics.with_solver(trained["gru"], own) is None


@pytest.mark.slow
def test_a_run_has_what_can_be_measured_of_it_and_the_page_shows_it(trained, tmp_path, capsys):
    folders = [str(one.path) for one in trained.values()]
    command.main(["dynamics", *folders, "--quick", "--out", str(tmp_path)])
    rows = {row["model"]: row for row in tables.read(tmp_path / "dynamics.json")["rows"]}
    assert rows["ltc"]["solver"] == "semi_implicit"
    text = torch.from_numpy(edge.text_of(trained["ltc"]).streams["test"][: CONFIG["bytes"] + 1].astype("int64"))
    with torch.no_grad():
        logits = trained["ltc"].model(text[None, :-1])[0][0]
    nats = torch.nn.functional.cross_entropy(logits, text[1:]).item()
    assert rows["ltc"]["bits"] == pytest.approx(nats / math.log(2), rel=1e-5)
    assert 0 < abs(rows["ltc"]["bits"] - rows["ltc"]["exact_bits"]) < 0.1
    low, high = rows["ltc"]["lyapunov_ends"]
    assert low < rows["ltc"]["lyapunov"] < high
    assert rows["transformer"]["lyapunov"] is None
    assert "bits" not in rows["gru"]
    shown = capsys.readouterr().out
    assert f"| {rows['ltc']['lyapunov']:+.3g} " in shown
    assert "| its state grows " in shown
    command.main(["dynamics", *folders, "--quick", "--out", str(tmp_path)])
    assert "lyapunov" not in capsys.readouterr().out.partition("**")[0]  # nothing is measured twice


def test_the_exponents_of_seeds_are_shown_together():
    store = Store(None)
    for seed, exponent in enumerate((-0.01, -0.03)):
        row = {"model": "a", "params": 250_000, "task": "text", "learning_rate": 1e-3, "seed": seed, "constant": True}
        store.add([row | {"contestant": f"a{seed}", "lyapunov": exponent}])
    store.add([row | {"contestant": "b", "task": "other", "lyapunov": None}])
    shown = re.sub(" +", " ", tables.dynamics(store.content))
    assert "| a | text | 250k | 0.001 | 2 | -0.02 (-0.03 to -0.01) | 50 tokens " in shown
    assert "| a | other | 250k | 0.001 | 1 | nothing is left | |" in shown


def test_snapshots_are_measured_and_shown_by_updates(tmp_path):
    path = recorded_run.make(tmp_path, "model=ltc", "trainer.snapshots=2", "trainer.tokens=512")
    store = Store(None)
    said: list[str] = []
    exact = {"exact": ["model=ltc", "solver=rk4", "solver.substeps=2"]}
    dynamics.run(CONFIG | exact, store, [path], said.append)
    dynamics.run(CONFIG | exact, store, [path], said.append)
    first, last = store.rows
    assert len(said) == 2
    assert first["update"] < last["updates"]
    assert "update" not in last
    assert (first["bits"], first["lyapunov"]) != (last["bits"], last["lyapunov"])
    header, *shown = tables.dynamics(store.content).partition("In training at the rate 0.003")[2].splitlines()[2:6]
    assert [cell.strip() for cell in header.split("|")[1:4]] == [
        "updates",
        "ltc, semi_implicit",
        "ltc, semi_implicit: nats a token",
    ]
    error = last["exact_bits"] - last["bits"]
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in shown[1:]]
    assert cells[0][0] == f"{first['update']:,}"
    assert cells[1] == [f"{last['updates']:,}", f"{error:+.4f}", f"{last['lyapunov']:+.3g}"]


def test_runs_without_snapshots_have_no_table_of_training():
    store = Store(None)
    row = {"model": "a", "params": 1, "task": "text", "learning_rate": 1e-3, "constant": True, "lyapunov": -0.1}
    store.add([row | {"contestant": "a"}])
    assert "In training" not in tables.dynamics(store.content)


def test_a_text_that_is_too_short_is_refused(trained):
    with pytest.raises(ConfigError, match=r"The test split of .+ has \d+ bytes.+settle"):
        dynamics._row(trained["gru"], CONFIG | {"tokens": 10**6}, {})
