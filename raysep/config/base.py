"""What every section of a configuration has in common."""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

Dtype = Literal["float32", "float16"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


def _class_name(value: Any) -> Any:
    # From a file they come as they are written (`loading.py`); other callers may give whole numbers.
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise ValueError(f"expected the name of a class as text, got {value!r}: put it in quotes")


ClassName = Annotated[str, BeforeValidator(_class_name)]


def repeated(names: Iterable[str]) -> list[str]:
    """The names that come more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys.

    Schemas are built at the first validation, when the registries of names can be read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, values: Any) -> Any:
        """YAML reads `yes` and `on` as true, which would count as 1."""
        for key, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(key)
            items = value if isinstance(value, list) else [value]
            if field is None or _takes_truth(field.annotation) or not any(isinstance(item, bool) for item in items):
                continue
            raise ValueError(f"`{key}` can't be true or false, which yes, no, on and off mean as well")
        return values


class _NotInKey:
    """See `NOT_IN_KEY`."""


# Annotation of fields that results do not depend on, or that a hash of the data or of the weights covers already.
# All others are part of cache keys, so that a new field can't be forgotten there.
NOT_IN_KEY = _NotInKey()


def not_in_key(section: type[Section]) -> frozenset[str]:
    """The fields that are marked `NOT_IN_KEY`."""
    return frozenset(name for name, field in section.model_fields.items() if NOT_IN_KEY in field.metadata)


def key_fields(section: Section) -> dict[str, Any]:
    """Fields and values, as JSON has them, of a section's cache key."""
    return section.model_dump(mode="json", exclude=set(not_in_key(type(section))))


def _takes_truth(annotation: Any) -> bool:
    """Whether values of a type may be true or false, or are not looked at here."""
    return annotation in (bool, Any, str) or any(_takes_truth(inner) for inner in get_args(annotation))
