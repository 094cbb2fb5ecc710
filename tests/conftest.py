"""What every test shares: a fixed seed, `architecture`, which runs a test for each file of conf/model, and Triton.

Without a GPU the Triton kernels run in its interpreter, which must be asked for before they are imported.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import configs


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", configs.MODELS)


def pytest_collection_modifyitems(items):
    """Marks whatever names Triton as slow: its interpreter and its compiler take seconds for the smallest call."""
    for item in items:
        if "triton" in item.nodeid.lower():
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
