"""The mutation tests: their sample is a function of the seed, and their page is what the results and reasons give."""

import ast

import pytest
import yaml

import mutation


def test_the_page_is_what_the_results_and_the_reasons_give():
    reasons = yaml.safe_load(mutation.REASONS.read_text())
    assert mutation.PAGE.read_text() == mutation.page(list(mutation.results().values()), reasons)


def test_every_survivor_has_a_reason_and_nine_tenths_of_the_others_are_killed():
    reasons = yaml.safe_load(mutation.REASONS.read_text())
    results = mutation.results()
    survivors = {key for key, result in results.items() if result["verdict"] != "killed"}
    assert survivors <= set(reasons)
    meant = [key for key in results if not (key in survivors and reasons[key]["equivalent"])]
    assert len(survivors & set(meant)) <= 0.1 * len(meant)


def test_the_mutants_of_a_module_run_and_are_named_by_what_they_change():
    pytest.importorskip("cosmic_ray", reason="pip install .[mutation]")
    path = "harness/training/ledger.py"
    every = list(mutation.mutants(path))
    assert len({mutant.key for mutant in every}) == len(every)
    assert ("norm > limit", "norm >= limit") in [
        tuple(side.split(" if ")[1].split(" else ")[0] for side in mutation.change(mutant))
        for mutant in every
        if mutant.operator == "ReplaceComparisonOperator_Gt_GtE" and " if " in mutant.text
    ]
    for mutant in every[:20]:
        ast.parse(mutant.code())
        before, after = mutation.change(mutant)
        assert before != after


def test_every_exception_that_is_replaced_can_be():
    pytest.importorskip("cosmic_ray", reason="pip install .[mutation]")
    replaced = [m for m in mutation.mutants("harness/machine/load.py") if m.operator == "ExceptionReplacer"]
    assert "except (OSError, ValueError, psutil.Error):" in {mutant.text for mutant in replaced}
    for mutant in replaced:
        assert "CosmicRayTestingException" in mutant.code()


def test_tests_concern_the_modules_that_they_import():
    assert mutation.concerning("harness/training/ledger.py") == ["tests/test_ledger.py"]
    assert "tests/test_checks.py" in mutation.concerning("harness/checks/checks.py")  # by way of the runner
    assert mutation.concerning("arch/ltc/oracle.py")[0] == "tests/test_ltc_oracle.py"  # which no one imports
    assert mutation.concerning("arch/m1/memory.py")[-1] == mutation.OPERATIONS  # which finds operations itself
    assert all(map(mutation.concerning, mutation.modules()))


def test_sizes_that_only_samples_read_are_no_product():
    source = "A = 1\n_SIZES = {2: 3}\ndef sample():\n    return 4\nX = f(\n    Samples(sample, _SIZES),\n)\nB = 5\n"
    assert mutation.test_data(source) == {2, 3, 4, 6}
