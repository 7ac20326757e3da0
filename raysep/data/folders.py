"""Interpretation of an image tree's directories as parts of a split or as classes; problems of ambiguous trees."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from raysep.data.files import EXAMPLES, count_text, first_few
from raysep.data.parts import PARTS, part_of, parts_of

EXPECTED = ("<class>/<image>", "{train,test,unseen}/<class>/<image>")


@dataclass(frozen=True)
class Layout:
    """Parts and class directories of an image tree.

    Attributes:
        parts: part of the split by top-level directory; empty if the tree is not split.
        depth: number of directories in the path of a class directory, itself and the directory of a part included.
        classes: paths of the class directories.
        class_of: class name by image inside a class directory.
        outside: images outside the class directories.
        directories: paths of all directories.
    """

    parts: dict[str, str]
    depth: int
    classes: list[str]
    class_of: dict[str, str] = field(repr=False)
    outside: list[str] = field(repr=False)
    directories: list[str] = field(repr=False)

    @classmethod
    def of(cls, images: Sequence[str], directories: Sequence[str], depth: int | None) -> "Layout":
        """Interpret a tree.

        Args:
            images, directories: visible paths relative to the root.
            depth: depth of the class directories below the root, or below the parts of a split; None: 1.
        """
        # Top-level directories without images (for example annotations) are neither parts nor classes.
        used = {image.partition("/")[0] for image in images if "/" in image}
        parts = parts_of(path for path in directories if "/" not in path and path in used)
        above = 1 if parts else 0
        lowest = above + (depth or 1)
        class_of, outside = {}, []
        for image in images:
            *names, _ = image.split("/")
            if len(names) < lowest:
                outside.append(image)
            else:
                class_of[image] = "/".join(names[above:lowest])
        classes = [path for path in directories if path.count("/") == lowest - 1]
        return cls(parts, lowest, classes, class_of, outside, list(directories))

    @property
    def divides(self) -> bool:
        """Whether the parts define a split: at least two different ones, or `unseen`."""
        return len(set(self.parts.values())) > 1 or "unseen" in self.parts.values()

    def part_of(self, image: str) -> str | None:
        """The part of the split that contains an image; None if the parts define no split."""
        return self.parts.get(image.partition("/")[0]) if self.divides else None

    def problems(self, root: str, depth: int | None, others: Mapping[str, str]) -> list[str]:
        """Reasons why the class of some images is ambiguous; empty if there are none.

        Args:
            root: for messages.
            depth: configured depth.
            others: files that are not images, with the suffix under which each is counted.
        """
        problems = [*self._half_parts(root), *self._without_classes(root, depth, others)]
        if not problems and depth is None and (nested := self._nested()):
            problems.append(self._nested_problem(root, nested))
        if not problems and depth is not None:
            problems += self._above(root, depth)
        return problems or [*self._empty(root, others)]

    def left_out(self) -> Iterator[str]:
        """A sentence about images outside the class directories."""
        if self.outside:
            yield f"images outside the class directories: {len(self.outside)}: {first_few(self.outside)}"

    def notes(self) -> Iterator[str]:
        """Sentences about directories that could also be interpreted in another way."""
        if self.parts and not set(self.parts) <= set(PARTS):
            which = ", ".join(f"{name} as {part}" for name, part in sorted(self.parts.items()))
            yield f"these directories are read as parts of a split, not as classes: {which}"
        elif self.parts and "unseen" not in self.parts:
            yield "the directories train and test are read as parts of a split, not as classes; rename them if they are"
        if self.parts and not self.divides:
            yield "there is only one part, so data.split.test_fraction sets the share of held-out images"
        deeper = [image for image in self.class_of if image.count("/") > self.depth]
        if deeper:
            yield (
                f"images in subdirectories of class directories ({len(deeper)}) belong to those classes: "
                f"{first_few(deeper)}"
            )

    def _nested(self) -> list[str]:
        """Class directories with (nearly) all images in subdirectories that may be the real classes."""
        inner: dict[str, Counter[str]] = {}
        direct = Counter[str]()
        for image in self.class_of:
            names = image.split("/")
            path = "/".join(names[: self.depth])
            if len(names) == self.depth + 1:
                direct[path] += 1
            else:
                inner.setdefault(path, Counter())[names[self.depth]] += 1
        # A few images next to larger subdirectories may be covers or previews.
        nested = sorted(
            path
            for path, below in inner.items()
            if not direct[path] or (len(below) > 1 and below.total() > direct[path])
        )
        # The same subdirectory in each class, such as `images`, is not a level of classes.
        same_name = len(set().union(*(inner[path] for path in nested))) == 1 if nested else False
        return [] if same_name and len(inner) == len(nested) else nested

    def _half_parts(self, root: str) -> Iterator[str]:
        """Problem of directories named like the parts of a split, next to directories with other names."""
        holding = {image.partition("/")[0] for image in [*self.class_of, *self.outside] if image.count("/") > 1}
        like = sorted(name for name in holding if part_of(name))
        rest = sorted({image.partition("/")[0] for image in [*self.class_of, *self.outside] if "/" in image} - {*like})
        if not self.parts and len(like) > 1 and rest:
            yield (
                f"{first_few(like)} are named like the parts of a split, and {first_few(rest)} next to them "
                f"{'is' if len(rest) == 1 else 'are'} not: move {first_few(rest)} elsewhere{self._sketch(root)}"
            )

    def _without_classes(self, root: str, depth: int | None, others: Mapping[str, str]) -> Iterator[str]:
        top = [path for path in self.directories if "/" not in path]
        bare = [part for part in sorted(self.parts) if not any(p.startswith(f"{part}/") for p in self.directories)]
        if not top:
            what = f"{len(self.outside)} images and no class directory" if self.outside else "no class directory"
            skipped = f", and {count_text(Counter(others.values()))}" if others else ""
            yield f"expected {root}/<class>/<image>, found {what}{skipped}"
        elif bare:
            yield (
                f"{first_few(bare)}: parts of a split without class directories, so the class of each image is unknown"
                f"{self._sketch(root)}"
            )
        elif depth is None and len(top) == 1 and not self._has_images_in(top[0]) and len(self.directories) > 1:
            if not self.parts:
                yield (
                    f"{root} contains a single directory, {top[0]}, which holds all other directories: set the path to "
                    f"{root}/{top[0]}"
                    f"{self._sketch(root)}"
                )
        elif not self.classes:
            yield f"no directory at depth {self.depth}{self._sketch(root)}"

    def _above(self, root: str, depth: int) -> Iterator[str]:
        """Problem of images above the configured depth of the class directories, but not at the top level."""
        above = [image for image in self.outside if image.count("/") > (1 if self.parts else 0)]
        if above:
            yield (
                f"{len(above)} images are above the class directories at `depth: {depth}` ({first_few(above)}): "
                f"move them, or set another depth{self._sketch(root)}"
            )

    def _nested_problem(self, root: str, nested: Sequence[str]) -> str:
        return (
            f"{len(nested)} of {len(self.classes)} class directories have images only in subdirectories "
            f"({first_few(nested)}), so either level may be the classes. Set `data.source.depth: 2` if the "
            f"subdirectories are the classes (named group/class), else `depth: 1`{self._sketch(root)}"
        )

    def _empty(self, root: str, others: Mapping[str, str]) -> Iterator[str]:
        used = {"/".join(image.split("/")[: self.depth]) for image in self.class_of}
        for directory in self.classes:
            if directory not in used:
                skipped = Counter(suffix for path, suffix in others.items() if path.startswith(f"{directory}/"))
                what = f": it contains {count_text(skipped)}" if skipped else ""
                yield f"no image in the class directory {root}/{directory}{what}"

    def _has_images_in(self, directory: str) -> bool:
        return any(image.rpartition("/")[0] == directory for image in [*self.class_of, *self.outside])

    def _sketch(self, root: str) -> str:
        """The found tree, abbreviated, and the expected trees, as indented lines."""
        counts = Counter(image.rpartition("/")[0] for image in [*self.class_of, *self.outside])
        lines, shown = [f"{root}/" + (f" ({counts['']} images)" if counts[""] else "")], Counter[str]()
        for path in self.directories:
            parent, _, name = path.replace("\n", "\\n").rpartition("/")
            indent = "  " * (path.count("/") + 1)
            if path.count("/") > 2 or any(shown[outer] > EXAMPLES for outer in _parents(path) if outer != path):
                continue
            shown[parent] += 1
            if shown[parent] <= EXAMPLES:
                lines.append(f"{indent}{name}/" + (f" ({counts[path]} images)" if counts[path] else ""))
            elif shown[parent] == EXAMPLES + 1:
                lines.append(f"{indent}...")
        found = "".join(f"\n        {line}" for line in lines)
        return f"\n      found:{found}\n      expected: {root}/" + f", or {root}/".join(EXPECTED)


def _parents(path: str) -> Iterator[str]:
    """The parent directories of a path, from the root."""
    names = path.split("/")
    return ("/".join(names[:count]) for count in range(len(names)))
