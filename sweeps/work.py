"""The runs of one command, in one process or in several: what is begun, what ends how, and who is told to stop.

Processes share nothing but the journal of the sweep (harness/records/sweep.py), so the launcher that starts them may be
any of Hydra's, on this machine or on others.
"""

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from harness.config.errors import UserError
from harness.records import sweep as on_disk
from harness.records.sweep import Journal
from harness.training.progress import SweepProgress, clock
from sweeps.plan import Job, Plan, Runs

RESULTS = Path(__file__).resolve().parents[1] / "results"

GRACE = 5.0
"""Seconds for workers that the signal itself has reached; a second one tells training that there is no time to save."""
PATIENCE = 120.0
"""Seconds that workers have to write their checkpoints when the command is told to stop."""
POLL = 0.2
"""Seconds between looks at the journal, and at whether whoever started a worker is still there."""


def objective(result: dict) -> float:
    """What a sweeper may minimise: the loss on validation; infinite where training diverged."""
    figures = (result["evaluation"] or {}).get("validation", {})
    return figures.get("bits_per_byte", figures.get("loss", math.inf))


class Display:
    """The one view of all runs of a command: a line as each begins and, where others make them, as it ends.

    alone: whether the runs are made by this process, which then shows more of each than its last line.
    """

    def __init__(self, journal: Journal, runs: int | None, alone: bool):
        self.journal, self.alone = journal, alone
        self.progress = SweepProgress(runs)
        self.failures: list[str] = []
        self.open: set[str] = set()
        self.begun: set[str] = set()
        self.lost: set[str] = set()
        self._seen = 0

    def update(self) -> None:
        """Shows what has happened since it was last called."""
        events = self.journal.events()
        for event in events[self._seen :]:
            if event["event"] == "begun":
                self.begun.add(event["job"])
                self.open.add(event["job"])
                print(f"{chr(10) * self.alone}{self.progress.start([event['job']])}", flush=True)
            elif event["event"] == "lost":
                self._lost(event)
            elif event["event"] == "ended":
                self.open.discard(event["job"])
                self._ended(event)
        self._seen = len(events)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Shows what other processes do while the block runs."""
        over = threading.Event()

        def follow() -> None:
            while not over.wait(POLL):
                self.update()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.update()

    def end(self, waiting: list[str]) -> None:
        """Ends the command with a list of what failed or waits for another sweep, and a non-zero status."""
        parts = []
        if self.failures:
            parts.append(f"{len(self.failures)} of {self.progress.started} runs failed:")
            parts += [f"  {line}" for line in self.failures]
        if waiting:
            parts += [f"{len(waiting)} runs could not be made yet:", *(f"  {line}" for line in waiting)]
        if parts:
            sys.exit("error: " + "\n".join(parts))

    def _lost(self, event: dict) -> None:
        """A run whose process ended is begun once more: it may only have shared a pool with the one that failed."""
        job = event["job"]
        self.open.discard(job)
        self.begun.discard(job)
        self.lost.add(job)
        self.progress.started -= 1
        print(f"Lost: {job}: {event['reason']}; it is resumed", flush=True)

    def _ended(self, event: dict) -> None:
        if event["status"] == "failed":
            self.progress.failed()
            self.failures.append(f"{event['job']}: {event['reason']}")
            said = f"failed: {event['reason']}"
        else:
            self.progress.made(event["seconds"], event["training_seconds"])
            figure = event["figure"]  # null in JSON where training diverged
            said = "diverged" if figure is None else f"{figure:.4f} on validation in {clock(event['seconds'])}"
        if not self.alone:
            of = f" of {self.progress.runs}" if self.progress.runs is not None else ""
            print(f"Ended {self.progress.ended}{of}: {event['job']}: {said}", flush=True)


class Stopped(SystemExit):
    """A signal that ended the command; its status is the shell's, 128 and the signal's number."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


@contextmanager
def signals_reported(before_stopping: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Ends the command with one line where it is told to stop; training first writes its checkpoint.

    before_stopping: called first, while everything still stands as it was.
    """

    def stop(number: int, frame) -> None:
        before_stopping()
        raise Stopped(number)

    handled = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in handled.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except Stopped as stopped:
        print(f"Stopped by {stopped.signal}. The same command takes the run up where it stands.", file=sys.stderr)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_workers(grace: float = GRACE) -> None:
    """Tells the processes that this one started to stop, and waits while they write their checkpoints.

    grace: seconds before they are told, in which those may end that a signal to the whole group has reached.
    """
    workers = [child for child in psutil.Process().children() if not _serves(child)]
    _, workers = psutil.wait_procs(workers, timeout=grace)
    for worker in workers:
        try:
            worker.terminate()
        except psutil.Error:
            continue
    psutil.wait_procs(workers, timeout=PATIENCE)


def _serves(process: psutil.Process) -> bool:
    """Whether a child only serves its parent (joblib's tracker of resources) and ends with it."""
    try:
        return "resource_tracker" in " ".join(process.cmdline())
    except psutil.Error:
        return True


class Work:
    """One run of a sweep, in whichever process makes it.

    root, name: the folder of the records and the sweep. overrides: of the run. make: makes it and returns its record.
    """

    def __init__(self, root: Path, name: str, overrides: list[str], make: Callable[[], dict]):
        self.journal, self.job, self._make = Journal(root, name), " ".join(overrides), make

    def attempt(self, display: "Display | None" = None) -> float:
        """Makes the run and notes what becomes of it; returns its objective, infinite where it failed.

        display: to be brought up to date at once, where this process has it.
        """
        self._note(display, event="begun")
        start = time.monotonic()
        try:
            result = self._make()
            times = {"seconds": time.monotonic() - start, "training_seconds": result["training"]["seconds"]}
            figure = objective(result)
            self._note(display, event="ended", status=result["status"], figure=figure, **times)
            return figure
        except Exception as error:  # whatever ended this job, the others are worth running
            if isinstance(error, UserError):
                print(error.paragraph(), file=sys.stderr)
            else:
                traceback.print_exc()
            reason = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._note(display, event="ended", status="failed", reason=reason[:1000])
            return math.inf

    def as_worker(self, number: int) -> float:
        """The same in a process that a launcher started; what it prints goes to a file, named after the job's number.

        Told to stop, or left by the process that started it, it writes its checkpoint and ends.
        """
        obey(os.getppid())
        log = self.journal.path.with_suffix("") / f"{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file), signals_reported():
                return self.attempt()
        except Stopped as stopped:
            os._exit(int(stopped.code or 0))  # nothing of the launcher's may take it for a job that ended

    def _note(self, display: "Display | None", **event: Any) -> None:
        self.journal.note(job=self.job, **event)
        if display is not None:
            display.update()


class Command:
    """A command of several runs, in the process that the user started.

    alone: whether this process makes the runs itself, and no workers do.
    """

    def __init__(self, plan: Plan, runs: Runs, alone: bool):
        self.plan, self.runs, self.alone = plan, runs, alone
        self.journal = Journal(plan.folder, plan.name)
        self.display = Display(self.journal, plan.runs, alone)

    def run(self, launch: Callable[[list[Job]], None], replan: Callable[[], Plan]) -> None:
        """Makes all runs; one that fails is told, and the others go on. Ends with the sweep's table.

        launch: has jobs made. replan: the plan as the records then stand, for grids grow until their best value lies
        inside. Raises SystemExit where anything failed, or a job waits for another sweep.
        """
        with self._noted():
            while jobs := [job for job in self.plan.jobs if " ".join(job) not in self.display.begun]:
                self._write()
                self._launch(partial(launch, jobs))
                self.plan = replan()
                self.display.progress.runs = self.plan.runs
            self._write()
        for job in self.plan.endless:
            print(f"The grid of {' '.join(job)} was extended and still ends at its best value.", file=sys.stderr)
        from analysis import sweep  # here, for a single run needs none of what it imports

        for line in sweep.told(self.plan.name, [self.plan.folder, RESULTS]):
            print(line)
        self.display.end([f"{' '.join(job)}: {reason}" for job, reason in self.plan.waiting])

    def run_by_others(self, launch: Callable[[], None]) -> None:
        """The same where a sweeper of the user's own knows the runs."""
        with self._noted():
            self._launch(launch)
        self.display.end([])

    def stop_workers(self) -> None:
        """Has workers write their checkpoints and end."""
        if not self.alone:
            stop_workers()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        self.journal.begin(self.plan.runs)
        try:
            yield
        finally:
            self.journal.end()

    def _write(self) -> None:
        on_disk.write(self.plan.folder, self.runs.described(self.plan))

    def _launch(self, launch: Callable[[], None]) -> None:
        """Has jobs made; where a worker dies, what it and others were at is begun once more in the next round."""
        before = set(self.display.begun)
        try:
            with nullcontext() if self.alone else self.display.following():
                launch()
        except Exception as error:
            self.display.update()
            if self.display.begun == before:
                raise  # no job began, and so none would the next time
            reason = f"the process that made it ended ({' '.join(str(error).split())[:200]})"
            for job in sorted(self.display.open):
                again = {"event": "ended", "status": "failed"} if job in self.display.lost else {"event": "lost"}
                self.journal.note(job=job, reason=reason, **again)
        self.display.update()


_obeying = threading.Lock()


def obey(parent: int) -> None:
    """Makes this process a worker of the process `parent`: it stops (SIGTERM) when told to, or once that one is gone.

    A terminal's SIGINT is left to the parent, who tells all workers. Called again it changes nothing.
    """
    if not _obeying.acquire(blocking=False):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
