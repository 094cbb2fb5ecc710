"""Which texts share so much that they belong into one split: who has read one of them knows the other."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

SHINGLE = 8
"""Words in a row that are taken for a copy where two texts have them."""
TELLING_LINE = 32
"""Bytes from which on a line that stands in two files is taken for a copy; shorter ones recur by themselves."""
MUCH = 0.2
"""The part of either text that both have from which on they belong together."""
FEW, SELDOM, MOST = 10, 0.02, 1000
"""What stands in more texts than FEW, and than this part of them or than MOST, is a head or foot that they carry."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def telling_lines(data: bytes) -> list[bytes]:
    """The lines that recur by copying alone."""
    return [line for line in map(bytes.strip, data.splitlines()) if len(line) >= TELLING_LINE]


def groups(texts: Sequence[bytes]) -> list[list[int]]:
    """The texts by number, those that share much together, in the order of each group's first.

    Compared are SHINGLE words in a row; lists, whose lines are all short, by their lines too, whatever the order.
    """
    home = list(range(len(texts)))
    for parts in (_shingles, _short_lines):
        for one, other in _pairs([parts(text) for text in texts]):
            ours, theirs = home[one], home[other]
            home = [ours if group == theirs else group for group in home] if ours != theirs else home
    found: dict[int, list[int]] = {}
    for number, group in enumerate(home):
        found.setdefault(group, []).append(number)
    return list(found.values())


def _shingles(text: bytes) -> np.ndarray:
    words = np.fromiter(map(zlib.crc32, text.split()), np.uint64)
    length = min(SHINGLE, len(words))
    made = np.zeros(len(words) - length + 1, np.uint64)
    for place in range(length):
        made = made * FACTOR + words[place : place + len(made)]
    return np.unique(made)


def _short_lines(text: bytes) -> np.ndarray:
    lines = [] if telling_lines(text) else filter(None, map(bytes.strip, text.splitlines()))
    return np.unique(np.fromiter(map(zlib.crc32, lines), np.uint64))


def _pairs(parts: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """The pairs of texts that share much. parts: of every text, each of its parts once."""
    count = len(parts)
    owners = np.repeat(np.arange(count), [len(part) for part in parts])
    values = np.concatenate(parts)
    order = np.argsort(values, kind="stable")
    values, owners = values[order], owners[order]
    _, times = np.unique(values, return_counts=True)
    times = np.repeat(times, times)
    own = times <= max(FEW, min(MOST, SELDOM * count))
    sizes = np.bincount(owners[own], minlength=count)
    values, owners = values[own & (times > 1)], owners[own & (times > 1)]
    shared: Counter[int] = Counter()
    for distance in range(1, len(values)):
        same = values[distance:] == values[:-distance]
        if not same.any():
            break
        both = owners[:-distance][same] * count + owners[distance:][same]
        shared.update(dict(zip(*(found.tolist() for found in np.unique(both, return_counts=True)), strict=True)))
    for both, times_shared in shared.items():
        one, other = divmod(both, count)
        if times_shared > MUCH * min(sizes[one], sizes[other]):
            yield one, other
