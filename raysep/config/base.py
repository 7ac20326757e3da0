"""What every section of a configuration has in common."""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

Dtype = Literal["float32", "float16"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

# Class names are strings even where YAML reads a number: `unseen: [7, 8, 9]`.
ClassName = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, int) else v)]


def repeated(names: Iterable[str]) -> list[str]:
    """The names that come more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
