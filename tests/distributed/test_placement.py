import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raysep.config import ComputeConfig, ScoreConfig
from raysep.distributed import placement
from raysep.distributed.cluster_shape import Resources
from raysep.errors import UsageError


def cluster(*nodes: tuple[float, float]) -> Resources:
    return Resources(nodes)


DESK = cluster((2.0, 0.0))
GPUS = cluster((4.0, 0.0), (16.0, 2.0), (16.0, 2.0))


def test_trials_share_the_cpus_of_a_workstation() -> None:
    assert placement.trial_pool(ComputeConfig(), DESK, 1) == placement.Pool(1, 2.0, 0.0)
    assert placement.trial_pool(ComputeConfig(), DESK, 6).cpus == 1.0


def test_trials_take_a_gpu_where_there_are_some() -> None:
    assert placement.trial_pool(ComputeConfig(), GPUS, 8) == placement.Pool(8, 8.0, 1.0)
    assert placement.trial_pool(ComputeConfig(gpus_per_trial=0.5), GPUS, 8) == placement.Pool(8, 4.0, 0.5)


def test_embedding_takes_few_wide_actors_for_little_work() -> None:
    assert placement.embed_plan(ComputeConfig(), DESK, 4) == placement.EmbedPlan(placement.Pool(1, 2.0, 0.0))
    assert placement.embed_plan(ComputeConfig(), DESK, 40) == placement.EmbedPlan(placement.Pool(2, 1.0, 0.0))


def test_cpus_of_all_nodes_decode_for_gpus() -> None:
    plan = placement.embed_plan(ComputeConfig(), GPUS, 100)
    assert plan == placement.EmbedPlan(placement.Pool(4, 0.0, 1.0), placement.Pool(36, 1.0, 0.0))
    assert placement.embed_plan(ComputeConfig(decode_actors=0), GPUS, 100).decode is None
    assert placement.embed_plan(ComputeConfig(decode_actors=1, embed_actors=1), DESK, 9).decode == placement.Pool(
        1, 1, 0
    )
    # No CPU is left for decoders: the actors decode themselves.
    assert placement.embed_plan(ComputeConfig(cpus_per_embed_actor=1), cluster((1.0, 1.0)), 9).decode is None


def test_addable_nodes_are_planned_with_and_reported() -> None:
    growing = Resources(((4.0, 0.0),), ((8.0, 1.0), (8.0, 1.0)))
    assert placement.trial_pool(ComputeConfig(), growing, 3) == placement.Pool(3, 8.0, 1.0)
    assert placement.embed_plan(ComputeConfig(), growing, 9).embed == placement.Pool(2, 0.0, 1.0)
    with pytest.raises(UsageError, match=r"nodes have 4 CPUs and 0 GPUs, and autoscaling could add 2 x 8 CPUs and 1 G"):
        placement.check(ComputeConfig(gpus_per_trial=2), growing)


def test_scoring_takes_gpus_only_for_cuml() -> None:
    assert placement.score_pool(ComputeConfig(), GPUS, ScoreConfig()) == placement.Pool(4, 1.0, 1.0)
    assert placement.score_pool(ComputeConfig(), GPUS, ScoreConfig(backend="sklearn")).gpus == 0
    assert placement.score_pool(ComputeConfig(), DESK, ScoreConfig()) == placement.Pool(2, 1.0, 0.0)


@pytest.mark.parametrize(
    ("compute", "key"),
    [
        ({"cpus_per_trial": 3}, "cpus_per_trial"),
        ({"gpus_per_trial": 1}, "cpus_per_trial"),
        ({"cpus_per_embed_actor": 2, "embed_actors": 2}, "embed_actor"),
        ({"score_actors": 3}, "score_actors"),
        ({"gpus_per_score_actor": 0.1}, "score_actors"),
    ],
)
def test_resources_that_can_never_be_scheduled_are_refused(compute: dict, key: str) -> None:
    with pytest.raises(UsageError, match=r"2 CPUs and 0 GPUs") as caught:
        placement.check(ComputeConfig(**compute), DESK)
    assert key in str(caught.value)


def test_resources_that_fit_are_accepted() -> None:
    placement.check(ComputeConfig(cpus_per_trial=2, embed_actors=2, score_actors=2), DESK)
    placement.check(ComputeConfig(gpus_per_trial=0.5, gpus_per_embed_actor=1, embed_actors=4), GPUS)


@example(nodes=[(1, 2)], blocks=1, decode=0)
@given(
    st.lists(st.tuples(st.integers(1, 64), st.sampled_from([0, 1, 2, 8])), min_size=1, max_size=4),
    st.integers(1, 500),
    st.sampled_from([None, 0, 1]),
)
def test_every_plan_fits_its_cluster(nodes: list[tuple[int, int]], blocks: int, decode: int | None) -> None:
    resources = cluster(*((float(c), float(g)) for c, g in nodes))
    compute = ComputeConfig(decode_actors=decode)
    try:
        placement.check(compute, resources)
    except UsageError:
        return
    plan = placement.embed_plan(compute, resources, blocks)
    assert sum(p.processes * p.cpus for p in (plan.embed, plan.decode) if p) <= resources.cpus
    for pool in (
        *([plan.embed, plan.decode] if plan.decode else [plan.embed]),
        placement.score_pool(ComputeConfig(), resources, ScoreConfig()),
    ):
        assert pool.processes * pool.cpus <= resources.cpus or resources.gpus
        assert pool.processes * pool.gpus <= resources.gpus
        assert resources.fits(min(pool.cpus, max(c for c, _ in resources.nodes)), pool.gpus)
    trial = placement.trial_pool(ComputeConfig(), resources, blocks)
    assert resources.fits(trial.cpus, trial.gpus)


def test_layers_share_a_gpu_as_its_memory_allows() -> None:
    gib = 2**30

    def pool(layer_bytes: int, gpu_bytes: int | None, **config: str) -> placement.Pool:
        return placement.score_pool(ComputeConfig(), GPUS, ScoreConfig(**config), layer_bytes, gpu_bytes)

    assert pool(gib, None).gpus == 1
    assert pool(gib, 80 * gib).gpus == 1 / placement.MAX_ACTORS_PER_GPU
    # Each takes 1 GiB and four copies: two fit in 12 GiB, and one is planned even if none fits.
    assert pool(gib, 12 * gib).gpus == 0.5
    assert pool(9 * gib, 12 * gib).gpus == 1
    assert pool(gib, 80 * gib, backend="sklearn").gpus == 0


GIB = 2**30


def with_memory(*nodes: tuple[float, float, int | None]) -> Resources:
    return Resources(tuple(node[:2] for node in nodes), memory=tuple(node[2] for node in nodes))


@pytest.mark.parametrize(
    ("nodes", "score", "embed", "trial_cpus"),
    [
        # 0.9 GiB each: one fits in 1 GiB, and one is the minimum.
        (with_memory((8.0, 0.0, GIB)), 1, placement.Pool(1, 8.0, 0.0), 8),
        (with_memory((8.0, 0.0, GIB // 2)), 1, placement.Pool(1, 8.0, 0.0), 8),
        (with_memory((8.0, 0.0, 4 * GIB)), 4, placement.Pool(4, 2.0, 0.0), 2),
        (with_memory((8.0, 0.0, 64 * GIB)), 8, placement.Pool(8, 1.0, 0.0), 1),
        (with_memory((8.0, 0.0, None)), 8, placement.Pool(8, 1.0, 0.0), 1),
        # Nodes don't share their memory.
        (with_memory((4.0, 0.0, 2 * GIB), (4.0, 0.0, 64 * GIB)), 6, placement.Pool(6, 1.0, 0.0), 2),
        # The memory of addable nodes is unknown.
        (Resources(((8.0, 0.0),), ((4.0, 0.0),), memory=(2 * GIB,)), 6, placement.Pool(6, 2.0, 0.0), 4),
    ],
)
def test_memory_limits_the_number_of_processes(
    nodes: Resources, score: int, embed: placement.Pool, trial_cpus: float
) -> None:
    assert placement.score_pool(ComputeConfig(), nodes, ScoreConfig()).processes == score
    assert placement.embed_plan(ComputeConfig(), nodes, 400).embed == embed
    assert placement.trial_pool(ComputeConfig(), nodes, 20).cpus == trial_cpus


def test_large_layers_and_checkpoints_reduce_the_number_of_processes() -> None:
    desk = with_memory((8.0, 0.0, 16 * GIB))
    assert placement.score_pool(ComputeConfig(), desk, ScoreConfig(), GIB).processes == 4
    assert placement.score_pool(ComputeConfig(), desk, ScoreConfig(protocols=["default", "paper"]), GIB).processes == 2
    assert placement.embed_plan(ComputeConfig(), desk, 400, 4 * GIB).embed.processes == 4
    gpus = with_memory((16.0, 2.0, 8 * GIB))
    plan = placement.embed_plan(ComputeConfig(), gpus, 400, 2 * GIB)
    assert (plan.embed.processes, plan.decode) == (2, placement.Pool(2, 1.0, 0.0))


def test_a_configured_number_of_actors_is_kept_with_a_warning_of_too_little_memory() -> None:
    desk, compute = with_memory((8.0, 0.0, 4 * GIB)), ComputeConfig(score_actors=8)
    pool = placement.score_pool(compute, desk, ScoreConfig())
    assert pool.processes == 8
    assert placement.shortage("score", pool, desk, placement.score_bytes(ScoreConfig(), 0)) == (
        "score: 8 process(es) need about 0.9 GiB each, and the nodes have 4.0 GiB for processes: Ray may kill "
        "some of them; set compute.score_actors to 4, or use larger machines"
    )
    planned = placement.score_pool(ComputeConfig(), desk, ScoreConfig())
    assert placement.shortage("score", planned, desk, placement.IMPORTED_BYTES) is None
    assert placement.shortage("score", pool, cluster((8.0, 0.0)), 2**50) is None


def test_a_share_of_the_nodes_has_its_share_of_their_memory() -> None:
    whole = with_memory((8.0, 0.0, 8 * GIB), (4.0, 0.0, None))
    assert [whole.share(position, 2).memory for position in (0, 1)] == [(8 * GIB,), (None,)]
    assert with_memory((8.0, 0.0, 8 * GIB)).share(0, 4).memory == (2 * GIB,)
