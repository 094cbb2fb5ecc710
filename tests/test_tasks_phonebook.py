"""The phonebook: real text of the split, told before it is asked, digits alone scored, at every length."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import run
from harness.config.errors import ConfigError
from harness.model.interface import IGNORE
from harness.tasks.phonebook import NAMES, PROMPT, Phonebook
from harness.tasks.sotu import Sotu
from harness.tasks.task import SPLITS

KINDS = {"one": (1, 1, 1), "small": (2, 2, 2), "usual": (16, 7, 4), "many": (60, 3, 60)}
"""Entries, digits and questions."""


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def task(request):
    return made(*request.param)


def made(entries: int, digits: int, questions: int) -> Phonebook:
    return Phonebook(entries=entries, digits=digits, questions=questions)


def lengths(task: Phonebook) -> list[int]:
    """The least, and some times of it."""
    return [task.shortest() * factor for factor in (1, 2, 7)]


def lines(batch) -> list[bytes]:
    """The inputs of every row, and the target of the last one behind them."""
    return [bytes([*row, last]) for row, last in zip(batch.inputs.tolist(), batch.targets[:, -1].tolist(), strict=True)]


def parts(task: Phonebook, line: bytes) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]], bytes]:
    """The name and the number of what a line tells, those of what it asks, and its text without either."""
    sentence = re.compile(PROMPT.pattern + b"([0-9]{%d})[.] " % task.digits)
    start = len(line) + 2 - task.questions * task.sentence
    assert line[start - 1 : start] == b"\n"
    told, text = sentence.findall(line[: start - 1]), sentence.sub(b"", line[: start - 1])
    return told, sentence.findall(line[start:] + b". "), text


def test_the_text_around_is_the_real_text_of_its_own_split(task):
    streams = {split: stream.tobytes() for split, stream in task.corpus.streams.items()}
    for split in SPLITS:
        for length in lengths(task):
            for line in lines(task.batch(split, 1, 8, length, seed=3)):
                text = parts(task, line)[2]
                assert len(text) == task.text(length)
                assert text in streams[split]
                if len(text) > 300:  # a phrase may be anyone's
                    assert [other for other in SPLITS if text in streams[other]] == [split]


def test_the_corpus_has_no_sentence_of_the_phonebook_and_is_that_of_sotu(task):
    assert task.corpus.digest == Sotu().digest
    assert not any(PROMPT.search(stream.tobytes()) for stream in task.corpus.streams.values())


def test_what_is_asked_was_told_and_nothing_but_its_digits_is_scored(task):
    for length in lengths(task):
        batch = task.batch("test", 0, 8, length, seed=0)
        assert batch.inputs.shape == batch.targets.shape == (8, length)
        for line, targets in zip(lines(batch), batch.targets.tolist(), strict=True):
            told, asked, _ = parts(task, line)
            assert len({name for name, _ in told}) == len(told) == task.entries
            assert len(set(asked)) == len(asked) == task.questions
            assert set(asked) <= set(told)
            scored = {t: target for t, target in enumerate(targets) if target != IGNORE}
            assert bytes(scored.values()) == b"".join(number for _, number in asked)
            assert all(line[t + 1] == target for t, target in scored.items())
            assert min(scored) == length - 1 - (task.questions - 1) * task.sentence - (task.digits - 1)
            # the digits that are scored are those of the questions, each behind its prompt
            assert all(PROMPT.search(line[: t + 1 - place % task.digits]) for place, t in enumerate(scored))
            assert [line[: t + 1].endswith(b": ") for t in scored] == [True, *[False] * (task.digits - 1)] * len(asked)


def test_the_oracle_solves_every_length(task):
    for split in SPLITS:
        for length in lengths(task):
            batch = task.batch(split, 2, 8, length, seed=1)
            scored = batch.targets != IGNORE
            assert scored.sum(dim=1).eq(task.questions * task.digits).all()
            assert task.oracle(batch.inputs)[scored].equal(batch.targets[scored])


def test_the_oracle_answers_from_what_was_told():
    task = made(4, 5, 4)
    batch = task.batch("test", 0, 8, 600, 0)
    start = 601 + 2 - task.questions * task.sentence
    digits = (batch.inputs >= ord("0")) & (batch.inputs <= ord("9"))
    digits[:, start:] = False
    changed = torch.where(digits, ord("0") + ord("9") - batch.inputs, batch.inputs)
    scored = batch.targets != IGNORE
    assert task.oracle(changed)[scored].equal(ord("0") + ord("9") - batch.targets[scored])


def test_no_split_shares_its_draws(task):
    length = lengths(task)[-1]
    books = {split: [parts(task, line)[0] for line in lines(task.batch(split, 0, 8, length, 0))] for split in SPLITS}
    if task.entries > 1:  # one of ten thousand names may come twice
        assert len({tuple(book) for split in SPLITS for book in books[split]}) == 24


def test_entries_stand_anywhere_behind_white_space_and_more_text_only_spreads_them():
    task = made(4, 2, 1)
    for length in (400, 4000):
        depths = []
        for line in lines(task.batch("test", 0, 500, length, 0)):
            book = [found.start() for found in PROMPT.finditer(line)][: task.entries]
            assert all(start == 0 or line[start - 1 : start] in (b" ", b"\n") for start in book)
            depths += [(start - task.sentence * k) / task.text(length) for k, start in enumerate(book)]
        assert len(depths) == 2000
        counts, _ = np.histogram(depths, bins=5, range=(0, 1))
        assert np.abs(counts / 2000 - 0.2).max() < 0.04


def test_names_and_digits_are_drawn_from_all():
    task = made(60, 7, 1)
    told = [entry for line in lines(task.batch("train", 0, 100, 2000, 0)) for entry in parts(task, line)[0]]
    names, digits = {name for name, _ in told}, b"".join(number for _, number in told)
    expected = NAMES * (1 - (1 - 60 / NAMES) ** 100)
    assert abs(len(names) / expected - 1) < 0.03
    counts = np.bincount(np.frombuffer(digits, dtype=np.uint8))[ord("0") :]
    assert len(counts) == 10
    assert ((counts - 4200) ** 2 / 4200).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_an_answer_counts_as_a_whole():
    task = made(5, 3, 4)
    batch = task.batch("test", 0, 2, 300, 0)
    outputs = nn.functional.one_hot(batch.targets.clamp(min=0), 256).float()
    assert task.total(outputs, batch) == task.scored(batch) == 2 * 4 * 3
    outputs[0, -1] = 0.0  # the last digit of the last answer
    assert task.total(outputs, batch) == 2 * 4 * 3 - 3
    outputs[0, -3] = 0.0  # and its first
    outputs[1, -1 - task.sentence] = 0.0  # the last digit of the answer before, of the other example
    assert task.total(outputs, batch) == 2 * 4 * 3 - 6


def test_what_does_not_fit_is_refused(task):
    least = task.shortest()
    task.check(8, least)
    assert task.text(least) == 1
    remedy = rf"do not fit trainer\.length={least - 1}\. .*set trainer\.length={least} or more, or lower task\.entries"
    for refused in (lambda: task.check(8, least - 1), lambda: task.batch("test", 0, 1, least - 1, 0)):
        with pytest.raises(ConfigError, match=rf"task\.entries={task.entries} .*{remedy}"):
            refused()


def test_what_no_text_is_long_enough_for_is_refused():
    task = made(2, 2, 2)
    most = min(task.corpus.tokens(split) for split in SPLITS)
    longest = most + task.shortest() - 1
    task.check(1, longest)
    with pytest.raises(ConfigError, match=rf"need {most + 1:,} bytes of running text.*lower trainer\.length"):
        task.check(1, longest + 1)
    with pytest.raises(ConfigError, match=r"Batches of 65,536 x 65,536 tokens .*lower trainer\.batch_size"):
        task.check(65_536, 65_536)


def test_more_questions_than_entries_are_refused():
    with pytest.raises(ConfigError, match=r"task\.questions=3 .*task\.entries=2 .*set task\.questions=2 or fewer"):
        made(2, 5, 3)


def test_the_digest_covers_the_parameters_and_the_text(monkeypatch):
    tasks = [made(*numbers) for numbers in ((2, 2, 2), (3, 2, 2), (2, 3, 2), (2, 2, 1))]
    assert len({task.digest for task in tasks}) == 4
    assert made(2, 2, 2).digest == tasks[0].digest
    other = made(2, 2, 2)
    last = other.corpus.streams["train"].copy()  # a text that no example of the digest shows
    last[-1] ^= 1
    monkeypatch.setitem(other.corpus.streams, "train", last)
    assert other.digest != tasks[0].digest


@pytest.mark.parametrize("name", ["phonebook", "cpu_phonebook"])
def test_a_preset_is_drawn_at_every_length_that_it_is_tested_at(name):
    experiment = run.experiment([f"experiment={name}"])
    trainer = experiment.trainer.resolved(experiment.size.params, experiment.task)
    trainer.check(experiment.task)
    longest = max(experiment.evaluate.length_factors) * trainer.length
    for length in (trainer.length, longest):
        batch = experiment.task.batch("test", 0, 2, length, 0)
        scored = batch.targets != IGNORE
        assert experiment.task.oracle(batch.inputs)[scored].equal(batch.targets[scored])
    assert experiment.evaluate.extrapolation_bytes >= longest * min(experiment.evaluate.synthetic_examples, 256)
