"""Section `data`: where the images are, which classes are unseen, and which other images are looked at."""

import functools
import operator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, GetCoreSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema

from raysep.config.base import NOT_IN_KEY, ClassName, Section, repeated
from raysep.config.names import Corruption
from raysep.config.registry import SOURCES

# Names that a domain can't have: they are splits and roles already.
RESERVED = frozenset({"unseen", "seen", "seen_train", "seen_test"})


class SourceConfig(Section):
    """Where images come from. Each kind of source has a section of its own, of the same `kind`."""

    kind: str


class _OfAnyKind:
    """The sections of all registered sources, told apart by `kind`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        union = functools.reduce(operator.or_, source_sections())
        return handler.generate_schema(Annotated[union, Field(discriminator="kind")])


def source_sections() -> list[type[SourceConfig]]:
    """The section of each registered source."""
    return [SOURCES[kind].Config for kind in SOURCES]


AnySource = Annotated[SourceConfig, _OfAnyKind()]


class SplitConfig(Section):
    """Which classes are unseen, and which images of the seen ones are held out for testing."""

    unseen: list[ClassName] | Literal["all"] | None = Field(
        None, description="class names; or `all`: nothing is trained on, each class is unseen"
    )
    unseen_fraction: float | None = Field(None, gt=0, lt=1, description="share of classes drawn as unseen")
    rotations: int = Field(1, ge=1, description="disjoint draws of unseen classes, each with trials of its own")
    seen: list[ClassName] | None = Field(None, description="class names; unset: all that are not unseen")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of each seen class held out, unless the source says which images are"
    )
    seed: int = Field(42, ge=0, description="of the draws")

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        if (self.unseen is None) == (self.unseen_fraction is None):
            raise ValueError("give either `unseen` (class names, or `all`) or `unseen_fraction`")
        if self.unseen == "all" and self.seen is not None:
            raise ValueError("`unseen: all` leaves no class for `seen`")
        if self.rotations > 1 and self.unseen_fraction is None:
            raise ValueError("`rotations` draws unseen classes: give `unseen_fraction` instead of `unseen`")
        if self.unseen_fraction is not None and self.rotations * self.unseen_fraction > 1:
            raise ValueError(
                f"{self.rotations} disjoint draws of {self.unseen_fraction:g} of the classes are more than there are"
            )
        if isinstance(self.unseen, list):
            for key, names in (("unseen", self.unseen), ("seen", self.seen or [])):
                twice = repeated(names)
                if twice:
                    raise ValueError(f"`{key}` names a class twice: {', '.join(twice)}")
            both = sorted(set(self.unseen) & set(self.seen or []))
            if both:
                raise ValueError(f"both seen and unseen: {', '.join(both)}")
            if len(self.unseen) < 2:
                raise ValueError(f"`unseen` needs 2 classes or more to tell apart, got {len(self.unseen)}")
        return self


class CapConfig(Section):
    """At most this many images of a class, drawn with the split's seed; unset: all."""

    seen_train: int | None = Field(None, ge=2, description="training images")
    seen_test: int | None = Field(None, ge=1, description="held-out images of seen classes")
    unseen: int | None = Field(None, ge=2, description="images of unseen classes")


class DomainConfig(Section):
    """Further images that every checkpoint is evaluated on, as a split of its own.

    Either other images (`source`), of the same classes or of others, or a named corruption of images that
    the run has already. Nothing is trained on them.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", description="names the split in results and paths")
    source: AnySource | None = Field(None, description="other images, as `data.source`")
    corruption: Corruption | None = Field(None, description="instead of `source`: images of the run, corrupted")
    severity: int = Field(3, ge=1, le=5, description="of the corruption")
    of: Literal["unseen", "seen"] = Field("unseen", description="which images are corrupted; seen: seen_test")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.source is None) == (self.corruption is None):
            raise ValueError("give either `source` or `corruption`")
        if self.name in RESERVED:
            raise ValueError(f"{self.name!r} is a split already: take another name")
        return self


class DataConfig(Section):
    """Where the images are and how they are split. Cache keys have a hash of the split and its images."""

    source: Annotated[AnySource, NOT_IN_KEY]
    split: Annotated[SplitConfig | None, NOT_IN_KEY] = Field(
        None, description="leave out where the source is a split already"
    )
    max_per_class: Annotated[CapConfig, NOT_IN_KEY] = CapConfig()
    min_per_class: Annotated[int, NOT_IN_KEY] = Field(
        1, ge=1, description="classes with fewer images are left out, and named; 4 keeps all scores defined"
    )
    domains: Annotated[list[DomainConfig], NOT_IN_KEY] = Field(default_factory=list)
    bit_depth: int | None = Field(
        None,
        ge=1,
        le=32,
        description="bits that the images' values have, where their files have room for more: 12 where white is 4095; "
        "unset: what each file says, else all bits that it has, and 0 to 1 for floats; images of 8 bits stay as they "
        "are unless fewer are given",
    )
    max_failed_share: Annotated[float, NOT_IN_KEY] = Field(
        0.01,
        ge=0,
        le=1,
        description="share of unreadable images before the run fails; they are left out, counted and listed",
    )

    @field_validator("domains")
    @classmethod
    def _different_names(cls, value: list[DomainConfig]) -> list[DomainConfig]:
        twice = repeated(domain.name for domain in value)
        if twice:
            raise ValueError(f"two domains are called {', '.join(twice)}")
        return value

    @property
    def rotations(self) -> int:
        """How many draws of unseen classes the run is made of."""
        return self.split.rotations if self.split is not None else 1
