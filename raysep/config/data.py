"""Section `data`: where the images are, which classes are unseen, and which other images are looked at."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from raysep.config.base import ClassName, Section, repeated

Corruption = Literal["blur", "noise", "contrast", "jpeg", "rotation", "colour"]
# Names that a domain can't have: they are splits and roles already.
RESERVED = frozenset({"unseen", "seen", "seen_train", "seen_test"})


class DigitsSource(Section):
    """The 1,797 handwritten digits that ship inside scikit-learn (8x8 pixels, classes 0 to 9)."""

    kind: Literal["digits"]


class ImageFolderSource(Section):
    """A tree `path/<class>/*`, or `path/{train,test,unseen}/<class>/*`, which is a split already.

    Parts are known by their usual names in any case (training, val, validation, dev, eval, ...). Files are images by
    suffix or content; hidden ones, and those of systems, are left out at every depth.
    """

    kind: Literal["image_folder"]
    path: str = Field(description="directory or URI; a relative one is looked up from the working directory")
    depth: int | None = Field(
        None,
        ge=1,
        le=16,
        description="how many directories below `path`, or below each part, a class directory lies: 2 for "
        "path/<group>/<class>/*, a class of the name group/class; everything below a class directory is of the class; "
        "unset: 1, and a tree whose class directories hold only directories is refused",
    )


class ParquetSource(Section):
    """Parquet files with a column of encoded images and one of labels."""

    kind: Literal["parquet"]
    path: str = Field(description="a file, or a directory or URI of them; a relative one as above")
    image_column: str = Field("image", description="bytes, or a struct with a field `bytes` as Hugging Face writes it")
    label_column: str = Field("label", description="text or integers: the class names")


class HuggingFaceSource(Section):
    """A data set of Hugging Face `datasets`: a name on the hub, or a local directory."""

    kind: Literal["huggingface"]
    path: str = Field(description="name on the hub, or a directory that `save_to_disk` or `load_dataset` knows")
    subset: str | None = Field(None, description="the data set's configuration, where it has several")
    split: str = "train"
    image_column: str = "image"
    label_column: str = "label"


class Cifar100Source(Section):
    """CIFAR-100 by torchvision: 100 classes of 500 training and 100 test images, 32x32 pixels."""

    kind: Literal["cifar100"]
    path: str = Field(description="directory with `cifar-100-python` or its archive in it")
    download: bool = Field(False, description="fetch the archive where it is missing")


SourceConfig = Annotated[
    DigitsSource | ImageFolderSource | ParquetSource | HuggingFaceSource | Cifar100Source,
    Field(discriminator="kind"),
]


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
    seed: int = Field(42, ge=0)

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

    seen_train: int | None = Field(None, ge=2)
    seen_test: int | None = Field(None, ge=1)
    unseen: int | None = Field(None, ge=2)


class DomainConfig(Section):
    """Further images that every checkpoint is evaluated on, as a split of its own.

    Either other images (`source`), of the same classes or of others, or a named corruption of images that
    the run has already. Nothing is trained on them.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", description="names the split in results and paths")
    source: SourceConfig | None = None
    corruption: Corruption | None = None
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
    """Where the images are and how they are split."""

    source: SourceConfig
    split: SplitConfig | None = Field(None, description="leave out where the source is a split already")
    max_per_class: CapConfig = CapConfig()
    min_per_class: int = Field(
        1, ge=1, description="classes with fewer images are left out, and named; 4 keeps all scores defined"
    )
    domains: list[DomainConfig] = Field(default_factory=list)
    bit_depth: int | None = Field(
        None,
        ge=1,
        le=32,
        description="bits that the images' values have, where their files have room for more: 12 where white is 4095; "
        "unset: what each file says, else all bits that it has, and 0 to 1 for floats; images of 8 bits stay as they "
        "are unless fewer are given",
    )
    max_failed_share: float = Field(
        0.01, ge=0, le=1, description="share of images that may be unreadable before the run fails"
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
