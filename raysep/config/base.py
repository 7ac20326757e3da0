"""What every section of a configuration has in common."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

Dtype = Literal["float32", "float16"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

# Class names are strings even where YAML reads a number: `unseen: [7, 8, 9]`.
ClassName = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, int) else v)]


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
