"""FDT's codebook and contrast against official values; sparsemax against its definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medvlp.models.codebook import Codebook, query_map, sparsemax
from medvlp.objectives.contrastive import info_nce
from tests.objectives.official import cases, check, load

SCALE = torch.tensor(1 / 0.07).double()


def build(case: dict[str, torch.Tensor], side: str) -> tuple[torch.nn.Sequential, dict[str, torch.Tensor]]:
    prefix = f"{side}_query."
    state = {key.removeprefix(prefix): case[key] for key in case if key.startswith(prefix)}
    queries = query_map(case[f"{side}_tokens"].shape[2], case["codebook"].shape[1]).double()
    queries.load_state_dict(state, strict=True)
    return queries, {f"{prefix}{name}": parameter for name, parameter in queries.named_parameters()}


@pytest.mark.parametrize("fixed", [False, True], ids=["legacy", "fixed"])
@pytest.mark.parametrize("file", cases("fdt/codebook_nce"), ids=lambda file: file.stem)
def test_codes_and_contrast_are_the_official_fdt(file: Path, fixed: bool) -> None:
    case = load(file)
    inputs = {f"{side}_tokens": case[f"{side}_tokens"].requires_grad_() for side in ("image", "text")}
    best = None
    for attention in ("sparsemax", "softmax"):  # which one a case has is told in words only
        codebook = Codebook(*case["codebook"].shape, attention).double()
        with torch.no_grad():
            codebook.entries.copy_(case["codebook"])
        image_query, image_parameters = build(case, "image")
        text_query, text_parameters = build(case, "text")
        image, image_code = codebook(image_query(inputs["image_tokens"]), None, case["temperature"])
        text, text_code = codebook(
            text_query(inputs["text_tokens"]), case["pad"] == 0, case["temperature"], legacy_pads=not fixed
        )
        if best is None or (image_code - case["image_code"]).abs().sum() < best[0]:
            named = {**inputs, **image_parameters, **text_parameters, "codebook": codebook.entries}
            best = ((image_code - case["image_code"]).abs().sum(), image, text, text_code, named)
    _, image, text, text_code, named = best
    expected = case["text_code_fixed" if fixed else "text_code"]
    torch.testing.assert_close(text_code.detach(), expected, rtol=1e-6, atol=1e-12)
    # The official code divides by the length + 1e-10, ours by the length.
    check(info_nce(image, text, SCALE)[0], case, named, fixed, absolute=1e-8)


def test_sparsemax_is_the_nearest_point_of_the_simplex() -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, 9).double() * torch.tensor([0.1, 1.0, 5.0, 0.01, 2.0, 0.0]).double()[:, None]
    ours = sparsemax(scores)
    for row, weights in zip(scores, ours, strict=True):
        low, high = row.min() - 1, row.max()
        for _ in range(200):  # the threshold by bisection
            middle = (low + high) / 2
            low, high = (middle, high) if (row - middle).clamp_min(0).sum() > 1 else (low, middle)
        torch.testing.assert_close(weights, (row - low).clamp_min(0), rtol=1e-9, atol=1e-12)
    assert (ours[2] == 0).sum() > 4


def test_pads_change_no_code_and_get_no_gradient() -> None:
    torch.manual_seed(0)
    codebook = Codebook(12, 5)
    queries = (torch.randn(2, 4, 5) - 1).requires_grad_()
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    features, codes = codebook(queries, mask, 0.1)
    alone, _ = codebook(queries[1:, :1], None, 0.1)
    torch.testing.assert_close(features[1:], alone)
    features.square().sum().backward()
    assert queries.grad is not None
    assert not queries.grad[~mask].any()
    torch.testing.assert_close(codes.sum(1), torch.ones(2))


def test_codes_are_float32_under_autocast() -> None:
    codebook = Codebook(12, 5)
    with torch.autocast("cpu", torch.bfloat16):
        features, codes = codebook(torch.randn(2, 4, 5).bfloat16(), None, 1.0)
    assert features.dtype == codes.dtype == torch.float32
