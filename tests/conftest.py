"""What every test shares: a fixed seed, and Triton.

`architecture` runs a test for each file of conf/model, and leaves to `make test-long` those that the question does not
name, unless the test is marked `every`.

Without a GPU the Triton kernels run in its interpreter, which must be asked for before they are imported. Two workers
run the tests (pytest-xdist), and numba's kernels, which take seconds each to compile, are compiled by one of them.
"""

import os
import re

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import configs


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        every = metafunc.definition.get_closest_marker("every")
        metafunc.parametrize("architecture", configs.MODELS if every else configs.mostly_long(configs.MODELS))


WHOLE = re.compile(
    r"test_(analysis|architectures|bench|checkpoint|checks|code|gradients|html|kernels|loggers|mtlnn|mutation|newton|"
    r"operations|pages|queue|references|run|sweeps|trained|verdict|workers)\.py"
)
"""Files that make whole runs, checks, sweeps or reports, or kernels of every operation: more than a minute holds."""
ESSENTIAL = re.compile(r"-(?:numba|triton)-results-float32|-torch-")
"""What `make test` asks of every kernel, by the ids of the conformance tests: values and gradients."""

DEAR = re.compile(
    r"test_a_change_in_any_path_of_a_mixer_is_caught\[(?:mtlnn|m1|transformer|rwkv)\]"
    r"|test_every_subject_runs\[(?:checks|newton)\]"
    r"|test_every_combination_is_sized_and_passes_the_checks\[(?:gru gated|convolution before attention)\]"
    r"|test_paths_agree_for_other_options\[.*dense"
    r"|test_odd_sizes\[neuron_scan-triton-|test_neurons_triton\.py::test_several_tiles"
    r"|test_the_reference_and_the_fused_kernel_give_the_same_training_curve\[(?!ltc\])"
    r"|test_a_kernel_conforms\[\w+-triton-results-float32-(?:states=\d+,)?kind="
)
"""What it leaves to `make test-long` of tests that it makes of others: each takes a second to half a minute."""


def pytest_collection_modifyitems(config, items):
    """Marks as slow the files of WHOLE, and whatever names Triton, whose interpreter and compiler take seconds a call.

    What is slow goes first, so that the workers end together. What is long waits until LIQUIDBENCH_LONG asks for it, or
    `pytest -m oracles` for all architectures.
    """
    later = pytest.mark.skip(reason="takes a minute or more of both processors: make test-long")
    all_wanted = os.environ.get("LIQUIDBENCH_LONG") or config.getoption("markexpr") == "oracles"
    for item in items:
        conforms = "test_a_kernel_conforms" in item.nodeid
        if DEAR.search(item.nodeid) or (conforms and not ESSENTIAL.search(item.nodeid)):
            item.add_marker(pytest.mark.long)
        if "triton" in item.nodeid.lower() or WHOLE.search(item.nodeid):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("long") and not all_wanted:
            item.add_marker(later)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


TOGETHER = re.compile(r"tests/test_(?:operations\.py::test_\w+\[(\w+-\w+)[-\]]|numba_math\.py|processes\.py)")
"""Tests, by their ids, that need one compilation, of one kernel or of the functions of kernels, or one dear fixture."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Gives a worker all tests that need one compilation; any other test, afterwards, goes to whoever is free.

    The workers share numba's cache: two that came to one kernel at a time would both compile it.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            found = TOGETHER.match(nodeid)
            return found[found.lastindex or 0] if found else nodeid

    return Together(config, log)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # a run turns it on for its process, and hypothesis draws denormals


def pytest_terminal_summary(terminalreporter):
    """Prints what tests of oracles found, where they are what was asked for."""
    if terminalreporter.config.getoption("markexpr") == "oracles":
        reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("skipped")]
        lines = (value for report in reports for name, value in report.user_properties if name == "oracle")
        for line in sorted(set(lines)):
            terminalreporter.write_line(line)
