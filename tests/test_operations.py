"""Every kernel of every operation against its reference, by the calls that the operation brings; and planted faults."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import conformance
from conftest import TOGETHER
from harness.ops import registry
from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples

OPERATIONS = conformance.operations()
FOUND = [(op, kernel) for op in OPERATIONS.values() if op.samples for kernel in conformance.kernels_of(op)]
CHECKS = {
    f"{operation.name}-{kernel.backend}-{name}": check
    for operation, kernel in FOUND
    for name, check in conformance.checks_of(operation, kernel).items()
}
ODD = [
    pytest.param(operation, kernel, dtype, id=f"{operation.name}-{kernel.backend}-{str(dtype)[6:]}", marks=marks)
    for operation, kernel in FOUND
    for dtype, marks in ((torch.float32, ()), (torch.float64, pytest.mark.long))
    if dtype in kernel.dtypes
]


def test_every_operation_brings_samples():
    assert {name for name, operation in OPERATIONS.items() if operation.samples is None} == set()


def test_all_tests_of_a_kernel_go_to_one_worker():
    ids = [f"test_a_kernel_conforms[{name}]" for name in CHECKS]
    ids += [f"test_odd_sizes[{given.id}]" for given in ODD]
    together = {TOGETHER.match(f"tests/test_operations.py::{name}")[1] for name in ids}
    assert together == {f"{operation.name}-{kernel.backend}" for operation, kernel in FOUND}


def test_every_cpu_kernel_is_checked():
    for operation, kernel in FOUND:
        if kernel.device == "cpu":
            assert any(name.startswith(f"{operation.name}-{kernel.backend}-results") for name in CHECKS)


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("name", CHECKS)
def test_a_kernel_conforms(name):
    CHECKS[name]()


@pytest.mark.parametrize(("operation", "kernel", "dtype"), ODD)
def test_odd_sizes(operation, kernel, dtype):
    samples, tiny = operation.samples, conformance.interpreted(kernel)
    variants = [v for v in samples.variants if conformance.serves(operation, kernel, v, dtype)]
    largest = 17 if tiny else max(itertools.chain(*samples.sizes.values()))
    sizes = {name: st.sampled_from([n for n in values if n <= largest]) for name, values in samples.sizes.items()}

    @settings(max_examples=3 if tiny else 20, deadline=None)
    @given(st.sampled_from(variants), st.fixed_dictionaries(sizes))
    def holds(variant, size):
        conformance.check_results(operation, kernel, variant | size, dtype, slack=8)

    holds()


# Kernels of an operation made for this test, the running sum of x (batch, length, width) from a state (batch, width).


def running_sum(x, state):
    return torch.cat([state.unsqueeze(1), x], dim=1).cumsum(1)[:, 1:]


def of_wrong_value(x, state):
    y = running_sum(x, state)
    return torch.cat([y[:, :2], y[:, 2:] * (1 + 1e-4)], dim=1)


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        return 1.001 * g


def of_wrong_gradient(x, state):
    return running_sum(x, _HalfGradient.apply(state))


def wrong_at_length_one(x, state):
    return x if x.shape[1] == 1 else running_sum(x, state)


def writing_to_its_input(x, state):
    y = running_sum(x, state)
    x.detach()[:, 0] += 1
    return y


def writing_to_its_upstream_gradient(x, state):
    y = running_sum(x, state)
    if y.requires_grad:
        y.register_hook(lambda g: g.zero_())
    return y


def leaving_part_unwritten(x, state):
    y = running_sum(x, state)
    if x.shape[2] % 2:  # the last channel, where the width is odd
        fresh = torch.empty_like(y[..., -1:])
        y = torch.cat([y[..., :-1], fresh + 0 * y[..., -1:]], dim=-1)
    return y


def reading_memory_in_order(x, state):
    flat = x.as_strided((x.numel(),), (1,)) if x.storage_offset() == 0 else x.flatten()
    return running_sum(flat.view(x.shape), state)


def overflowing(x, state):
    return running_sum(x, state).exp().log()


def hiding_nan(x, state):
    return running_sum(x.nan_to_num(nan=0.0), state)


def following_the_threads(x, state):
    return running_sum(x, state) * (1 + 1e-14 * torch.get_num_threads())


def of_another_type(x, state):
    return running_sum(x, state).double()


FAULTS = (
    of_wrong_value, of_wrong_gradient, wrong_at_length_one, writing_to_its_input, writing_to_its_upstream_gradient,
    leaving_part_unwritten, reading_memory_in_order, overflowing, hiding_nan, following_the_threads, of_another_type,
)  # fmt: skip


@pytest.fixture
def planted():
    """Makes the operation with one kernel, the function of this file."""

    def make(function) -> tuple[Operation, Kernel]:
        def sample(draw: Draw, batch=2, length=5, width=3) -> Sample:
            return Sample((draw.normal(batch, length, width), draw.normal(batch, width)))

        kernel = Kernel("numba", "cpu", f"{__name__}:{function.__name__}")
        samples = Samples(sample, {"length": (1, 3)})
        return Operation("test_running_sum", running_sum, (kernel,), samples=samples), kernel

    yield make
    registry.OPERATIONS.pop("test_running_sum", None)


def test_a_kernel_without_fault_passes(planted):
    for check in conformance.checks_of(*planted(running_sum)).values():
        check()


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_a_planted_fault_is_found(planted, fault):
    failed = []
    for name, check in conformance.checks_of(*planted(fault)).items():
        try:
            check()
        except AssertionError:
            failed.append(name)
    assert failed
