"""Section `data`: the source of the images, the split into seen and unseen classes, and further domains."""

import functools
import operator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, GetCoreSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema

from raysep.config.base import NOT_IN_KEY, ClassName, Section, repeated
from raysep.config.names import Corruption
from raysep.config.registry import SOURCES

# Names of splits and roles, which a domain can't have.
RESERVED = frozenset({"unseen", "seen", "seen_train", "seen_test"})


class SourceConfig(Section):
    """Base of the sections of image sources, one for each `kind`."""

    kind: str


class _OfAnyKind:
    """Annotation: the union of the sections of all registered sources, with the discriminator `kind`."""

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
        None, description="class names; or `all`: no training, each class is unseen"
    )
    unseen_fraction: float | None = Field(None, gt=0, lt=1, description="share of classes drawn as unseen")
    rotations: int = Field(1, ge=1, description="number of disjoint draws of unseen classes, each with its own trials")
    seen: list[ClassName] | None = Field(None, description="class names; unset: all that are not unseen")
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="held-out share of each seen class, unless the source itself defines the held-out images",
    )
    seed: int = Field(42, ge=0, description="of the draws")

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if (self.unseen is None) == (self.unseen_fraction is None):
            raise ValueError("give either `unseen` (class names, or `all`) or `unseen_fraction`")
        if self.unseen == "all" and self.seen is not None:
            raise ValueError("`unseen: all` leaves no class for `seen`")
        if self.rotations > 1 and self.unseen_fraction is None:
            raise ValueError("`rotations` draws unseen classes: give `unseen_fraction` instead of `unseen`")
        if self.unseen_fraction is not None and self.rotations * self.unseen_fraction > 1:
            raise ValueError(
                f"{self.rotations} disjoint draws of {self.unseen_fraction:g} of the classes need more classes than "
                "exist"
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
    """Limits of the number of images per class; the images are drawn with the split's seed; unset: all."""

    seen_train: int | None = Field(None, ge=2, description="training images")
    seen_test: int | None = Field(None, ge=1, description="held-out images of seen classes")
    unseen: int | None = Field(None, ge=2, description="images of unseen classes")


class DomainConfig(Section):
    """Further images that every checkpoint is evaluated on, as a separate split.

    Either other images (`source`), of the same or other classes, or a named corruption of the run's images. They are
    never used for training.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", description="name of the split in results and paths")
    source: AnySource | None = Field(None, description="other images")
    corruption: Corruption | None = Field(None, description="of images of the run")
    severity: int = Field(3, ge=1, le=5, description="of the corruption")
    of: Literal["unseen", "seen"] = Field("unseen", description="images to corrupt; `seen` means seen_test")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.source is None) == (self.corruption is None):
            raise ValueError("give either `source` or `corruption`")
        if self.name in RESERVED:
            raise ValueError(f"{self.name!r} is a split already: take another name")
        return self


class DataConfig(Section):
    """The source of the images and their split. Cache keys contain a hash of the split and its images."""

    source: Annotated[AnySource, NOT_IN_KEY]
    split: Annotated[SplitConfig | None, NOT_IN_KEY] = Field(
        None, description="leave out if the source is already split"
    )
    max_per_class: Annotated[CapConfig, NOT_IN_KEY] = CapConfig()
    min_per_class: Annotated[int, NOT_IN_KEY] = Field(
        1,
        ge=1,
        description="classes with fewer images are left out and reported; with 4 or more, all scores are defined",
    )
    domains: Annotated[list[DomainConfig], NOT_IN_KEY] = Field(default_factory=list)
    bit_depth: int | None = Field(
        None,
        ge=1,
        le=32,
        description="significant bits of the pixel values, if the files could hold more: 12 if white is 4095; "
        "unset: as each file declares, else all of its bits; floats range from 0 to 1; 8-bit images are unchanged "
        "unless "
        "this is below 8",
    )
    max_failed_share: Annotated[float, NOT_IN_KEY] = Field(
        0.01,
        ge=0,
        le=1,
        description="maximum share of unreadable images (more: the run fails); they are left out, counted and listed",
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
        """Number of draws of unseen classes."""
        return self.split.rotations if self.split is not None else 1
