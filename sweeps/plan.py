"""Which runs a command asks for, once grids are extended and values that other sweeps found are filled in.

What Hydra does (it expands a command, and composes the configuration of a run) is given to it as functions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness.records import sweep as on_disk
from harness.records.identity import run_key, to_json
from sweeps import tuning
from sweeps.choices import Chooser
from sweeps.known import Known
from sweeps.section import Choice, Section

Job = list[str]
"""The overrides of one run."""


@dataclass
class Plan:
    """What a command asks for.

    jobs: the overrides of every job, or of what all jobs share where only a sweeper of the user's own knows them. runs:
    how many there will be, None where only the sweeper knows. folder: of the records. name, question: a sweep's. own:
    whether a sweeper of the user's own expands it. launcher: the class that starts the jobs. section: what the sweep's
    file says. waiting: jobs for which another sweep must choose a value first, each with what it waits for. endless:
    jobs whose grid was extended as far as it may be and still ends at its best value.
    """

    jobs: list[Job]
    runs: int | None
    sweeps: bool
    folder: Path
    name: str
    question: str
    own: bool
    launcher: str
    section: Section = field(default_factory=Section)
    waiting: list[tuple[Job, str]] = field(default_factory=list)
    endless: list[Job] = field(default_factory=list)


class Runs:
    """The runs that overrides ask for. What was composed once is kept, and so to be read only.

    compose: gives the checked configuration of a run. build: makes what a node of it describes.
    """

    def __init__(self, compose: Callable[[Job], dict], build: Callable[[dict], Any]):
        self._compose = cache(lambda job: compose(list(job)))
        self._task = cache(lambda node: build(node.content))
        self._in_tokens, self._key = cache(self._budgeted), cache(self._hashed)
        self._build = build

    def config(self, job: Job) -> dict:
        """The checked configuration; raises UserError for one that cannot be used."""
        return self._compose(tuple(job))

    def in_tokens(self, job: Job) -> dict:
        """The configuration as its record has it, the budget in tokens; raises UserError for data that is not there."""
        return self._in_tokens(tuple(job))

    def key(self, job: Job) -> str:
        """The run's key; raises UserError as `in_tokens` does."""
        return self._key(tuple(job))

    def known_key(self, job: Job) -> str | None:
        """The run's key; None where it cannot be told, for which the run itself will give the reason."""
        try:
            return self.key(job)
        except Exception:  # whatever the task's constructor raises, the other runs are worth making
            return None

    def described(self, plan: Plan) -> on_disk.Sweep:
        """The sweep as its folder notes it, each run with its key."""
        jobs = [on_disk.Job(job, self.known_key(job)) for job in plan.jobs]
        waiting = [on_disk.Job(job, None, reason) for job, reason in plan.waiting]
        return on_disk.Sweep(plan.name, plan.question, jobs + waiting)

    def _budgeted(self, job: tuple[str, ...]) -> dict:
        config = self._compose(job)
        trainer = self._build(config["trainer"]).resolved(config["size"]["params"], self._data(config))
        return config | {"trainer": config["trainer"] | trainer.budget}

    def _hashed(self, job: tuple[str, ...]) -> str:
        return run_key(self._in_tokens(job), self._data(self._compose(job)).digest)

    def _data(self, config: dict) -> Any:
        return self._task(_Node(config["task"]))


@dataclass(frozen=True)
class _Node:
    """A node of a configuration that can be looked up."""

    content: dict

    def __hash__(self) -> int:
        return hash(to_json(self.content, sort_keys=True))


@dataclass(frozen=True)
class Source:
    """Where values are chosen from: the records, and the command's own overrides, which hold for any sweep."""

    given: list[str]
    known: Known


class Planner:
    """Completes the plans of commands. expand: what Hydra makes of a command's overrides."""

    def __init__(self, expand: Callable[[list[str], bool], Plan], runs: Runs):
        self._expand, self._runs = expand, runs

    def plan(self, overrides: list[str], sweeps: bool, known: Known | None) -> Plan:
        """What a command asks for as the records stand; known: None for its own folder's alone.

        Raises ConfigError for what cannot be expanded.
        """
        plan = self._expand(overrides, sweeps)
        if plan.own:
            return plan
        known = known or Known([plan.folder])
        if plan.section.parts:
            parts = [self.plan(of_sweep(part, overrides), True, known) for part in plan.section.parts]
            plan.jobs = [job for part in parts for job in part.jobs]
            plan.waiting = [waiting for part in parts for waiting in part.waiting]
            plan.endless = [job for part in parts for job in part.endless]
        plan.jobs = [list(job) for job in dict.fromkeys(map(tuple, plan.jobs))]
        if plan.section.tune:
            plan.jobs, plan.endless = tuning.extended(plan.jobs, plan.section.tune, self._scores(known))
        for key, choice in plan.section.choose.items():
            given = [override for override in overrides if all(override in job for job in plan.jobs)]
            self._choose(plan, key, choice, Source(given, known))
        plan.runs = len(plan.jobs) + len(plan.waiting)
        return plan

    def _scores(self, known: Known) -> Callable[[Job], float | None]:
        return lambda job: known.score(self._runs.key(job))

    def _choose(self, plan: Plan, key: str, choice: Choice, source: Source) -> None:
        """Gives each job that has no `key` the value that another sweep found best; without one it waits."""
        open_jobs = [job for job in plan.jobs if key not in map(key_of, job)]
        if not open_jobs:
            return
        own, scored = self._expand([f"+sweeps={choice.sweep}"], True).section.keys, self._scores(source.known)
        tried = self.plan(of_sweep(choice.sweep, source.given, own), True, source.known).jobs
        chooser = Chooser(key, choice, [(self._runs.config(job), scored(job)) for job in tried])
        jobs, plan.jobs = plan.jobs, []
        for job in jobs:
            try:
                filled = [f"{key}={chooser.value(self._runs.config(job)):g}"] if job in open_jobs else []
                plan.jobs.append(job + filled)
            except tuning.UnknownValueError as error:
                plan.waiting.append((job, str(error)))


def key_of(override: str) -> str:
    """The key of an override: `+a.b=1` -> a.b."""
    return override.partition("=")[0].lstrip("+~")


def of_sweep(name: str, overrides: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """The command of another sweep under the same overrides, less those of the keys `without`."""
    left_out = {"sweeps", *without}
    return [f"+sweeps={name}", *(override for override in overrides if key_of(override) not in left_out)]
