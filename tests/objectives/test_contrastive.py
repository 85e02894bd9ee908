"""Contrastive objectives against official values, plain numpy, and the edge cases of a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medvlp.objectives.contrastive import info_nce, soft_label_ce
from medvlp.objectives.scale import clamped_scale
from medvlp.objectives.zero_shot import prompt_logits
from tests.objectives.official import cases, load

MAX_LOG_SCALE = 4.6052


def check(value: torch.Tensor, reference: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(value, reference["value"], rtol=1e-8, atol=0)
    value.backward()
    checked = 0
    for name, tensor in inputs.items():
        expected = reference[f"grad_{name}"]
        torch.testing.assert_close(tensor.grad.reshape(expected.shape), expected, rtol=1e-8, atol=1e-12)
        checked += 1
    assert checked == sum(key.startswith("grad_") for key in reference)


@pytest.mark.parametrize("file", cases("convirt/nce"), ids=lambda file: file.stem)
def test_info_nce_is_the_official_convirt(file: Path) -> None:
    reference = load(file)
    inputs = {key: reference[key].requires_grad_() for key in ("image", "text")}
    value, count = info_nce(inputs["image"], inputs["text"], 1 / reference["T"], float(reference["weight"]))
    assert count == 2 * len(inputs["image"])
    check(value, reference, inputs)


@pytest.mark.parametrize("file", cases("medclip/hard"), ids=lambda file: file.stem)
def test_info_nce_with_a_learnt_scale_is_the_official_medclip_without_labels(file: Path) -> None:
    reference = load(file)
    inputs = {key: reference[key].requires_grad_() for key in ("image", "text")}
    inputs["log_scale"] = reference["log_scale_before_clamp"].reshape(1).requires_grad_()
    value, _ = info_nce(inputs["image"], inputs["text"], clamped_scale(inputs["log_scale"], 0.0, MAX_LOG_SCALE))
    check(value, reference, inputs)


@pytest.mark.parametrize("file", cases("medclip/soft_label"), ids=lambda file: file.stem)
def test_soft_label_ce_is_the_official_medclip(file: Path) -> None:
    reference = load(file)
    names = [key for key in ("image", "text", "text_augmented") if key in reference]
    inputs = {key: reference[key].requires_grad_() for key in names}
    inputs["log_scale"] = reference["log_scale_before_clamp"].reshape(1).requires_grad_()
    value, count = soft_label_ce(
        inputs["image"],
        inputs["text"],
        reference["image_labels"],
        reference["text_labels"],
        clamped_scale(inputs["log_scale"], 0.0, MAX_LOG_SCALE),
        inputs.get("text_augmented"),
    )
    assert count == len(inputs["image"]) + len(inputs["text"])
    check(value, reference, inputs)


@pytest.mark.parametrize("file", cases("medclip/zero_shot"), ids=lambda file: file.stem)
def test_prompt_logits_are_the_official_medclip_classifier(file: Path) -> None:
    reference = load(file)
    reduce = "mean" if reference["ensemble"] == 1 else "max"
    logits = prompt_logits(
        reference["image"], reference["prompts"], reference["prompt_class"], reference["scale"], reduce
    )
    torch.testing.assert_close(logits, reference["value"], rtol=1e-8, atol=0)


def test_target_scale_sharpens_the_targets_as_in_numpy() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((3, 6)), rng.standard_normal((4, 6))
    image_labels, text_labels = rng.integers(-1, 2, (3, 5)), rng.integers(-1, 2, (4, 5))

    def softmax(x: np.ndarray) -> np.ndarray:
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    logits, similarity = 7.0 * unit[0] @ unit[1].T, 3.0 * image_labels @ text_labels.T
    terms = [
        -(softmax(g) * np.log(softmax(x))).sum(1).mean() for g, x in ((similarity, logits), (similarity.T, logits.T))
    ]
    value, _ = soft_label_ce(
        torch.from_numpy(image),
        torch.from_numpy(text),
        torch.from_numpy(image_labels).double(),
        torch.from_numpy(text_labels).double(),
        torch.tensor(7.0, dtype=torch.float64),
        target_scale=3.0,
    )
    assert float(value) == pytest.approx(np.mean(terms), rel=1e-12)


def test_a_label_that_is_not_mentioned_counts_as_absent_in_the_similarity() -> None:
    torch.manual_seed(0)
    image, text, scale = torch.randn(3, 4), torch.randn(2, 4), torch.tensor(5.0)
    image_labels = torch.tensor([[1.0, torch.nan], [torch.nan, -1.0], [0.0, 1.0]])
    text_labels = torch.tensor([[torch.nan, 1.0], [1.0, torch.nan]])
    with_nan, _ = soft_label_ce(image, text, image_labels, text_labels, scale)
    zeros, _ = soft_label_ce(image, text, image_labels.nan_to_num(0.0), text_labels.nan_to_num(0.0), scale)
    assert with_nan == zeros
    assert torch.isfinite(with_nan)


def test_the_pull_of_a_normal_image_is_towards_normal_sentences() -> None:
    """Columns: No Finding, Pneumonia. NIH normal image (1, 0); sentences: normal, "no pneumonia", pneumonia."""
    image = torch.zeros(2, 3)
    image[:, :] = 1e-3
    image.requires_grad_()
    text = torch.eye(3)
    image_labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text_labels = torch.tensor([[1.0, torch.nan], [torch.nan, 0.0], [torch.nan, 1.0]])
    value, _ = soft_label_ce(image, text, image_labels, text_labels, torch.tensor(1.0))
    value.backward()
    assert (-image.grad).argmax(1).tolist() == [0, 2]


def test_bf16_features_give_the_float32_loss() -> None:
    torch.manual_seed(0)
    image, text = torch.randn(64, 16).bfloat16(), torch.randn(64, 16).bfloat16()
    labels = torch.randint(-1, 2, (64, 5)).float()
    scale = torch.tensor(80.0)
    exact = [
        info_nce(image.double(), text.double(), scale.double())[0],
        soft_label_ce(image.double(), text.double(), labels, labels, scale.double())[0],
    ]
    with torch.autocast("cpu", torch.bfloat16):
        low = [info_nce(image, text, scale)[0], soft_label_ce(image, text, labels, labels, scale)[0]]
    for ours, reference in zip(low, exact, strict=True):
        assert ours.dtype == torch.float32
        assert float(ours) == pytest.approx(float(reference), rel=1e-5)


@pytest.mark.parametrize(("images", "texts"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_to_score_is_zero_with_a_real_graph(images: int, texts: int) -> None:
    image, text = torch.randn(images, 4, requires_grad=True), torch.randn(texts, 4, requires_grad=True)
    log_scale = torch.tensor([1.0], requires_grad=True)
    scale = clamped_scale(log_scale, 0.0, MAX_LOG_SCALE)
    value, count = soft_label_ce(image, text, torch.zeros(images, 2), torch.zeros(texts, 2), scale, text)
    assert (value.item(), count.item()) == (0.0, 0.0)
    value.backward()
    for tensor in (image, text, log_scale):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_no_pairs_is_zero_and_unequal_pairs_are_refused() -> None:
    image = torch.randn(0, 4, requires_grad=True)
    value, count = info_nce(image, torch.randn(0, 4), torch.tensor(2.0))
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    assert image.grad is not None
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        info_nce(torch.randn(3, 4), torch.randn(2, 4), torch.tensor(2.0))
