"""Sentences that pick their patches: against loops, with equal sentences, pads and empty texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvlp.objectives.sentence_patches import best_patches, sentence_patch_nce


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def test_a_sentence_scores_by_its_most_similar_patches() -> None:
    rng = np.random.default_rng(0)
    sentences, patches = unit(rng.standard_normal((3, 5))), unit(rng.standard_normal((2, 10, 5)))
    found = best_patches(torch.from_numpy(sentences), torch.from_numpy(patches), 0.3).numpy()
    for n, i in np.ndindex(3, 2):
        assert found[n, i] == pytest.approx(np.sort(patches[i] @ sentences[n])[-3:].mean())
    one = best_patches(torch.from_numpy(sentences), torch.from_numpy(patches), 1e-6).numpy()
    assert one[0, 0] == pytest.approx((patches[0] @ sentences[0]).max())


def test_the_contrast_is_that_of_a_loop_and_knows_equal_sentences() -> None:
    rng = np.random.default_rng(1)
    patches, sentences = rng.standard_normal((4, 6, 5)), rng.standard_normal((4, 3, 5))
    mask = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=bool)
    keys = np.array([[1, 2, 9], [2, 3, 4], [2, 2, 2], [5, 9, 9]])
    scale = 7.0
    scores = np.zeros((4, 3, 4))
    for t, s, i in np.ndindex(4, 3, 4):
        scores[t, s, i] = scale * np.sort(unit(patches[i]) @ unit(sentences[t, s]))[-2:].mean()
    there = [{keys[t, s] for s in range(3) if mask[t, s]} for t in range(4)]
    by_sentence = []
    for t, s in zip(*np.nonzero(mask), strict=True):
        log = scores[t, s] - np.log(np.exp(scores[t, s]).sum())
        by_sentence.append(-np.mean([log[i] for i in range(4) if keys[t, s] in there[i]]))
    by_volume = []
    real = list(zip(*np.nonzero(mask), strict=True))
    for i in range(4):
        logits = np.array([scores[t, s, i] for t, s in real])
        log = logits - np.log(np.exp(logits).sum())
        own = [log[n] for n, (t, s) in enumerate(real) if keys[t, s] in there[i]]
        by_volume += [-np.mean(own)] if own else []
    given = [torch.from_numpy(array) for array in (patches, sentences, mask, keys)]
    given[0].requires_grad_()
    given[1].requires_grad_()
    value, count = sentence_patch_nce(*given, torch.tensor(scale).double(), 0.3)
    assert float(value) == pytest.approx((np.mean(by_sentence) + np.mean(by_volume)) / 2, rel=1e-9)
    assert count == len(by_sentence) + len(by_volume) == 6 + 3
    value.backward()
    assert given[1].grad is not None
    assert not given[1].grad[~given[2]].any()
    assert given[0].grad is not None
    assert given[0].grad.isfinite().all()


def test_without_a_sentence_the_loss_is_zero() -> None:
    patches = torch.randn(2, 4, 3, requires_grad=True)
    for width in (0, 2):
        sentences = torch.randn(2, width, 3)
        mask, keys = torch.zeros(2, width, dtype=torch.bool), torch.zeros(2, width, dtype=torch.long)
        value, count = sentence_patch_nce(patches, sentences, mask, keys, torch.tensor(1.0), 0.5)
        assert (float(value), float(count)) == (0.0, 0.0)
        value.backward()
