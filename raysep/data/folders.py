"""What the directories of a tree of images stand for: parts of a split, classes, or something that can't be told."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from raysep.data.files import EXAMPLES, in_short, in_words
from raysep.data.parts import PARTS, part_of, parts_of

EXPECTED = ("<class>/<image>", "{train,test,unseen}/<class>/<image>")


@dataclass(frozen=True)
class Layout:
    """A tree, understood.

    Attributes:
        parts: the part of a split that each directory of the top level is; empty where they are none.
        depth: how many directories a class directory's path has.
        classes: paths of the class directories.
        class_of: class name of each image that lies in one.
        outside: images that lie in none.
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
        """The layout of a tree.

        Args:
            images, directories: paths below the root, without hidden ones.
            depth: of class directories, below the parts where there are any; None: 1.
        """
        # A directory without any image, of annotations say, is beside the parts or the classes.
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
        """Whether the parts divide the images. One part alone doesn't, but for unseen classes."""
        return len(set(self.parts.values())) > 1 or "unseen" in self.parts.values()

    def part_of(self, image: str) -> str | None:
        """The part of a split that an image is in, where there are several."""
        return self.parts.get(image.partition("/")[0]) if self.divides else None

    def problems(self, root: str, depth: int | None, others: Mapping[str, str]) -> list[str]:
        """Why nothing says for sure which class each image is of; none where all is clear.

        Args:
            root: as it is shown.
            depth: what was asked for.
            others: files that are no images, with the suffix that each counts under.
        """
        found = [*self._half_parts(root), *self._without_classes(root, depth, others)]
        if not found and depth is None and (nested := self._nested()):
            found.append(self._of_nested(root, nested))
        if not found and depth is not None:
            found += self._above(root, depth)
        return found or [*self._empty(root, others)]

    def left_out(self) -> Iterator[str]:
        """Images that no class has."""
        if self.outside:
            yield f"images outside the class directories: {len(self.outside)}: {in_short(self.outside)}"

    def notes(self) -> Iterator[str]:
        """How the directories were understood, where they could be understood in another way."""
        if self.parts and not set(self.parts) <= set(PARTS):
            which = ", ".join(f"{name} as {part}" for name, part in sorted(self.parts.items()))
            yield f"the directories are read as parts of a split, not as classes: {which}"
        elif self.parts and "unseen" not in self.parts:
            yield "the directories train and test are read as parts of a split, not as classes"
        if self.parts and not self.divides:
            yield "there is only one part, so data.split.test_fraction says what is held out"
        deeper = [image for image in self.class_of if image.count("/") > self.depth]
        if deeper:
            yield (
                f"images in directories inside class directories are of those classes: {len(deeper)}: "
                f"{in_short(deeper)}"
            )

    def _nested(self) -> list[str]:
        """Class directories whose images all lie in directories inside them, several or of different names."""
        inner: dict[str, Counter[str]] = {}
        direct = Counter[str]()
        for image in self.class_of:
            names = image.split("/")
            place = "/".join(names[: self.depth])
            if len(names) == self.depth + 1:
                direct[place] += 1
            else:
                inner.setdefault(place, Counter())[names[self.depth]] += 1
        # Few images beside several directories that hold more are those of a cover, say.
        nested = sorted(
            place
            for place, below in inner.items()
            if not direct[place] or (len(below) > 1 and below.total() > direct[place])
        )
        # One directory of the same name in each, as `images`, is no class: nothing is merged.
        one = len(set().union(*(inner[place] for place in nested))) == 1 if nested else False
        return [] if one and len(inner) == len(nested) else nested

    def _half_parts(self, root: str) -> Iterator[str]:
        """Directories that are called like the parts of a split, hold directories, and lie beside others."""
        holding = {image.partition("/")[0] for image in [*self.class_of, *self.outside] if image.count("/") > 1}
        like = sorted(place for place in holding if part_of(place))
        rest = sorted({image.partition("/")[0] for image in [*self.class_of, *self.outside] if "/" in image} - {*like})
        if not self.parts and len(like) > 1 and rest:
            yield (
                f"{in_short(like)} are called like the parts of a split, and {in_short(rest)} beside them "
                f"{'is' if len(rest) == 1 else 'are'} not: move {in_short(rest)} elsewhere{self._sketch(root)}"
            )

    def _without_classes(self, root: str, depth: int | None, others: Mapping[str, str]) -> Iterator[str]:
        top = [path for path in self.directories if "/" not in path]
        bare = [part for part in sorted(self.parts) if not any(p.startswith(f"{part}/") for p in self.directories)]
        if not top:
            what = f"{len(self.outside)} images and no class directory" if self.outside else "no class directory"
            skipped = f", and {in_words(Counter(others.values()))}" if others else ""
            yield f"expected {root}/<class>/<image>, found {what}{skipped}"
        elif bare:
            yield (
                f"{in_short(bare)}: parts of a split without class directories, so nothing says which class an image "
                f"is of{self._sketch(root)}"
            )
        elif depth is None and len(top) == 1 and not self._has_images_in(top[0]) and len(self.directories) > 1:
            if not self.parts:
                yield (
                    f"{root} holds one directory, {top[0]}, that holds the others: set the path to {root}/{top[0]}"
                    f"{self._sketch(root)}"
                )
        elif not self.classes:
            yield f"no directory lies {self.depth} directories deep{self._sketch(root)}"

    def _above(self, root: str, depth: int) -> Iterator[str]:
        """Images between the root, or the parts, and the depth of classes: classes that a depth forgets."""
        lost = [image for image in self.outside if image.count("/") > (1 if self.parts else 0)]
        if lost:
            yield (
                f"{len(lost)} images lie above the class directories that `depth: {depth}` means ({in_short(lost)}): "
                f"move them, or give another depth{self._sketch(root)}"
            )

    def _of_nested(self, root: str, nested: Sequence[str]) -> str:
        return (
            f"{len(nested)} of {len(self.classes)} class directories have no images but in directories inside them "
            f"({in_short(nested)}), so nothing says which of both are the classes. Set `data.source.depth: 2` where "
            f"the inner ones are (classes group/class), `depth: 1` where the outer ones are{self._sketch(root)}"
        )

    def _empty(self, root: str, others: Mapping[str, str]) -> Iterator[str]:
        used = {"/".join(image.split("/")[: self.depth]) for image in self.class_of}
        for place in self.classes:
            if place not in used:
                skipped = Counter(why for path, why in others.items() if path.startswith(f"{place}/"))
                what = f": it holds {in_words(skipped)}" if skipped else ""
                yield f"no image in the class directory {root}/{place}{what}"

    def _has_images_in(self, place: str) -> bool:
        return any(image.rpartition("/")[0] == place for image in [*self.class_of, *self.outside])

    def _sketch(self, root: str) -> str:
        """The tree that was found and the trees that were expected, in some indented lines."""
        counts = Counter(image.rpartition("/")[0] for image in [*self.class_of, *self.outside])
        lines, shown = [f"{root}/" + (f" ({counts['']} images)" if counts[""] else "")], Counter[str]()
        for place in self.directories:
            parent, _, name = place.replace("\n", "\\n").rpartition("/")
            indent = "  " * (place.count("/") + 1)
            if place.count("/") > 2 or any(shown[outer] > EXAMPLES for outer in _outer(place) if outer != place):
                continue
            shown[parent] += 1
            if shown[parent] <= EXAMPLES:
                lines.append(f"{indent}{name}/" + (f" ({counts[place]} images)" if counts[place] else ""))
            elif shown[parent] == EXAMPLES + 1:
                lines.append(f"{indent}...")
        found = "".join(f"\n        {line}" for line in lines)
        return f"\n      found:{found}\n      expected: {root}/" + f", or {root}/".join(EXPECTED)


def _outer(place: str) -> Iterator[str]:
    """The directories that a path lies in, from the root."""
    names = place.split("/")
    return ("/".join(names[:count]) for count in range(len(names)))
