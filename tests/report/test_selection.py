from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysep.report import selection
from raysep.report.selection import select


def curve(truth: list[float], noise: float, seed: int, S: int = 100, shared: float = 0.0) -> Any:
    """(1, L) scores, (1, L, S, 2) split halves and (1, L) standard errors of one trial: means over 200 images."""
    rng = np.random.default_rng(seed)
    L, N = len(truth), 200
    images = noise * np.sqrt(N) * (rng.normal(size=(L, N)) * np.sqrt(1 - shared) + rng.normal(size=N) * np.sqrt(shared))
    images += np.array(truth)[:, None]
    in_a = rng.random((S, N)).argsort(axis=1) < N // 2
    halves = np.stack([images @ members.T / (N // 2) for members in (in_a, ~in_a)], axis=2)
    return images.mean(axis=1)[None], halves[None], images.std(axis=1)[None] / np.sqrt(N)


def test_a_clear_winner() -> None:
    selected = select("nn1", *curve([0.2, 0.6, 0.4], 0.01, 0), N=200)  # type: ignore[misc]
    assert selected.tied == [1]
    assert selected.p_best[1] == 1.0
    assert selected.corrected == pytest.approx(0.6, abs=0.03)
    assert selected.corrected_interval[0] < 0.6 < selected.corrected_interval[1]
    assert selected.loss == pytest.approx(0.2, abs=0.05)
    assert selected.loss_interval[0] < 0.2 < selected.loss_interval[1]


def test_equal_layers_are_tied_and_share_the_chance_to_be_best() -> None:
    selected = select("nn1", *curve([0.5] * 4, 0.02, 1), N=200)  # type: ignore[misc]
    assert len(selected.tied) >= 3
    assert selected.p_best.sum() == pytest.approx(1)
    assert selected.p_best.max() < 0.9


def test_the_naive_maximum_is_biased_and_the_corrected_one_is_not() -> None:
    naive, corrected = [], []
    for seed in range(200):
        values, halves, se = curve([0.5] * 8, 0.02, seed, S=50)
        naive.append(values.max())
        corrected.append(select("nn1", values, halves, se, 200).corrected)
    # The expected maximum of eight normal variables is 1.42 standard deviations.
    assert np.mean(naive) - 0.5 == pytest.approx(1.42 * 0.02, abs=0.005)
    assert np.mean(corrected) - 0.5 == pytest.approx(0, abs=0.004)


def test_the_true_best_is_in_the_tied_set() -> None:
    excluded = [2 not in select("nn1", *curve([0.5, 0.51, 0.53, 0.52], 0.02, seed), N=200).tied for seed in range(200)]  # type: ignore[misc]
    assert np.mean(excluded) <= 0.07


def test_errors_that_layers_share_do_not_hide_a_difference() -> None:
    apart, together = (select("nn1", *curve([0.54, 0.5], 0.03, 3, shared=shared), N=200) for shared in (0.0, 0.98))  # type: ignore[misc]
    assert len(together.tied) == 1
    assert together.loss_interval[1] - together.loss_interval[0] < 0.4 * (
        apart.loss_interval[1] - apart.loss_interval[0]
    )


def test_the_standard_error_of_the_mean_over_trials_depends_on_what_trials_share() -> None:
    values, halves, se = curve([0.5, 0.6], 0.02, 0)
    other = curve([0.5, 0.6], 0.02, 9)
    same = select("nn1", *(np.concatenate([x, x]) for x in (values, halves, se)), N=200).se  # type: ignore[arg-type, misc]
    np.testing.assert_allclose(same, se[0], rtol=1e-6)
    both = (np.concatenate([x, y]) for x, y in zip((values, halves, se), other, strict=True))
    different = select("nn1", *both, N=200).se  # type: ignore[arg-type, misc]
    np.testing.assert_allclose(different, se[0] / np.sqrt(2), rtol=0.2)


def test_the_loss_is_against_the_given_last_layer() -> None:
    values, halves, se = curve([0.2, 0.6, 0.4, 0.1], 0.01, 0)
    assert select("nn1", values, halves, se, 200, last=2).loss == pytest.approx(0.2, abs=0.05)


def test_layers_that_never_vary() -> None:
    constant = np.broadcast_to(np.array([0.0, 1.0])[None, :, None, None], (1, 2, 10, 2))
    selected = select("nn1", np.array([[0.0, 1.0]]), constant, np.zeros((1, 2)), 100)
    assert selected.tied == [1]
    assert selected.corrected == 1.0
    alone = select("nn1", np.array([[0.4]]), constant[:, :1], np.zeros((1, 1)), 100)
    assert alone.tied == [0]
    assert alone.p_best.tolist() == [1.0]


@given(st.lists(st.floats(0.1, 0.9), min_size=1, max_size=6), st.integers(0, 50))
def test_the_best_layer_is_always_tied_with_itself(truth: list[float], seed: int) -> None:
    values, halves, se = curve(truth, 0.05, seed, S=20)
    selected = select("nn1", values, halves, se, 200)
    assert int(values[0].argmax()) in selected.tied
    assert selected.p_best.sum() == pytest.approx(1)
    assert selected.corrected <= values.max() + 0.1


def test_deviations_are_balanced_and_as_large_as_the_standard_error() -> None:
    _, halves, se = curve([0.3, 0.5, 0.7], 0.02, 4)
    deviations = selection.deviations_of(halves, 3 * se)
    np.testing.assert_allclose(deviations.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(deviations.std(axis=1), 3 * se[0])


def test_scores_on_halves_are_shifted_to_the_level_of_all_images() -> None:
    # The weak layer gains much from more images, the good one nothing: its gain must not shift the good one.
    values, halves, se = curve([0.4, 0.985], 0.005, 0)
    values[0, 0] += 0.09
    selected = select("nn1", values, halves, se, 200)
    assert selected.corrected == pytest.approx(values[0, 1], abs=0.01)
    assert selected.corrected <= 1


def test_deviations_without_a_standard_error_come_from_the_halves() -> None:
    _, halves, se = curve([0.5, 0.6], 0.05, 0)
    deviations = selection.deviations_of(halves, np.zeros_like(se))
    np.testing.assert_allclose(deviations.std(axis=1), se[0], rtol=0.4)
