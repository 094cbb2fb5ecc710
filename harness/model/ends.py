"""The two ends of a model, its embedding and its head: what their weights start from, and whether they decay."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from harness.config.ranges import Scale


@dataclass(frozen=True)
class End:
    """The weight (rows, d_model) of the embedding or of the head, a row for each token.

    start: the distribution that it starts from. scale: the standard deviation of `normal`, and of `small` in units of
    sqrt(2 / (5 d_model)) (Nguyen and Salazar 2019, arXiv:1910.05895); the bound of `uniform` on either side of zero;
    the gain of `orthogonal`, times sqrt(rows / d_model) where there are more rows, so that it is the length of a row,
    in the root mean square, at any size of the vocabulary (RWKV's rule); nothing for `zero`.
    decay: whether weight decay pulls at it.
    """

    start: Literal["normal", "small", "uniform", "orthogonal", "zero"] = "normal"
    scale: Scale = 0.02
    decay: bool = True

    @torch.no_grad()
    def initialise(self, weight: Tensor) -> None:
        """Fills the weight from torch's generator and marks whether it decays; on the meta device, marks alone."""
        weight._no_weight_decay = not self.decay  # type: ignore[attr-defined]
        if weight.is_meta:
            return  # sizing only counts there, and arithmetic on the meta device is slow
        match self.start:
            case "normal":
                nn.init.normal_(weight, std=self.scale)
            case "small":
                nn.init.normal_(weight, std=self.scale * math.sqrt(2 / (5 * weight.shape[1])))
            case "uniform":
                nn.init.uniform_(weight, -self.scale, self.scale)
            case "orthogonal":
                rows, columns = weight.shape
                nn.init.orthogonal_(weight, gain=self.scale * math.sqrt(max(1.0, rows / columns)))
            case "zero":
                nn.init.zeros_(weight)


EMBEDDING, HEAD = End(decay=False), End()
"""Those of a model that does not say otherwise (conf/backbone.yaml)."""
