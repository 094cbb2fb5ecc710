"""The learning-rate schedule, and the budget in tokens that it is laid over."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from harness.config.errors import ConfigError
from harness.tasks.parity import Parity
from harness.training.config import TrainerConfig
from harness.training.schedule import Schedule

SHAPES = ("cosine", "linear", "wsd")


def rates(shape: str, updates: int = 10, warmup: int = 2, decay: int = 4, final: float = 0.1) -> list[float]:
    schedule = Schedule(shape, updates, warmup, decay, final)
    return [schedule.at(update) for update in range(updates)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rate_rises_in_a_line_and_falls_to_the_floor(shape):
    made = rates(shape)
    assert made[:2] == pytest.approx([0.5, 1.0])
    assert made[9] == pytest.approx(0.1)
    assert made[1:] == sorted(made[1:], reverse=True)


def test_each_shape_falls_in_its_own_way():
    """Half of the eight updates after the warm-up; the last four of ten for wsd."""
    assert rates("cosine")[5] == pytest.approx(0.55)
    assert rates("cosine")[3] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates("linear")[2:] == pytest.approx([1 - 0.9 * step / 8 for step in range(1, 9)])
    assert rates("wsd")[1:6] == [1.0] * 5
    assert rates("wsd")[6:] == pytest.approx([0.775, 0.55, 0.325, 0.1])


def test_a_stable_rate_without_a_decay_stays_and_a_long_decay_ends_where_the_warm_up_begins():
    assert rates("wsd", decay=0)[1:] == [1.0] * 9
    assert rates("wsd", decay=9) == pytest.approx(rates("linear"))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_of_one_update_is_made_at_the_floor_or_in_its_warm_up(shape):
    assert rates(shape, updates=1, warmup=0, decay=1) == pytest.approx([0.1])
    assert rates(shape, updates=3, warmup=3) == pytest.approx([1 / 3, 2 / 3, 1])


@given(
    st.sampled_from(SHAPES),
    st.integers(1, 300),
    st.floats(0, 1),
    st.integers(0, 400),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_no_rate_is_above_the_peak_or_below_the_floor_and_none_rises_after_the_warm_up(
    shape, updates, warmup_ratio, warmup_updates, decay_ratio, final
):
    if shape == "wsd" and warmup_ratio + decay_ratio > 1:
        return
    config = TrainerConfig(
        tokens=updates, batch_size=1, length=1, schedule=shape, warmup_ratio=warmup_ratio, learning_rate=1.0,
        warmup_updates=warmup_updates, decay_ratio=decay_ratio, final_learning_rate_ratio=final,
    )  # fmt: skip
    made, warmup = [config.learning_rate_at(update) for update in range(updates)], config.rates.warmup
    assert 0 <= warmup <= updates
    assert all(0 < rate <= 1 for rate in made[:warmup])
    assert all(final - 1e-12 <= rate <= 1 for rate in made[warmup:])
    assert made[warmup:] == sorted(made[warmup:], reverse=True)
    if warmup:
        assert made[warmup - 1] == 1.0


def test_a_warm_up_takes_its_part_of_the_updates_but_so_many_at_least_as_far_as_a_half_goes():
    def warmup(updates: int, **rules) -> int:
        return TrainerConfig(tokens=updates, batch_size=1, length=1, **rules).rates.warmup

    assert warmup(1000, warmup_ratio=0.05) == 50
    assert warmup(1000, warmup_ratio=0.05, warmup_updates=20) == 50
    assert warmup(200, warmup_ratio=0.05, warmup_updates=40) == 40
    assert warmup(60, warmup_ratio=0.05, warmup_updates=40) == 30
    assert warmup(1000, warmup_ratio=0.0, warmup_updates=10) == 10
    assert warmup(1, warmup_ratio=0.05, warmup_updates=40) == 0
    assert warmup(10, warmup_ratio=1.0) == 10


def test_more_than_all_updates_cannot_be_shared_out():
    with pytest.raises(ConfigError, match=r"warmup_ratio=0\.5 and trainer\.decay_ratio=0\.6"):
        TrainerConfig(schedule="wsd", warmup_ratio=0.5, decay_ratio=0.6)
    TrainerConfig(schedule="cosine", warmup_ratio=0.5, decay_ratio=0.6)


def test_the_budget_is_stated_in_one_way():
    for budget in (
        {"tokens_per_parameter": 20.0},
        {"tokens": None},
        {"tokens": None, "epochs": 1.0, "tokens_per_parameter": 2.0},
    ):
        with pytest.raises(ConfigError, match=r"trainer\.tokens"):
            TrainerConfig(**budget)


def test_a_budget_a_parameter_or_in_epochs_is_resolved_to_tokens():
    task = tiny.Counting()  # 1,000 tokens an epoch
    by_parameter = TrainerConfig(tokens=None, tokens_per_parameter=20.5).resolved(125_000, task)
    assert (by_parameter.tokens, by_parameter.tokens_per_parameter) == (2_562_500, None)
    assert by_parameter == TrainerConfig(tokens=2_562_500)
    assert TrainerConfig(tokens=None, epochs=1.25).resolved(1, task) == TrainerConfig(tokens=1250)
    assert TrainerConfig(tokens=None, tokens_per_parameter=0.001).resolved(1, task).tokens == 1
    given = TrainerConfig(tokens=77)
    assert given.resolved(125_000, task) is given
    assert by_parameter.budget == {"tokens": 2_562_500, "tokens_per_parameter": None, "epochs": None}


def test_a_task_without_end_has_no_epochs():
    with pytest.raises(ConfigError, match="task=parity draws its examples without end"):
        TrainerConfig(tokens=None, epochs=1.0).resolved(1000, Parity())


def test_a_budget_that_is_not_resolved_counts_no_updates():
    with pytest.raises(ValueError, match="resolved"):
        _ = TrainerConfig(tokens=None, epochs=1.0).updates
