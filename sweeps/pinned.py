"""Git for the queue: a checkout that stays at one commit, and finished records that are committed to another."""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from harness.config.errors import MachineError
from harness.records import sweep

RECORDED = (".json", ".jsonl", ".csv")
"""What of a run's folder is committed: text, and so neither its checkpoint nor its lock."""
NEVER = ("failure.json",)
DATA = "data"
"""The folder of files that are not shipped; what a checkout has there, its worktrees have too."""
CODE = ("arch", "baselines", "conf", "harness", "sweeps", "run.py")


def git(folder: Path, *arguments: str) -> str:
    """The output of a git command; raises MachineError where it fails."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(
            f"`git {' '.join(arguments)[:200]}` in {folder} failed: {(done.stderr or done.stdout).strip()[:300]}.",
            "a git checkout that nothing else is changing at the moment.",
            "mend what git names; then the same command goes on.",
        )
    return done.stdout


def worktree(home: Path, commit: str, folder: Path | None = None) -> Path:
    """The checkout of `home`'s repository at `commit`, in `folder` or beside `home`; made where it is absent.

    Raises MachineError for an unknown commit, and where the folder holds another commit or changed code.
    """
    full = git(home, "rev-parse", "--verify", f"{commit}^{{commit}}").strip()
    folder = folder or home.parent / f"{home.name}-{full[:10]}"
    if not folder.exists():
        git(home, "worktree", "add", "--detach", str(folder), full)
    if (home / DATA).is_dir() and not (folder / DATA).exists():
        (folder / DATA).symlink_to((home / DATA).resolve(), target_is_directory=True)
    found = git(folder, "rev-parse", "HEAD").strip()
    changed = git(folder, "status", "--porcelain", "--", *CODE).strip()
    if found != full or changed:
        why = f"is at commit {found[:10]}" if found != full else f"has changed code ({changed.splitlines()[0]})"
        raise MachineError(
            f"{folder} {why}, and the runs must be made by commit {full[:10]}.",
            "a checkout of that commit, unchanged.",
            f"remove it (git worktree remove {folder}), or name another folder with --worktree.",
        )
    return folder


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


class Publisher:
    """Copies finished records into results/ of the checkout `home`, and commits them there if it is told to."""

    def __init__(self, home: Path, commits: bool):
        self.home, self.results, self.commits = home, home / "results", commits
        self.pending: set[str] = set()

    def add(self, record: Path) -> None:
        """Copies one finished run; its record there is whole at any moment, the old one or the new one."""
        if not self.commits:
            return
        target = self.results / record.name
        if _content(target / "result.json") == _content(record / "result.json"):
            return
        made, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
        for folder in (made, old):
            shutil.rmtree(folder, ignore_errors=True)
        made.mkdir(parents=True)
        for file in sorted(record.iterdir()):
            if file.suffix in RECORDED and file.name not in NEVER:
                shutil.copyfile(file, made / file.name)
        if target.exists():
            target.rename(old)
        made.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        self.pending.add(record.name)

    def note(self, described: sweep.Sweep) -> None:
        """Notes beside the records which runs a sweep consists of, for whoever has only them."""
        sweep.write(self.results, described)
        self.pending.add(f"{sweep.FOLDER}/{described.name}.json")

    def take_up(self, keys: Iterable[str | None]) -> None:
        """Finds the records of these runs that an earlier command copied and did not come to commit."""
        if not self.commits:
            return
        wanted = set(keys)
        listed = git(self.home, "status", "--porcelain", "--untracked-files=all", "-z", "--", "results")
        names = {entry[3:].split("/")[1] for entry in listed.split("\0") if entry[3:].count("/") >= 2}
        self.pending |= {name for name in names if name.rpartition("-")[2] in wanted}

    def commit(self, what: str) -> bool:
        """Commits the records that are new, and nothing else, whatever else is changed or staged there.

        Returns whether there was something to commit. Raises MachineError where git refuses; what is new stays so.
        """
        paths = [f"results/{name}" for name in sorted(self.pending)]
        if not self.commits or not paths:
            return False
        git(self.home, "add", "--all", "--", *paths)
        changed = git(self.home, "diff", "--cached", "--name-only", "--", *paths).split()
        if changed:
            git(self.home, "commit", "--quiet", "--only", "--message", what, "--", *paths)
        self.pending.clear()
        return bool(changed)
