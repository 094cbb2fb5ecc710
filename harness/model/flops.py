"""What training costs per token, from the operations every mixer states by hand."""

from harness.model.backbone import LanguageModel

BACKWARD_FACTOR = 3
"""Forward and backward together cost three forwards: the backward pass forms two products for each of the forward's."""


def train_flops_per_token(model: LanguageModel, length: int) -> float:
    """Floating-point operations of training on one token, the mean over the positions of a sequence of `length`.

    Where the cost is linear in the context this is three times the forward cost at a context of (length + 1) / 2.
    Recomputation (checkpointed solvers) is not counted: these are the operations the method needs, not those spent.
    """
    forward = sum(model.flops_per_token(context).total for context in range(1, length + 1)) / length
    return BACKWARD_FACTOR * forward
