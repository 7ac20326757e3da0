"""Compact text for hundreds of tensor names, without omissions."""

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")


def grouped(keys: Iterable[str]) -> list[str]:
    """Group names by common prefix, with numbered parts as ranges; the shortest prefix first.

    >>> grouped(["pos", "blocks.0.norm.weight", "blocks.0.norm.bias", "blocks.1.norm.weight", "blocks.1.norm.bias"])
    ['pos', 'blocks.0 to blocks.1: norm.weight, norm.bias (4 keys)']
    >>> grouped(["head.weight", "head.bias"])
    ['head: weight, bias (2 keys)']
    """
    texts = []
    for stem, indices, rests in _families(keys):
        count = max(1, len(indices)) * len(rests)
        if count == 1:
            text = f"{_span(stem, indices)}.{rests[0]}" if stem or indices else rests[0]
        elif not stem and not indices:
            text = f"{', '.join(rests)} ({count} keys)"
        else:
            text = f"{_span(stem, indices)}: {_inner(rests)} ({count} keys)"
        texts.append(text.rstrip("."))
    return sorted(texts, key=_prefix_length)


def count_by_prefix(keys: Iterable[str], depth: int = 1) -> str:
    """Count names by their first `depth` parts.

    >>> count_by_prefix(["queue", "encoder_k.conv1.weight", "encoder_k.bn1.weight"])
    'queue, encoder_k.* (2)'
    """
    counts: dict[str, int] = {}
    for key in keys:
        parts = key.split(".")
        prefix = ".".join(parts[:depth]) + (".*" if len(parts) > depth else "")
        counts[prefix] = counts.get(prefix, 0) + 1
    return ", ".join(
        prefix if count == 1 and not prefix.endswith("*") else f"{prefix} ({count})" for prefix, count in counts.items()
    )


def _prefix_length(text: str) -> tuple[int, str]:
    """Sort key of a group's text: the number of parts of its common prefix, then the prefix."""
    common = text.partition(":")[0].partition(" ")[0]
    return common.count("."), common


def _families(keys: Iterable[str]) -> list[tuple[str, tuple[int, ...], list[str]]]:
    """Group names into (prefix, numbers, suffixes), split at the first number in each name.

    Names without a number are grouped into (module, (), tensors).
    """
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
    """The suffixes after a number, with numbers in them grouped as well."""
    parts = []
    for stem, indices, inner in _families(rests):
        if indices and len(indices) * len(inner) > 1:
            parts.append(f"{_span(stem, indices)} ({_inner(inner)})" if any(inner) else _span(stem, indices))
        else:
            start = _span(stem, indices)
            parts += [".".join(part for part in (start, leaf) if part) for leaf in inner]
    return ", ".join(parts)


def _span(stem: str, indices: Sequence[int]) -> str:
    """Numbered names as ranges of consecutive numbers: `blocks.0 to blocks.11`."""
    if not indices:
        return stem
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and index == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], index]
        else:
            ranges.append([index, index])

    def numbered(index: int) -> str:
        return f"{stem}.{index}" if stem else str(index)

    return ", ".join(" to ".join(map(numbered, dict.fromkeys(bounds))) for bounds in ranges)
