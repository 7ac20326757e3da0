import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysep.separability import certainty, halves
from raysep.separability.few_shot import FewShot


def test_the_standard_error_of_a_mean_is_the_textbooks():
    rng = np.random.default_rng(0)
    y, values = np.repeat(np.arange(4), 50), rng.random(200)
    on_halves = halves.mean_on_halves(values, halves.draw_halves(y, 4000, 0))
    # Stratified: what classes differ by doesn't count.
    expected = np.sqrt(np.mean([values[y == c].var(ddof=1) for c in range(4)]) / 200)
    assert certainty.smooth_se(on_halves) == pytest.approx(expected, rel=0.05)
    assert certainty.jumping_se(on_halves) == pytest.approx(expected, rel=0.05)


def test_standard_errors_by_hand():
    values = np.array([[0.5, 0.7], [0.8, 0.4], [0.6, 0.6]])
    a, b = values.T
    assert certainty.smooth_se(values) == pytest.approx(np.sqrt(-np.cov(a, b)[0, 1]))
    assert certainty.jumping_se(values) == pytest.approx(np.std((a - b) / 2, ddof=1))
    assert certainty.smooth_se(np.array([[0.1, 0.1], [0.9, 0.9]])) == 0


def test_the_error_of_few_shot_accuracy_has_both_parts():
    y = np.repeat([0, 1], 50)
    rng = np.random.default_rng(0)
    labelled = np.zeros((40, 100), bool)
    for draw in labelled:
        draw[[rng.integers(50), 50 + rng.integers(50)]] = True
    # Images differ, draws do not: the error of a share of 100 images.
    images = np.broadcast_to(np.arange(100) % 4 > 0, (40, 100)) & ~labelled
    assert certainty.few_shot_se(FewShot(images, labelled, np.arange(100)), y, 1) == pytest.approx(
        np.sqrt(0.75 * 0.25 / 100), rel=0.1
    )
    # Draws differ, images do not: the error of 40 draws of 50 images a class.
    draws = np.broadcast_to((np.arange(40) % 2 == 0)[:, None], (40, 100)) & ~labelled
    expected = np.sqrt(0.25 * (1 / 50 + (1 - 1 / 50) / 40))
    assert certainty.few_shot_se(FewShot(draws, labelled, np.arange(100)), y, 1) == pytest.approx(expected, rel=0.25)


@given(st.floats(0, 1), st.floats(0, 0.5), st.integers(5, 5000), st.sampled_from([0.0, -1.0]))
def test_intervals_stay_in_range_around_their_score(share: float, se: float, N: int, low: float):
    value = low + (1 - low) * share
    below, above = certainty.interval(value, se, N, low)
    assert low <= below <= value <= above <= 1


def test_intervals_in_the_middle_are_normal_and_at_the_ends_wilsons():
    below, above = certainty.interval(0.5, 0.01, 1000)
    assert (below, above) == (pytest.approx(0.5 - 0.0196, abs=1e-4), pytest.approx(0.5 + 0.0196, abs=1e-4))
    # Wilson 1927 for 100 of 100: 0.963 to 1.
    assert certainty.interval(1.0, 0.0, 100) == (pytest.approx(0.963, abs=1e-3), 1.0)
    assert certainty.interval(0.0, 0.0, 100) == (0.0, pytest.approx(0.037, abs=1e-3))
    near = certainty.interval(0.99, 0.005, 1000)
    assert 0.99 - near[0] > near[1] - 0.99
