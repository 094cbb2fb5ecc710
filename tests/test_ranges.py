"""Every range of a configuration: its least and its greatest value are accepted, and what lies just outside is not."""

import math
from typing import Annotated, get_args, get_origin

import pytest
from pydantic import TypeAdapter, ValidationError

from harness.config import ranges

WHOLE = {
    "Seed": (0, 4_294_967_295),
    "Parameters": (1, 1_000_000_000_000),
    "Layers": (1, 128),
    "Dimension": (1, 65_536),
    "Factor": (1, 4096),
    "DepthFactor": (1, 8),
    "Taps": (1, 256),
    "TapsOrNone": (0, 256),
    "Steps": (1, 10_000),
    "Tokens": (1, 1_000_000_000_000_000),
    "ScoredBytes": (2, 1_000_000_000_000_000),
    "Length": (1, 16_777_216),
    "Batch": (1, 65_536),
    "Count": (1, 1_000_000),
    "CountOrNone": (0, 1_000_000),
    "Threads": (1, 1024),
    "HeldOutEvery": (3, 1_000_000),
}
"""{range of whole numbers: (the least, the greatest)}"""
REAL = {
    "Fraction": (0.0, 1.0),
    "Momentum": (0.0, 0.999999),
    "Tolerance": (1e-15, 1.0),
    "BudgetTolerance": (0.001, 0.1),
    "Epsilon": (1e-30, 1.0),
    "TokensPerParameter": (1e-3, 1e6),
    "Epochs": (1e-6, 1e6),
    "Decay": (0.0, 100.0),
    "Ratio": (0.0, 64.0),
    "Scale": (0.0, 100.0),
    "StepSize": (1e-9, 1000.0),
    "TimeConstant": (1.0, 1e9),
    "TimeScale": (1e-6, 1e9),
    "Temperature": (0.0, 100.0),
    "Exponent": (1e-6, 100.0),
    "Seconds": (0.001, 86_400.0),
    "Dollars": (0.0, 1e6),
}
"""{range of real numbers: (the least, the greatest)}"""
ABOVE = {
    "HeldOut": (0.0, 0.4),
    "Rate": (0.0, 100.0),
    "Norm": (0.0, 1e12),
    "Base": (1.0, 1e12),
    "Probability": (0.0, 1.0),
}
"""{range of real numbers: (what all lie above, the greatest)}"""
OTHERS = {"Lengths", "Factors", "Sizes", "Name", "Text", "PathName", "Glob", "Sha256"}
"""Of sequences and texts; below."""


def accepts(name, value):
    try:
        TypeAdapter(getattr(ranges, name)).validate_python(value)
    except ValidationError:
        return False
    return True


def below(value):
    return math.nextafter(value, -math.inf)


def above(value):
    return math.nextafter(value, math.inf)


def test_every_range_is_tried_here():
    named = {name for name, value in vars(ranges).items() if get_origin(value) is Annotated and name != "Annotated"}
    assert named == {*WHOLE, *REAL, *ABOVE, *OTHERS}
    kinds = {name: get_args(getattr(ranges, name))[0] for name in named}
    assert {name for name, kind in kinds.items() if kind is int} == set(WHOLE)
    assert {name for name, kind in kinds.items() if kind is float} == {*REAL, *ABOVE}


@pytest.mark.parametrize(("name", "least", "greatest"), [(name, *bounds) for name, bounds in WHOLE.items()])
def test_a_range_of_whole_numbers(name, least, greatest):
    assert accepts(name, least)
    assert accepts(name, greatest)
    assert not accepts(name, least - 1)
    assert not accepts(name, greatest + 1)


@pytest.mark.parametrize(("name", "least", "greatest"), [(name, *bounds) for name, bounds in REAL.items()])
def test_a_range_of_real_numbers(name, least, greatest):
    assert accepts(name, least)
    assert accepts(name, greatest)
    assert not accepts(name, below(least))
    assert not accepts(name, above(greatest))


@pytest.mark.parametrize(("name", "least", "greatest"), [(name, *bounds) for name, bounds in ABOVE.items()])
def test_a_range_of_real_numbers_without_its_least(name, least, greatest):
    assert not accepts(name, least)
    assert accepts(name, above(least))
    assert accepts(name, greatest)
    assert not accepts(name, above(greatest))


@pytest.mark.parametrize("name", [*REAL, *ABOVE])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_is_finite(name, value):
    assert not accepts(name, value)


@pytest.mark.parametrize(("name", "most"), [("Lengths", 16_777_216), ("Factors", 4096)])
def test_a_range_of_sequences_that_ascend(name, most):
    assert accepts(name, [1])
    assert accepts(name, [1, 2, most])
    assert accepts(name, list(range(1, 65)))
    assert not accepts(name, [])
    assert not accepts(name, list(range(1, 66)))
    assert not accepts(name, [2, 2])
    assert not accepts(name, [2, 1])
    assert not accepts(name, [0, 1])
    assert not accepts(name, [1, most + 1])


def test_the_sizes_of_three_splits():
    assert accepts("Sizes", [3, 1, 1])
    assert not accepts("Sizes", [3, 1])
    assert not accepts("Sizes", [3, 1, 1, 1])
    assert not accepts("Sizes", [3, 1, 0])


TEXTS = [
    ("Name", ["a", "9", "_x", "größe-2.5+b=1", "a" * 64], ["", "-a", ".a", "a b", "a/b", "a" * 65]),
    ("Text", [" ", "a" * 4096], ["", "a" * 4097]),
    ("PathName", ["/", "a b", "a" * 4096], ["", "a\x00b", "a" * 4097]),
    ("Glob", ["*.txt", "a" * 256], ["", "/etc/*", "a" * 257]),
    ("Sha256", ["0" * 64, "0123456789abcdef" * 4], ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64]),
]


@pytest.mark.parametrize(("name", "good", "bad"), TEXTS, ids=[name for name, *_ in TEXTS])
def test_a_range_of_texts(name, good, bad):
    assert {value: accepts(name, value) for value in (*good, *bad)} == dict.fromkeys(good, True) | dict.fromkeys(
        bad, False
    )
