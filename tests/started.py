"""Commands that tests start, watch and stop."""

import signal
import subprocess
import time

import run


def start(command):
    """The command in a session of its own, which listens to SIGINT though the tests may run in the background."""
    return subprocess.Popen(
        command,
        cwd=run.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found
