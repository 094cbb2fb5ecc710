"""The ranges that a configuration's values keep: every number is finite and lies between two stated bounds.

Constructors name them in their annotations, and harness/config/configure.py holds a configuration to them. The bounds
are far beyond any use: they keep a slip of the keyboard from becoming a crash, a run of a century, or a number that
means nothing. What depends on two keys at once (heads that divide a width) is left to the constructors.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Every generator takes it as it is: numpy's knows no more."""
Parameters = Annotated[int, Field(ge=1, le=10**12)]
Layers = Annotated[int, Field(ge=1, le=128)]
Dimension = Annotated[int, Field(ge=1, le=65_536)]
"""A width, a rank, a number of states or heads."""
Factor = Annotated[int, Field(ge=1, le=4096)]
DepthFactor = Annotated[int, Field(ge=1, le=8)]
"""Blocks a layer of the size."""
Taps = Annotated[int, Field(ge=1, le=256)]
"""Of a convolution."""
TapsOrNone = Annotated[int, Field(ge=0, le=256)]
Steps = Annotated[int, Field(ge=1, le=10_000)]
"""Of a solver or an iteration, within one token or one call."""

Tokens = Annotated[int, Field(ge=1, le=10**15)]
"""A budget of tokens or bytes."""
ScoredBytes = Annotated[int, Field(ge=2, le=10**15)]
"""Of a text that is judged: one byte to read and one to say."""
Length = Annotated[int, Field(ge=1, le=2**24)]
"""Tokens of one sequence or one context."""
Batch = Annotated[int, Field(ge=1, le=65_536)]
"""Sequences side by side."""
Count = Annotated[int, Field(ge=1, le=10**6)]
"""How often something is done."""
CountOrNone = Annotated[int, Field(ge=0, le=10**6)]
Threads = Annotated[int, Field(ge=1, le=1024)]

Fraction = Annotated[float, Field(ge=0, le=1)]
HeldOut = Annotated[float, Field(gt=0, le=0.4)]
"""The part of a corpus that is kept from training."""
HeldOutEvery = Annotated[int, Field(ge=3, le=10**6)]
"""Of so many documents, one is for validation and one for test."""
Momentum = Annotated[float, Field(ge=0, le=0.999999)]
Tolerance = Annotated[float, Field(ge=1e-15, le=1)]
"""Of an approximation, relative or absolute."""
BudgetTolerance = Annotated[float, Field(ge=0.001, le=0.1)]
"""Of a parameter budget; the protocol's is 0.02."""
Rate = Annotated[float, Field(gt=0, le=100)]
Epsilon = Annotated[float, Field(ge=1e-30, le=1)]
"""What an optimizer adds to a root before it divides by it; smaller ones are no normal number in float32."""
TokensPerParameter = Annotated[float, Field(ge=1e-3, le=1e6)]
Epochs = Annotated[float, Field(ge=1e-6, le=1e6)]
Decay = Annotated[float, Field(ge=0, le=100)]
Norm = Annotated[float, Field(gt=0, le=1e12)]
"""Of a gradient."""
Ratio = Annotated[float, Field(ge=0, le=64)]
Scale = Annotated[float, Field(ge=0, le=100)]
"""Of what weights start from."""
StepSize = Annotated[float, Field(ge=1e-9, le=1e3)]
TimeConstant = Annotated[float, Field(ge=1, le=1e9)]
"""In tokens."""
TimeScale = Annotated[float, Field(ge=1e-6, le=1e9)]
"""A time constant that may lie far below a token."""
Base = Annotated[float, Field(gt=1, le=1e12)]
"""Of frequencies."""
Temperature = Annotated[float, Field(ge=0, le=100)]
Probability = Annotated[float, Field(gt=0, le=1)]
Exponent = Annotated[float, Field(ge=1e-6, le=100)]
Seconds = Annotated[float, Field(ge=0.001, le=86_400)]
Dollars = Annotated[float, Field(ge=0, le=1e6)]


def _ascending(values: Sequence[int]) -> Sequence[int]:
    if any(after <= before for before, after in pairwise(values)):
        raise ValueError("the values must ascend, each given once")
    return values


Lengths = Annotated[Sequence[Length], Field(min_length=1, max_length=64), AfterValidator(_ascending)]
Factors = Annotated[Sequence[Factor], Field(min_length=1, max_length=64), AfterValidator(_ascending)]
Sizes = Annotated[Sequence[Tokens], Field(min_length=3, max_length=3)]
"""Bytes of train, validation and test."""

Name = Annotated[str, Field(max_length=64, pattern=r"^\w[\w.+=-]*$")]
"""What records and tables call a thing: letters, digits and .+=_- of any language."""
Text = Annotated[str, Field(min_length=1, max_length=4096)]
PathName = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]+$")]
"""Of a file or a folder, or its address."""
Glob = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^/]")]
"""File names below a folder, such as *.txt or drafts/*.md."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
