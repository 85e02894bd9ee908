"""Contrasts of clips and texts: the released training code of SurgVLP, loops, four ranks and empty cases."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.video_text import mil_nce, surgvlp
from medvlp.objectives.volume_views import nt_xent
from tests.objectives.official import RELATIVE, cases_3d, load
from tests.objectives.ranks import Found, check_as_one_process, on_ranks, run


def constants(file: Path) -> dict[str, float]:
    made: dict[str, float] = json.loads((file.parent / "meta.json").read_text())["constants"]
    return made


def check_official(file: Path, losses, names: tuple[str, ...]) -> None:
    """Compare the loss, and the gradient of every input that the file has one of."""
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in names}
    value = losses(case, inputs, constants(file))
    torch.testing.assert_close(value, case["loss"], rtol=RELATIVE, atol=1e-12)
    value.backward()
    assert {key.removeprefix("grad_") for key in case if key.startswith("grad_")} == set(names)
    for name, tensor in inputs.items():
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, case[f"grad_{name}"], rtol=RELATIVE, atol=1e-10)


def scale(of: dict[str, float]) -> torch.Tensor:
    return torch.tensor(1 / of["tau"], dtype=torch.float64)


def grouped(case: dict[str, torch.Tensor], texts: torch.Tensor) -> torch.Tensor:
    return texts.unflatten(0, (-1, int(case["candidates"])))


@pytest.mark.parametrize("file", cases_3d("surgvlp/clip_infonce"), ids=lambda file: file.stem)
def test_info_nce_is_the_official_one(file: Path) -> None:
    check_official(file, lambda _, x, of: info_nce(x["video"], x["text"], scale(of))[0], ("video", "text"))


@pytest.mark.parametrize("file", cases_3d("surgvlp/ntxent"), ids=lambda file: file.stem)
def test_weighted_info_nce_is_the_official_nt_xent_across_modalities(file: Path) -> None:
    def losses(_, x, of):
        return info_nce(x["video"], x["text"], scale(of), of["alpha"])[0]

    check_official(file, losses, ("video", "text"))


@pytest.mark.parametrize("file", cases_3d("surgvlp/milnce"), ids=lambda file: file.stem)
def test_mil_nce_is_the_official_one(file: Path) -> None:
    def losses(case, x, of):
        return mil_nce(x["video"], grouped(case, x["text"]), twice=True)[0]

    check_official(file, losses, ("video", "text"))


@pytest.mark.parametrize("file", cases_3d("surgvlp/simclr"), ids=lambda file: file.stem)
def test_two_views_are_the_official_simclr(file: Path) -> None:
    check_official(file, lambda _, x, of: nt_xent(x["aug1"], x["aug2"], scale(of))[0], ("aug1", "aug2"))


@pytest.mark.parametrize("file", cases_3d("surgvlp/mixture"), ids=lambda file: file.stem)
def test_a_quarter_of_the_terms_is_the_official_loss(file: Path) -> None:
    def losses(case, x, of):
        clips = [x[name] for name in ("video", "aug1", "aug2")]
        candidates = grouped(case, x["text_candidates"])
        terms = surgvlp(clips, x["text"], candidates, scale(of), 1 - of["alpha"], twice=True)
        assert [count > 0 for _, count in terms.values()] == [True] * 4
        return sum(value for value, _ in terms.values()) / 4

    check_official(file, losses, ("video", "aug1", "aug2", "text", "text_candidates"))


def slow_mil_nce(clip: torch.Tensor, texts: torch.Tensor) -> float:
    """Return the paper's value: every pair of a positive or a negative counts once."""
    b, k = texts.shape[:2]
    total = 0.0
    for i in range(b):
        positive = sum(math.exp(float(clip[i] @ texts[i, n])) for n in range(k))
        negative = sum(
            math.exp(float(clip[i] @ texts[j, n])) + math.exp(float(clip[j] @ texts[i, n]))
            for j in range(b)
            for n in range(k)
            if j != i
        )
        total += -math.log(positive / (positive + negative))
    return total / b


def test_mil_nce_as_in_a_loop() -> None:
    torch.manual_seed(0)
    clip, texts = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, 6, dtype=torch.float64)
    value, count = mil_nce(clip, texts)
    assert float(value) == pytest.approx(slow_mil_nce(clip, texts), rel=1e-12)
    assert count == 4
    assert float(mil_nce(clip[:1], texts[:1])[0]) == pytest.approx(0, abs=1e-12)
    assert float(mil_nce(clip[:1], texts[:1], twice=True)[0]) == pytest.approx(math.log(2), rel=1e-12)


def test_two_views_as_in_a_loop() -> None:
    torch.manual_seed(0)
    views = torch.randn(2, 3, 5, dtype=torch.float64)
    value, count = nt_xent(views[0], views[1], torch.tensor(4.0, dtype=torch.float64))
    rows = (views / views.norm(dim=-1, keepdim=True)).flatten(0, 1)
    total = 0.0
    for i, row in enumerate(rows):
        others = [j for j in range(6) if j != i]
        total -= math.log(
            math.exp(4 * float(row @ rows[(i + 3) % 6])) / sum(math.exp(4 * float(row @ rows[j])) for j in others)
        )
    assert float(value) == pytest.approx(total / 6, rel=1e-12)
    assert count == 6


def test_no_clip_is_zero_with_zero_gradients() -> None:
    first, second = (torch.randn(0, 4, requires_grad=True) for _ in range(2))
    texts = torch.randn(0, 2, 4, requires_grad=True)
    for value, count in (mil_nce(first, texts), nt_xent(first, second, torch.tensor(2.0))):
        value.backward()
        assert (value.item(), count.item()) == (0.0, 0.0)


def test_what_does_not_fit_is_refused() -> None:
    clip = torch.randn(3, 4)
    with pytest.raises(ValueError, match="texts for every clip"):
        mil_nce(clip, torch.randn(2, 2, 4))
    with pytest.raises(ValueError, match="texts for every clip"):
        mil_nce(clip, torch.randn(3, 0, 4))
    with pytest.raises(ValueError, match="needs pairs"):
        nt_xent(clip, clip[:2], torch.tensor(1.0))
    with pytest.raises(ValueError, match="three readings"):
        surgvlp([clip, clip], clip, clip[:, None], torch.tensor(1.0))


def test_logits_are_exact_in_bf16_autocast() -> None:
    torch.manual_seed(0)
    clip, texts = torch.randn(16, 8).bfloat16(), torch.randn(16, 2, 8).bfloat16()
    exact = mil_nce(clip.double(), texts.double())[0]
    views = nt_xent(clip.double(), texts[:, 0].double(), torch.tensor(10.0).double())[0]
    with torch.autocast("cpu", torch.bfloat16):
        low, low_views = mil_nce(clip, texts)[0], nt_xent(clip, texts[:, 0], torch.tensor(10.0))[0]
    assert (low.dtype, low_views.dtype) == (torch.float32, torch.float32)
    assert float(low) == pytest.approx(float(exact), rel=1e-5)
    assert float(low_views) == pytest.approx(float(views), rel=1e-5)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 5).double(), nn.Linear(7, 5).double()

    def forward(self, name: str, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        clips, texts = self.image(data["clips"]), self.text(data["texts"])
        unused = 0.0 * (clips.sum() + texts.sum())
        if name == "two_views":
            value, count = nt_xent(clips[:, 0], clips[:, 1], torch.tensor(5.0, dtype=torch.float64))
        else:
            value, count = mil_nce(clips[:, 0], texts, twice=name == "mil_nce_twice")
        return value + unused, count


NAMES = ("two_views", "mil_nce", "mil_nce_twice")
SPLITS = {"even": [2, 2, 2, 2], "uneven": [4, 0, 2, 2]}


def make_data() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(8, 2, 6, dtype=torch.float64, generator=generator)
    return {"clips": clips, "texts": torch.randn(8, 3, 7, dtype=torch.float64, generator=generator)}


def work(rank: int, model: nn.Module) -> dict[str, Found]:
    found = {}
    for split, sizes in SPLITS.items():
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for name in NAMES:
            found[f"{name} {split}"] = run(model, name, {key: part[rows] for key, part in make_data().items()})
    return found


def test_four_ranks_are_one_process(tmp_path: Path) -> None:
    found = on_ranks(Towers, work, tmp_path)
    model = Towers()
    for name in NAMES:
        alone = run(model, name, make_data())
        for split in SPLITS:
            check_as_one_process([own[f"{name} {split}"] for own in found], alone, 1e-12, 1e-10, 1e-12)
