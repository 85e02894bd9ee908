"""VoCo as a whole: where its crops lie by a count of voxels, its teacher, both versions, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medvlp.errors import UserError
from medvlp.methods import voco as module
from medvlp.methods.voco import VoCo, tiles
from tests.methods.volumes import SWIN, batch_of, method_of

OPTIONS = {"pool": "stages", "crop": [32, 32, 32], "grid": [2, 3], "head": {"hidden": 16, "dim": 8}}


def voco(version: int = 2, **changes: Any) -> VoCo:
    config: dict[str, Any] = {
        "name": "voco",
        "image": {"kind": "volume", "family": "swin", "args": SWIN, "input": {"size": [32, 32, 32]}},
        "text": None,
        "objectives": {"inter": {"weight": float(version == 2)}},
        "options": {**OPTIONS, "version": version, **changes},
    }
    made = method_of(config)
    assert isinstance(made, VoCo)
    return made


def test_base_crops_are_the_tiles_of_the_region() -> None:
    region = torch.arange(2 * 1 * 4 * 6 * 9).reshape(2, 1, 4, 6, 9)
    cut = tiles(region, (2, 3))
    assert cut.shape == (2, 6, 1, 4, 3, 3)
    for row, column in ((0, 0), (0, 2), (1, 1)):
        own = region[:, :, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        assert torch.equal(cut[:, 3 * row + column], own)


def test_labels_are_a_count_of_the_voxels_of_each_base_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The voxels of a region say which tile they are of; a crop is cut from it where the batch says that it lies."""
    model, seen = voco(), []
    batch = batch_of(model, rows=3)
    demands = model.demands(model.config)
    assert demands.region == (32, 64, 96)
    numbers = torch.zeros(32, 64, 96, dtype=torch.long)
    for k in range(6):
        row, column = divmod(k, 3)
        numbers[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = k
    official = module.position_terms_v2

    def spied(*vectors: torch.Tensor) -> Any:
        seen.append(vectors[-1])
        return official(*vectors)

    monkeypatch.setattr(module, "position_terms_v2", spied)
    model.losses(batch)
    for row in range(3):
        for crop in range(2):
            d, h, w = batch.extra["start_0"][row, crop].tolist()
            assert d == 0
            inside = numbers[:, h : h + 32, w : w + 32]
            counted = torch.bincount(inside.flatten(), minlength=6) / inside.numel()
            torch.testing.assert_close(seen[0][row, crop], counted.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("version", [1, 2])
def test_terms_figure_and_gradients_of_both_versions(version: int) -> None:
    model = voco(version)
    terms = model.losses(batch_of(model, rows=2))
    assert set(terms) == {"overlap", "reg"} | ({"inter"} if version == 2 else set())
    accuracy, count = model.figures["position_accuracy"]
    assert 0 <= accuracy <= 1
    assert count == 4
    sum(value for value, _ in terms.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(("version", "taught"), [(1, {"image_encoder", "pool", "head"}), (2, {"head"})])
def test_the_teacher_moves_at_the_end_of_a_step_alone(version: int, taught: set[str]) -> None:
    model = voco(version)
    assert set(model.teacher.copies) == taught
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    model.losses(batch_of(model, rows=2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())
    with torch.no_grad():
        model.head[0].weight += 1.0
    model.end_step()
    moved = model.teacher["head"][0].weight - before["copies.head.0.weight"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-4, atol=1e-5)


def test_crops_of_another_size_are_resized_and_validation_is_not_random() -> None:
    model = voco(crop=[32, 48, 48], drop_crops=0.5, turned_share=0.9).eval()
    batch = batch_of(model, rows=2)
    first, second = model.losses(batch), model.losses(batch)
    assert all(torch.equal(first[name][0], second[name][0]) for name in first)
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model.losses(batch)["overlap"][0], first["overlap"][0])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="does not compare volumes"):
        method_of({**voco(1).config.model_dump(), "objectives": {"inter": {"weight": 1.0}}})
    for changes, message in (({"version": 3}, "version is 3"), ({"pool": "mean"}, "pool is 'mean'")):
        with pytest.raises(UserError, match=message):
            voco(**changes)
    batch = batch_of(voco(), rows=2)
    batch.extra.clear()
    with pytest.raises(UserError, match="where they lie"):
        voco().losses(batch)
