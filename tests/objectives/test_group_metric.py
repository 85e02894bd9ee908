"""KEEP's group metric and prompt ranking against official values, loops, and float32 at high scales."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from medvlp.objectives.group_metric import best_pairs_probability, best_prompts, group_metric, prompt_scores
from tests.objectives.official import cases, check, load

VARIANTS = ("hp-hn", "lhp-hn", "hp-lhn", "lhp-lhn")
UNKNOWN = 7
"""Number of the label "unknown" in the reference values."""


@pytest.mark.parametrize(
    ("variant", "file"),
    [(variant, file) for variant in VARIANTS for file in cases(f"keep/metric_{variant.replace('-', '_')}")],
    ids=lambda value: value if isinstance(value, str) else value.stem,
)
def test_group_metric_is_the_official_keep(variant: str, file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text", "scale")}
    unknown = case["group_label"] == UNKNOWN
    value, count = group_metric(
        inputs["image"], inputs["text"], case["related"].bool(), inputs["scale"], variant, unknown
    )
    assert count == 2 * len(case["group_label"])
    check(value, case, inputs)


@pytest.mark.parametrize("file", cases("keep/prompt_rank"), ids=lambda file: file.stem)
def test_prompts_are_ranked_as_the_official_keep(file: Path) -> None:
    case = load(file)
    torch.testing.assert_close(prompt_scores(case["classifiers"], case["tiles"]), case["value"], rtol=1e-8, atol=1e-12)
    merged = best_prompts(case["classifiers"], case["tiles"], int(case["top"]))
    torch.testing.assert_close(merged, case["merged"], rtol=1e-8, atol=1e-12)
    assert torch.equal(best_prompts(case["classifiers"], case["tiles"], 999).isfinite().all(), torch.tensor(True))


def test_the_best_pairs_are_found_by_hand_and_one_pair_is_a_plain_softmax() -> None:
    generator = np.random.default_rng(4)
    images, positives, negatives = (generator.normal(size=(n, 6)) for n in (5, 3, 4))
    images, positives, negatives = (v / np.linalg.norm(v, axis=1)[:, None] for v in (images, positives, negatives))
    ranked = []
    for positive in positives:
        for negative in negatives:
            cosines = np.sort(images @ np.stack([positive, negative], axis=1), axis=1)
            sure = cosines[:, 1] - cosines[:, 0] - np.abs(cosines.sum(1) - 1)
            ranked.append((sure.mean(), positive, negative))
    ranked.sort(key=lambda one: -one[0])
    first, second = (sum(one[side] for one in ranked[:5]) for side in (1, 2))
    odds = 7.0 * images @ (first / np.linalg.norm(first) - second / np.linalg.norm(second))
    tensors = [torch.from_numpy(values) for values in (3 * images, positives, negatives)]
    found = best_pairs_probability(*tensors, torch.tensor(7.0).double(), top=5)
    np.testing.assert_allclose(found.numpy(), 1 / (1 + np.exp(-odds)), rtol=1e-10)
    alone = best_pairs_probability(tensors[0], tensors[1][:1], tensors[2][:1], torch.tensor(7.0).double())
    np.testing.assert_allclose(
        alone.numpy(), 1 / (1 + np.exp(7.0 * images @ (negatives[0] - positives[0]))), rtol=1e-10
    )


def by_loops(image: np.ndarray, text: np.ndarray, related: np.ndarray, scale: float, variant: str) -> float:
    """The loss in plain sums, group by group."""
    groups, size = len(related), len(image) // len(related)
    cosines = (image / np.linalg.norm(image, axis=1)[:, None]) @ (text / np.linalg.norm(text, axis=1)[:, None]).T
    total = 0.0
    for matrix in (cosines, cosines.T):
        for i in range(groups):
            rows = range(i * size, (i + 1) * size)
            inside = [sum(math.exp(-scale * matrix[r, c]) for c in rows) for r in rows]
            positive = sum(1 / x for x in inside) if variant.startswith("lhp") else 1 / sum(inside)
            whole = positive
            for j in range(groups):
                if j == i:
                    continue
                columns = range(j * size, (j + 1) * size)
                sums = [sum(math.exp(scale * (-1 if related[i, j] else matrix[r, c])) for c in columns) for r in rows]
                whole += 1 / sum(1 / x for x in sums) if variant.endswith("lhn") else sum(sums)
            total -= math.log(positive / whole)
    return total / (2 * groups)


@pytest.mark.parametrize("variant", VARIANTS)
def test_group_metric_is_the_loop(variant: str) -> None:
    rng = np.random.default_rng(3)
    image, text = rng.standard_normal((8, 5)), rng.standard_normal((8, 5))
    related = np.eye(4, dtype=bool)
    related[0, 3] = related[3, 0] = True
    value, _ = group_metric(
        torch.from_numpy(image),
        torch.from_numpy(text),
        torch.from_numpy(related),
        torch.tensor(9.0, dtype=torch.float64),
        variant,
    )
    assert float(value) == pytest.approx(by_loops(image, text, related, 9.0, variant), rel=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_holds_at_the_largest_scale(variant: str) -> None:
    torch.manual_seed(0)
    image = torch.randn(4, 6).repeat_interleave(2, 0)
    text = image + torch.randn(8, 6)
    exact = group_metric(image.double(), text.double(), torch.eye(4).bool(), torch.tensor(100.0).double(), variant)[0]
    with torch.autocast("cpu", torch.bfloat16):
        value = group_metric(image, text, torch.eye(4).bool(), torch.tensor(100.0), variant)[0]
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(exact), rel=1e-4)


def test_texts_of_a_related_group_send_no_gradient() -> None:
    torch.manual_seed(0)
    image, text = torch.randn(4, 6), torch.randn(4, 6, requires_grad=True)

    def pull(related: torch.Tensor) -> torch.Tensor:
        """The gradient on the second group's texts, of moving the first group's images."""
        moved = torch.cat([image[:2] + 0.3, image[2:]])
        values = [group_metric(images, text, related, torch.tensor(5.0))[0] for images in (image, moved)]
        return torch.autograd.grad(values[1] - values[0], text)[0][2:]

    assert pull(torch.eye(2).bool()).abs().max() > 1e-3
    assert pull(torch.ones(2, 2).bool()).abs().max() < 1e-6


@pytest.mark.parametrize("groups", [0, 1])
def test_without_a_second_group_there_is_nothing_to_tell_apart(groups: int) -> None:
    image, text = torch.randn(2 * groups, 4, requires_grad=True), torch.randn(2 * groups, 4, requires_grad=True)
    value, count = group_metric(image, text, torch.eye(groups).bool(), torch.tensor(5.0))
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    assert image.grad is not None
    assert not image.grad.any()


def test_groups_that_do_not_fit_are_refused() -> None:
    scale = torch.tensor(5.0)
    with pytest.raises(ValueError, match="3 groups of equal size"):
        group_metric(torch.randn(4, 4), torch.randn(4, 4), torch.eye(3).bool(), scale)
    with pytest.raises(ValueError, match="4 images and 6 texts"):
        group_metric(torch.randn(4, 4), torch.randn(6, 4), torch.eye(2).bool(), scale)
    with pytest.raises(ValueError, match="3 columns for 2 groups"):
        group_metric(torch.randn(4, 4), torch.randn(4, 4), torch.eye(2, 3).bool(), scale)
