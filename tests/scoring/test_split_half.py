import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.neighbors import NearestNeighbors

from raysep.scoring import split_half
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.few_shot import NearestMeans
from tests.scoring.test_formulas import blobs, right


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 99))
def test_halves_are_stratified_and_even(sizes: list[int], splits: int, seed: int) -> None:
    y = np.repeat(np.arange(len(sizes)) * 5, sizes)
    in_a = split_half.draw_halves(y, 2 * splits, seed)
    assert in_a.shape == (len(y), splits)
    for label, size in zip(np.unique(y), sizes, strict=True):
        counts = in_a[y == label].sum(axis=0)
        assert set(counts) <= {size // 2, (size + 1) // 2}
    np.testing.assert_array_equal(in_a, split_half.draw_halves(y, 2 * splits, seed))


def test_the_nearest_neighbour_within_a_half_equals_a_search_in_it() -> None:
    X, y = blobs([30, 40], spread=2.0)
    N, in_a = len(y), split_half.draw_halves(y, 20, 0)
    neighbors = SklearnBackend().neighbors(X, N - 1)
    nearest = split_half.nearest_on_halves(right(y, neighbors), neighbors, in_a)
    for split in range(10):
        for half, members in enumerate((in_a[:, split], ~in_a[:, split])):
            own = NearestNeighbors(n_neighbors=1).fit(X[members]).kneighbors(return_distance=False)[:, 0]
            assert nearest[split, half] == pytest.approx((y[members][own] == y[members]).mean())


def test_purity_within_a_half_counts_its_neighbours_alone() -> None:
    X, y = blobs([30, 40], spread=2.0)
    in_a, k = split_half.draw_halves(y, 20, 0), np.where(np.arange(70) % 3 == 0, 20, 10)
    neighbors = SklearnBackend().neighbors(X, 25)
    found = split_half.purity_on_halves(right(y, neighbors), neighbors, k, in_a)
    every_other = np.arange(0, 70, 2)
    some = split_half.purity_on_halves(
        right(y, neighbors)[every_other], neighbors[every_other], k[every_other], in_a, every_other
    )
    for split in range(10):
        for half, members in enumerate((in_a[:, split], ~in_a[:, split])):
            shares = {}
            for image in np.flatnonzero(members):
                inside = [other for other in neighbors[image, : k[image]] if members[other]]
                if inside:
                    shares[image] = np.mean(y[inside] == y[image])
            assert found[split, half] == pytest.approx(np.mean(list(shares.values())), abs=1e-6)
            expected = np.mean([share for image, share in shares.items() if image % 2 == 0])
            assert some[split, half] == pytest.approx(expected, abs=1e-6)


def test_the_means_of_both_halves_average_to_the_total_mean() -> None:
    y = np.repeat([0, 1], 10)
    per_image = np.random.default_rng(0).random(20)
    found = split_half.mean_on_halves(per_image, split_half.draw_halves(y, 40, 0))
    np.testing.assert_allclose(found.mean(axis=1), per_image.mean())


def test_agreement_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(0, 3, (6, 80)), rng.integers(0, 4, (6, 80))
    clusters = np.where(rng.random((6, 80)) < 0.6, labels, clusters)
    tables = np.stack(
        [
            [[((a == i) & (b == j)).sum() for j in range(4)] for i in range(3)]
            for a, b in zip(labels, clusters, strict=True)
        ]
    ).astype(float)
    found = split_half.agreement(tables)
    for row, (a, b) in enumerate(zip(labels, clusters, strict=True)):
        assert found["nmi"][row] == pytest.approx(reference.normalized_mutual_info_score(a, b))
        assert found["ari"][row] == pytest.approx(reference.adjusted_rand_score(a, b))
        # The tables share a chance term, though their margins differ more than those of halves.
        assert found["ami"][row] == pytest.approx(reference.adjusted_mutual_info_score(a, b), abs=0.01)


def test_halves_of_separated_classes_are_clustered_perfectly() -> None:
    X, y = blobs([40, 40, 40], spread=0.3)
    in_a = split_half.draw_halves(y, 20, 0)
    assert (split_half.clusters_on_halves(X, y, 3, in_a, 0)["nmi"] == 1).all()
    wide = np.concatenate([X, 1e-3 * np.random.default_rng(0).normal(size=(120, 300))], axis=1).astype(np.float32)
    assert (split_half.clusters_on_halves(wide, y, 3, in_a, 0)["ari"] == 1).all()


def test_few_shot_on_halves_has_a_value_per_half() -> None:
    X, y = blobs([40, 40, 40], spread=1.5)
    in_a = split_half.draw_halves(y, 20, 0)
    found = split_half.few_shot_on_halves(NearestMeans(X, y), 5, in_a, 0)
    assert found.shape == (10, 2)
    full = NearestMeans(X, y).classify(5, 0).accuracies.mean()
    assert found.mean() == pytest.approx(full, abs=0.05)
    assert split_half.few_shot_on_halves(NearestMeans(X, y), 20, in_a, 0) is None
