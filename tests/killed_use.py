"""python killed_use.py RUN FOLDER KILLS SEED: exports, scores and serves a run, each through KILLS kill -9.

Every moment is random. What was there or was answered before a kill must be there after it, whole. Processes are
forked, so that the imports are paid for once; one thread each, so that forking is safe. Prints what was survived.
"""

import functools
import json
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import torch
import uvicorn
from tqdm import tqdm

import harness
from harness.export import hf  # noqa: F401  (transformers takes seconds to import)
from harness.export.formats import export
from harness.generation.library import Past
from harness.records import scores
from harness.serve.app import application
from harness.serve.sessions import Limits

ASKED = {"prompt": "the quick", "max_new_tokens": 3, "temperature": 0.9}


def start(work: Callable[[], None]) -> int:
    """The process id of a fork that does `work` and ends."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child


def end(child: int) -> bool:
    """Waits for a process; whether it was killed. It must have been, or have ended well."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


class Telling:
    """A fork that does `work`, which is given a function that tells a line, and is killed."""

    def __init__(self, work: Callable[[Callable[[str], None]], None]):
        reads, writes = os.pipe()
        self.child = start(lambda: work(lambda line: os.write(writes, f"{line}\n".encode()) and None))
        os.close(writes)
        self.lines = os.fdopen(reads)
        self.first = self.lines.readline().strip()

    def kill(self, seconds: float) -> tuple[bool, list[str]]:
        """So long after its first line; whether that ended it, and all its lines."""
        time.sleep(seconds)
        os.kill(self.child, signal.SIGKILL)
        with self.lines:
            return end(self.child), [self.first, *(line.strip() for line in self.lines)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def exporting(trained: harness.TrainedModel, folder: Path, kills: int, choose: random.Random) -> int:
    """An export is whole or not there, and can be made after every kill."""

    def work(made: Path) -> Callable[[Callable[[str], None]], None]:
        def exports(tell: Callable[[str], None]) -> None:
            tell("begun")
            export(trained, "hf", made)

        return exports

    peaceful, begun = Telling(work(folder / "whole")), time.monotonic()
    assert not end(peaceful.child)
    whole, seconds, deaths = files(folder / "whole"), time.monotonic() - begun, 0
    for number in range(kills):
        made = folder / f"export-{number}"
        died, _ = Telling(work(made)).kill(choose.uniform(0, seconds))
        deaths += died
        assert files(made) == whole if made.exists() else died
        if not made.exists():
            assert files(export(trained, "hf", made)) == whole
    return deaths


def scoring(trained: harness.TrainedModel, folder: Path, kills: int, choose: random.Random) -> int:
    """Scores that were written are kept, and the run's result is as it was."""
    run, deaths = Path(shutil.copytree(trained.path, folder / "run")), 0
    result, written = (run / "result.json").read_bytes(), set[str]()
    entry = {"scores": {"acc": {"value": 0.5, "values": [0.5] * 300}}}
    for number in range(kills):

        def work(tell: Callable[[str], None], number: int = number) -> None:
            for task in range(10_000):
                scores.add(run, trained.result, {f"{number}-{task % 9}": entry})
                tell(f"{number}-{task % 9}")

        died, told = Telling(work).kill(choose.uniform(0, 0.05))
        deaths += died
        written |= set(told)
        found = scores.read(run, trained.result)
        assert written <= found.keys()
        assert all(kept == entry for kept in found.values())
        assert (run / "result.json").read_bytes() == result
    return deaths


def serving(trained: harness.TrainedModel, folder: Path, kills: int, choose: random.Random) -> int:
    """A session goes on from the last snapshot that was answered, or that was asked for, as if nothing had been."""
    (folder / "sessions").mkdir()
    after = sessions_of(trained)
    held: dict[str, tuple[int, ...]] = {}  # the seeds that a snapshot was made behind
    asked: tuple[str, tuple[int, ...]] = "", ()
    deaths = 0
    for _ in range(kills):
        server, url = serve(trained, folder / "sessions")
        for session, seeds in held.items():
            read = post(url, f"/sessions/{session}/restore").json()["read"]
            held[session] = asked[1] if session == asked[0] and read != after(seeds)[0].read else seeds
            assert read == after(held[session])[0].read
        killer = threading.Timer(choose.uniform(0, 0.1), os.kill, (server, signal.SIGKILL))
        answered, enough = 0, choose.randint(1, 4)
        try:
            while True:
                session = choose.choice([*held, ""]) or post(url, "/sessions").json()["session"]
                seeds = (*held.get(session, ()), choose.randrange(1000))
                answer = post(url, "/generate", ASKED | {"session": session, "seed": seeds[-1]})
                said = "".join(json.loads(line).get("text", "") for line in answer.text.splitlines())
                assert said == after(seeds)[1]
                asked = session, seeds
                post(url, f"/sessions/{session}/snapshot")
                held[session], answered = seeds, answered + 1
                if answered == enough:
                    killer.start()
        except httpx.TransportError:
            killer.join()
        deaths += end(server)
    assert sum(map(len, held.values())) >= kills
    return deaths


def serve(trained: harness.TrainedModel, folder: Path) -> tuple[int, str]:
    """The process of a server of `trained`, and its address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = application(trained, Limits(), folder)
    child, url = start(lambda: uvicorn.run(served, port=port, log_level="error")), f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{url}/health").raise_for_status()
            return child, url
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def post(url: str, path: str, content: dict | None = None) -> httpx.Response:
    answer = httpx.post(url + path, json=content, timeout=60)
    return answer.raise_for_status()


def sessions_of(trained: harness.TrainedModel) -> Callable[[tuple[int, ...]], tuple[Past | None, str]]:
    """A function: where a session is after generations of these seeds, and what the last one said."""

    @functools.cache
    def after(seeds: tuple[int, ...]) -> tuple[Past | None, str]:
        if not seeds:
            return None, ""
        generation = trained.generate(**ASKED, seed=seeds[-1], after=after(seeds[:-1])[0])
        said = "".join(generation)
        return generation.past, said

    return after


def main(run: Path, folder: Path, kills: int, seed: int) -> None:
    tqdm.set_lock(threading.RLock())  # its own is shared with forks, and one that is killed may hold it
    choose, trained = random.Random(seed), harness.load(run)
    torch.set_num_threads(1)
    survived = {}
    for part in (exporting, scoring, serving):
        (folder / part.__name__).mkdir()
        survived[part.__name__] = part(trained, folder / part.__name__, kills, choose)
    print(json.dumps(survived))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
