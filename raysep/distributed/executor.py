"""The executor of the stages on Ray. Ray Tune and Ray Data are imported at first use."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from raysep.distributed import connect, joining
from raysep.distributed.cluster_shape import Resources, Shape


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

    def fit(self, *arguments: Any, **named: Any) -> Any:
        """See `distributed.tune.fit`."""
        from raysep.distributed.tune import fit

        return fit(*arguments, **named)

    def prepare_all(self, *arguments: Any, **named: Any) -> Any:
        """See `distributed.tune.prepare_all`."""
        from raysep.distributed.tune import prepare_all

        return prepare_all(*arguments, **named)

    def embed_all(self, *arguments: Any, **named: Any) -> Any:
        """See `distributed.stream.embed_all`."""
        from raysep.distributed.stream import embed_all

        return embed_all(*arguments, **named)

    def score_all(self, *arguments: Any, **named: Any) -> Any:
        """See `distributed.score.score_all`."""
        from raysep.distributed.score import score_all

        return score_all(*arguments, **named)
