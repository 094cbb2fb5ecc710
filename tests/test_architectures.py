"""Every architecture of conf/model is checked, with no list to maintain."""

import pytest
import torch

import configs
import run
from harness.checks import runner, running
from harness.checks.case import CHECKS
from harness.checks.conditions import Conditions
from harness.model.sizing import SizeConfig, solve

REFUSED_IN_BF16 = {"neural_ode": ["precision"]}
"""What fails in bf16: a state without a leak gathers the rounding of 1,231 tokens, and such a run is refused."""


def assert_it_passes(spec, precision="fp32", layers=None, but=()):
    """The checks at a small size, with every mixer of its pattern; under bf16 those that its precision can change."""
    layers = layers or max(2, len(spec.pattern))
    size = SizeConfig(125_000 * layers, layers)
    model = spec.build(256, size.n_layers, solve(spec, 256, size))
    ours = (check for check in CHECKS.values() if precision == "fp32" or check.__module__ == running.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "CHECKS", {check.__name__: check for check in ours})
        checks = runner.run_checks(model, spec, 256, size, conditions=Conditions(256, 3, precision))
    failed = [check for check in checks.results if check.passed is False]
    assert [check.name for check in failed] == list(but), failed


@pytest.mark.slow
def test_every_architecture_passes_the_checks(architecture):
    assert_it_passes(configs.spec(architecture))


@pytest.mark.slow
def test_an_architecture_passes_the_checks_in_bfloat16(architecture):
    assert_it_passes(configs.spec(architecture), "bf16", but=REFUSED_IN_BF16.get(architecture, ()))


EXPERIMENTS = sorted(
    path.stem for path in (run.ROOT / "conf" / "experiment").glob("*.yaml") if "override /model:" in path.read_text()
)
"""Those that choose a model; the others choose a task and how it is trained."""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_passes_the_checks(experiment, precision):
    assert_it_passes(run.build(run.resolve(run.compose([f"experiment={experiment}"]))["model"]), precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["ltc", "lrcssm"])
def test_newtons_method_passes_the_checks(model, precision):
    assert_it_passes(configs.spec(model, "parallel=newton"), precision, layers=1)


@pytest.mark.parametrize("check", ["prefill_and_step", "state_shape", "flops"])  # all of them take minutes
def test_an_adaptive_solver_keeps_its_state(monkeypatch, check):
    spec = configs.spec("ltc", "solver=adaptive_heun", "model.mixer.coupling=dense")
    size = SizeConfig(20_000, 1, tolerance=0.2)
    monkeypatch.setattr(runner, "CHECKS", {check: CHECKS[check]})
    checks = runner.run_checks(spec.build(32, 1, solve(spec, 32, size)), spec, 32, size)
    assert checks.passed, checks.results


@pytest.mark.every
def test_two_files_are_all_an_architecture_needs(architecture):
    node = configs.resolved(f"model={architecture}")["model"]
    assert node["name"] == architecture
    mixers = node["mixer"] if isinstance(node["mixer"], list) else [node["mixer"]]
    assert {mixer["_target_"].split(".")[0] for mixer in mixers} <= {"arch", "baselines"}


def test_building_is_a_function_of_the_seed(architecture):
    spec = configs.spec(architecture)
    width = solve(spec, 256, SizeConfig(150_000, 2))
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(spec.build(256, 2, width))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_computed_again_gives_the_same_gradients_and_keeps_less(architecture):
    """Also where a block reads what another one shares with it, as RWKV-7's values do."""
    spec = configs.spec(architecture)
    size = SizeConfig(125_000 * max(2, len(spec.pattern)), max(2, len(spec.pattern)))
    torch.manual_seed(0)
    model = spec.build(32, size.n_layers, solve(spec, 32, size)).train()
    tokens, figures = torch.randint(32, (2, 24)), []
    for model.recompute in (False, True):
        kept = []
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss = model(tokens)[0].logsumexp(-1).sum()
        loss.backward()
        figures.append((loss.item(), sum(kept), [parameter.grad.clone() for parameter in model.parameters()]))
    (loss, all_kept, gradients), (again, few_kept, same) = figures
    assert again == loss
    assert few_kept < all_kept / 2
    for a, b in zip(gradients, same, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
