"""`python -m sweeps.queue`: makes the runs of sweeps with several workers, resumes them, and commits their records."""

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from harness.config.errors import UserError
from harness.machine.signals import held_back
from harness.records import sweep as on_disk
from harness.records.sweep import DONE, FOLDER, Journal, State
from harness.training.progress import clock
from sweeps import pinned, work
from sweeps.cost import Speeds
from sweeps.known import Known
from sweeps.pinned import Publisher
from sweeps.plan import Plan
from sweeps.section import Section

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTION = """Makes the runs of sweeps, in the order in which the sweeps are named; one that consists of
others (sweep.parts) counts as those. Every run is a process of its own with one thread. What is recorded is
skipped, what was stopped or killed is resumed at its checkpoint. A run for which another sweep must choose a
value begins as soon as that one is done; a grid that ends at its best value is extended."""
EPILOG = """examples:
  python -m sweeps.queue verdict --dry-run                   how many runs are left, and the hours they will take
  python -m sweeps.queue learning_rate ladder --workers 2    from this checkout, into runs/
  python -m sweeps.queue verdict --at HEAD --commit          by the code of one commit, records committed to results/
  python -m sweeps.queue solvers --with debug=tiny           in small, to see that it works"""
POLL = 0.5
"""Seconds between looks at the workers."""
NICE = 10
BATCH_RUNS, BATCH_SECONDS = 10, 900.0
"""Records are committed when so many are new, or the oldest of them is so old."""
ATTEMPTS = 2
"""Of a run whose process was killed from outside; one that fails by itself fails again."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "python -m sweeps.queue", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("sweeps", nargs="+", metavar="SWEEP", help="names of files in sweeps/, the most urgent first")
    made.add_argument("--workers", type=int, default=2, help="runs at a time, each with one thread (default: 2)")
    made.add_argument(
        "--at", metavar="COMMIT", help="make the runs by the code of this commit, in a checkout of its own"
    )
    made.add_argument("--worktree", type=Path, metavar="DIR", help="where that checkout is (default: beside this one)")
    made.add_argument("--nice", type=int, default=NICE, help=f"how far others come first, 0 to 19 (default: {NICE})")
    made.add_argument("--commit", action="store_true", help="commit finished records to results/ of this checkout")
    made.add_argument("--pause", type=Path, metavar="FILE", help="while FILE exists, workers stop at their checkpoints")
    made.add_argument("--dry-run", action="store_true", help="say what is left, and run nothing")
    made.add_argument("--with", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides", help="for every run")
    made.add_argument("--home", type=Path, default=ROOT, help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, 1 (a run failed or waits) or 2 (an error, reported)."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(given)
    try:
        if options.at is not None and options.home == ROOT:
            pause = [] if options.pause is None else ["--pause", str(options.pause.resolve())]
            _go_on_in(pinned.worktree(ROOT, options.at, options.worktree), [*given, *pause])
        os.chdir(ROOT)
        queue = Queue(options)
        queue.begin()
        return 0 if options.dry_run else queue.work()
    except UserError as error:
        print(error.paragraph(), file=sys.stderr)
        return 2


def _go_on_in(checkout: Path, given: list[str]) -> None:
    """Becomes the same command in another checkout, whose modules it then is made of."""
    os.chdir(checkout)
    os.execv(sys.executable, [sys.executable, "-m", "sweeps.queue", *given, "--home", str(ROOT)])


@dataclass(frozen=True)
class Task:
    """One run to be made: of which sweep, by which overrides; key: None where it is not known."""

    sweep: str
    overrides: tuple[str, ...]
    key: str | None

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return self.key or " ".join(self.overrides)

    def __str__(self) -> str:
        own = [override for override in self.overrides if not override.startswith("+sweeps=")]
        return f"{self.sweep}: {' '.join(own)}"


@dataclass
class Worker:
    """A process that makes a run. anew: rather than resuming one. told: to stop, by this command."""

    task: Task
    process: subprocess.Popen
    log: Path
    anew: bool
    told: bool = False
    begun: float = field(default_factory=time.monotonic)


class Queue:
    """The runs of several sweeps in order of priority, and the workers that make them."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.home = options, options.home
        self.run = import_module("run")  # here, for it notes the checkout that it stands in, which may not be the last
        self.names = self._parts(options.sweeps)
        self.asked = [self._section(name) for name in options.sweeps]
        self.publisher = Publisher(self.home, options.commit)
        self.journal: Journal | None = None
        self.workers: list[Worker] = []
        self.done: set[str] = set()
        self.attempts: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        self.finished, self.worked, self.expected = 0, 0.0, 0.0
        self.uncommitted_since: float | None = None
        self.known = self._records()
        self.plans: dict[str, Plan] = {}
        self.tasks: list[Task] = []

    def begin(self) -> None:
        """Expands all sweeps and says what is left."""
        self._expand()
        left, hours = self._left(), self._hours()
        done, waiting = len(self._names() & self.done), sum(len(plan.waiting) for plan in self.plans.values())
        print(f"{', '.join(self.names)}: {done} runs are done, {len(left)} are left", end="", flush=True)
        print(f", {waiting} wait for values that others choose" if waiting else "", end="")
        print(f"; about {hours:.1f} hours with {self.options.workers} workers.", flush=True)
        if self.options.dry_run:
            for task in left:
                print(f"  {task}")

    def work(self) -> int:
        """Makes all runs; returns 1 where one failed or could not be made, else 0."""
        os.nice(self.options.nice)
        folder = next(iter(self.plans.values())).folder
        self.journal = Journal(folder, "queue")
        self.journal.begin(None)
        with work.signals_reported(self._stop_workers):
            try:
                self._write()
                self._take_up()
                while self._step():
                    time.sleep(POLL)
            finally:
                self._collect()
                self._commit(at_once=True)
                self.journal.end()
        return self._conclude()

    def _step(self) -> bool:
        """Collects what ended and fills the free places; returns whether there is anything left to wait for."""
        if self._collect():
            self._expand()
            self._write()
        self._commit(at_once=False)
        if self.options.pause is not None and self.options.pause.exists():
            self._pause()
            return True
        while len(self.workers) < self.options.workers and (task := self._next()):
            self._start(task)
        return bool(self.workers or self._elsewhere())

    def _parts(self, names: list[str]) -> list[str]:
        def parts(name: str) -> list[str]:
            return [inner for part in self._section(name).parts for inner in parts(part)] or [name]

        return list(dict.fromkeys(part for name in names for part in parts(name)))

    def _section(self, name: str) -> Section:
        return self.run.expanded([f"+sweeps={name}"], True).section

    def _urgency(self, task: Task) -> list[int]:
        """Less is more urgent; equals are made in the order in which sweeps and their grids name them."""
        return [section.urgency(task.sweep, list(task.overrides)) for section in self.asked]

    def _records(self) -> Known:
        """The records of the runs' own folder and of results/, as far as today's code made them."""
        command = [f"+sweeps={self.names[0]}", *self.options.overrides]
        return Known([self.run.expanded(command, True).folder, self.home / "results"], ROOT)

    def _expand(self) -> None:
        """Asks each sweep for its runs as the records stand now."""
        self.known.refresh()
        for name in self.names:
            if self._may_grow(name):
                self.plans[name] = self.run.planned([f"+sweeps={name}", *self.options.overrides], True, self.known)
        tasks = [
            Task(name, tuple(job), self.run.RUNS.known_key(job))
            for name, plan in self.plans.items()
            for job in plan.jobs
        ]
        self.tasks = sorted(tasks, key=self._urgency)
        for task in self.tasks:
            if task.name not in self.done and self.known.state(task.key) in DONE:
                self.done.add(task.name)

    def _write(self) -> None:
        """Notes which runs each sweep has, for `python -m analysis --sweep NAME`."""
        for plan in self.plans.values():
            on_disk.write(plan.folder, self.run.RUNS.described(plan))

    def _may_grow(self, name: str) -> bool:
        """Whether the records of today may ask for other runs of a sweep: what was once chosen for a run stays."""
        plan = self.plans.get(name)
        return plan is None or bool(plan.waiting or plan.section.tune)

    def _names(self) -> set[str]:
        return {task.name for task in self.tasks}

    def _left(self) -> list[Task]:
        """The runs to be made, each once, those in work included."""
        left: dict[str, Task] = {}
        for task in self.tasks:  # one that several sweeps ask for is as urgent as the first of them has it
            if task.name not in self.done and task.name not in self.failures:
                left.setdefault(task.name, task)
        return list(left.values())

    def _next(self) -> Task | None:
        """The most urgent run that nobody makes."""
        busy = {worker.task.name for worker in self.workers}
        free = (task for task in self._left() if task.name not in busy)
        return next((task for task in free if self.known.state(task.key) is not State.RUNNING), None)

    def _elsewhere(self) -> bool:
        """Whether another process makes one of the runs: one that outlived the command that started it."""
        return any(self.known.state(task.key) is State.RUNNING for task in self._left())

    def _start(self, task: Task) -> None:
        self.attempts[task.name] = self.attempts.get(task.name, 0) + 1
        folder = self.plans[task.sweep].folder / FOLDER / "queue"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{task.key or len(self.attempts)}.log"
        grouped = [f"logger.group={task.sweep}"] if "logger=wandb" in task.overrides else []
        # the sweep's file gives the run its fixed values; its grids are already expanded
        command = [sys.executable, "run.py", *task.overrides, "sweep=null", "progress=false", "force=stale", *grouped]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        environment["LIQUIDBENCH_PARENT"] = str(os.getpid())
        anew = self.known.state(task.key) is State.MISSING
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.workers.append(Worker(task, process, log, anew))

    def _collect(self) -> bool:
        """Tells of the runs that ended, and hands on their records; returns whether there were any."""
        ended = [worker for worker in self.workers if worker.process.poll() is not None]
        if not ended:
            return False
        self.workers = [worker for worker in self.workers if worker not in ended]
        self.known.refresh()
        for worker in ended:
            task, seconds = worker.task, time.monotonic() - worker.begun
            if self.known.state(task.key) in DONE:
                self.done.add(task.name)
                self._publish(task)
                self.finished += 1
                if worker.anew:
                    self.worked += seconds
                    self.expected += self._seconds([list(task.overrides)])
                self._say(task, f"{self._outcome(task)} in {clock(seconds)}")
            elif worker.told:
                self.attempts[task.name] -= 1
                self._say(task, "stopped at its checkpoint")
            elif self._stopped(worker) and self.attempts[task.name] < ATTEMPTS:
                self._say(task, f"killed (exit status {worker.process.returncode}), to be resumed")
            else:
                self.failures[task.name] = reason = self._reason(worker)
                note = Journal(self.plans[task.sweep].folder, task.sweep).note
                note(event="ended", job=" ".join(task.overrides), status="failed", reason=reason)
                self._say(task, f"failed: {reason}")
        return True

    def _stopped(self, worker: Worker) -> bool:
        """Whether a signal ended the process, rather than an error of its own."""
        return worker.process.returncode < 0 or worker.process.returncode - 128 in (signal.SIGINT, signal.SIGTERM)

    def _reason(self, worker: Worker) -> str:
        lines = worker.log.read_text(errors="replace").strip().splitlines()
        told = [line for line in lines[-12:] if line.startswith("error: ")]
        return (told or lines or ["it said nothing"])[-1].removeprefix("error: ")[:300] + f" ({worker.log})"

    def _outcome(self, task: Task) -> str:
        result = self.known.result(task.key) or {}
        score = self.known.score(task.key)
        figure = "" if score is None or result.get("status") != "finished" else f", {abs(score):.4f} on validation"
        return f"{result.get('status')}{figure}"

    def _say(self, task: Task, what: str) -> None:
        left, total = len(self._left()), len(self._names())
        print(f"[{total - left} of {total}] {task}: {what}", end="")
        print(f"; {left} left, about {self._hours():.1f} hours" if left else "", flush=True)

    def _speeds(self) -> Speeds:
        """What the records of these sweeps say of speeds."""
        return Speeds.of(filter(None, (self.known.result(task.key) for task in self.tasks if task.name in self.done)))

    def _hours(self) -> float:
        """What all runs left will take, for the workers together: by speeds, corrected by the runs made so far."""
        factor = self.worked / self.expected if self.expected else 1.0
        jobs = [list(task.overrides) for task in self._left()]
        jobs += [job for plan in self.plans.values() for job, _ in plan.waiting]
        return factor * self._seconds(jobs) / 3600 / self.options.workers

    def _seconds(self, jobs: list[list[str]]) -> float:
        """What runs take one worker; nothing for those whose data is not there, which will say so themselves."""
        speeds, seconds = self._speeds(), 0.0
        for job in jobs:
            with suppress(UserError):
                seconds += speeds.seconds(self.run.RUNS.in_tokens(job))
        return seconds

    def _take_up(self) -> None:
        """Hands on the records that a command which was killed had finished."""
        for task in self.tasks:
            if task.name in self.done:
                self._publish(task)
        self.publisher.take_up(task.key for task in self.tasks)
        self._commit(at_once=True)

    def _publish(self, task: Task) -> None:
        """Copies a record to results/, where it is not yet."""
        if not self.options.commit:
            return
        record = self.known.path(task.key)
        if record is not None and record.parent.resolve() != self.publisher.results.resolve():
            self.publisher.add(record)
            self.uncommitted_since = self.uncommitted_since or time.monotonic()

    def _commit(self, at_once: bool) -> None:
        new = len(self.publisher.pending)
        old = self.uncommitted_since is not None and time.monotonic() - self.uncommitted_since > BATCH_SECONDS
        if not self.options.commit or not new or not (at_once or old or new >= BATCH_RUNS):
            return
        try:
            for plan in self.plans.values():
                self.publisher.note(self.run.RUNS.described(plan))
            runs = f"{new} runs are recorded" if new > 1 else "A run is recorded"
            with held_back():  # a git that is torn out of its work leaves its lock behind
                self.publisher.commit(f"{runs} for the sweeps {', '.join(self.names)}")
            self.uncommitted_since = None
        except UserError as error:
            self.uncommitted_since = time.monotonic()  # tried again after a while, or at the end
            print(error.paragraph(), file=sys.stderr)

    def _pause(self) -> None:
        """Stops all workers at their checkpoints; what they made is begun again later."""
        if self.workers:
            print(f"{self.options.pause} exists: {len(self.workers)} workers stop at their checkpoints.", flush=True)
            self._stop_workers()

    def _stop_workers(self) -> None:
        """They are no part of the terminal's group, so that no signal but this reaches them."""
        for worker in self.workers:
            worker.told = True
        work.stop_workers(grace=0.0)

    def _conclude(self) -> int:
        waiting = [reason for plan in self.plans.values() for _, reason in plan.waiting]
        print(f"{self.finished} runs made, {len(self.failures)} failed, {len(waiting)} wait for others.")
        for task in (task for task in self.tasks if task.name in self.failures):
            print(f"  failed: {task}: {self.failures[task.name]}", file=sys.stderr)
        for reason in dict.fromkeys(waiting):
            print(f"  waits: {reason}", file=sys.stderr)
        for name, plan in self.plans.items():
            for job in plan.endless:
                print(f"  {name}: the grid of {' '.join(job)} was extended and still ends at its best value.")
        return 1 if self.failures or waiting else 0


if __name__ == "__main__":
    sys.exit(main())
