"""Multi-positive, queue and sigmoid contrast against official values and loops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from medvlp.objectives.contrastive import info_nce, multi_positive_nce, queue_nce, sigmoid_pairs, target_ce
from medvlp.objectives.scale import cosine_factor
from tests.objectives.official import cases, cases_3d, check, load


@pytest.mark.parametrize("file", cases("albef/itc"), ids=lambda file: file.stem)
def test_queue_nce_both_ways_is_the_official_albef(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text", "temperature")}
    image, text, scale = inputs["image"], inputs["text"], 1 / inputs["temperature"]
    image_teacher, text_teacher, alpha = case["image_momentum"], case["text_momentum"], float(case["alpha"])
    by_image, count = queue_nce(image, text_teacher, case["text_queue"].T, scale, image_teacher, alpha)
    by_text, _ = queue_nce(text, image_teacher, case["image_queue"].T, scale, text_teacher, alpha)
    assert count == len(image)
    torch.testing.assert_close(by_image, case["image_to_text"], rtol=1e-8, atol=0)
    torch.testing.assert_close(by_text, case["text_to_image"], rtol=1e-8, atol=0)
    check((by_image + by_text) / 2, case, inputs)


@pytest.mark.parametrize("file", cases("tcl/ita"), ids=lambda file: file.stem)
def test_queue_nce_within_a_side_is_the_official_tcl(file: Path) -> None:
    case = load(file)
    for side, name in (("image", "image_to_image"), ("text", "text_to_text")):
        value, _ = queue_nce(case[side], case[f"{side}_momentum"], case[f"{side}_queue"].T, 1 / case["temperature"])
        torch.testing.assert_close(value, case[name], rtol=1e-8, atol=0)


@pytest.mark.parametrize("file", cases("conceptclip/it_align"), ids=lambda file: file.stem)
def test_sigmoid_pairs_is_the_official_siglip(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text", "scale", "bias")}
    value, count = sigmoid_pairs(*inputs.values())
    assert count == len(inputs["image"]) ** 2
    check(value, case, inputs)


def test_several_positives_as_in_a_loop() -> None:
    torch.manual_seed(0)
    query, keys = torch.randn(4, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    positives = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    terms = []
    for i in range(4):
        cosines = [float(query[i] @ key / query[i].norm() / key.norm()) for key in keys]
        log_all = math.log(sum(math.exp(7 * c) for c in cosines))
        if own := [7 * c - log_all for c, is_own in zip(cosines, positives[i], strict=True) if is_own]:
            terms.append(-sum(own) / len(own))
    value, count = multi_positive_nce(query, keys, positives, torch.tensor(7.0, dtype=torch.float64))
    assert float(value) == pytest.approx(sum(terms) / 3, rel=1e-12)
    assert count == 3


def test_targets_of_any_sum_are_shares() -> None:
    torch.manual_seed(0)
    query, keys, targets = torch.randn(3, 4), torch.randn(5, 4), torch.rand(3, 5)
    scale = torch.tensor(3.0)
    assert target_ce(query, keys, targets * 9, scale)[0].item() == pytest.approx(
        target_ce(query, keys, targets / targets.sum(1, keepdim=True), scale)[0].item(), rel=1e-6
    )


@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (3, 0), (3, 3)])
def test_without_a_positive_there_is_nothing_to_score(queries: int, keys: int) -> None:
    query, key = torch.randn(queries, 4, requires_grad=True), torch.randn(keys, 4, requires_grad=True)
    log_scale = torch.zeros((), requires_grad=True)
    positives = torch.zeros(queries, keys, dtype=torch.bool)
    value, count = multi_positive_nce(query, key, positives, log_scale.exp())
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    for tensor in (query, key, log_scale):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_an_empty_batch_is_zero_in_every_form() -> None:
    image, text = torch.randn(0, 4, requires_grad=True), torch.randn(0, 4, requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    for value, count in (
        queue_nce(image, text, torch.randn(5, 4), scale, text, 0.4),
        sigmoid_pairs(image, text, scale, torch.tensor(-10.0)),
    ):
        value.backward()
        assert (value.item(), count.item()) == (0.0, 0.0)
        assert scale.grad is not None
        assert not scale.grad.any()


def test_the_forms_are_exact_in_bf16_autocast() -> None:
    torch.manual_seed(0)
    image, text = torch.randn(32, 16).bfloat16(), torch.randn(32, 16).bfloat16()
    queue, scale, bias = torch.randn(64, 16), torch.tensor(80.0), torch.tensor(-12.0)
    positives = torch.rand(32, 32) < 0.2
    forms = [
        lambda x, y, s: queue_nce(x, y, queue, s, y, 0.4)[0],
        lambda x, y, s: sigmoid_pairs(x, y, s, bias)[0],
        lambda x, y, s: multi_positive_nce(x, y, positives, s)[0],
    ]
    for form in forms:
        exact = form(image.double(), text.double(), scale.double())
        with torch.autocast("cpu", torch.bfloat16):
            low = form(image, text, scale)
        assert low.dtype == torch.float32
        assert float(low) == pytest.approx(float(exact), rel=1e-5)


def test_bad_shapes_are_refused() -> None:
    image, text, scale = torch.randn(3, 4), torch.randn(2, 4), torch.tensor(2.0)
    with pytest.raises(ValueError, match="needs pairs"):
        queue_nce(image, text, torch.randn(5, 4), scale)
    with pytest.raises(ValueError, match="needs pairs"):
        sigmoid_pairs(image, text, scale, scale)
    with pytest.raises(ValueError, match="teacher_query"):
        queue_nce(image, image, torch.randn(5, 4), scale, alpha=0.4)


@pytest.mark.parametrize("file", cases_3d("velvet/report_itc"), ids=lambda file: file.stem)
def test_smoothed_info_nce_with_a_raw_temperature_is_the_official_velvet_med(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("vis", "txt", "temperature")}
    scale = cosine_factor(inputs["temperature"], "divide")
    # The weight of image to text is told in words only: a half, in one case 0.3.
    value, count = min(
        (info_nce(inputs["vis"], inputs["txt"], scale, alpha, label_smoothing=0.1) for alpha in (0.5, 0.3)),
        key=lambda result: abs(float(result[0].detach()) - float(case["loss"])),
    )
    assert count == 2 * len(case["vis"])
    check(value, case, inputs, name="loss")


def test_info_nce_takes_smoothing_or_an_epsilon() -> None:
    with pytest.raises(ValueError, match="not both"):
        info_nce(torch.eye(2), torch.eye(2), torch.tensor(1.0), epsilon=1e-20, label_smoothing=0.1)
