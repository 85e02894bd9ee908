"""Contrasts of CT methods against official values: CT-CLIP, M3D-CLIP, Merlin and fVLM, every case that is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from medvlp.models.organ_pool import OrganPool
from medvlp.objectives.contrastive import info_nce, shared_text_nce, text_numbers
from medvlp.objectives.organ_contrast import organ_cells, organ_contrast, whole_organs
from medvlp.objectives.scale import cosine_factor
from medvlp.objectives.triplets import existence_bce
from medvlp.objectives.zero_shot import prompt_logits

ORGANS = ("lung", "heart", "esophagus", "aorta")
Case = dict[str, torch.Tensor]


def cases(objective: str, having: str = "loss") -> list[Any]:
    """Return the case files that have an array of this name."""
    beside = Path(os.environ.get("MEDVLP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")).parent / "oracles"
    files = sorted((Path(os.environ.get("MEDVLP_ORACLES", beside)) / "losses3d" / objective).glob("case_*.npz"))
    missing = pytest.param(Path("missing"), marks=pytest.mark.skip(reason="reference values are missing"))
    return [file for file in files if having in load(file)] or [missing]


def load(file: Path) -> Case:
    with np.load(file) as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


def leaves(case: Case) -> Case:
    """Return the inputs that have a stored gradient, ready to take one."""
    return {key.removeprefix("grad_"): case[key.removeprefix("grad_")].clone().requires_grad_()
            for key in case if key.startswith("grad_")}  # fmt: skip


def check(value: torch.Tensor, case: Case, inputs: Case, name: str = "loss") -> None:
    torch.testing.assert_close(value, case[name], rtol=1e-6, atol=1e-12)
    value.backward()
    assert inputs
    for key, tensor in inputs.items():
        assert tensor.grad is not None, key
        torch.testing.assert_close(tensor.grad, case[f"grad_{key}"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("file", cases("ctclip/contrastive"), ids=lambda file: file.stem)
def test_info_nce_with_an_epsilon_is_the_official_ct_clip(file: Path) -> None:
    case = load(file)
    inputs = leaves(case)
    value, _ = info_nce(inputs["image"], inputs["text"], cosine_factor(inputs["theta"], "exp"), epsilon=1e-20)
    check(value, case, inputs)


def test_the_epsilon_of_ct_clip_counts_where_exponentials_are_tiny() -> None:
    """Against the written equation: a hopeless pair costs 46 at most, where the true cross-entropy goes on."""
    image = functional.normalize(torch.randn(4, 6, dtype=torch.float64), dim=1)
    text, scale = -image, torch.tensor(60.0, dtype=torch.float64)
    exponentials = (scale * text @ image.T).exp()
    own = -(exponentials.diagonal() + 1e-20).log()
    written = 0.5 * sum((own + (exponentials.sum(axis) + 1e-20).log()).mean() for axis in (0, 1))
    value, _ = info_nce(image, text, scale, epsilon=1e-20)
    torch.testing.assert_close(value, written, rtol=1e-12, atol=0)
    assert info_nce(image, text, scale)[0] > value + 5


@pytest.mark.parametrize("file", cases("m3dclip/contrastive"), ids=lambda file: file.stem)
def test_info_nce_is_the_official_m3d_clip_by_its_raw_scale(file: Path) -> None:
    case = load(file)
    inputs = leaves(case)
    value, _ = info_nce(inputs["image"], inputs["text"], cosine_factor(inputs["logit_scale"], "multiply"))
    check(value, case, inputs)
    if "loss_with_exponential_scale" in case:
        right, _ = info_nce(case["image"], case["text"], cosine_factor(case["logit_scale"], "exp"))
        torch.testing.assert_close(right, case["loss_with_exponential_scale"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("file", cases("merlin/contrastive_bce"), ids=lambda file: file.stem)
def test_contrast_and_bce_are_those_of_merlin(file: Path) -> None:
    case = load(file)
    inputs = leaves(case)
    contrast, _ = info_nce(inputs["image"], inputs["text"], cosine_factor(inputs["theta"], "exp"))
    bce, count = existence_bce(inputs["phecode_logits"], case["phecodes"])
    assert count == case["phecodes"].numel()
    torch.testing.assert_close(contrast.detach(), case["contrastive"], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(bce.detach(), case["bce"], rtol=1e-6, atol=1e-12)
    check(contrast + bce, case, inputs)


def test_a_finding_that_is_not_mentioned_is_no_term_of_the_bce() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 0, -1, -1], [0, -1, 1, -1], [-1, -1, -1, -1]], dtype=torch.float64)
    value, count = existence_bce(logits, labels)
    known = labels >= 0
    expected = functional.binary_cross_entropy_with_logits(logits.detach()[known], labels[known])
    assert count == 4
    torch.testing.assert_close(value.detach(), expected)
    value.backward()
    assert (logits.grad[~known] == 0).all()


@pytest.mark.parametrize("file", cases("ctclip/zero_shot", "image"), ids=lambda file: file.stem)
def test_a_prompt_and_its_opposite_are_the_official_ct_clip(file: Path) -> None:
    case = load(file)
    scale = cosine_factor(case["theta"], "exp")
    logits = prompt_logits(case["image"], case["text"], torch.arange(2), scale)
    torch.testing.assert_close(logits[0], case["logits"], rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.softmax(1)[0], case["probabilities"], rtol=1e-6, atol=0)


def fvlm_loss(case: Case, inputs: Case) -> tuple[torch.Tensor, torch.Tensor, Case]:
    """Return the loss by our parts, the organs that are counted, and the pooled vectors."""
    number, width = case["query"].shape
    pool = OrganPool(number, width, case["proj_weight"].shape[1], dropout=0.0).double()
    given = {
        "queries": inputs["query"],
        "attention.in_proj_weight": inputs["attn_in_weight"],
        "attention.in_proj_bias": inputs["attn_in_bias"],
        "attention.out_proj.weight": inputs["attn_out_weight"],
        "attention.out_proj.bias": inputs["attn_out_bias"],
    }
    for organ in range(number):
        given |= {
            f"maps.{organ}.weight": inputs["proj_weight"][organ],
            f"maps.{organ}.bias": inputs["proj_bias"][organ],
        }
    tokens = inputs["tokens"].permute(1, 0, 2, 3).flatten(1, 2)  # levels side by side
    cells = organ_cells(case["seg"], number, (16, 16, 32)).repeat(1, 1, len(case["tokens"]))
    pooled = torch.func.functional_call(pool, given, (tokens, cells))
    raw = {name: tensor.detach() for name, tensor in given.items() if not name.startswith("maps")}
    with torch.no_grad():
        pool.load_state_dict(raw, strict=False)
        before = pool.pool(tokens, cells)
    counted = whole_organs(case["seg"], number)
    kind, spelling = case["caption_kind"], case["caption_id"]
    same = torch.where(kind == 0, -1, 10 * spelling + kind)
    texts = inputs["text_table"][case["text_row"]]
    value, _ = organ_contrast(
        pooled,
        texts.transpose(0, 1),
        counted,
        (kind < 2).T,
        case["abnormal"].bool(),  # [patient organ]; the captions are [organ patient]
        same.T,
        cosine_factor(inputs["temperature"], "divide", 0.001, 0.5),
    )
    return value, counted, {"pooled": before}


@pytest.mark.parametrize("file", cases("fvlm/organ_contrast"), ids=lambda file: file.stem)
def test_organ_contrast_is_the_official_fvlm(file: Path) -> None:
    case = load(file)
    names = ("tokens", "text_table", "query", "attn_in_weight", "attn_in_bias", "attn_out_weight", "attn_out_bias",
             "proj_weight", "proj_bias", "temperature")  # fmt: skip
    inputs = leaves(case) or {name: case[name].clone().requires_grad_() for name in names}
    value, counted, found = fvlm_loss(case, inputs)
    for organ, name in enumerate(ORGANS):
        if f"patients_{name}" not in case:
            continue
        patients = case[f"patients_{name}"]
        assert counted[:, organ].nonzero()[:, 0].tolist() == patients.tolist()
        torch.testing.assert_close(found["pooled"][patients, organ], case[f"pooled_{name}"], rtol=1e-6, atol=1e-12)
    if any(key.startswith("grad_") for key in case):
        check(value, case, inputs)
    else:
        assert value.item() == case["loss"].item() == 0.0


def test_pairs_of_one_text_are_no_negatives() -> None:
    """Against numpy: with a target matrix of equal texts, whose rows have the sum 1."""
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    captions = ["chest CT", "head MR", "Chest  CT", "abdomen CT", "head MR"]
    for second, first in ((2, 0), (4, 1)):
        text[second] = text[first]
    same = text_numbers(captions)
    assert same[0] == same[2] != same[1] == same[4]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (image, text)]
    logits = 5 * unit[0] @ unit[1].T
    target = np.equal.outer(same.numpy(), same.numpy()).astype(float)
    target /= target.sum(1, keepdims=True)
    expected = sum(
        -0.5 * (target * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1).mean() for z in (logits, logits.T)
    )
    arguments = torch.from_numpy(image), torch.from_numpy(text)
    value, count = shared_text_nce(*arguments, same, torch.tensor(5.0, dtype=torch.float64))
    assert count == 10
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    alone, _ = shared_text_nce(*arguments, torch.arange(5), torch.tensor(5.0, dtype=torch.float64))
    torch.testing.assert_close(alone, info_nce(*arguments, torch.tensor(5.0, dtype=torch.float64))[0])


def test_an_image_has_several_texts_and_all_that_are_equal_are_its_positives() -> None:
    """Against loops: what either side of a pair says of the other, by the words of both images."""
    rng = np.random.default_rng(4)
    words = ["a b", "c", "c", "d", "e", "e", "f", "a B"]  # two of each of four images
    image, text = rng.normal(size=(4, 6)), rng.normal(size=(8, 6))
    numbers = text_numbers(words)
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (image, text)]
    logits = 3 * unit[0] @ unit[1].T
    own = [{word.lower() for word in words[2 * i : 2 * i + 2]} for i in range(4)]

    def side(logits: np.ndarray, is_right: Any) -> float:
        terms = []
        for row, values in enumerate(logits):
            logs = values - np.log(np.exp(values).sum())
            terms.append(-np.mean([logs[column] for column in range(len(values)) if is_right(row, column)]))
        return float(np.mean(terms))

    expected = 0.25 * side(logits, lambda i, t: words[t].lower() in own[i])
    expected += 0.75 * side(logits.T, lambda t, i: words[t].lower() in own[i])
    given = torch.from_numpy(image), torch.from_numpy(text), numbers, torch.tensor(3.0, dtype=torch.float64)
    value, count = shared_text_nce(*given, image_weight=0.25)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert count == 12
    with pytest.raises(ValueError, match="4 images have 7 texts"):
        shared_text_nce(given[0], given[1][:7], numbers[:7], given[3])


@pytest.mark.parametrize("policy", ["exp", "multiply", "divide"])
def test_a_scale_comes_back_from_beyond_its_bounds(policy: Any) -> None:
    number = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    factor = cosine_factor(number, policy, 0.001, 0.5)
    expected = {"exp": np.exp(0.5), "multiply": 0.5, "divide": 2.0}[policy]
    np.testing.assert_allclose(factor.item(), expected, rtol=1e-12)
    factor.backward()
    assert number.grad is not None
    assert number.grad != 0


def test_an_organ_without_a_token_has_a_vector_of_zeros() -> None:
    pool = OrganPool(2, 8, 6).eval()
    cells = torch.zeros(3, 2, 5, dtype=torch.bool)
    cells[0, 0, 1] = True
    tokens = torch.randn(3, 5, 8, requires_grad=True)
    vectors = pool(tokens, cells)
    assert vectors[0, 0].abs().sum() > 0
    assert (vectors[1:] == 0).all()
    assert (vectors[0, 1] == 0).all()
    vectors.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
    assert (tokens.grad[0, [0, 2, 3, 4]] == 0).all()
