"""A configuration is checked against the signatures it will call, before anything runs."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import PositiveInt

from harness.configure import checked
from harness.errors import ConfigError


class Target:
    def __init__(
        self, width: PositiveInt, mode: Literal["a", "b"] = "a", scale: float | None = None, part: Path = Path()
    ):
        self.width = width


TARGET = f"{__name__}.Target"


def test_values_are_converted_to_their_annotations():
    node = checked({"_target_": TARGET, "width": 8.0, "scale": 1}, "model")
    assert node["width"] == 8
    assert isinstance(node["width"], int)


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ({"widht": 3}, ["model.widht", "did you mean 'width'"]),
        ({"width": "wide"}, ["model.width='wide'", "integer > 0"]),
        ({"width": -3}, ["model.width=-3", "integer > 0"]),
        ({"mode": "c"}, ["model.mode='c'", "one of a, b"]),
        ({"part": 3}, ["model.part=3"]),
        ({"_target_": "harness.nothing.Here"}, ["model._target_", "cannot be imported"]),
    ],
)
def test_a_mistake_names_the_key_the_value_and_the_remedy(override, fragments):
    with pytest.raises(ConfigError) as error:
        checked({"_target_": TARGET, "width": 8, **override}, "model")
    for fragment in [*fragments, "Expected:", "Remedy:"]:
        assert fragment in str(error.value)


def test_a_missing_required_key_is_named():
    with pytest.raises(ConfigError, match=r"model\.width is missing"):
        checked({"_target_": TARGET}, "model")


def test_a_factory_may_leave_keys_to_its_caller():
    assert checked({"_target_": TARGET, "_partial_": True}, "model")["_partial_"] is True


def test_nested_targets_are_checked_with_their_full_key():
    node = {"_target_": TARGET, "width": {"_target_": TARGET, "_partial_": True, "width": 0}}
    with pytest.raises(ConfigError, match=r"outer\.width\.width=0"):
        checked(node, "outer")


def test_a_list_of_targets_is_checked_with_the_place_in_the_key():
    good = {"_target_": TARGET, "width": 3}
    assert checked({"_target_": TARGET, "width": 1, "part": [good, good]}, "model")["part"] == [good, good]
    with pytest.raises(ConfigError, match=r"Unknown key 'model\.part\.1\.widht'"):
        checked({"_target_": TARGET, "width": 1, "part": [good, good | {"widht": 3}]}, "model")
