"""The wheel: all that a run needs is in it, and it works from any folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import run

SOURCES = ("analysis", "arch", "baselines", "bench", "conf", "docs", "harness", "sweeps")
FILES = ("LICENSE", "README.md", "pyproject.toml", "run.py")


def called(*command: str | Path, home: Path, **variables: str) -> str:
    """What a command prints, started in `home` without this checkout's variables."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LIQUIDBENCH_")} | variables
    done = subprocess.run(list(map(str, command)), cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.long
def test_a_wheel_holds_every_configuration_and_trains_in_an_empty_folder(tmp_path):
    pytest.importorskip("build")
    source, home = tmp_path / "source", tmp_path / "home"
    for name in SOURCES:
        shutil.copytree(run.ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(run.ROOT / name, source)
    called(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, home=source)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(ZipFile(wheel).namelist())
    assert held >= {str(path.relative_to(source)) for name in SOURCES for path in (source / name).rglob("*.yaml")}
    assert not [name for name in held if name.endswith(".md")]

    site = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    called(*pip, "--target", site, wheel, home=tmp_path)
    home.mkdir()
    (home / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    where = {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    assert called(sys.executable, "-c", "import run; print(run.ROOT)", home=home, **where).strip() == str(site)
    command = (sys.executable, site / "bin" / "liquidbench")
    assert "question:" in called(*command, "+sweeps=learning_rate", "--cfg", "job", home=home, **where)
    tiny = ("debug=tiny", "task=text", "task.path=corpus.txt", "trainer.tokens=512", "progress=false")
    called(*command, "model=ltc", *tiny, home=home, **where)
    (result,) = (home / "runs").rglob("result.json")
    assert json.loads(result.read_text())["status"] == "finished"
    called(sys.executable, "-m", "analysis", "runs/tiny", home=home, **where)
    assert "ltc" in (home / "reports" / "runs.csv").read_text()
