"""Scaling laws: L(N) = E + A / N^alpha for every architecture, fitted over the sizes it was run at."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import minimize

from analysis import figures
from analysis.curve import Series
from analysis.entries import Entry, entries
from analysis.render import MISSING, NOT_MEASURED, Table, count
from analysis.statistics import interval
from analysis.styles import Style

LEAST_SIZES = 3
HUBER = 1e-3
"""Where the loss on logarithms turns from quadratic to linear, as in Chinchilla's approach 3."""
SHARES, EXPONENTS = (0.1, 0.3, 0.5, 0.7, 0.9), (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""The grid of starts: what part of the loss at the middle size is reducible, and the exponent."""
SHARE = (0.01, 0.9999)
"""The least and the greatest reducible share that are searched: the first leaves only a cliff, the second no E."""
BOUNDS = ((-1.0, 1.0), tuple(np.log((1e-4, 3.0))), tuple(np.log([share / (1 - share) for share in SHARE])))
"""Of the search: log L at the middle size less its mean, the logarithm of the slope there, the share's log odds."""
COARSE, FOLLOWED, STEPS = 30, 3, 300
"""Steps from every start, how many of the best are followed on, and for how many steps."""
DRAWS = 200
IDENTIFIED, STEEPEST = 3.0, 3.0
"""An exponent is identified where the ends of its interval differ by less than the first factor, below the second."""
FARTHEST = 100_000_000
"""Parameters up to which laws are searched for a crossing."""


@dataclass(frozen=True)
class Law:
    """L(N) = floor + factor / N^exponent: E, A and alpha."""

    floor: float
    factor: float
    exponent: float

    def at(self, parameters: float) -> float:
        """The loss predicted at this number of parameters."""
        return self.floor + self.factor * parameters**-self.exponent


@dataclass(frozen=True)
class Fit:
    """An architecture's law, and the laws of its bootstrap: none where no seed was repeated.

    losses: {parameters: a figure a seed}. tokens_per_parameter: of all sizes; None where they have another rule.
    """

    label: str
    model: str
    losses: dict[int, list[float]]
    law: Law | None = None
    draws: tuple[Law, ...] = ()
    tokens_per_parameter: float | None = None

    @property
    def intervals(self) -> dict[str, tuple[float, float]] | None:
        """The 95 % interval of each constant."""
        return intervals(self.draws)

    @property
    def identified(self) -> bool:
        """Whether the data tell the exponent."""
        return identified(self.intervals)

    @property
    def exact(self) -> bool:
        """Whether there are no more sizes than constants, so that the law leaves no residual."""
        return len(self.losses) <= len(fields(Law))

    @property
    def residual(self) -> float | None:
        """The largest deviation of a size's mean from the law, relative to it."""
        if self.law is None:
            return None
        return max(abs(float(np.mean(values)) / self.law.at(n) - 1) for n, values in self.losses.items())


def fit(losses: dict[int, list[float]], start: Law | None = None) -> Law:
    """Fits the law to {parameters: losses, one a seed} by the least Huber loss on logarithms, over a grid of starts.

    Every run is a point. The method is approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556), as xLSTM's scaling laws
    use it (NX-AI/xlstm_scaling_laws), for one budget rule, so that L depends on N alone: L-BFGS-B from each start, the
    best kept. The objective is a sum over the runs in units of HUBER squared: averaged, the optimizer stops before the
    optimum, as Besiroglu et al. 2024 (arXiv 2404.10102) found of the original fit. E, A and alpha trade for one
    another, so what is searched is what the data tell best: the loss at the middle size, its slope there, and which
    share of it is reducible; alpha is slope / share. start: begin there alone.
    """
    sizes = np.array([n for n, values in losses.items() for _ in values], dtype=float)
    values = np.log([value for values in losses.values() for value in values])
    middle, level = float(np.log(sizes).mean()), float(values.mean())
    x, y = np.log(sizes) - middle, values - level

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        offset, slope, share = theta[0], np.exp(theta[1]), 1 / (1 + np.exp(-theta[2]))
        exponent = slope / share
        falls = np.exp(-exponent * x)
        total = 1 - share + share * falls
        residual = (offset + np.log(total) - y) / HUBER
        small = np.abs(residual) <= 1
        loss = np.where(small, 0.5 * residual**2, np.abs(residual) - 0.5).sum()
        weight = np.where(small, residual, np.sign(residual)) / HUBER
        by_slope = -x * falls / total * slope
        by_share = (falls * (1 + exponent * x) - 1) / total * share * (1 - share)
        return float(loss), np.array([weight.sum(), weight @ by_slope, weight @ by_share])

    def search(starts: Iterable[Sequence[float]], steps: int) -> list[Sequence[float]]:
        options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-11, "gtol": 1e-8}
        found = [minimize(objective, s, jac=True, method="L-BFGS-B", bounds=BOUNDS, options=options) for s in starts]
        return [one.x for one in sorted(found, key=lambda one: one.fun)]

    if start is None:
        grid = [(share, share * exponent) for share in SHARES for exponent in EXPONENTS]
    else:
        reducible = start.factor * np.exp(-start.exponent * middle)
        share = float(np.clip(reducible / (start.floor + reducible), *SHARE))
        grid = [(share, share * start.exponent)]
    starts = [(0.0, np.log(slope), np.log(share / (1 - share))) for share, slope in grid]
    best = search(search(starts, COARSE)[:FOLLOWED], STEPS)[0]
    offset, slope, share = best
    at_middle, share = np.exp(level + offset), 1 / (1 + np.exp(-share))
    exponent = float(np.exp(slope) / share)
    return Law(float(at_middle * (1 - share)), float(at_middle * share * np.exp(exponent * middle)), exponent)


def bootstrap(losses: dict[int, list[float]], law: Law, name: str = "") -> tuple[Law, ...]:
    """Laws fitted to losses that are drawn anew (parametric bootstrap); none where no size has two seeds.

    A draw has the runs of the data: about the mean of each size's logarithms, with the standard deviation of logarithms
    pooled over the sizes of several seeds, which a size of one seed is taken to have too. How little a few seeds tell
    of that deviation is drawn as well: its square is divided by chi^2(freedom) / freedom. Drawing three seeds of three
    with replacement has a third too little variance, and a size of one seed none. name: of the model; others draw other
    numbers, so that two models' draws are independent.
    """
    logs = {n: np.log(values) for n, values in losses.items()}
    freedom = sum(len(values) - 1 for values in logs.values())
    if not freedom:
        return ()
    deviation = (sum(float(((values - values.mean()) ** 2).sum()) for values in logs.values()) / freedom) ** 0.5
    rng = np.random.default_rng(list(name.encode()))
    made = []
    for _ in range(DRAWS):
        spread = deviation * (freedom / rng.chisquare(freedom)) ** 0.5
        again = {n: list(np.exp(rng.normal(values.mean(), spread, len(values)))) for n, values in logs.items()}
        made.append(fit(again, law))
    return tuple(made)


def intervals(draws: Sequence[Law]) -> dict[str, tuple[float, float]] | None:
    """The 95 % percentile interval of E, A and alpha; None for no draws."""
    if not draws:
        return None
    return {field.name: _ends([getattr(law, field.name) for law in draws]) for field in fields(Law)}


def _ends(drawn: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class Gap:
    """What one law says less what another says, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def told_apart(self) -> bool:
        """Whether zero lies outside the interval."""
        return not self.low <= 0 <= self.high


def gap(one: Fit, other: Fit, says: Callable[[Law], float]) -> Gap | None:
    """The difference of two laws in what they say, a constant or a loss; None where either has no law or no draws."""
    if one.law is None or other.law is None or not one.draws or not other.draws:
        return None
    drawn = [says(ours) - says(theirs) for ours, theirs in zip(one.draws, other.draws, strict=True)]
    return Gap(says(one.law) - says(other.law), *_ends(drawn))


def crossing(one: Law, other: Law, start: float) -> float | None:
    """The least number of parameters from `start` to FARTHEST where the laws cross, to a hundredth; None for none."""
    sizes = np.geomspace(start, FARTHEST, 1 + max(1, int(np.ceil(100 * np.log(FARTHEST / start)))))
    above = [one.at(size) > other.at(size) for size in sizes]
    return next((float(size) for size, now in zip(sizes, above, strict=True) if now != above[0]), None)


def identified(known: dict[str, tuple[float, float]] | None) -> bool:
    """Whether seeds were repeated and tell the exponent: its interval is narrow enough, and not of a cliff."""
    if known is None:
        return False
    low, high = known["exponent"]
    return high < STEEPEST and high < IDENTIFIED * low


def fits(runs: pd.DataFrame) -> list[Fit]:
    """A fit for each architecture that was run at two sizes or more, and one without a law for each other model.

    runs: those that count, with the column `ladder`: the same for runs that differ in size, budget and tuned keys
    alone. Of several budgets at one size the largest counts; sizes whose budget follows another rule than most have no
    part in the fit, for their loss depends on more than N. Runs that diverged have no loss.
    """
    found, models = [], set()
    for _, group in runs[runs["test_bits_per_byte"].notna()].groupby("ladder", sort=True):
        known = _one_rule(_longest(entries(group, "test_bits_per_byte")))
        losses = {entry.parameters: list(entry.figures.values()) for entry in known}
        if len(losses) > 1:
            models.add(known[0].model)
            label = min((entry.label for entry in known), key=lambda label: (len(label), label))
            found.append(_fit(label, known[0].model, losses, _tokens_per_parameter(known)))
    for model in sorted(set(runs["model"]) - models):
        found.append(Fit(model, model, {}))
    return sorted(found, key=lambda one: (one.law is None, one.label))


def _longest(known: Sequence[Entry]) -> list[Entry]:
    """Of each size the entry of the most tokens, by size."""
    sizes: dict[str, Entry] = {}
    for entry in known:
        if entry.figures and (entry.size not in sizes or entry.tokens > sizes[entry.size].tokens):
            sizes[entry.size] = entry
    return sorted(sizes.values(), key=lambda entry: entry.parameters)


def _one_rule(known: Sequence[Entry]) -> Sequence[Entry]:
    """The most entries that have, to a tenth, the same tokens a parameter, or else the same tokens."""

    def alike(one: Entry, amount: Callable[[Entry], float]) -> list[Entry]:
        return [other for other in known if abs(amount(other) / amount(one) - 1) < 0.1]

    rules = (_ratio, lambda one: float(one.tokens))
    return max((alike(one, rule) for rule in rules for one in known), key=len, default=known)


def _ratio(one: Entry) -> float:
    return one.tokens / one.parameters


def _tokens_per_parameter(known: Sequence[Entry]) -> float | None:
    ratios = [_ratio(one) for one in known]
    return float(np.mean(ratios)) if max(ratios) < 1.2 * min(ratios) else None


def _fit(label: str, model: str, losses: dict[int, list[float]], tokens_per_parameter: float | None) -> Fit:
    if len(losses) < LEAST_SIZES:
        return Fit(label, model, losses, tokens_per_parameter=tokens_per_parameter)
    law = fit(losses)
    return Fit(label, model, losses, law, bootstrap(losses, law, label), tokens_per_parameter)


def table(name: str, title: str, known: Sequence[Fit]) -> Table:
    """The constants of every architecture with their intervals, `not measured` for fewer than three sizes."""
    header = [
        "model",
        "sizes",
        "parameters",
        "seeds",
        "E",
        "A",
        "alpha",
        "alpha, 95 %",
        "largest deviation",
        "exponent",
    ]
    rows = [_row(one) for one in known]
    notes = [
        "L(N) = E + A / N^alpha, L in bits per byte on test and N all counted parameters, embeddings included; least "
        "Huber loss on logarithms over a grid of starts (approach 3 of Hoffmann et al. 2022). Intervals: parametric "
        f"bootstrap, {DRAWS} draws about the mean of each size, with the relative standard deviation of the model's "
        "seeds pooled over its sizes; a size of one seed is taken to have it too, and how little the seeds tell of it "
        "is drawn as well. Deviation: of a size's mean from the law. Not identified: no size has two seeds, or the "
        f"ends of the interval differ by a factor of {IDENTIFIED:g} or more, or exceed {STEEPEST:g}; E and A are then "
        "no more certain than the exponent. Three sizes fit three constants without a remainder."
    ]
    return Table(name, title, header, rows, notes, pd.DataFrame([_exact(one) for one in known]))


def _row(one: Fit) -> list[str]:
    sizes = list(one.losses)
    span = f"{count(sizes[0])} to {count(sizes[-1])}" if sizes else MISSING
    seeds = ", ".join(str(len(values)) for values in one.losses.values()) or MISSING
    start = [one.label, str(len(sizes)), span, seeds]
    if one.law is None:
        return [*start, *[NOT_MEASURED] * 3, MISSING, MISSING, NOT_MEASURED]
    ends = "one seed a size" if one.intervals is None else "{:.3g} to {:.3g}".format(*one.intervals["exponent"])
    constants = [f"{value:.3g}" for value in (one.law.floor, one.law.factor, one.law.exponent)]
    said = "identified" if one.identified else "not identified"
    return [*start, *constants, ends, f"{100 * (one.residual or 0.0):.2f} %", said]


def _exact(one: Fit) -> dict:
    row: dict = {
        "model": one.label,
        "sizes": len(one.losses),
        "identified": one.identified,
        "residual": _rounded(one.residual),
    }
    row["seeds"] = " ".join(str(len(values)) for values in one.losses.values())
    for key in ("floor", "factor", "exponent"):
        low, high = (one.intervals or {}).get(key, (None, None))
        value = None if one.law is None else getattr(one.law, key)
        row |= {key: _rounded(value), f"{key}_low": _rounded(low), f"{key}_high": _rounded(high)}
    return row


def _rounded(value: float | None) -> float | None:
    """Six figures: further ones differ between processors."""
    return None if value is None else float(f"{value:.6g}")


def draw(known: Sequence[Fit], looks: dict[str, Style], title: str) -> Figure:
    """Every architecture's losses with their intervals, and where there is one its law with its 95 % band."""
    series = []
    for one in known:
        if one.losses:
            means = {float(n): float(np.mean(values)) for n, values in one.losses.items()}
            ends = {float(n): interval(values) for n, values in one.losses.items()}
            bars = {n: (end.low, end.high) for n, end in ends.items() if end is not None}
            line = {float(n): one.law.at(n) for n in np.geomspace(min(means), max(means), 40)} if one.law else {}
            note = "" if one.law is None else f"alpha {one.law.exponent:.2g}"
            note += ", not identified" * (one.law is not None and not one.identified)
            single = [figures.si_count(n) for n, values in one.losses.items() if len(values) == 1]
            note += f", one seed at {', '.join(single)}" * bool(single)
            band = {x: _ends([law.at(x) for law in one.draws]) for x in line} if one.draws else {}
            series.append(Series(one.label, one.model, means, bars, line, note=note.removeprefix(", "), band=band))
    labels = ("counted parameters", "bits per byte (test)")
    return figures.scatter(series, looks, title, labels)
