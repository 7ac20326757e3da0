"""Classes by their names, as a configuration has them and as the data has them, and by their sizes."""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Sequence

from raysep.config import SplitConfig
from raysep.config.base import repeated
from raysep.data.source import Record
from raysep.errors import ConfigError


def of_large_classes(records: Sequence[Record], least: int) -> tuple[Sequence[Record], dict[str, int]]:
    """The images of classes that have enough of them, and the sizes of the others."""
    sizes = Counter(record.class_name for record in records)
    small = {name: count for name, count in sizes.items() if count < least}
    return [record for record in records if record.class_name not in small] if small else records, small


def with_known_names(config: SplitConfig, classes: list[str], small: set[str]) -> SplitConfig:
    """The names of classes as the data has them, without those of classes that are left out.

    Raises ConfigError for names that no class has. A name in another form of Unicode is the same name: file systems
    and editors change them (Unicode Standard Annex 15).
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
            same = [name] if name in classes or name in small else forms.get(unicodedata.normalize("NFC", name), [])
            if len(same) == 1:
                known += [same[0]] if same[0] not in small else []
            else:
                close = same or difflib.get_close_matches(name, classes, n=3, cutoff=0.5) or classes[:10]
                problems.append(
                    f"data.split.{key}: no class {in_code(name)} in the data; there are "
                    + ", ".join(in_code(other) for other in close)
                )
        if twice := repeated(known):
            problems.append(f"data.split.{key}: names a class twice, in two forms: {', '.join(map(in_code, twice))}")
        update[key] = known
    if both := sorted(set(update.get("unseen", [])) & set(update.get("seen", []))):
        problems.append(f"data.split: both seen and unseen: {', '.join(map(in_code, both))}")
    if problems:
        raise ConfigError(problems)
    return config.model_copy(update=update)


def in_code(name: str) -> str:
    r"""A name so that no other one looks the same: what is no ASCII is spelt out as well.

    >>> in_code("heron") + in_code("caf\u00e9")
    "'heron''café' ('caf\\xe9')"
    """
    return repr(name) if ascii(name) == repr(name) else f"{name!r} ({name!a})"
