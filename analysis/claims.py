"""What was published of liquid models, from docs/claims.yaml, beside what the runs of each claim's sweep say."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import Field, model_validator

from analysis import bench, schema, search, selection
from analysis.entries import higher_is_better
from analysis.findings.evidence import METRICS
from analysis.records import Record, by_key
from analysis.render import MISSING, NOT_MEASURED, Table
from analysis.statistics import ALPHA, LEAST_SEEDS, Difference, holm, interval, paired, power, summarise
from harness.records import sweep as on_disk

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "claims.yaml"
RATE = "trainer.learning_rate"
HOLDS, FAILS, OPEN = "holds", "does not hold", "not significant"
SAME = ("experiment", "task", "size", "what", "batch", "length")
"""Keys of a selection that the claim's own words tell."""
Name = Field(min_length=1)
Selection = dict[str, str | int | float | bool | None]
"""Overrides that a run of the sweep was given, a list of rates aside; null: a key that it was not given."""


class Timing(schema.Written):
    """A claim on speed, answered by the bench: `ours` takes less of `key` than `against`, `times` times less.

    ours, against: what a row of the subject's file in results/bench/ has; against may be a number.
    """

    subject: str = Name
    key: str = Name
    ours: Selection
    against: Selection | float
    times: float = Field(1.0, gt=0)


class Claim(schema.Written):
    """One claim: that `ours` is better than `against` in a figure, by `by` at least.

    source, at: who claims it, and the address. theirs: the figures that they state. sweep: whose runs answer it, of
    which `ours` and `against` are those with these overrides; against may be a number. figure: the task's metric on
    test (`length`: of sequences so long), or there the share of sequences that are right as a whole, the exponent of
    the state's bytes by the context, the slowest token of all contexts, or the share of a seed's runs that diverged.
    worse: whether the claim is that `ours` is the worse. timing: in place of a sweep. needs: why there is neither.
    """

    claim: str = Name
    source: str = Name
    at: str = Name
    theirs: str = ""
    sweep: str = ""
    figure: Literal["test", "whole sequences", "state exponent", "slowest token in ms", "share diverged"] = "test"
    length: int | None = None
    ours: Selection = Field(default_factory=dict)
    against: Selection | float = 0.0
    by: float = 0.0
    worse: bool = False
    timing: Timing | None = None
    needs: str = ""

    @model_validator(mode="after")
    def _is_answered_once(self) -> "Claim":
        if sum(map(bool, (self.sweep, self.timing, self.needs))) != 1:
            raise ValueError("one of sweep, timing and needs answers a claim")
        return self


@dataclass(frozen=True)
class Side:
    """What a selection came to. figures: by seed. diverged: how many of its runs did. rates: learning rates tried.

    other: runs that another version of the code made, which are left out.
    """

    figures: dict[int, float]
    diverged: int = 0
    rates: int = 0
    higher: bool = True
    other: int = 0


@dataclass(frozen=True)
class Answer:
    """A claim with what the records say of it. p: after Holm's correction, None where nothing was tested."""

    claim: Claim
    ours: Side
    against: Side
    difference: Difference
    timed: tuple[float, float, float] | None = None
    """Of a timing: the least, the median and the greatest of against / ours."""
    p: float | None = None

    @property
    def verdict(self) -> str:
        """The one rule of the page."""
        if self.claim.timing is not None:
            if self.timed is None:
                return NOT_MEASURED
            low, _, high = self.timed
            return HOLDS if low >= self.claim.timing.times else FAILS if high < self.claim.timing.times else OPEN
        mean = self.difference.mean
        if mean is None or self.difference.count < LEAST_SEEDS:
            return NOT_MEASURED
        tested = self.difference.p is not None
        if self.diverged or mean == 0 or (tested and (self.p is None or self.p >= ALPHA)):
            return OPEN
        return HOLDS if (mean > 0) == (self.ours.higher != self.claim.worse) else FAILS

    @property
    def diverged(self) -> int:
        """Runs that the figures lack, since they diverged."""
        return 0 if self.claim.figure == "share diverged" else self.ours.diverged + self.against.diverged


def read(path: Path = FILE) -> list[Claim]:
    """Reads the file; RecordError names what cannot be used."""
    expected = "a list of claims as analysis/claims.py describes them."
    return schema.from_yaml(path, list[Claim], expected, "complete the entry, or leave it out.")


def answer(claims: Iterable[Claim], records: Iterable[Record], measured: Path) -> list[Answer]:
    """What the records say of each claim; the p of those that one sweep answers are adjusted together.

    measured: the bench's folder, beside which the runs of each sweep are listed.
    """
    known = by_key(records)
    listed = cache(partial(search.jobs, measured.parent))
    found = [_answer(claim, known, measured, listed(claim.sweep)) for claim in claims]
    families: dict[str, list[int]] = {}
    for at, one in enumerate(found):
        families.setdefault(one.claim.sweep, []).append(at)
    for family in families.values():
        adjusted = holm([None if found[at].diverged else found[at].difference.p for at in family])
        for at, p in zip(family, adjusted, strict=True):
            found[at] = replace(found[at], p=p)
    return found


def _answer(claim: Claim, known: Mapping[str, Sequence[Record]], measured: Path, jobs: Sequence[on_disk.Job]) -> Answer:
    if claim.timing is not None:
        return Answer(claim, Side({}), Side({}), Difference(0), _timed(claim.timing, measured))
    ours = _side(claim, claim.ours, jobs, known)
    if isinstance(claim.against, dict):
        against = _side(claim, claim.against, jobs, known)
    else:
        against = Side(dict.fromkeys(ours.figures, claim.against))
    shift = claim.by if ours.higher != claim.worse else -claim.by
    difference = paired(ours.figures, {seed: figure + shift for seed, figure in against.figures.items()})
    return Answer(claim, ours, against, difference)


def _side(
    claim: Claim, wanted: Selection, jobs: Sequence[on_disk.Job], recorded: Mapping[str, Sequence[Record]]
) -> Side:
    """The selected runs; of several that differ in more than the seed, those that are best on validation.

    Runs that differ in seed and learning rate alone count as far as one version of the code made them.
    """
    tried: dict[tuple, list[tuple[str, Record]]] = {}
    rates = set()
    for job in jobs:
        given = search.overrides(job)
        if not all(_is(given.get(key), value) for key, value in wanted.items()):
            continue
        rates.add(given.get(RATE))
        alike = tuple(sorted((key, value) for key, value in given.items() if key not in ("seed", RATE)))
        found = [(given.get(RATE, ""), record) for record in recorded.get(job.key or "", ())]
        tried.setdefault(alike, []).extend(found)
    groups: dict[tuple, list[dict]] = {}
    other = 0
    for alike, found in tried.items():
        counted = selection.of_one_version(found)
        other += len(found) - len(counted)
        for rate, record in counted:
            groups.setdefault((alike, rate), []).append(record.result)
    higher = next((higher_is_better(f"test_{m}") for g in groups.values() for r in g if (m := _metric(r))), True)
    if claim.figure == "share diverged":
        shares = _shares(result for group in groups.values() for result in group)
        return Side(shares, rates=len(rates), higher=False, other=other)
    best = min(groups.values(), key=lambda group: _rank(group, higher), default=[])
    figures = {result["seed"]: _figure(claim, result) for result in best}
    known = {seed: figure for seed, figure in figures.items() if figure is not None}
    higher = claim.figure == "whole sequences" or (claim.figure == "test" and higher)
    return Side(known, sum(result["status"] == "diverged" for result in best), len(rates), higher, other)


def _is(given: str | None, wanted: Any) -> bool:
    if given is None or wanted is None:
        return given is wanted
    return given == str(wanted) or yaml.safe_load(given) == wanted


def _metric(result: dict) -> str | None:
    scored = (result.get("evaluation") or {}).get("validation") or {}
    return next((metric for metric in METRICS if scored.get(metric) is not None), None)


def _rank(group: Sequence[dict], higher: bool) -> tuple:
    """The best on validation first, those with a diverged run last."""
    scored = (((r.get("evaluation") or {}).get("validation") or {}).get(_metric(r) or "") for r in group)
    mean = summarise(scored).mean
    diverged = any(result["status"] == "diverged" for result in group)
    return diverged, mean is None, (-1 if higher else 1) * (mean or 0.0)


def _shares(results: Iterable[dict]) -> dict[int, float]:
    diverged: dict[int, list[bool]] = {}
    for result in results:
        diverged.setdefault(result["seed"], []).append(result["status"] == "diverged")
    return {seed: sum(known) / len(known) for seed, known in diverged.items()}


def _figure(claim: Claim, result: dict) -> float | None:
    if result["status"] == "diverged":
        return None
    evaluation, measurement = result.get("evaluation") or {}, result.get("measurement") or {}
    contexts = measurement.get("contexts") or []
    if claim.figure == "state exponent":
        grows = power({row["context"]: row["state_bytes"] for row in contexts if row.get("state_bytes")})
        return None if grows is None else grows.value
    if claim.figure == "slowest token in ms":
        busy = (measurement.get("load") or {}).get("busy") is True
        return max((row["decode_ms_p50"] for row in contexts if row.get("decode_ms_p50") and not busy), default=None)
    known = evaluation.get("extrapolation") or [] if claim.length else [evaluation.get("test") or {}]
    scored = next((one for one in known if one.get("length") == claim.length), {})
    return scored.get("sequence_accuracy" if claim.figure == "whole sequences" else _metric(result) or "")


def _timed(timing: Timing, measured: Path) -> tuple[float, float, float] | None:
    rows = bench.content(measured, timing.subject).get("rows", [])
    ours = _row(rows, timing, timing.ours)
    against = _row(rows, timing, timing.against) if isinstance(timing.against, dict) else (timing.against,) * 3
    if ours is None or against is None:
        return None
    return against[0] / ours[2], against[1] / ours[1], against[2] / ours[0]


def _row(rows: Iterable[dict], timing: Timing, wanted: Selection) -> tuple[float, float, float] | None:
    """The least, the median and the greatest of its rounds."""
    row = next((row for row in rows if wanted.items() <= row.items() and row.get(timing.key)), None)
    if row is None:
        return None
    what, value = timing.key.rpartition("_")[0], row[timing.key]
    # kernels keep the range in milliseconds beside a median in the same, whole models in the key's own unit
    middle = row.get(f"{what}_ms", value)
    low, high = row.get(f"{what}_range_ms") or row.get(f"range_{timing.key.rpartition('_')[2]}") or (middle, middle)
    return value * low / middle, value, value * high / middle


def table(answers: Sequence[Answer], sweeps: Path = ROOT / "sweeps") -> Table:
    """A row a claim, in the order of the file."""
    header = ["claim", "source", "published", "ours", "compared with", "difference", "seeds", "rates", "verdict"]
    header += ["command"]
    rows = [_cells(one, sweeps) for one in answers]
    data = [
        {"claim": one.claim.claim, "sweep": one.claim.sweep, "ours": summarise(one.ours.figures.values()).mean}
        | {"against": summarise(one.against.figures.values()).mean, "difference": one.difference.mean}
        | {"low": one.difference.low, "high": one.difference.high, "p": one.difference.p, "p_holm": one.p}
        | {"seeds": one.difference.count, "rates": one.ours.rates, "verdict": one.verdict}
        for one in answers
    ]
    named = {one.claim.at: one.claim.source.partition(",")[0] for one in reversed(answers)}
    sources = [f"{name} {at}" for at, name in reversed(named.items())]
    notes = [
        "One rule: a claim holds where the difference that it states is significant, does not hold where one of the "
        f"other sign is, and is {OPEN} else, or where a run diverged; it is {NOT_MEASURED} with fewer than "
        f"{LEAST_SEEDS} seeds in common. Significant: p < {ALPHA:g} by the t-test over differences paired by seed, "
        "adjusted by Holm's method over the claims of its sweep, or a difference that is the same with every seed. Of "
        "a timing: all rounds on one side of what is claimed. Intervals: of figures, of the mean by the bootstrap; of "
        "differences: of Student's t. Rates: how many learning rates were tried for ours, the best chosen on "
        "validation. Hours: of one worker, for the sweep and the one that it takes its rates from.",
        f"Sources: {'; '.join(sources)}.",
    ]
    if mixed := [one.claim.claim for one in answers if one.ours.other or one.against.other]:
        notes.append(f"Runs of another version of the code than most of their kind are left out: {'; '.join(mixed)}.")
    prose = ("source", "published", "ours", "compared with", "difference", "verdict", "command")
    return Table("claims", "Published claims", header, rows, notes, pd.DataFrame(data), prose=prose)


def _cells(one: Answer, sweeps: Path) -> list[str]:
    claim, timing = one.claim, one.claim.timing
    start = [claim.claim, claim.source, claim.theirs or MISSING]
    if timing is not None:
        ratio = MISSING if one.timed is None else "{1:.3g} times ({0:.3g} to {2:.3g})".format(*one.timed)
        against = _named(timing.against) if isinstance(timing.against, dict) else f"{timing.against:g}"
        command = f"`python -m bench {timing.subject}`"
        return [*start, _named(timing.ours), against, ratio, MISSING, MISSING, one.verdict, command]
    if not claim.sweep:
        return [*start, *[MISSING] * 5, f"{NOT_MEASURED}: {claim.needs}", MISSING]
    against = _told(claim.against, one.against) if isinstance(claim.against, dict) else f"{claim.against:g}"
    shifted = f", by {claim.by:+g}" if claim.by else ""
    rates = _rates(claim.sweep, one.ours, sweeps)
    command, verdict = f"`python run.py -m +sweeps={claim.sweep}`", one.verdict
    if verdict == NOT_MEASURED:
        verdict += f" ({_cost(claim.sweep, sweeps):.1f} hours)"
    ours, seeds = _told(claim.ours, one.ours), str(one.difference.count)
    return [*start, ours, against + shifted, _difference(one.difference), seeds, rates, verdict, command]


def _named(selection: Selection) -> str:
    """`ltc, solver=rk4`."""
    told = {key: value for key, value in selection.items() if key not in SAME and value is not None}
    return ", ".join(
        str(v) if k in ("model", "operation", "contestant") else f"{k.rpartition('.')[2]}={v}" for k, v in told.items()
    )


def _told(selection: Selection, side: Side) -> str:
    mean, ends = summarise(side.figures.values()).mean, interval(side.figures.values())
    figure = NOT_MEASURED if mean is None else f"{mean:.4g}"
    figure += f" ({ends.low:.4g} to {ends.high:.4g})" if ends else ""
    figure += f", {side.diverged} diverged" if side.diverged else ""
    return f"{_named(selection)}: {figure}"


def _difference(difference: Difference) -> str:
    if difference.mean is None:
        return MISSING
    ends = "" if difference.low is None else f" ({difference.low:+.3g} to {difference.high:+.3g})"
    return f"{difference.mean:+.3g}{ends}"


def _rates(sweep: str, side: Side, sweeps: Path) -> str:
    """How many learning rates the sweep tried for ours, or the sweep that it takes the best from."""
    chosen = _section(sweep, sweeps).get("choose", {}).get(RATE)
    if chosen is None:
        return str(side.rates or MISSING)
    grids = _section(chosen["sweep"], sweeps).get("grids", [])
    return str(max(len(grid[RATE]) for grid in grids if isinstance(grid.get(RATE), list)))


def _cost(sweep: str, sweeps: Path) -> float:
    section = _section(sweep, sweeps)
    chosen = section.get("choose", {}).get(RATE)
    return section["cost"]["hours"] + (_section(chosen["sweep"], sweeps)["cost"]["hours"] if chosen else 0.0)


@cache
def _section(sweep: str, sweeps: Path) -> dict[str, Any]:
    """What a sweep's file says of itself: many claims ask for few files."""
    return yaml.safe_load((sweeps / f"{sweep}.yaml").read_text(encoding="utf-8"))["sweep"]
