"""The registry: one rule chooses, a forced kernel that cannot serve is told, and every kernel that is named exists."""

import importlib

import pytest
import torch

import configs
from harness import kernels
from harness.errors import ConfigError
from harness.kernels import Kernel, Operation


def double(x):
    return 2 * x


def fast_double(x):
    return x + x


def odd_sizes(size):
    return "size is odd" if size % 2 else None


@pytest.fixture
def operation():
    made = Operation(
        "test_double",
        double,
        (
            Kernel("absent", "cpu", f"{__name__}:fast_double", needs=("no_such_module",)),
            Kernel("plain", "cpu", f"{__name__}:fast_double", dtypes=(torch.float32,), refuses=odd_sizes),
        ),
    )
    yield made
    del kernels.OPERATIONS["test_double"]
    kernels.CHOSEN.clear()


def test_auto_takes_the_first_kernel_that_serves(operation):
    assert operation.choose("auto", torch.device("cpu"), torch.float32, size=2) is fast_double
    assert operation.choose("fused", torch.device("cpu"), torch.float32, size=2) is fast_double
    assert operation.serves("cpu", torch.float32, size=2)


def test_auto_falls_back_and_reference_is_always_at_hand(operation):
    assert operation.choose("auto", torch.device("cpu"), torch.float64, size=2) is double
    assert operation.choose("auto", torch.device("cpu"), torch.float32, size=3) is double
    assert operation.choose("auto", torch.device("cuda"), torch.float32, size=2) is double
    assert operation.choose("reference", torch.device("cpu"), torch.float32, size=2) is double
    assert not operation.serves("cpu", torch.float32, size=3)


def test_what_served_is_known_by_type(operation):
    kernels.CHOSEN.clear()
    operation.choose("auto", torch.device("cpu"), torch.float32, size=2)
    operation.choose("auto", torch.device("cpu"), torch.float32, size=3)
    operation.choose("auto", torch.device("cpu"), torch.float64, size=2)
    assert kernels.served(torch.float32) == {"test_double": ["plain", "reference"]}
    assert kernels.served(torch.float64) == {"test_double": ["reference"]}


@pytest.mark.parametrize(
    ("device", "dtype", "size", "reason"),
    [
        ("cpu", torch.float32, 3, "plain: size is odd"),
        ("cpu", torch.float64, 2, "plain takes float32"),
        ("cuda", torch.float32, 2, "plain runs on cpu"),
        ("cpu", torch.float32, 3, "absent needs no_such_module installed"),
    ],
)
def test_a_forced_kernel_that_cannot_serve_says_why(operation, device, dtype, size, reason):
    with pytest.raises(ConfigError) as error:
        operation.choose("fused", torch.device(device), dtype, size=size)
    assert reason in error.value.expected
    assert f"size={size}" in error.value.what
    assert "kernel=auto" in error.value.remedy


def _operations() -> dict[str, Operation]:
    for name in configs.MODELS:
        configs.spec(name)  # imports what defines them
    return kernels.OPERATIONS


def test_every_registered_kernel_can_be_loaded():
    operations = _operations()
    assert {"liquid_scan", "selective_scan", "rwkv_scan", "cfc_scan", "swiglu", "rms_norm"} <= set(operations)
    for operation in operations.values():
        for kernel in operation.kernels:
            if all(importlib.util.find_spec(name) for name in kernel.needs):
                assert callable(kernel.load()), (operation.name, kernel.path)


def test_every_recurrence_has_a_kernel_on_either_device():
    operations = _operations()
    for name in ("liquid_scan", "selective_scan", "rwkv_scan", "cfc_scan"):
        devices = {kernel.device for kernel in operations[name].kernels}
        assert devices == {"cpu", "cuda"}, name
