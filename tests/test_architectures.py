"""Every architecture of conf/model is checked, with no list to maintain."""

import pytest
import torch

import configs
from harness.checks.runner import run_checks
from harness.model.sizing import SizeConfig, solve


@pytest.mark.slow
def test_every_architecture_passes_the_checks(architecture):
    spec = configs.spec(architecture)
    size = SizeConfig(250_000, 2)
    model = spec.build(256, size.n_layers, solve(spec, 256, size))
    checks = run_checks(model, spec, 256, size)
    assert checks.passed, [check for check in checks.results if check.passed is False]


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
