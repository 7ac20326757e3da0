"""Registries of metrics, image sources, backends and corruptions, which other packages extend with entry points.

The names in a registry are valid values of the configuration. An entry point has the name of its entry, and is
imported when the entry is first read:

    [project.entry-points."raysep.metrics"]
    silhouette = "my_package.metrics"
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from raysep.errors import ConfigError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Entries by name: built-in ones in the order of their definition, then those of entry points.

    Args:
        kind: kind of the entries, for messages: `metric`.
        module: module that defines the built-in entries.
        one_per_module: `module` is a package; each of its public modules defines the entry of its own name, and is
            imported when that entry is first read.
    """

    def __init__(self, kind: str, module: str, *, one_per_module: bool = False) -> None:
        self.kind, self.group = kind, f"raysep.{kind}s"
        self._module, self._one_per_module = module, one_per_module
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Register an entry. Raises ValueError if another entry has the name."""
        if self._entries.get(name, entry) != entry:
            raise ValueError(f"two {self.kind}s are called {name!r}")
        self._entries[name] = entry

    @cached_property
    def built_in(self) -> list[str]:
        """Names of the built-in entries."""
        if self._one_per_module:
            spec = find_spec(self._module)
            modules = iter_modules(spec.submodule_search_locations if spec is not None else None)
            return [module.name for module in modules if not module.name.startswith("_")]
        import_module(self._module)
        return [name for name in self._entries if name not in self._points]

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    def __getitem__(self, name: str) -> T:
        """The entry of a name. Raises ConfigError for an unknown name or an entry point that can't be imported."""
        if name not in self._entries and name in self.built_in and self._one_per_module:
            import_module(f"{self._module}.{name}")
        if name not in self._entries and name in self._points:
            self._import(self._points[name])
        if name not in self._entries:
            raise ConfigError(
                [
                    f"there is no {self.kind} {name!r} on this machine: the {self.kind}s here are {', '.join(self)}; "
                    "other packages must be installed on every node"
                ]
            )
        return self._entries[name]

    def _import(self, point: EntryPoint) -> None:
        package = point.dist.name if point.dist is not None else "an installed package"
        try:
            point.load()
        except Exception as error:
            raise ConfigError(
                [
                    f"the {self.kind} {point.name!r} of {package} ({point.value}) can't be imported: "
                    f"{type(error).__name__}: {error}. Repair or uninstall {package}"
                ]
            ) from error
        if point.name not in self._entries:
            raise ConfigError(
                [f"{point.value} of {package} registers no {self.kind} {point.name!r}: entry point and name must agree"]
            )

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.built_in, *self._points, *self._entries]))

    def __len__(self) -> int:
        return len(list(iter(self)))


class NameOf:
    """Annotation of a text field whose valid values are the names in a registry.

    Args:
        others: further valid values, listed before the names.
    """

    def __init__(self, registry: Registry[Any], *others: str) -> None:
        self._registry, self._others = registry, others

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema([*self._others, *self._registry])


@dataclass(frozen=True)
class MetricSpec:
    """A metric and its properties.

    Attributes:
        name: name in configurations and result files.
        compute: function from a `scoring.cache.LayerScores` to a `scoring.registry.Measured`.
        low: minimum value; the maximum is 1.
        shared: both protocols define it in the same way, so it is computed once for both.
        clustering: compares labels and clusters, so it is not a mean over images, and its interval is symmetric.
        shared_fits: the halves of the images share fitted models, so the halves' spread does not give the interval's
            width.
        least_images: minimum images of each class for the metric to be defined.
        large: has large intermediate results, so it is computed last.
        summary: one sentence for the documentation.
    """

    name: str
    compute: Callable[[Any], Any]
    low: float
    shared: bool
    clustering: bool
    shared_fits: bool
    least_images: int
    large: bool
    summary: str


METRICS: Registry[MetricSpec] = Registry("metric", "raysep.scoring.metrics")
SOURCES: Registry[Any] = Registry("source", "raysep.data.sources", one_per_module=True)
BACKENDS: Registry[Any] = Registry("backend", "raysep.scoring.backends", one_per_module=True)
CORRUPTIONS: Registry[Any] = Registry("corruption", "raysep.data.corruptions")
