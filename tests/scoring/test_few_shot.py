import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestCentroid

from raysep.scoring import few_shot as module
from raysep.scoring.centring import centred
from raysep.scoring.few_shot import NearestMeans, draw_shots
from raysep.scoring.intervals import few_shot_se
from raysep.scoring.split_half import draw_halves
from tests.scoring.test_formulas import blobs


def by_scikit_learn(X: np.ndarray, y: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """(R, N) whether `NearestCentroid` classifies each image correctly in each draw."""
    rows = []
    for chosen in labelled:
        with np.errstate(invalid="ignore"):  # NearestCentroid divides by zero within-class variance for one image
            model = NearestCentroid().fit(X[chosen].astype(np.float64), y[chosen])
        rows.append((model.predict(X.astype(np.float64)) == y) & ~chosen)
    return np.stack(rows)


@pytest.mark.parametrize("stored", [10, 10_000], ids=["products per draw", "stored products"])
@pytest.mark.parametrize("shots", [1, 2, 5])
def test_predictions_equal_scikit_learns_nearest_centroid(
    shots: int, stored: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_IMAGES", stored)
    monkeypatch.setattr(module, "CHUNK", 1000)
    X, y = blobs([30, 20, 25], spread=1.2)
    X += 100
    monkeypatch.setattr(module, "MOST_DRAWS", 20)
    found = NearestMeans(centred(X), y * 3 + 1).classify(shots, seed=7)
    assert (found.labelled.sum(axis=1) == 3 * shots).all()
    expected = by_scikit_learn(X, y, found.labelled)
    assert (found.right == expected).mean() > 0.999
    rest = (~found.labelled).sum(axis=1)
    np.testing.assert_allclose(found.accuracies, found.right.sum(axis=1) / rest)


def test_draws_depend_on_the_labels_only() -> None:
    X, y = blobs([30, 20])
    one, two = NearestMeans(X, y).classify(2, 3), NearestMeans(X[:, ::-1] * 5, y).classify(2, 3)
    np.testing.assert_array_equal(one.labelled, two.labelled)


def test_queries_are_classified_as_among_all_images() -> None:
    X, y = blobs([30, 20, 25], spread=1.2)
    rows, queries = centred(X), np.array([2, 3, 33, 74])
    some, whole = NearestMeans(rows, y, queries).classify(2, 3), NearestMeans(rows, y).classify(2, 3)
    np.testing.assert_array_equal(some.labelled, whole.labelled)
    np.testing.assert_array_equal(some.right, whole.right[:, queries])
    counted = ~whole.labelled[:, queries]
    np.testing.assert_allclose(some.accuracies, some.right.sum(axis=1) / counted.sum(axis=1))


def test_accuracy_within_a_subset_ignores_other_images() -> None:
    X, y = blobs([30, 20, 25], spread=1.2)
    in_a = draw_halves(y, 20, 0)
    found = NearestMeans(X, y).accuracy_within(in_a, 3, 4, seed=5)
    assert found.shape == (10,)
    # Move the other images far away.
    for split in range(10):
        other = np.where(in_a[:, split, None], X, 1e3).astype(np.float32)
        alone = NearestMeans(other, y).accuracy_within(in_a, 3, 4, seed=5)
        assert alone[split] == pytest.approx(found[split], abs=0.02)


def test_undefined_accuracies_are_none() -> None:
    X, y = blobs([3, 30])
    assert NearestMeans(X, y).classify(3, 0) is None
    assert NearestMeans(X, np.zeros(33, int)).classify(1, 0) is None
    assert NearestMeans(X, y).accuracy_within(draw_halves(y, 20, 0), 2, 4, 0) is None
    # Each half has an unlabelled image beside the labelled one of the small class.
    assert NearestMeans(X, y).accuracy_within(draw_halves(y, 20, 0), 1, 4, 0) is not None


def by_enumeration(X: np.ndarray, y: np.ndarray, shots: int) -> float:
    """Mean accuracy over all draws of labelled images, enumerated, with ties shared."""
    classes = np.unique(y)
    accuracies = []
    for chosen in itertools.product(*(itertools.combinations(np.flatnonzero(y == c), shots) for c in classes)):
        means = np.stack([X[list(images)].mean(axis=0) for images in chosen])
        rest = np.setdiff1d(np.arange(len(y)), np.concatenate(chosen))
        distances = ((X[rest, None] - means) ** 2).sum(axis=2)
        nearest = distances <= distances.min(axis=1, keepdims=True) + 1e-9
        own = nearest[np.arange(len(rest)), np.searchsorted(classes, y[rest])]
        accuracies.append((own / nearest.sum(axis=1)).mean())
    return float(np.mean(accuracies))


@pytest.mark.parametrize(("sizes", "shots"), [([250, 2, 3], 1), ([8, 4, 5], 2), ([2, 2], 1), ([3, 3, 3, 3], 2)])
def test_few_possible_draws_are_enumerated(sizes: list[int], shots: int) -> None:
    X, y = blobs(sizes, spread=1.2)
    found = NearestMeans(centred(X), y).classify(shots, seed=0)
    assert found.exact
    assert found.accuracies.mean() == pytest.approx(by_enumeration(X.astype(np.float64), y, shots), abs=1e-5)


def test_random_draws_add_their_variance_to_the_standard_error() -> None:
    X, y = blobs([250, 20, 30], spread=1.2)
    classifier = NearestMeans(centred(X), y)
    values, errors = [], []
    for seed in range(12):
        found = classifier.classify(1, seed)
        assert not found.exact
        values.append(found.accuracies.mean())
        errors.append(found.accuracies.std() / np.sqrt(len(found.accuracies)))
    # The images are fixed, so that only the draws vary.
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.6)
    assert few_shot_se(found, y, 1 / 3) > errors[-1]


def test_tied_class_means_share_an_image() -> None:
    # Neither a constant layer nor duplicates in two classes favour an order of classes or rows.
    y = np.repeat([0, 1, 2], [4, 6, 5])
    assert NearestMeans(centred(np.full((15, 3), 0.3, np.float32)), y).classify(1, 0).accuracies.mean() == (
        pytest.approx(1 / 3)
    )
    X = np.random.default_rng(0).normal(size=(5, 200)).astype(np.float32)
    twins, of = np.concatenate([X, X]) * 7 + 30, np.repeat([0, 1], 5)
    found = NearestMeans(centred(twins), of).classify(1, 0)
    assert found.accuracies.mean() == pytest.approx(by_enumeration(twins.astype(np.float64), of, 1), abs=1e-6)
    other = np.random.default_rng(1).permutation(10)
    assert NearestMeans(centred(twins[other]), of[other]).classify(1, 0).accuracies.mean() == (
        pytest.approx(found.accuracies.mean(), abs=1e-6)
    )


@given(st.lists(st.integers(3, 9), min_size=2, max_size=4), st.integers(1, 2), st.integers(0, 99))
def test_draws_are_distinct_images_of_class_and_subset(sizes: list[int], shots: int, seed: int) -> None:
    index = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(seed)
    subsets = rng.random((len(index), 3)) < 0.9
    chosen = draw_shots(index, subsets, shots, 2, seed)
    enough = all(subsets[index == k].sum(axis=0).min() >= shots for k in range(len(sizes)))
    assert (chosen is not None) == enough
    if chosen is not None:
        assert chosen.shape == (6, len(sizes), shots)
        for draw, classes in enumerate(chosen):
            for label, images in enumerate(classes):
                assert len(set(images)) == shots
                assert (index[images] == label).all()
                assert subsets[images, draw // 2].all()


def test_chance_level() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(600, 8)).astype(np.float32), np.repeat(np.arange(4), 150)
    assert NearestMeans(X, y).classify(5, 0).accuracies.mean() == pytest.approx(0.25, abs=0.03)
