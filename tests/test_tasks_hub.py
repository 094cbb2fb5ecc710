"""Data sets in the hub's format, from local folders through the code that reads the hub; archives over http."""

import functools
import hashlib
import http.server
import threading
import zipfile

import datasets
import pytest

import configs
from harness.config.errors import TaskError
from harness.tasks.archive import ArchiveText
from harness.tasks.hub import HubText
from harness.tasks.task import SPLITS

ROWS = {"train": ["", " = Title = \n", "Grüße .\n"], "validation": ["v v\n", ""], "test": ["t\n"]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HOME", str(tmp_path))


def folder(tmp_path, rows):
    """A data set as the hub holds it: one Parquet file per split."""
    path = tmp_path / "data_set"
    path.mkdir()
    for split, texts in rows.items():
        datasets.Dataset.from_dict({"text": texts}).to_parquet(path / f"{split}-00000-of-00001.parquet")
    return str(path)


def contents(task):
    return {split: task.streams[split].tobytes().decode() for split in SPLITS}


def test_the_splits_of_a_data_set_are_read_as_they_are(tmp_path):
    task = HubText("wikitext", folder(tmp_path, ROWS), empty_row=" \n")
    assert contents(task) == {"train": " \n = Title = \nGrüße .\n", "validation": "v v\n \n", "test": "t\n"}


def test_a_folder_of_save_to_disk_is_the_same(tmp_path):
    saved = datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": rows}) for split, rows in ROWS.items()})
    saved.save_to_disk(tmp_path / "saved")
    direct = HubText("wikitext", folder(tmp_path, ROWS))
    assert HubText("wikitext", str(tmp_path / "saved")).digest == direct.digest


def test_what_selects_is_never_what_is_reported(tmp_path):
    task = HubText("stories", folder(tmp_path, {"train": ["ab"] * 50, "validation": ["cd"] * 3}), holdout_fraction=0.1)
    assert contents(task) == {"train": "ab" * 45, "validation": "ab" * 5, "test": "cdcdcd"}
    task.max_train_bytes, task.separator = 20, b"\n"
    del task.__dict__["streams"]
    assert contents(task) == {"train": ("ab\n" * 7)[:18], "validation": ("ab\n" * 7)[18:20], "test": "cd\n" * 3}


@pytest.mark.parametrize(
    "rows", [{"train": ["abcdefghij"]}, {"train": ["abcdefgh"], "validation": ["i"], "test": ["j"]}]
)
def test_conventional_sizes_cut_one_stream(tmp_path, rows):
    path = folder(tmp_path, rows)
    assert contents(HubText("text8", path, sizes=[8, 1, 1])) == {"train": "abcdefgh", "validation": "i", "test": "j"}
    with pytest.raises(TaskError, match="has 10 bytes"):
        _ = HubText("text8", path, sizes=[9, 1, 1]).digest


def test_a_data_set_of_one_split_is_cut(tmp_path):
    task = HubText("mine", folder(tmp_path, {"train": ["x" * 100]}), holdout_fraction=0.1)
    assert [task.tokens(split) for split in SPLITS] == [80, 10, 10]


def test_what_is_missing_is_told(tmp_path):
    path = folder(tmp_path, {"test": ["x"]})
    with pytest.raises(TaskError, match="has no train split"):
        _ = HubText("mine", path).digest
    with pytest.raises(TaskError, match=r"no column 'story'. Expected: one of text"):
        _ = HubText("mine", path, column="story").digest
    with pytest.raises(TaskError, match=r"cannot load .*Remedy: correct task.dataset or task.config"):
        _ = HubText("mine", path, config="no-such-config").digest


def test_offline_is_told_and_nothing_takes_the_place_of_the_corpus(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=r"cannot be reached .*Remedy: go online \(and unset HF_HUB_OFFLINE\)"):
        _ = HubText("wikitext103", "Salesforce/wikitext", "wikitext-103-raw-v1").digest


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves an archive of ten bytes on this machine: its address and the list of requests.

    At the address /cut/tiny8.zip it breaks off in the middle.
    """
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    site = tmp_path / "site"
    site.mkdir()
    with zipfile.ZipFile(site / "tiny8.zip", "w") as archive:
        archive.writestr("tiny8", b"abcd\r\nefgh")
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith("/cut/"):
                return super().do_GET()
            content = (site / "tiny8.zip").read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])

        def log_message(self, *arguments):
            requests.append(self.path)

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site))
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/tiny8.zip", requests
    listening.shutdown()
    listening.server_close()


def archive(url, hashed, member="tiny8"):
    return ArchiveText("tiny8", str(url), hashed, member, [8, 1, 1])


def test_an_archive_is_fetched_once_and_cut_exactly(server, tmp_path):
    url, requests = server
    hashed = sha256(tmp_path / "site" / "tiny8.zip")
    task = archive(url, hashed)
    assert contents(task) == {"train": "abcd\r\nef", "validation": "g", "test": "h"}
    assert archive(url, hashed).digest == task.digest
    assert len(requests) == 1
    (kept,) = (tmp_path / ".cache/liquidbench").iterdir()
    assert kept.suffix == ".zip"
    kept.write_bytes(b"damaged")
    assert archive(url, hashed).digest == task.digest
    assert len(requests) == 2


def test_an_archive_of_another_hash_is_refused_and_not_kept(server, tmp_path):
    url, _ = server
    with pytest.raises(TaskError, match=r"is not the corpus .*Expected: the archive whose sha256 is 0{64}"):
        _ = archive(url, "0" * 64).digest
    assert list((tmp_path / ".cache/liquidbench").iterdir()) == []
    with pytest.raises(TaskError, match=r"is not the corpus \(its sha256 is [0-9a-f]{64}\)"):
        _ = archive(tmp_path / "site" / "tiny8.zip", "0" * 64).digest


def test_an_archive_that_was_cut_off_is_refused_and_not_kept(server, tmp_path):
    url, _ = server
    with pytest.raises(TaskError, match=r"tiny8\.zip"):
        _ = archive(url.replace("/tiny8", "/cut/tiny8"), sha256(tmp_path / "site" / "tiny8.zip")).digest
    assert list((tmp_path / ".cache/liquidbench").iterdir()) == []


def test_an_archive_that_cannot_be_had_is_told(server, tmp_path, monkeypatch):
    url, requests = server
    local = tmp_path / "site" / "tiny8.zip"
    hashed = sha256(local)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TaskError, match=r"cannot be fetched \(HF_HUB_OFFLINE is set\)"):
        _ = archive(url, hashed).digest
    assert requests == []
    assert archive(local, hashed).tokens("train") == 8
    with pytest.raises(TaskError, match="holds the file 'other'"):
        _ = archive(local, hashed, "other").digest
    local.write_bytes(b"no archive")
    with pytest.raises(TaskError, match="a zip archive"):
        _ = archive(local, sha256(local)).digest
    with pytest.raises(TaskError, match=r"task\.url=.*cannot be read"):
        _ = archive(tmp_path / "nowhere.zip", hashed).digest


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_the_archives_of_the_field_come_over_https_with_a_hash(name):
    node = configs.resolved(f"task={name}")["task"]
    assert node["url"].startswith("https://")
    assert len(node["sha256"]) == 64
