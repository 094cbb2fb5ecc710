"""Synthetic tasks: an oracle solves each, splits share no stream, and each follows its definition."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import configs
import run
from harness.config.configure import locate
from harness.config.errors import ConfigError
from harness.model.backbone import Width
from harness.model.interface import IGNORE, Tokens
from harness.tasks.compression import Compression
from harness.tasks.cross_window import CrossWindowRecall
from harness.tasks.dyck import Dyck
from harness.tasks.in_context_recall import InContextRecall
from harness.tasks.memorization import Memorization
from harness.tasks.modular_arithmetic import ModularArithmetic
from harness.tasks.mqar import MQAR
from harness.tasks.parity import Parity
from harness.tasks.series import SeriesTask
from harness.tasks.synthetic import SyntheticTask, distinct
from harness.tasks.task import SPLITS
from harness.tasks.word_problem import WordProblem, elements, product_table

EXAMPLES = 300
"""Of a train set here: whole ones take seconds to draw."""


def of_configuration() -> list[SyntheticTask]:
    """The synthetic tasks of conf/task as they stand there, but for the size of their train sets."""
    nodes = [yaml.safe_load(path.read_text()) for path in sorted((run.ROOT / "conf" / "task").glob("*.yaml"))]
    made = [(locate(node.pop("_target_"), ""), node) for node in nodes]
    made = [(kind, node) for kind, node in made if issubclass(kind, SyntheticTask)]
    return [kind(**node | {k: EXAMPLES for k in ("train_examples",) if node.get(k)}) for kind, node in made]


TASKS = [
    *of_configuration(),
    MQAR("mqar-random", vocab_size=64, num_kv_pairs=6, random_non_queries=True),
    Parity("parity-last", asks="last", min_length=3),
    InContextRecall("fuzzy-noisy", 64, 2, 3, noise_vocab_size=8, noise_share=0.4),
]


def lengths(task: SyntheticTask, split: str) -> list[int]:
    """Lengths that the split can be drawn at."""
    if task.length is not None:
        return [task.length] if split == "train" and task.train_examples else [task.length, 2 * task.length]
    return [max(length, task.shortest()) for length in (1, 49, 200)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
class TestEveryTask:
    def test_the_oracle_solves_it(self, task):
        for split in SPLITS:
            for length in lengths(task, split):
                batch = task.batch(split, 3, 16, length, seed=1)
                asked = batch.targets != IGNORE
                assert asked.any(dim=1).all()
                assert batch.inputs.shape == (16, length)
                assert task.oracle(batch.inputs)[asked].equal(batch.targets[asked])
                assert 0 <= batch.inputs.min() <= batch.inputs.max() < task.vocab_size
                assert batch.targets.max() < task.vocab_size

    def test_no_answer_needs_an_unseen_token(self, task):
        if not isinstance(task.targets, Tokens):
            pytest.skip("it answers after the last token")
        length = lengths(task, "test")[-1]
        batch = task.batch("test", 0, 4, length, seed=0)
        for t in range(length // 9, length, length // 9):
            changed = batch.inputs.clone()
            changed[:, t + 1 :] = (changed[:, t + 1 :] + 1) % task.vocab_size
            seen = batch.targets[:, : t + 1] != IGNORE
            assert task.oracle(changed)[:, : t + 1][seen].equal(batch.targets[:, : t + 1][seen])

    def test_a_batch_is_a_function_of_its_arguments_and_splits_differ(self, task):
        length = lengths(task, "train")[-1]
        first = task.batch("train", 2, 4, length, seed=7)
        assert task.batch("train", 2, 4, length, seed=7).inputs.equal(first.inputs)
        for split, index, seed in [("validation", 2, 7), ("test", 2, 7), ("train", 3, 7), ("train", 2, 8)]:
            assert not task.batch(split, index, 4, length, seed=seed).inputs.equal(first.inputs)

    def test_an_epoch_is_the_train_set_or_has_no_end(self, task):
        assert task.describe()["test_tokens"] is None
        if task.train_examples is None:
            assert task.train_tokens is task.epochs(1000) is None
            return
        assert task.epochs(2 * EXAMPLES * task.length) == 2
        whole = [rows_of(task, range(2 * epoch, 2 * epoch + 2), EXAMPLES // 2, seed=epoch) for epoch in (0, 1)]
        assert whole[0] != whole[1]
        assert sorted(whole[0]) == sorted(whole[1])
        with pytest.raises(ConfigError, match=rf"trainer\.length=4096 .*set trainer\.length={task.length}"):
            task.check(1, 4096)


def rows_of(task, indices, batch_size, seed):
    batches = [task.batch("train", index, batch_size, task.length, seed).inputs for index in indices]
    return torch.cat(batches).tolist()


def test_digests_depend_on_the_parameters():
    tasks = [MQAR(), MQAR(power_a=0.1), MQAR(num_kv_pairs=8), MQAR(length=64), MQAR(length=64, train_examples=9)]
    tasks += [Parity(), Parity(asks="last"), Parity(min_length=3), WordProblem(group="S3"), WordProblem(group="S5")]
    assert len({task.digest for task in tasks}) == len(tasks)
    assert MQAR().digest == MQAR().digest


def test_numbers_are_drawn_without_replacement_and_all_alike():
    drawn = distinct(np.random.default_rng(0), 5, 20_000, 3)
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    orders, counts = np.unique(drawn @ [1, 5, 25], return_counts=True)
    assert len(orders) == 60
    assert ((counts - 20_000 / 60) ** 2 / (20_000 / 60)).sum() < 98.3  # chi-squared, 59 degrees of freedom, p = 0.001


def test_lengths_are_drawn_for_training_alone():
    task = Parity(asks="last", min_length=3)
    at = (task.batch("train", 0, 4000, 40, 0).targets != IGNORE).int()
    assert at.sum(dim=1).eq(1).all()
    lengths = at.argmax(dim=1) + 1
    assert (lengths.min(), lengths.max()) == (3, 40)
    assert abs(lengths.float().mean() - 21.5) < 1
    assert (task.batch("test", 0, 9, 40, 0).targets[:, -1] != IGNORE).all()


def test_parity_counts_the_present_bit():
    batch = Parity().batch("train", 0, 2, 12, seed=0)
    for bits, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert targets == [sum(bits[: t + 1]) % 2 for t in range(12)]


def test_arithmetic_takes_products_first():
    plus, minus, times = 5, 6, 7
    for symbols, value in (([1, plus, 2, times, 3], 2), ([1, minus, 1, minus, 1], 4)):
        assert ModularArithmetic().oracle(torch.tensor([symbols]))[0, -1] == value
    assert ModularArithmetic().oracle(torch.tensor([[0, times, 1, plus, 4, times, 3, minus, 2]]))[0, -1] == 0


@pytest.mark.parametrize(("group", "order"), [("S3", 6), ("A5", 60), ("S5", 120)])
def test_a_product_table_is_that_of_a_group(group, order):
    table = product_table(group)
    every = np.arange(order)
    assert len(elements(group)) == order
    for by_rows in (table, table.T):
        assert (by_rows[0] == every).all()  # the identity comes first
        assert (np.sort(by_rows, axis=1) == every).all()
    assert (table[table] == table[:, table]).all()  # (a b) c = a (b c)
    assert (table != table.T).any()


def test_brackets_are_nested_within_their_depth():
    symbols = Dyck(kinds=3, max_depth=4).batch("test", 0, 50, 200, 0).inputs
    depth = torch.where(symbols < 3, 1, -1).cumsum(dim=1)
    assert (depth.min(), depth.max()) == (0, 4)
    assert Dyck(kinds=3).oracle(torch.tensor([[0, 2, 5, 3, 1, 4]])).tolist() == [[3, 5, 3, 6, 4, 6]]


def test_recall_in_context_asks_whatever_was_stated_before():
    task = InContextRecall(vocab_size=32, noise_vocab_size=16, noise_share=0.2)
    batch = task.batch("test", 0, 64, 128, 0)
    noise = (batch.inputs >= 16).float().mean()
    assert abs(noise - 0.2) < 0.03
    for symbols, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        stated = set()
        for t, (symbol, target) in enumerate(zip(symbols, targets, strict=True)):
            assert (target != IGNORE) == (symbol in stated and symbol < 8)
            stated |= {symbol} if symbol < 8 and t < 127 else set()


def test_fuzzy_keys_and_values_have_several_tokens():
    batch = InContextRecall(vocab_size=16, key_tokens=3, value_tokens=3).batch("test", 0, 400, 128, 0)
    line = torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1)
    runs = {"keys": set(), "values": set()}
    for symbols in line.tolist():
        kinds = "".join("k" if s < 7 else "v" if s < 15 else "-" for s in symbols).lstrip("-")
        runs["keys"] |= {len(part) for part in kinds.split("v") if part}
        runs["values"] |= {len(part) for part in kinds.split("k") if part}
    assert runs == {"keys": {3}, "values": {1, 2, 3}}
    assert (batch.targets[:, -1] != IGNORE).all()


def test_facts_are_the_same_everywhere():
    facts = {}
    for split, seed in product(SPLITS, (0, 1)):
        batch = Memorization(vocab_size=32).batch(split, 0, 64, 32, seed)
        for key, value in zip(batch.inputs[:, ::2].flatten(), batch.targets[:, 1::2].flatten(), strict=True):
            assert facts.setdefault(key.item(), value.item()) == value
    assert len(facts) == len(set(facts.values())) == 15


def test_a_reconstruction_is_judged_token_by_token():
    task = Compression(vocab_size=8, length=5)
    batch = task.batch("test", 0, 6, 5, 0)
    outputs = torch.zeros(6, 5, task.interface.out_width)
    outputs[:, -1] = 50.0 * nn.functional.one_hot(batch.targets, 8).flatten(1)
    outputs[0, -1] = 50.0 * nn.functional.one_hot(batch.targets[0].flip(0), 8).flatten()
    right = (batch.targets[0] == batch.targets[0].flip(0)).sum().item()
    assert task.total(outputs, batch) == 20 + right
    assert task.loss(outputs, batch).item() == pytest.approx(50.0 * (4 - right), abs=1e-4)
    assert task.scored(batch) == 24


def test_mqar_has_the_published_form():
    task = MQAR(vocab_size=32, num_kv_pairs=4, random_non_queries=False)
    inputs, targets = (
        tensor.numpy() for tensor in vars(task.batch("train", 0, 64, 40, seed=0)).values() if tensor is not None
    )
    keys, values = inputs[:, 0:8:2], inputs[:, 1:8:2]
    assert keys.min() >= 1
    assert keys.max() < 16 <= values.min()
    assert all(len(set(row)) == 4 for row in [*keys, *values])
    assert (targets[:, :8] == IGNORE).all()
    for row in range(64):
        asked = np.flatnonzero(targets[row] != IGNORE)
        assert len(asked) == 4
        assert (asked % 2 == 0).all()  # every second position after the pairs
        pairs = dict(zip(keys[row], values[row], strict=True))
        assert sorted(inputs[row, asked]) == sorted(keys[row])
        assert [pairs[key] for key in inputs[row, asked]] == list(targets[row, asked])
        assert not inputs[row, 8:][targets[row, 8:] == IGNORE].any()


def test_across_windows_all_is_asked_again_and_three_training_batches_of_four_are_cut():
    task = CrossWindowRecall(keys=40)
    inputs, targets = (getattr(task.batch("test", 0, 64, 32, seed=0), part).numpy() for part in ("inputs", "targets"))
    assert [len(set(row)) for row in inputs[:, 0:16:2]] == [8] * 64
    assert (inputs[:, 0::2] <= 40).all()
    assert (inputs[:, 1::2] > 40).all()
    first, second = (np.sort(part.reshape(64, 8, 2), axis=1) for part in (inputs[:, :16], inputs[:, 16:]))
    assert (first == second).all()
    assert (targets[:, 16::2] == inputs[:, 17::2]).all()
    assert (targets[:, 1::2] == IGNORE).all()
    cuts = {split: [task.batch(split, index, 2, 32, 0).cut for index in range(8)] for split in SPLITS}
    assert cuts == {"train": [None, 16, 16, 16] * 2, "validation": [16] * 8, "test": [16] * 8}
    with pytest.raises(ConfigError, match=r"do not fit trainer\.length=30"):
        task.check(1, 30)


@pytest.mark.parametrize("name", ["transformer", "mamba", "m1"])
def test_at_a_cut_a_cache_is_forgotten_and_a_state_goes_on_with_its_gradient(name):
    torch.manual_seed(0)
    spec, task = configs.spec(name), CrossWindowRecall(keys=15)
    model = spec.build(task.interface, 2, Width(32, 32))
    batch = task.batch("test", 0, 2, 16, seed=0)
    told = []
    model.embedding.register_forward_hook(lambda module, given, made: told.append(made) or made.retain_grad())
    outputs = batch.read(model)
    alone = model(batch.inputs[:, batch.cut :])[0]
    outputs[:, batch.cut :].sum().backward()
    forgotten = name == "transformer"
    assert torch.allclose(outputs[:, batch.cut :], alone, atol=1e-5) == forgotten
    assert (told[0].grad is None or not told[0].grad.any()) == forgotten
    whole = replace(batch, cut=None).read(model)
    assert torch.allclose(whole[:, : batch.cut], outputs[:, : batch.cut], atol=1e-5)
    assert torch.allclose(whole, model(batch.inputs)[0])


def test_mqar_gaps_follow_the_power_law():
    task, space = MQAR(vocab_size=8, num_kv_pairs=1, power_a=0.5), 10
    targets = task.batch("train", 0, 20_000, 2 + 2 * space, seed=0).targets
    counts = (targets[:, 2::2] != IGNORE).sum(dim=0).double()
    expected = 0.5 * torch.arange(1, space + 1, dtype=torch.float64) ** (0.5 - 1)
    expected = 20_000 * expected / expected.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_mqar_mixes_easier_examples_in_and_grows_with_the_length():
    task = MQAR(vocab_size=256, num_kv_pairs=8, length=64, train_examples=3000, mixture=[[16, 2, 3], [64, 8, 1]])
    batch = task.batch("train", 0, 3000, 64, 0)
    asked = (batch.targets != IGNORE).sum(dim=1)
    assert set(asked.tolist()) == {2, 8}
    assert abs((asked == 2).float().mean() - 0.75) < 0.03
    assert (batch.targets[asked == 2, 16:] == IGNORE).all()
    assert not batch.inputs[asked == 2, 16:].any()
    for length, pairs in ((64, 8), (128, 16), (256, 32)):
        assert (task.batch("test", 0, 2, length, 0).targets != IGNORE).sum(dim=1).tolist() == [pairs, pairs]


def test_a_batch_beyond_memory_is_refused():
    for task in (Parity(), MQAR()):
        with pytest.raises(ConfigError, match=r"Batches of 65,536 x 65,536 tokens .*lower trainer\.batch_size"):
            task.check(65_536, 65_536)
    with pytest.raises(ConfigError, match=r"of 1,048,576 kinds"):
        MQAR(vocab_size=2**20).check(256, 512)


def test_a_task_tells_what_does_not_fit():
    with pytest.raises(ConfigError, match=r"40 pairs .*set task.vocab_size=82"):
        MQAR(vocab_size=64, num_kv_pairs=40)
    with pytest.raises(ConfigError, match=r"Sequences of 64 tokens .*at least 128"):
        MQAR(num_kv_pairs=32).check(4, 64)
    with pytest.raises(ConfigError, match=r"without task\.length"):
        MQAR(train_examples=10)
    with pytest.raises(ConfigError, match=r"do not fit task\.length=64"):
        MQAR(length=64, mixture=[[128, 8, 1]])
    with pytest.raises(ConfigError, match="leaves 2 tokens for keys"):
        InContextRecall(vocab_size=5, key_tokens=3)
    with pytest.raises(ConfigError, match="outputs"):
        Compression(vocab_size=2**18, length=64)


EXPERIMENTS = [
    path for path in sorted((run.ROOT / "conf" / "experiment").glob("*.yaml")) if "/task:" in path.read_text()
]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_preset_suits_its_task(path):
    """Its task can be drawn at every length of its training and evaluation; one for a CPU takes minutes."""
    made = run.experiment([f"experiment={path.stem}"])
    if isinstance(made.task, SeriesTask):  # of one length, and partly of data that users get themselves
        assert made.task.window == made.trainer.length
        return
    trainer = made.trainer.resolved(made.size.params, made.task)
    trainer.check(made.task)
    for factor in made.evaluate.length_factors:
        assert made.task.batch("test", 0, 1, factor * trainer.length, 0).inputs.shape[1] == factor * trainer.length
    assert not path.stem.startswith("cpu_") or trainer.tokens <= 8_000_000
