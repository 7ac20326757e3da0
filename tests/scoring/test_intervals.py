import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysep.config.registry import METRICS
from raysep.scoring import formulas, intervals, split_half
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.centring import centred
from raysep.scoring.few_shot import FewShot, NearestMeans
from tests.scoring.test_formulas import blobs, right


def test_the_standard_error_of_a_mean_is_the_textbook_value() -> None:
    rng = np.random.default_rng(0)
    y, values = np.repeat(np.arange(4), 50), rng.random(200)
    on_halves = split_half.mean_on_halves(values, split_half.draw_halves(y, 4000, 0))
    # Stratified: differences between classes don't count.
    expected = np.sqrt(np.mean([values[y == c].var(ddof=1) for c in range(4)]) / 200)
    assert intervals.smooth_se(on_halves) == pytest.approx(expected, rel=0.05)
    assert intervals.nonsmooth_se(on_halves) == pytest.approx(expected, rel=0.05)


def test_standard_errors_by_hand() -> None:
    values = np.array([[0.5, 0.7], [0.8, 0.4], [0.6, 0.6]])
    a, b = values.T
    assert intervals.smooth_se(values) == pytest.approx(np.sqrt(-np.cov(a, b)[0, 1]))
    assert intervals.nonsmooth_se(values) == pytest.approx(np.std((a - b) / 2, ddof=1))
    assert intervals.smooth_se(np.array([[0.1, 0.1], [0.9, 0.9]])) == 0
    # A negative variance estimate doesn't become 0.
    assert intervals.smooth_se(np.array([[0.1, 0.2], [0.9, 0.8]])) == pytest.approx(0.05, abs=1e-9)


def test_the_few_shot_standard_error_contains_all_parts() -> None:
    y = np.repeat([0, 1], 50)
    rng = np.random.default_rng(0)
    labelled = np.zeros((1000, 100), bool)
    first = rng.integers(50, size=1000)
    labelled[np.arange(1000), first] = labelled[np.arange(1000), 50 + rng.integers(50, size=1000)] = True
    asked = np.arange(100)
    # Only images differ: the standard error of a proportion of 100 images.
    images = np.broadcast_to(np.arange(100) % 4 > 0, labelled.shape) & ~labelled
    expected = np.sqrt(np.mean([v.var(ddof=1) for v in (asked[:50] % 4 > 0, asked[50:] % 4 > 0)]) / 100)
    assert intervals.few_shot_se(FewShot(images, labelled, asked), y, 0.0) == pytest.approx(expected, rel=0.05)  # type: ignore[arg-type]
    # Half of the images of a class are good examples: the standard error of 50 of them.
    draws = np.broadcast_to((first % 2 == 0)[:, None], labelled.shape) & ~labelled
    expected = np.sqrt(0.25 / 50 + 0.25 / 1000)
    assert intervals.few_shot_se(FewShot(draws, labelled, asked), y, 0.0) == pytest.approx(expected, rel=0.1)  # type: ignore[arg-type]
    # Draws differ independently of their images: the standard error of their mean.
    chance = np.broadcast_to(rng.permutation(first % 2 == 0)[:, None], labelled.shape) & ~labelled
    found = intervals.few_shot_se(FewShot(chance, labelled, asked), y, 0.0)  # type: ignore[arg-type]
    assert np.sqrt(0.25 / 1000) <= found < 2 * np.sqrt(0.25 / 1000)


@pytest.mark.parametrize(("spread", "shots"), [(100.0, 1), (100.0, 3), (1.0, 1), (1.0, 3), (0.4, 1)])
@pytest.mark.parametrize("queries", [None, np.arange(0, 60, 2)], ids=["all", "some queries"])
def test_the_few_shot_standard_error_equals_the_spread_over_samples(
    spread: float, shots: int, queries: np.ndarray | None
) -> None:
    values, errors = [], []
    centres, y = blobs([30, 30], spread=0, D=4)
    for seed in range(120):
        X = (centres + spread * np.random.default_rng(seed).normal(size=centres.shape)).astype(np.float32)
        found = NearestMeans(centred(X), y, queries).classify(shots, seed)
        assert found is not None
        values.append(found.accuracies.mean())
        errors.append(intervals.few_shot_se(found, y, 0.5))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.3)


def test_at_chance_level_the_variance_falls_with_the_square_of_n() -> None:
    rng = np.random.default_rng(0)
    # Degenerate statistic: halves have four times the variance of the full sample.
    halves_ = rng.normal(0, 0.02, (4000, 2))
    d = halves_[:, 0] - halves_[:, 1]
    assert intervals.smooth_se(halves_) == pytest.approx(d.std(ddof=1) / 2 / np.sqrt(2), rel=0.05)
    assert intervals.nonsmooth_se(halves_, 0.001, 0.0) == pytest.approx(0.01, rel=0.05)
    # Far from chance level nothing is subtracted.
    assert intervals.nonsmooth_se(halves_, 0.5, 0.0) == pytest.approx(0.02 / np.sqrt(2), rel=0.05)


def purity(spread: float, seed: int, k: int = 30) -> tuple[float, float]:
    """Purity of k neighbours of two classes, and its standard error."""
    X, y = blobs([31, 31], spread=0, D=2)
    X = (X + spread * np.random.default_rng(seed).normal(size=X.shape)).astype(np.float32)
    neighbors = SklearnBackend().neighbors(X, k)
    found, counted = right(y, neighbors), np.full(len(y), k)
    on_halves = split_half.purity_on_halves(found, neighbors, counted, split_half.draw_halves(y, 200, seed))
    return formulas.knn_purity(y, found, k) or 0.0, intervals.neighbor_se(on_halves, found, counted, y, neighbors)


@pytest.mark.parametrize("spread", [100.0, 1.0, 0.3], ids=["no separation", "some", "much"])
def test_the_purity_standard_error_equals_the_spread_over_samples(spread: float) -> None:
    values, errors = np.array([purity(spread, seed) for seed in range(150)]).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.25)


@given(st.sampled_from(list(METRICS)), st.floats(0, 1), st.floats(0, 0.5), st.integers(5, 5000))
def test_intervals_stay_in_range_around_their_score(metric: str, share: float, se: float, N: int) -> None:
    low = METRICS[metric].low
    value = low + (1 - low) * share
    below, above = intervals.interval(metric, value, se, N)
    assert low <= below <= value <= above <= 1
    assert se < 1e-8 or above - below <= intervals.WIDEST * se + 1e-9


@given(st.sampled_from(list(METRICS)), st.floats(0, 1), st.floats(1e-6, 0.5), st.integers(5, 5000), st.integers(0, 99))
def test_no_interval_is_wider_than_the_range_of_its_halves(
    metric: str, value: float, se: float, N: int, seed: int
) -> None:
    span = np.random.default_rng(seed).uniform(0, 0.3)
    below, above = intervals.interval(metric, value, se, N, span)
    # Near 0 and 1 halves of a proportion take few values: the limit is the interval of a proportion of N.
    least = (
        0.0 if METRICS[metric].clustering else np.subtract(*intervals.interval("nn1", 0.5, 0.5 / np.sqrt(N), N)[::-1])
    )
    assert above - below <= max(span, least) + 1e-9


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.001, 0.003])
def test_a_clustering_at_chance_level_keeps_its_upper_standard_errors(value: float) -> None:
    # A score below its standard error doesn't narrow the interval.
    below, above = intervals.interval("nmi", value, 0.01, 120)
    assert below == 0
    assert above == pytest.approx(value + 1.96 * 0.01, abs=1e-4)


def test_intervals_are_continuous_at_0_and_1() -> None:
    for metric in ("nmi", "ari", "nn1", "few_shot_5"):
        for value in (0.0, 1.0):
            near = value + (1e-7 if value == 0 else -1e-7)
            at, beside = (intervals.interval(metric, v, 0.02, 200) for v in (value, near))
            assert at == pytest.approx(beside, abs=1e-3), (metric, value)


def test_proportions_have_wilson_intervals_and_clusterings_symmetric_ones() -> None:
    for metric in ("nmi", "nn1"):
        below, above = intervals.interval(metric, 0.5, 0.01, 1000)
        assert (below, above) == (pytest.approx(0.5 - 0.0196, abs=1e-4), pytest.approx(0.5 + 0.0196, abs=1e-4))
    # Wilson 1927 for 100 of 100: 0.963 to 1.
    assert intervals.interval("nn1", 1.0, 0.0, 100) == (pytest.approx(0.963, abs=1e-3), 1.0)
    assert intervals.interval("nn1", 0.0, 0.0, 100) == (0.0, pytest.approx(0.037, abs=1e-3))
    assert intervals.interval("nmi", 1.0, 0.0, 100) == (pytest.approx(0.963, abs=1e-3), 1.0)
    # Scores of a constant layer can't vary: intervals of zero width.
    for metric, value in (("nmi", 0.0), ("ami", 0.0), ("knn_purity", 0.496)):
        assert intervals.interval(metric, value, 0.0, 120) == (value, value)
    # Four errors in 100 images.
    assert intervals.interval("nn1", 0.96, np.sqrt(0.96 * 0.04 / 100), 100) == pytest.approx((0.902, 0.984), abs=1e-3)
    # A standard error above that of a proportion: the excess doesn't shrink towards 1.
    below, above = intervals.interval("nn1", 0.96, 0.04, 100)
    assert above == 1.0
    assert 0.96 - below > 1.96 * 0.04


@pytest.mark.parametrize(("errors", "N", "least"), [(1, 120, 0.03), (2, 60, 0.08)])
def test_few_errors_keep_a_wide_interval(errors: int, N: int, least: float) -> None:
    # Halves take two or three values, so that their range underestimates the interval.
    value = 1 - errors / N
    below, above = intervals.interval("nn1", value, np.sqrt(value * (1 - value) / N), N, span=errors * 2 / N)
    assert above - below > least


@pytest.mark.parametrize(("K", "size", "shots"), [(100, 21, 20), (20, 6, 5), (20, 2, 1)])
def test_nearly_completely_labelled_classes_have_the_standard_error_of_a_proportion(
    K: int, size: int, shots: int
) -> None:
    values, errors = [], []
    for seed in range(12 if size > 10 else 40):
        X, y = blobs([size] * K, spread=1.0, D=6)
        X = (X + 0.7 * np.random.default_rng(seed).normal(size=X.shape)).astype(np.float32)
        found = NearestMeans(centred(X), y).classify(shots, seed)
        assert found is not None
        values.append(found.accuracies.mean())
        errors.append(intervals.few_shot_se(found, y, 1 / K))
    assert 0.7 * np.std(values) < np.mean(errors) < 0.1
