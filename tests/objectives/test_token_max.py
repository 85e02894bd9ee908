"""FILIP's objective against official values and a loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from medvlp.objectives.token_max import mean_of_best, token_max_nce
from tests.objectives.official import cases, check, load


@pytest.mark.parametrize("at_once", [1, 1024])
@pytest.mark.parametrize("file", cases("filip/tokenwise"), ids=lambda file: file.stem)
def test_the_contrast_is_the_official_filip(file: Path, at_once: int) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text", "log_scale")}
    unmasked = torch.ones(case["text"].shape[:2], dtype=torch.bool)
    value, count = token_max_nce(
        inputs["image"], inputs["text"], unmasked, inputs["log_scale"].exp(), int(case["topk"]), at_once
    )
    assert count == 2 * len(case["image"])
    check(value, case, inputs)


def ragged() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 6, 4).double(), torch.randn(3, 5, 4).double(), torch.arange(5) < torch.tensor([[5], [2], [3]])


@pytest.mark.parametrize("top_k", [0, 2])
def test_the_contrast_as_in_a_loop_without_pads(top_k: int) -> None:
    image, text, mask = ragged()
    images = [functional.normalize(x, dim=1) for x in image]
    texts = [functional.normalize(x[m], dim=1) for x, m in zip(text, mask, strict=True)]
    patches, words = images, texts
    if top_k:
        merits = [x @ y.T for x, y in zip(images, texts, strict=True)]
        patches = [x[m.sum(1).argsort(descending=True)[:top_k]] for x, m in zip(images, merits, strict=True)]
        words = [y[m.sum(0).argsort(descending=True)[:top_k]] for y, m in zip(texts, merits, strict=True)]
    by_image = torch.stack([torch.stack([(x @ y.T).amax(1).mean() for y in words]) for x in images])
    by_text = torch.stack([torch.stack([(y @ x.T).amax(1).mean() for x in patches]) for y in texts])
    own = torch.arange(3)
    expected = (functional.cross_entropy(9 * by_image, own) + functional.cross_entropy(9 * by_text, own)) / 2
    value, _ = token_max_nce(image, text, mask, torch.tensor(9.0).double(), top_k)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    other, _ = token_max_nce(image, text + (~mask)[..., None] * 7, mask, torch.tensor(9.0).double(), top_k)
    torch.testing.assert_close(other, value, rtol=1e-12, atol=0)


def test_a_pair_without_tokens_is_left_out() -> None:
    image, text, mask = ragged()
    mask[1] = False
    text.requires_grad_()
    value, count = token_max_nce(image, text, mask, torch.tensor(9.0).double(), 2)
    value.backward()
    assert count == 4
    assert float(value.detach()) > 0
    assert text.grad is not None
    assert not text.grad[~mask].any()
    assert torch.isfinite(text.grad).all()


@pytest.mark.parametrize("pairs", [0, 2])
def test_no_tokens_at_all_is_zero_with_finite_gradients(pairs: int) -> None:
    image, text = torch.randn(pairs, 4, 5, requires_grad=True), torch.randn(pairs, 3, 5, requires_grad=True)
    scale = torch.tensor(5.0, requires_grad=True)
    value, count = token_max_nce(image, text, torch.zeros(pairs, 3, dtype=torch.bool), scale, 2)
    value.backward()
    assert (float(value.detach()), float(count)) == (0.0, 0.0)
    for tensor in (image, text, scale):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_each_sample_scores_as_alone() -> None:
    image, text, mask = ragged()
    everywhere = torch.ones(3, 6, dtype=torch.bool)
    whole = mean_of_best(image, everywhere, text, mask)
    for i in range(3):
        for t in range(3):
            alone = mean_of_best(
                image[[i]], everywhere[[i]], text[[t], : int(mask[t].sum())], mask[[t], : mask[t].sum()]
            )
            torch.testing.assert_close(whole[i, t], alone[0, 0], rtol=1e-12, atol=0)


def test_bf16_features_give_the_float32_loss() -> None:
    image, text, mask = ragged()
    image, text = image.bfloat16(), text.bfloat16()
    exact, _ = token_max_nce(image.double(), text.double(), mask, torch.tensor(14.0).double())
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = token_max_nce(image, text, mask, torch.tensor(14.0))
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(exact), rel=1e-4)
