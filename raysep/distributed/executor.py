"""The executor of the stages on Ray. Ray Tune and Ray Data are imported at first use."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, ClassVar

from raysep.distributed import connect, joining
from raysep.distributed.cluster_shape import Resources, Shape


def _function(module: str, name: str) -> Any:
    """A static method that calls a function of `raysep.distributed`, whose module is imported at the first call."""

    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(import_module(f"raysep.distributed.{module}"), name)(*arguments, **named)

    return staticmethod(call)


class RayExecutor:
    """Trials under Ray Tune, blocks through Ray Data, scoring tasks on actors. See `stages.executor.Executor`."""

    name: ClassVar[str] = "ray"
    gpu_memory = staticmethod(connect.gpu_memory)
    missing_on_nodes = staticmethod(connect.missing_on_nodes)

    def check(self) -> None:
        """Refuse a RAY_ADDRESS that a run can't join."""
        joining.check_ray_address()

    def connect(self, verbose: bool, may_add: Sequence[Shape]) -> AbstractContextManager[Resources]:
        """Start or join Ray."""
        return connect.connection(verbose, may_add)

    fit = _function("tune", "fit")
    prepare_all = _function("tune", "prepare_all")
    embed_all = _function("stream", "embed_all")
    score_all = _function("score", "score_all")
