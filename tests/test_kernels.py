"""The registry: one rule chooses, a forced kernel that cannot serve is an error, every kernel named exists."""

import dataclasses
import importlib

import pytest
import torch

import configs
import run
from arch.gradients import Backprop
from arch.ltc.mixer import LTC
from arch.newton import Newton, Sequential
from harness.config.errors import ConfigError
from harness.generation.decode import Decoder
from harness.model.backbone import Width
from harness.model.mixer import Call
from harness.ops import registry as kernels
from harness.ops.registry import Kernel, Operation


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


def test_what_served_is_known_by_device(operation):
    operation.choose("auto", torch.device("cpu"), torch.float64, size=2)
    with kernels.recording() as served:
        operation.choose("auto", torch.device("cpu"), torch.float32, size=2)
        with kernels.recording() as within:
            operation.choose("auto", torch.device("cpu"), torch.float32, size=2)
        operation.choose("auto", torch.device("cpu"), torch.float32, size=3)
        operation.choose("auto", torch.device("meta"), torch.float32, size=2)
    operation.choose("auto", torch.device("cuda"), torch.float32, size=2)
    assert served.on(torch.device("cpu")) == {"test_double": ["plain", "reference"]}
    assert served.on(torch.device("meta")) == {"test_double": ["reference"]}
    assert served.on(torch.device("cuda")) == {}
    assert within.on(torch.device("cpu")) == {"test_double": ["plain"]}


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


def test_an_optional_operation_falls_back_where_fused_is_asked_for(operation):
    optional = dataclasses.replace(operation, optional=True)
    assert optional.choose("fused", torch.device("cpu"), torch.float32, size=2) is fast_double
    assert optional.choose("fused", torch.device("cuda"), torch.float32, size=2) is double


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fused_is_served_on_either_device_or_optional(device):
    """Whatever the sizes and the packages installed."""
    bound = {name: operation for name, operation in _operations().items() if not operation.optional}
    assert {"liquid_scan", "linear_scan", "lstm_scan", "gru_scan", "attention", "causal_conv"} <= set(bound)
    for name, operation in bound.items():
        serving = [kernel for kernel in operation.kernels if kernel.device == device]
        assert any(torch.float32 in kernel.dtypes for kernel in serving), name


WIDE = {"cfc": "cfc_scan", "cfc_ncp": "wired_cfc_scan", "ltc_ncp": "neuron_scan", "lrcssm": "lrc_scan"}
"""Models whose scan is fused for float32 and float64 alone."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.inference_mode()
def test_a_model_of_fused_kernels_generates_in_every_type(architecture, dtype):
    if configs.is_torch_alone(architecture):
        pytest.skip("its mixer has no kernels to choose from")
    fused, auto = (_model(architecture, kernel, dtype) for kernel in ("fused", "auto"))
    fused.load_state_dict(auto.state_dict())
    tokens = torch.randint(256, (6, 2))
    bare = dtype == torch.bfloat16 and architecture in WIDE  # its scan takes no bfloat16 and says so
    if bare:
        with pytest.raises(ConfigError, match=f"cannot serve {WIDE[architecture]}"):
            fused(tokens[:4].t())
    state = (auto if bare else fused)(tokens[:4].t())[1]
    decoder = Decoder(fused, state)
    for token in tokens[4:]:
        expected, state = auto.step(token, state)
        error = (decoder.step(token) - expected).norm() / expected.norm()
        assert error < (1e-10 if dtype == torch.float64 else 0.05)  # bfloat16 rounds the frozen steps elsewhere


def _model(architecture: str, kernel: str, dtype: torch.dtype):
    spec = configs.spec(architecture, f"kernel={kernel}")
    return spec.build(256, 2, Width(64, 0 if spec.channel_mixer is None else 96)).to(dtype).eval()


def test_what_served_names_the_torch_code_of_training_beside_the_kernel_of_evaluation():
    ltc, x = LTC(8, gradient=Backprop()), torch.randn(2, 6, 8)
    with kernels.recording() as served:
        ltc(x)[0].sum().backward()
        assert served.on(x.device)["liquid_scan"] == ["reference"]
        with torch.no_grad():
            ltc(x)
    assert served.on(x.device)["liquid_scan"] == ["numba", "reference"]


def test_a_fall_to_a_slow_loop_is_said_once_with_its_reason(operation):
    said = []
    with kernels.recording(said.append):
        for size in (3, 3, 2, 5):
            operation.choose("auto", torch.device("cpu"), torch.float32, size=size)
        operation.choose("auto", torch.device("cuda"), torch.float32, size=2)
        operation.choose("reference", torch.device("cpu"), torch.float32, size=3)
        dataclasses.replace(operation, optional=True).choose("auto", torch.device("cpu"), torch.float32, size=3)
    on_cpu, on_cuda = said
    assert on_cpu.startswith("Slow: test_double runs as a loop in torch")
    assert "absent needs no_such_module installed; plain: size is odd" in on_cpu
    assert "kernel=fused" in on_cpu
    assert "no kernel runs on cuda" in on_cuda


def test_every_architecture_trains_and_infers_by_kernels_on_the_cpu(architecture):
    """In float32, as conf/model has it, none of them falls to a loop in torch."""
    net, said = _model(architecture, "auto", torch.float32), []
    tokens = torch.randint(256, (2, 6))
    with kernels.recording(said.append):
        net.train()(tokens)[0].sum().backward()
        with torch.no_grad():
            net.eval()(tokens)
    assert said == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["model=ltc"], []),
        pytest.param(["model=ltc_published"], [], marks=pytest.mark.long),
        (["model=ltc", "gradient=backprop"], ["gradient=backprop"]),
    ],
    ids=" ".join,
)
def test_a_run_says_that_no_kernel_serves_it_before_it_evaluates(overrides, lines, tmp_path):
    plain = run.resolve(run.compose([*overrides, "debug=tiny", f"records={tmp_path}"]))
    said = []
    run.build(run.own_keys(plain)).run(plain, said.append)
    slow = [line for line in said[: said.index("Evaluating ...")] if line.startswith("Slow: liquid_scan")]
    assert len(slow) == len(lines)
    assert not [line for line in said if line.startswith("Slow: ") and line not in slow]
    for line, reason in zip(slow, lines, strict=True):
        assert reason in line


@pytest.mark.parametrize("parallel", [Sequential(), Newton()], ids=["sequential", "newton"])
def test_fused_refuses_a_gradient_by_the_elapsed_time(parallel):
    elapsed = torch.ones(2, 6, requires_grad=True)
    with pytest.raises(ConfigError, match="no gradient by elapsed"):
        LTC(8, kernel="fused", parallel=parallel)(torch.randn(2, 6, 8), call=Call(elapsed))
