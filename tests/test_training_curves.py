"""kernel=reference and kernel=fused train the same model: every architecture's curve agrees over 50 updates."""

import pytest
import torch

import configs
import tiny
from harness.config.errors import ConfigError
from harness.model.backbone import Width

UPDATES, BATCH, LENGTH = 50, 2, 24


def curve(architecture: str, kernel: str, path) -> list[float]:
    spec = configs.spec(architecture, f"kernel={kernel}")
    torch.manual_seed(0)
    net = spec.build(tiny.VOCAB, 2, Width(64, 0 if spec.channel_mixer is None else 96))
    sizes = {"tokens": UPDATES * BATCH * LENGTH, "batch_size": BATCH, "length": LENGTH}
    _, result, metrics = tiny.run_once(path, net, learning_rate=3e-3, validate_every=0, checkpoint_every=50, **sizes)
    assert result["updates"] == UPDATES
    return [line["loss"] for line in metrics]


@pytest.mark.slow
def test_the_reference_and_the_fused_kernel_give_the_same_training_curve(architecture, tmp_path):
    if configs.is_torch_alone(architecture):
        pytest.skip("its mixer has no kernels to choose from")
    reference = curve(architecture, "reference", tmp_path / "reference")
    fused = curve(architecture, "fused", tmp_path / "fused")
    assert len(fused) == UPDATES
    assert reference[-1] < 0.8 * reference[0]  # it did learn
    torch.testing.assert_close(torch.tensor(fused), torch.tensor(reference), rtol=0, atol=1e-4)


def test_a_kernel_that_cannot_serve_is_told_before_training():
    with pytest.raises(ConfigError, match="gradient=backprop"):
        configs.spec("ltc", "kernel=fused", "gradient=backprop").build(tiny.VOCAB, 1, Width(32, 32))
