"""A sweep: what has become of each of its runs, and the tables of those that are done."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from analysis import records, render, report, selection
from harness.config.errors import RecordError
from harness.records import sweep
from harness.records.sweep import DONE, Job, State

SHOWN = 20
"""Runs of one state that are listed; of more, the number left."""
LISTED = (State.RUNNING, State.FAILED, State.STOPPED, State.WAITING, State.MISSING, State.DIVERGED)


def told(name: str, folders: Sequence[Path], tuned: Sequence[str] = selection.CHOSEN) -> Iterator[str]:
    """Yields the sweep's question, how many of its runs are in which state, those that are not finished, its tables.

    folders: those of the records. Raises RecordError where the sweep was never started in one of them.
    """
    folders = [Path(folder) for folder in folders if Path(folder).is_dir()]
    known = sweep.read(list(reversed(folders)), name)  # one's own start of it before the shared one
    of_run = sweep.folders_of_runs(folders)
    failures = _failures(folders, name)
    states = [(job, _state(job, of_run, failures)) for job in known.jobs]
    counts = Counter(state for _, state in states)
    yield f"{name}: {known.question}" if known.question else name
    yield f"{len(states)} runs: " + ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    for state in LISTED:
        members = [job for job, found in states if found is state]
        for job in members[:SHOWN]:
            yield f"  {state}: {job}{_reason(job, state, of_run) or failures.get(str(job), '')}"
        if len(members) > SHOWN:
            yield f"  {state}: {len(members) - SHOWN} more"
    yield from _tables(folders, {job.key for job, state in states if state in DONE}, tuned)


def _failures(folders: list[Path], name: str) -> dict[str, str]:
    """Why runs failed in the last command of the sweep, after a colon: one that cannot be built leaves no folder."""
    events = [event for folder in folders for event in sweep.Journal(folder, name).events()]
    return {event["job"]: f": {event['reason']}" for event in events if event.get("status") == "failed"}


def _state(job: Job, of_run: dict[str, list[Path]], failures: dict[str, str]) -> State:
    if job.waits:
        return State.WAITING
    found = sweep.state(of_run.get(job.key or "", ()))
    return State.FAILED if found is State.MISSING and str(job) in failures else found


def _reason(job: Job, state: State, of_run: dict[str, list[Path]]) -> str:
    """Why a run waits or failed, as its folder says, after a colon; "" where there is nothing to say."""
    folders = of_run.get(job.key or "", [])
    reasons = [job.waits] if job.waits else []
    if state is State.FAILED and folders:
        reasons = [reason for folder in folders if (reason := records.failure(folder))]
        reasons = reasons or ["its checks failed, or its record is damaged"]
    return f": {reasons[0]}" if reasons else ""


def _tables(folders: list[Path], keys: set[str | None], tuned: Sequence[str]) -> Iterator[str]:
    try:
        known = records.load(folders)
    except RecordError as error:
        yield str(error)
        return
    runs = [record for record in known.runs if record.result["key"] in keys]
    made = report.build(replace(known, runs=runs), Path(), tuned)
    for table in [*made.comparison, *made.synthetic, *made.tuning]:
        yield ""
        yield render.markdown(table)
