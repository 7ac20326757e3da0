import pytest

from raysep.distributed import cluster_shape
from raysep.distributed.cluster_shape import Resources
from raysep.distributed.connect import connection
from raysep.errors import RaysepError, UsageError
from tests.conftest import REPOSITORY


def test_slots_are_counted_node_by_node() -> None:
    cluster = Resources(((4.0, 1.0), (3.0, 2.0)))
    assert cluster.slots(1, 0) == 7
    assert cluster.slots(2, 0) == 3
    assert cluster.slots(1, 1) == 3
    assert cluster.slots(0.5, 0.5) == 6
    assert cluster.fits(4, 1)
    assert not cluster.fits(4, 2)
    cluster.require("x", 2, 1, count=2)
    with pytest.raises(UsageError, match="x: 3 processes of 2 CPUs and 1 GPUs can't run"):
        cluster.require("x", 2, 1, count=3)


def test_the_launchers_configuration_lists_addable_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_shape, "BOOTSTRAP_CONFIG", REPOSITORY / "cluster.yaml")
    assert sorted(cluster_shape.launcher_shapes()) == [(16.0, 0.0)] * 4 + [(16.0, 1.0)] * 4
    monkeypatch.setattr(cluster_shape, "BOOTSTRAP_CONFIG", REPOSITORY / "README.md")
    assert cluster_shape.launcher_shapes() == ()


def test_a_running_ray_is_joined_and_left_running(ray_session: None) -> None:
    import ray

    with connection() as cluster:
        assert cluster == Resources(((2.0, 0.0),))
    assert ray.is_initialized()


def test_an_address_without_a_cluster_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(RaysepError, match=r"RAY_ADDRESS is 127.0.0.1:1, and no Ray cluster answers there"),
        connection(),
    ):
        pass
