"""Each architecture against others' implementations that carry its weights: `pytest -m oracles` prints how close.

The check `oracle` holds values alone, since it is made before every run.
"""

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from torch import Tensor

import configs
from harness.checks.oracles import Oracle, comparable, find_oracle
from harness.checks.tolerances import allowance, distance
from harness.model.backbone import LanguageModel
from harness.model.mixer import Call, Mixer
from harness.model.sizing import SizeConfig, solve

READ, DECODED = 17, 64
LOGITS = 1e-4
"""Relative to the largest: what two layers make of the differences of theirs, most of which compute in float32."""
DISTRIBUTIONS = {"mamba-ssm": "mamba-ssm", "minGRU_pytorch": "minGRU-pytorch"}


def built(name: str) -> LanguageModel:
    spec = configs.spec(name)
    size = SizeConfig(60_000 * max(2, len(spec.pattern)), max(2, len(spec.pattern)), tolerance=0.1)
    model = spec.build(256, size.n_layers, solve(spec, 256, size)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # what starts at zero hides whatever it multiplies
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def of(oracle: Oracle) -> str:
    """Whose implementation it is, with the version."""
    package = oracle.name.split()[0].split(",")[0].split(".")[0]
    try:
        return f"{oracle.name} ({version(DISTRIBUTIONS.get(package, package))})"
    except PackageNotFoundError:
        return oracle.name


def compared(mixer: Mixer, oracle: Oracle) -> tuple[float, float | None]:
    """How far values and gradients by the inputs differ; None where theirs has no gradients."""
    x = torch.randn(2, READ, mixer.d_model, dtype=torch.float64)
    weights = torch.randn(2, READ, mixer.d_model, dtype=torch.float64)

    def run(function) -> tuple[Tensor, Tensor | None]:
        read = x.clone().requires_grad_()
        y = function(read).double()
        return y.detach(), torch.autograd.grad((y * weights).sum(), read)[0] if y.requires_grad else None

    (ours, our_gradient), (theirs, their_gradient) = run(lambda x: mixer(x)[0]), run(oracle.forward)
    gradients = None if their_gradient is None else distance(our_gradient, their_gradient)
    return distance(ours, theirs), gradients


def put_in_place(mixer: Mixer, oracle: Oracle) -> None:
    """Has the mixer's `forward` give what the oracle gives; ours still runs, for what later layers take from it."""
    own = mixer.forward

    def forward(x: Tensor, state=None, call: Call | None = None):
        _, state = own(x, state, *([] if call is None else [call]))
        return oracle.forward(x).to(x.dtype), state

    mixer.forward = forward


@torch.no_grad()
def decoded(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Greedy tokens by the one-token step, behind a prompt of READ, and the logits of the last."""
    tokens = torch.randint(256, (1, READ))
    logits, state = model(tokens)
    logits = logits[:, -1]
    for _ in range(DECODED):
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
        logits, state = model.step(tokens[:, -1], state)
    return tokens, logits


@pytest.mark.slow
@pytest.mark.oracles
def test_an_architecture_is_what_others_make_of_its_weights(architecture, record_property):
    model = built(architecture)
    tokens, logits = decoded(model)
    told: dict[str, tuple[float, float | None]] = {}
    for mixer in map(comparable, model.mixers):
        oracle = find_oracle(mixer)
        if oracle is None:
            continue
        values, gradients = compared(mixer, oracle)
        allowed = min(oracle.tolerance, allowance([mixer]).oracle)
        assert values <= allowed
        assert gradients is None or gradients <= 10 * allowed
        before = told.get(of(oracle), (0.0, None))
        worse = None if gradients is None else max(gradients, before[1] or 0.0)
        told[of(oracle)] = max(values, before[0]), worse
        put_in_place(mixer, oracle)
    if not told:
        record_property("oracle", f"{architecture}: no third party's implementation is known")
        pytest.skip("no third party's implementation is known")
    with torch.no_grad():
        off = distance(logits, model(tokens)[0][:, -1])
    assert off <= LOGITS
    parts = [
        f"{name}: values {values:.0e}, gradients {'not theirs' if gradients is None else f'{gradients:.0e}'}"
        for name, (values, gradients) in told.items()
    ]
    record_property("oracle", f"{architecture}: {'; '.join(parts)}; logits after {DECODED} decoded tokens {off:.0e}")
