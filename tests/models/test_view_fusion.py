"""REFERS' view fusion and contrast against official values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medvlp.models.view_fusion import ViewFusion
from medvlp.objectives.contrastive import info_nce
from tests.objectives.official import cases, check, load

SCALE = torch.tensor(10.0).double()


@pytest.mark.parametrize("file", cases("refers/view_attention"), ids=lambda file: file.stem)
def test_view_fusion_is_the_official_refers(file: Path) -> None:
    case = load(file)
    views = [case[f"view_{number}"].requires_grad_() for number in (1, 2, 3)]
    parts = {
        key: case[key].requires_grad_()
        for number in (1, 2, 3)
        for key in (f"fusion.fc{number}.weight", f"fusion.fc{number}.bias")
    }
    stacked = torch.stack(views, dim=1)
    state = {
        f"weight.{kind}": torch.cat([parts[f"fusion.fc{number}.{kind}"] for number in (1, 2, 3)])
        for kind in ("weight", "bias")
    }
    module = ViewFusion(stacked.shape[-1], 3).double()
    fused, study, weights = torch.func.functional_call(module, state, (stacked[:, :, 1:], stacked[:, :, 0]))
    torch.testing.assert_close(fused.detach(), case["fused"], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(study.detach(), case["study_feature"], rtol=0, atol=0)
    torch.testing.assert_close(weights.detach(), case["weights"].reshape(weights.shape), rtol=1e-6, atol=0)
    inputs = {f"view_{number}": view for number, view in enumerate(views, 1)} | parts
    check((fused * case["cotangent"]).sum(), case, inputs)


@pytest.mark.parametrize("fixed", [False, True], ids=["legacy", "fixed"])
@pytest.mark.parametrize("file", cases("refers/nce"), ids=lambda file: file.stem)
def test_the_contrast_is_the_official_refers(file: Path, fixed: bool) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text")}
    if fixed:
        value, _ = info_nce(inputs["image"], inputs["text"], SCALE, 0.75)
    else:  # the official text to image term is a plain number
        by_image, by_text = (info_nce(inputs["image"], inputs["text"], SCALE, weight)[0] for weight in (1.0, 0.0))
        value = 0.75 * by_image + 0.25 * by_text.detach()
    check(value, case, inputs, fixed)
