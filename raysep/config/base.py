"""Base class, types and cache key fields of the sections of a configuration."""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

Dtype = Literal["float32", "float16"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


def _class_name(value: Any) -> Any:
    # `config.load` reads class names of files as text; other callers can use whole numbers.
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise ValueError(f"expected the name of a class as text, got {value!r}: put it in quotes")


ClassName = Annotated[str, BeforeValidator(_class_name)]


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


class Section(BaseModel):
    """A frozen section of the configuration that refuses unknown keys.

    pydantic builds its schema at the first validation, since the registries can't be read at import.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans(cls, values: Any) -> Any:
        """Refuse booleans where none are expected: YAML reads `yes` and `on` as true, and pydantic takes true for 1."""
        for key, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(key)
            items = value if isinstance(value, list) else [value]
            if field is None or _allows_booleans(field.annotation) or not any(isinstance(item, bool) for item in items):
                continue
            raise ValueError(f"`{key}` can't be true or false; YAML also reads yes, no, on and off as those")
        return values


class _NotInKey:
    """Type of the marker `NOT_IN_KEY`, for fields outside of cache keys."""


# Annotation of fields that results do not depend on, or that the hash of the data or of the weights covers.
# All other fields are part of cache keys, so that a new field is included by default.
NOT_IN_KEY = _NotInKey()


def not_in_key(section: type[Section]) -> frozenset[str]:
    """Names of the fields that are annotated with `NOT_IN_KEY`."""
    return frozenset(name for name, field in section.model_fields.items() if NOT_IN_KEY in field.metadata)


def key_fields(section: Section) -> dict[str, Any]:
    """JSON values, by name, of the fields that are part of a section's cache key."""
    return section.model_dump(mode="json", exclude=set(not_in_key(type(section))))


def _allows_booleans(annotation: Any) -> bool:
    """Whether a type allows booleans or is text (for text, pydantic itself refuses booleans)."""
    return annotation in (bool, Any, str) or any(_allows_booleans(inner) for inner in get_args(annotation))
