"""What every test shares: a fixed seed, and `architecture`, which runs a test for each file of conf/model."""

import pytest
import torch

import configs


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", configs.MODELS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
