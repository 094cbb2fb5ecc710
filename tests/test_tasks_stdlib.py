"""The standard library as a corpus: sources alone, each in one split, the same on every machine with this Python."""

import hashlib
import platform
import sysconfig
from pathlib import Path

import pytest

import configs
import run
from harness.config.errors import TaskError
from harness.tasks import stdlib
from harness.tasks.stdlib import StandardLibrary
from harness.tasks.task import SPLITS

LIBRARY = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def task():
    made = run.build(configs.resolved("task=stdlib")["task"])
    _ = made.streams
    return made


def library(folder, count=200):
    """Sources, and what stands around them in an installed Python."""
    folder.mkdir()
    for index in range(count):
        (folder / f"module{index}.py").write_text(f'"""Module number {index} of the library."""\nvalue = {index}\n')
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("from package.inside import nothing_at_all\n")
    (folder / "package" / "empty.py").touch()
    (folder / "package" / "again.py").write_text('"""Module number 7 of the library."""\nvalue = 7\n')
    (folder / "package" / "latin.py").write_bytes(b"# caf\xe9\n")
    (folder / "package" / "data.txt").write_text("no source")
    for left_out in ("site-packages", "test", "package/tests", "package/idle_test", "__pycache__", "pydoc_data"):
        (folder / left_out).mkdir()
        (folder / left_out / "inside.py").write_text("of_no_corpus = True\n")
    (folder / "config-3-linux").mkdir()
    for name in ("config-3-linux/python-config", "_sysconfigdata__linux", "sitecustomize"):
        (folder / f"{name}.py").write_text("of_no_corpus = True\n")
    return folder


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A library in a folder of its own takes the place of the running Python's."""
    folder = library(tmp_path / "lib")
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(folder))
    return folder


def test_the_splits_are_large_and_of_whole_files(task):
    assert task.tokens("train") > 5_000_000
    assert min(task.tokens("test"), task.tokens("validation")) > 400_000
    task.check(4, 512)
    texts = {split: task.streams[split].tobytes() for split in SPLITS}
    for name in ("inspect.py", "json/decoder.py", "asyncio/tasks.py", "re/_parser.py", "pickletools.py"):
        homes = [split for split in SPLITS if (LIBRARY / name).read_bytes() in texts[split]]
        assert homes == [task.split(name)]
    for outside in ("test/test_json/test_decode.py", "idlelib/idle_test/test_text.py"):
        if (LIBRARY / outside).exists():
            assert not any((LIBRARY / outside).read_bytes() in text for text in texts.values())
    assert not any(str(LIBRARY).encode() in text for text in texts.values())  # no file of this machine alone


def test_no_file_stands_in_two_splits(task):
    lines = [set(task.streams[split].tobytes().split(b"\n\n")) for split in ("train", "test")]
    long = {part for part in lines[0] & lines[1] if len(part) > 2000}
    assert not long


def test_the_record_names_python_and_counts_the_files(task):
    facts = task.describe()
    assert facts["python"] == platform.python_version()
    assert facts["files"]["taken"] > 400
    assert facts["files"]["left_out"]["tests"] >= 1
    assert len(str(facts)) < 1000  # it is a part of every record
    assert facts["digest"] == task.digest
    (remark,) = task.remarks()
    assert f"Python {platform.python_version()}; {facts['files']['taken']:,} taken" in remark


def test_what_is_no_source_of_the_library_is_left_out(installed):
    made = StandardLibrary()
    assert not any(b"of_no_corpus" in made.streams[split].tobytes() for split in SPLITS)
    assert made.describe()["files"] == {
        "taken": 201,
        "left_out": {
            "compiled": 1,
            "a page of the documentation": 1,
            "installed by pip": 1,
            "tests": 3,
            "made for this machine": 3,
            "no source": 1,
            "without text": 1,
            "with the text of another": 1,
            "not UTF-8": 1,
        },
    }


def test_the_split_of_a_file_follows_from_its_name(installed, tmp_path):
    before = StandardLibrary()
    splits = {name: before.split(name) for name in ("module1.py", "package/__init__.py")}
    for name, split in splits.items():
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 20
        assert split == ("test" if number == 0 else "validation" if number == 1 else "train")
    held_out = before.streams["test"].tobytes()
    (installed / "aaa_a_new_module.py").write_text("something_else_entirely = 1\n")
    after = StandardLibrary()
    assert after.digest != before.digest  # so that runs of both are never compared
    assert after.split("aaa_a_new_module.py") == "train"
    assert after.streams["test"].tobytes() == held_out


def test_another_folder_with_the_same_files_is_the_same_corpus(installed, monkeypatch, tmp_path):
    one = StandardLibrary().digest
    other = library(tmp_path / "elsewhere")
    (other / "_sysconfigdata__linux.py").write_text(f"prefix = {str(tmp_path)!r}\n")
    (other / "site-packages" / "torch.py").write_text("tensors = True\n")
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(other))
    assert StandardLibrary().digest == one
    assert StandardLibrary(holdout_every=3).digest != one


def test_a_python_without_sources_is_told(monkeypatch, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name, folder=folder: str(folder))
        with pytest.raises(TaskError, match="too few sources of the standard library"):
            _ = StandardLibrary().digest
