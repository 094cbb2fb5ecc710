"""The figure of dropped steps, from planted records."""

import pytest

from analysis import drops, report
from analysis.records import Record


def planted(model, drop, seed, figure, **task):
    task = {"name": "cheetah", "drop": drop, "elapsed": True, "time_feature": True} | task
    scored = {"mean_squared_error": figure}
    result = {"model": model, "size": "100k", "seed": seed, "evaluation": {"test": scored}, "status": "finished"}
    return Record("", result, {"task": task}, {})


PLANTED = [
    *(planted("ltc", drop, seed, 1 + drop + seed) for drop in (0.0, 0.5, 0.9) for seed in (0, 2)),
    planted("gru", 0.5, 0, 3.0),
]


def test_a_curve_a_model_over_the_steps_that_are_left():
    ((place, (metric, (gru, ltc))),) = drops.curves(PLANTED).items()
    assert (place, metric) == (("cheetah", "100k"), "mean_squared_error")
    assert gru.points == {50: 3.0}
    assert ltc.points == pytest.approx({10: 2.9, 50: 2.5, 100: 2.0})
    assert (ltc.single, gru.single) == (set(), {50})
    assert ltc.spread == pytest.approx(dict.fromkeys((10, 50, 100), 2**0.5))


@pytest.mark.parametrize("told", [{"elapsed": "permuted"}, {"elapsed": "constant"}, {"time_feature": False}])
def test_who_was_not_told_the_true_time_is_left_out(told):
    assert drops.curves([planted("ltc", drop, 0, 1.0, **told) for drop in (0.0, 0.5)]) == {}


def test_nothing_dropped_is_no_figure():
    assert drops.curves([planted("ltc", 0.0, seed, 1.0) for seed in (0, 1)]) == {}
    assert drops.curves([planted("ltc", None, 0, 1.0)]) == {}


def test_the_page_shows_it():
    plots = report._drop_plots(PLANTED, report.styles(["ltc", "gru"]))
    ((name, plot),) = plots.items()
    assert name == "drops-cheetah-100k"
    figure = plot.draw(title=plot.title)
    assert "steps left" in figure.axes[0].get_xlabel()
    assert {line.get_label().split()[0] for line in figure.axes[0].get_lines()} >= {"ltc", "gru"}
