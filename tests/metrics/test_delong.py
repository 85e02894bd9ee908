"""DeLong against the published fast implementation's values and against the plain structural components."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medvlp.metrics.bootstrap import Resamples, bootstrap_values
from medvlp.metrics.delong import auroc_influence, delong_covariance, delong_test
from medvlp.types import Predictions


def test_covariance_z_p_and_interval_equal_the_reference(oracles: Path) -> None:
    files = sorted((oracles / "metrics" / "classification").glob("delong_*.npz"))
    assert files
    for file in files:
        data = np.load(file)
        areas, covariance = delong_covariance(data["labels"], np.stack([data["scores_a"], data["scores_b"]]))
        np.testing.assert_allclose(areas, data["auc"], atol=1e-12)
        np.testing.assert_allclose(covariance, data["covariance"], rtol=1e-9)
        test = delong_test(data["labels"], data["scores_a"], data["scores_b"])
        assert abs(test.z) == pytest.approx(abs(float(data["z"])), rel=1e-9, nan_ok=True), file.stem
        assert test.p == pytest.approx(float(data["p"].reshape(-1)[0]), rel=1e-9, nan_ok=True), file.stem
        half = 1.959963984540054 * np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(np.stack([areas - half, areas + half], axis=1), data["wald_ci95"], atol=1e-4)


def test_identical_scorers_have_no_p() -> None:
    scores = np.array([0.1, 0.7, 0.3, 0.9, 0.4])
    test = delong_test(np.array([0.0, 1.0, 0.0, 1.0, 1.0]), scores, scores)
    assert test.difference == 0
    assert np.isnan(test.p)


def test_covariance_equals_the_structural_components_written_out() -> None:
    rng = np.random.default_rng(1)
    labels = np.r_[np.ones(9), np.zeros(14), np.nan]
    scores = rng.integers(0, 8, (3, 24)).astype(float)
    areas, covariance = delong_covariance(labels, scores)
    kernel = (scores[:, :9, None] > scores[:, None, 9:23]) + 0.5 * (scores[:, :9, None] == scores[:, None, 9:23])
    expected = np.cov(kernel.mean(axis=2)) / 9 + np.cov(kernel.mean(axis=1)) / 14
    np.testing.assert_allclose(areas, kernel.mean(axis=(1, 2)), atol=1e-12)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_one_positive_is_too_few() -> None:
    with pytest.raises(ValueError, match="two patients with each class"):
        delong_covariance(np.array([1.0, 0, 0]), np.zeros((2, 3)))


def clustered(seed: int, mixed: bool, patients: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores of two scorers and patients; `mixed` patients have images of both classes."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    labels = (rng.random(len(owner)) < 0.4) if mixed else (rng.random(patients) < 0.4)[owner]
    scores = 0.8 * labels + rng.standard_normal((2, patients))[:, owner] + 0.5 * rng.standard_normal((2, len(owner)))
    return labels.astype(float), scores, owner


@pytest.mark.parametrize("mixed", [False, True])
def test_patients_with_several_images_are_summed_as_by_obuchowski(mixed: bool) -> None:
    labels, scores, owner = clustered(0, mixed)
    areas, found = delong_covariance(labels, scores, owner)
    count = len(set(owner.tolist()))
    expected = np.zeros((2, 2))
    above, below = labels == 1, labels == 0
    m, n = above.sum(), below.sum()
    kernel = (scores[:, above, None] > scores[:, None, below]) + 0.5 * (
        scores[:, above, None] == scores[:, None, below]
    )
    sums = np.zeros((2, count, 2))  # of positives and of negatives, by patient, centred
    for i, patient in enumerate(owner[above]):
        sums[0, patient] += kernel[:, i].mean(axis=1) - areas
    for j, patient in enumerate(owner[below]):
        sums[1, patient] += kernel[:, :, j].mean(axis=1) - areas
    with_pos, with_neg = (len(set(owner[mask].tolist())) for mask in (above, below))
    for a in range(2):
        for b in range(2):
            own = with_pos / (with_pos - 1) * (sums[0, :, a] @ sums[0, :, b]) / m**2
            other = with_neg / (with_neg - 1) * (sums[1, :, a] @ sums[1, :, b]) / n**2
            cross = count / (count - 1) * (sums[0, :, a] @ sums[1, :, b] + sums[1, :, a] @ sums[0, :, b]) / (m * n)
            expected[a, b] = own + other + cross
    np.testing.assert_allclose(areas, kernel.mean(axis=(1, 2)))
    # Mixed terms differ by sqrt(a b) against I / (I - 1), and by nothing where no patient has both classes.
    np.testing.assert_allclose(found, expected, rtol=0.03 if mixed else 1e-12)


def test_copies_of_images_prove_nothing() -> None:
    labels, scores, _ = clustered(1, mixed=True, patients=40)
    ids = [str(i) for i in range(len(labels))]
    once = delong_test(labels, *scores, patient_ids=ids)
    thrice = delong_test(np.tile(labels, 3), *np.tile(scores, (1, 3)), patient_ids=ids * 3)
    assert thrice.p == pytest.approx(once.p)
    assert delong_test(np.tile(labels, 3), *np.tile(scores, (1, 3))).p < once.p


def test_the_error_is_that_of_the_bootstrap_over_patients_also_of_a_mean_over_labels() -> None:
    rng = np.random.default_rng(4)
    owner = np.repeat(np.arange(400), 3)
    labels = (rng.random((1200, 2)) < [0.4, 0.2]).astype(float)
    logits = labels + rng.standard_normal((400, 2))[owner] + 0.5 * rng.standard_normal((1200, 2))
    names = [f"{i:04d}" for i in owner]
    predictions = Predictions(names, names, ["x", "y"], labels, 1 / (1 + np.exp(-logits)))
    drawn = bootstrap_values(predictions, Resamples.draw(names, 1500, 0), metrics=["auroc"])["auroc"]
    influence = [auroc_influence(labels[:, k], logits[:, k], owner)[1][:, 0] for k in range(2)]
    for k, own in enumerate([*influence, np.mean(influence, axis=0)]):
        assert np.linalg.norm(own) == pytest.approx(drawn[:, k].std(), rel=0.08)


def test_two_encoders_that_are_alike_are_called_different_as_rarely_as_said() -> None:
    rejected = 0
    for seed in range(300):
        labels, scores, owner = clustered(seed, mixed=True)
        rejected += delong_test(labels, *scores, patient_ids=[str(i) for i in owner]).p < 0.05
    assert rejected / 300 == pytest.approx(0.05, abs=0.04)
