"""Class names: matching the configuration against the data, and dropping small classes."""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Sequence

from raysep.config import SplitConfig
from raysep.config.base import repeated
from raysep.data.source import Record
from raysep.errors import ConfigError


def without_small_classes(records: Sequence[Record], min_size: int) -> tuple[Sequence[Record], dict[str, int]]:
    """Records of classes with at least `min_size` images, and the sizes of the smaller classes by name."""
    sizes = Counter(record.class_name for record in records)
    small = {name: count for name, count in sizes.items() if count < min_size}
    return [record for record in records if record.class_name not in small] if small else records, small


def match_class_names(config: SplitConfig, classes: list[str], small: set[str]) -> SplitConfig:
    """Replace the class names of `config` by their spelling in the data, and drop those of `small` classes.

    Names match in any Unicode normal form, because file systems and editors change it (Unicode Standard Annex 15).
    Raises ConfigError for unknown names.
    """
    problems: list[str] = []
    update: dict[str, list[str]] = {}
    forms: dict[str, list[str]] = {}
    for name in [*classes, *small]:
        forms.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    for key, names in (("unseen", config.unseen), ("seen", config.seen)):
        if not isinstance(names, list):
            continue
        known = []
        for name in names:
            matches = [name] if name in classes or name in small else forms.get(unicodedata.normalize("NFC", name), [])
            if len(matches) == 1:
                known += [matches[0]] if matches[0] not in small else []
            else:
                close = matches or difflib.get_close_matches(name, classes, n=3, cutoff=0.5) or classes[:10]
                problems.append(
                    f"data.split.{key}: no class {quoted(name)} in the data; there are "
                    + ", ".join(quoted(other) for other in close)
                )
        if twice := repeated(known):
            problems.append(f"data.split.{key}: a class in two Unicode forms: {', '.join(map(quoted, twice))}")
        update[key] = known
    if both := sorted(set(update.get("unseen", [])) & set(update.get("seen", []))):
        problems.append(f"data.split: classes both seen and unseen: {', '.join(map(quoted, both))}")
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update=update)


def quoted(name: str) -> str:
    r"""The name as a Python literal; with non-ASCII characters also in escaped form, so that look-alikes differ.

    >>> quoted("heron") + quoted("caf\u00e9")
    "'heron''café' ('caf\\xe9')"
    """
    return repr(name) if ascii(name) == repr(name) else f"{name!r} ({name!a})"
