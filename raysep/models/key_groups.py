"""Hundreds of names of tensors as a few lines in which none is left out."""

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")


def grouped(keys: Iterable[str]) -> list[str]:
    """Names by what they have in common, the shortest common part first; numbered parts as ranges.

    >>> grouped(["pos", "blocks.0.norm.weight", "blocks.0.norm.bias", "blocks.1.norm.weight", "blocks.1.norm.bias"])
    ['pos', 'blocks.0 to blocks.1: norm.weight, norm.bias (4 keys)']
    >>> grouped(["head.weight", "head.bias"])
    ['head: weight, bias (2 keys)']
    """
    found = []
    for stem, indices, rests in _families(keys):
        count = max(1, len(indices)) * len(rests)
        if count == 1:
            text = f"{_span(stem, indices)}.{rests[0]}" if stem or indices else rests[0]
        elif not stem and not indices:
            text = f"{', '.join(rests)} ({count} keys)"
        else:
            text = f"{_span(stem, indices)}: {_inner(rests)} ({count} keys)"
        found.append(text.rstrip("."))
    return sorted(found, key=_parts)


def tops(keys: Iterable[str], depth: int = 1) -> str:
    """How many names begin with which parts.

    >>> tops(["queue", "encoder_k.conv1.weight", "encoder_k.bn1.weight"])
    'queue, encoder_k.* (2)'
    """
    counts: dict[str, int] = {}
    for key in keys:
        parts = key.split(".")
        top = ".".join(parts[:depth]) + (".*" if len(parts) > depth else "")
        counts[top] = counts.get(top, 0) + 1
    return ", ".join(
        top if count == 1 and not top.endswith("*") else f"{top} ({count})" for top, count in counts.items()
    )


def _parts(text: str) -> tuple[int, str]:
    """Of how many parts the common part is."""
    common = text.partition(":")[0].partition(" ")[0]
    return common.count("."), common


def _families(keys: Iterable[str]) -> list[tuple[str, tuple[int, ...], list[str]]]:
    """What stands before the first number, which numbers, and what comes after them; else module and its tensors."""
    numbers: dict[tuple[str, str], list[int]] = {}
    plain: dict[str, list[str]] = {}
    for key in dict.fromkeys(keys):
        if match := _NUMBER.search(key):
            stem, rest = key[: match.start()].rstrip("."), key[match.end() :].lstrip(".")
            numbers.setdefault((stem, rest), []).append(int(match.group()))
        else:
            parent, _, leaf = key.rpartition(".")
            plain.setdefault(parent, []).append(leaf)
    families: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (stem, rest), indices in numbers.items():
        families.setdefault((stem, tuple(sorted(indices))), []).append(rest)
    return [(parent, (), leaves) for parent, leaves in plain.items()] + [
        (stem, indices, rests) for (stem, indices), rests in families.items()
    ]


def _inner(rests: Sequence[str]) -> str:
    """What comes after a number, itself shortened where there are numbers in it."""
    parts = []
    for stem, indices, inner in _families(rests):
        if indices and len(indices) * len(inner) > 1:
            parts.append(f"{_span(stem, indices)} ({_inner(inner)})" if any(inner) else _span(stem, indices))
        else:
            start = _span(stem, indices)
            parts += [".".join(part for part in (start, leaf) if part) for leaf in inner]
    return ", ".join(parts)


def _span(stem: str, indices: Sequence[int]) -> str:
    """`blocks.0 to blocks.11`, with the numbers that are left out between ranges."""
    if not indices:
        return stem
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], index]
        else:
            ranges.append([index, index])

    def one(index: int) -> str:
        return f"{stem}.{index}" if stem else str(index)

    return ", ".join(one(first) if first == last else f"{one(first)} to {one(last)}" for first, last in ranges)
