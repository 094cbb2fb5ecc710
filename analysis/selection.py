"""Which value of a tuned key counts: the best on validation. Nothing here sees a test figure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd

from analysis.frame import RECIPE, TUNED, differing_keys, flatten, short
from analysis.records import Record
from analysis.statistics import summarise
from harness.config.errors import RecordError
from harness.records.identity import meaning

T = TypeVar("T")
CHOSEN = (*TUNED, *RECIPE)
"""The keys whose values are chosen on validation, so that test figures are shown for the best alone."""
EDGE = ", at the edge"
"""How a choice ends that is the least or the greatest value tried."""
HIGHER_IS_BETTER = {
    "validation_bits_per_byte": False,
    "validation_accuracy": True,
    "validation_f1": True,
    "validation_mean_squared_error": False,
}


@dataclass(frozen=True)
class Candidate:
    """The runs of one value of the tuned keys. figures: validation by seed, of those that finished."""

    variant: str
    values: dict
    seeds: frozenset[int]
    figures: dict[int, float]
    diverged: bool

    def mean(self, seeds: Iterable[int]) -> float | None:
        """The mean validation figure over those of `seeds` that finished."""
        return summarise(self.figures.get(seed) for seed in seeds).mean


def select(records: Sequence[Record], runs: pd.DataFrame, tuned: Sequence[str] = CHOSEN) -> pd.DataFrame:
    """Adds to the frame of the records' runs which of them are chosen.

    Runs of one code that differ in nothing but their seed and the keys `tuned` are one family. Its best variant by
    validation, averaged over the seeds that all its variants ran, is chosen; one that diverged with any seed comes
    last. family: the same for all its members. chosen: whether the run counts. choice: what was chosen, of how many,
    and whether it lies at the edge of the grid; "" where there was nothing to choose.

    Raises RecordError for a key that the protocol does not tune and that no run has.
    """
    flat = [flatten(meaning(record.config)) for record in records]
    for name in tuned:
        if name not in CHOSEN and not any(is_tuned(key, [name]) for config in flat for key in config):
            raise RecordError(
                f"No run has a key {name!r} to tune.",
                "a key of config.json, its parts joined by dots (trainer.learning_rate, solver).",
                "correct the key after --tuned.",
            )
    runs = runs.assign(family=_families(records, flat, tuned), chosen=True, choice="")
    for _, family in runs.groupby("family", sort=True) if len(runs) else []:
        known = [_candidate(variant, group, flat, tuned) for variant, group in family.groupby("variant", sort=True)]
        if len(known) > 1:
            best = _best(known, higher=_higher(family))
            runs.loc[family.index, "chosen"] = family["variant"] == best.variant
            runs.loc[family.index, "choice"] = _choice(best, known)
    return runs


def is_tuned(key: str, tuned: Iterable[str]) -> bool:
    """Whether a flat key is one of `tuned` or lies below it, also where another part of the configuration copies it."""
    return any(f".{name}." in f".{key}." for name in tuned)


def families(records: Sequence[Record], tuned: Sequence[str]) -> list[str]:
    """What is the same for runs that differ in the keys `tuned` and seed alone, and were made by one code."""
    return _families(records, [flatten(meaning(record.config)) for record in records], tuned)


def _families(records: Sequence[Record], flat: list[dict], tuned: Sequence[str]) -> list[str]:
    """What is the same for runs that differ in tuned keys and seed alone, and were made by one version of the code."""
    alike: dict[str, list[int]] = {}
    for place, (record, config) in enumerate(zip(records, flat, strict=True)):
        fixed = {key: value for key, value in config.items() if not is_tuned(key, tuned)}
        rest = json.dumps([fixed, record.result["data"].get("digest")], sort_keys=True)
        alike.setdefault(rest, []).append(place)
    families = [""] * len(records)
    for rest, places in alike.items():
        for place, version in zip(places, versions([records[place] for place in places]), strict=True):
            families[place] = f"{rest} {version}"
    return families


def versions(records: Iterable[Record]) -> list[int]:
    """Which version of the code made each record, from 0 on: the modules that two records of one version share agree.

    Another value of a key may import other modules (a solver's kernel), which is no other version of the code. Records
    that do not name their code are of one version.
    """
    known: list[dict] = []
    found = []
    for record in records:
        modules = (record.result.get("code") or {}).get("modules") or {"": record.code}
        modules = modules | {"named": bool(record.code)}
        same = next((v for v in known if all(v.get(name, digest) == digest for name, digest in modules.items())), None)
        if same is None:
            known.append(same := {})
        same |= modules
        found.append(known.index(same))
    return found


def of_one_version(tried: Sequence[tuple[T, Record]]) -> list[tuple[T, Record]]:
    """Those of these records, each with what it was a try of, that one version of the code made.

    It is the version that made most of them, of several the last.
    """
    made = versions(record for _, record in tried)
    best = max(made, key=lambda version: (made.count(version), version), default=0)
    return [one for one, version in zip(tried, made, strict=True) if version == best]


def _candidate(variant: object, group: pd.DataFrame, flat: list[dict], tuned: Sequence[str]) -> Candidate:
    config = flat[group.index[0]]
    values = {key: value for key, value in config.items() if is_tuned(key, tuned)}
    column = next((key for key in HIGHER_IS_BETTER if group[key].notna().any()), None)
    means = group.groupby("seed")[column].mean().dropna() if column else pd.Series(dtype=float)
    figures = {int(str(seed)): float(mean) for seed, mean in means.items()}
    diverged = bool((group["status"] == "diverged").any())
    return Candidate(str(variant), values, frozenset(group["seed"]), figures, diverged)


def _higher(family: pd.DataFrame) -> bool:
    """Whether a higher figure is the better one."""
    return next((higher for key, higher in HIGHER_IS_BETTER.items() if family[key].notna().any()), False)


def _best(known: list[Candidate], higher: bool) -> Candidate:
    shared = frozenset.intersection(*(candidate.seeds for candidate in known))

    def rank(candidate: Candidate) -> tuple:
        mean = candidate.mean(shared or candidate.seeds)
        return candidate.diverged, mean is None, (-1 if higher else 1) * (mean or 0.0), candidate.variant

    return min(known, key=rank)


def _choice(best: Candidate, known: list[Candidate]) -> str:
    """`learning_rate=0.003, best of 4`, and `at the edge` where a tuned one is the least or the greatest tried."""
    keys = differing_keys([candidate.values for candidate in known])
    named = ", ".join(f"{short(key)}={best.values.get(key, 'unset')}" for key in keys)
    grids = [key for key in keys if is_tuned(key, TUNED)]
    edge = any(_at_edge(best.values.get(key), [candidate.values.get(key) for candidate in known]) for key in grids)
    return f"{named}, best of {len(known)}" + EDGE * edge


def at_edge(choice: str) -> bool:
    """Whether what was chosen is the least or the greatest that was tried."""
    return choice.endswith(EDGE)


def _at_edge(value: object, tried: list) -> bool:
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in tried)
    return numbers and value in (min(tried), max(tried))
