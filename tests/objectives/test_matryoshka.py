"""The prefix wrapper and the prefix classifiers against the released numbers, tied and separate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medvlp.objectives.contrastive import info_nce, sigmoid_pairs
from medvlp.objectives.matryoshka import PrefixClassifier, over_prefixes, prefix_cross_entropy
from tests.objectives.official import cases, check, load


@pytest.mark.parametrize("file", cases("matryoshka/prefix_nce"), ids=lambda file: file.stem)
def test_prefixes_of_a_contrast_are_the_reference(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text")}
    weights = case["importance"].tolist() if "importance" in case else []
    value, count = over_prefixes(
        lambda image, text: info_nce(image, text, 1 / case["T"]),
        list(inputs.values()),
        case["prefixes"].tolist(),
        weights,
    )
    assert count == 2 * len(inputs["image"])
    check(value, case, inputs)


@pytest.mark.parametrize("file", cases("matryoshka/classifier_ce"), ids=lambda file: file.stem)
def test_prefix_classifiers_are_the_released_ones(file: Path) -> None:
    case = load(file)
    prefixes = case["prefixes"].tolist()
    weights = [key for key in case if key.startswith("classifier_") and key.endswith("weight")]
    tied = len(weights) < len(prefixes)
    heads = PrefixClassifier(prefixes, len(case[weights[0]]), tied, "classifier_0.bias" in case).double()
    heads.load_state_dict(
        {key.replace("classifier_", "classifiers."): case[key] for key in case if key[:11] == "classifier_"}
    )
    features = case["features"].requires_grad_()
    logits = heads(features)
    torch.testing.assert_close(torch.stack(logits), case["logits"], rtol=1e-8, atol=1e-12)
    importance = case["importance"].tolist() if "importance" in case else []
    value, count = prefix_cross_entropy(logits, case["target"], importance)
    assert count == len(features)
    inputs = {name.replace("classifiers.", "classifier_"): p for name, p in heads.named_parameters()}
    check(value, case, {"features": features, **inputs})


def test_a_whole_prefix_of_weight_one_changes_nothing() -> None:
    torch.manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 4, 8), dim=2)
    scale, bias = torch.tensor(9.0), torch.tensor(-3.0)
    alone = sigmoid_pairs(image, text, scale, bias)[0]
    torch.testing.assert_close(over_prefixes(lambda *v: sigmoid_pairs(*v, scale, bias), (image, text), [8])[0], alone)


def test_unknown_classes_are_left_out() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)]
    value, count = prefix_cross_entropy(logits, torch.tensor([1, -1, 2]))
    kept, _ = prefix_cross_entropy([row[[0, 2]] for row in logits], torch.tensor([1, 2]))
    torch.testing.assert_close(value, kept)
    assert count == 2
    none, count = prefix_cross_entropy(logits, torch.tensor([-1, -1, -1]))
    none.backward()
    assert (none.item(), count.item()) == (0.0, 0.0)
    assert logits[0].grad is not None
    assert not logits[0].grad.any()
