"""The time between two steps: who integrates it, that a batch's rows do not mix, and what is blind to it."""

import pytest
import torch

import configs
from harness.model.backbone import Width
from harness.tasks.event_xor import EventXOR

TIMED = {
    *("ltc", "ltc_published", "ltc_signed", "ltc_ncp", "cfc", "cfc_ncp", "lrcssm", "ctrnn", "neural_ode", "ctgru"),
    *("hybrid", "hybrid_window", "m1", "m1_arr"),
}
"""The models that integrate the time, and hybrids of them. MT-LNN can (timed), and its authors' does not; Liquid-S4's
convolution is one and the same for all times."""
WIDTH = Width(64, 64)


@pytest.mark.parametrize("name", configs.mostly_long(configs.MODELS))
def test_a_row_of_a_batch_has_its_own_time(name):
    """Every model, its forward and its step, with a batch as wide as the state, where ncps confuses rows and units.

    In float64, for M1's core adds 1e-7 to a fresh Transformer.
    """
    torch.manual_seed(0)
    task = EventXOR(train_examples=64, test_examples=1)
    batch = task.batch("train", 0, 64, 32, 0)
    model = configs.spec(name).build(task.interface, 1, WIDTH).eval().double()
    with torch.no_grad():
        inputs, elapsed = batch.inputs[:, :6].double(), 32 * batch.elapsed[:, :6].double()
        together, _ = model(inputs, None, elapsed)
        for row in (0, 7, 63):
            alone, _ = model(inputs[row : row + 1], None, elapsed[row : row + 1])
            torch.testing.assert_close(together[row], alone[0], rtol=1e-9, atol=1e-10)
        stepped, _ = model.scan(inputs[:9], None, elapsed[:9])
        torch.testing.assert_close(together[:9], stepped, rtol=1e-9, atol=1e-10)
        for other in (torch.full_like(elapsed, elapsed.mean().item()), elapsed.flip(1)):
            moved = (model(inputs, None, other)[0] - together).abs().max().item()
            assert moved > 1e-8 if name in TIMED else moved == 0
