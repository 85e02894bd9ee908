"""Pre-training on volumes: the same texts, labels and tables as on images, and pixels that belong to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_ct
import tiny_store
import torch

from medvlp.config.load import load_config
from medvlp.config.train import PretrainConfig
from medvlp.data.demands import Demands, View, VolumeView
from medvlp.data.pretraining import load_data
from medvlp.data.texts import report_text
from medvlp.data.volume_augment import on_device
from medvlp.data.volume_views import stretched
from medvlp.errors import UserError
from medvlp.knowledge.books import anatomy_names
from medvlp.store.array_store import Store
from medvlp.text.sides import swap_sides

FLIP: dict[str, Any] = {"augment": {"flip": ["w"]}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ct.make_store(tmp_path_factory.mktemp("ct"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_store.make_store(tmp_path_factory.mktemp("tiny"))


def loaded(config: PretrainConfig, folder: Path, demands: Demands, **options: Any) -> Any:
    return load_data(config, tokenizer_folder=folder / "tokenizer", demands=demands, **options)


def batches(store: Path, folder: Path, demands: Demands, **changes: Any) -> list[Any]:
    config = tiny_ct.config(store, folder, **changes)
    return list(loaded(config, folder, demands).loader(config).epoch(0))


def test_a_text_and_labels_belong_to_their_volume(store: Path, tmp_path: Path) -> None:
    opened = Store.open(store)
    samples = opened.samples()
    seen = 0
    for batch in batches(store, tmp_path, Demands(labels=True)):
        assert batch.pixels.dtype == torch.int16
        assert batch.pixels.shape[1:] == (1, 16, 24, 24)
        for i, row in enumerate(batch.index.tolist()):
            assert batch.text.texts[i] == report_text(samples["report"][row], ("findings", "impression"))
            labels = [samples[f"label:{name}"][row] for name in opened.label_names]
            assert np.array_equal(batch.labels[i], np.array(labels, np.float32), equal_nan=True)
            index = int(samples["index"][row])
            grid = stretched(opened.shape(index), (16, 24, 24))
            assert np.allclose(batch.extra["affine"][i], grid.affine(opened.affine(index)))
            seen += 1
    assert seen >= 6


def test_a_mirrored_volume_has_mirrored_texts_triplets_and_voxels(store: Path, tmp_path: Path) -> None:
    demands = Demands(triplets=True)
    plain = {int(b.index[i]): (b, i) for b in batches(store, tmp_path / "a", demands) for i in range(len(b.index))}
    left, right = (anatomy_names().index(name) for name in ("left_pleural", "right_pleural"))
    both = set()
    for drawn in batches(store, tmp_path / "b", demands, data=FLIP):
        batch = on_device(drawn, "cpu")
        for i, row in enumerate(batch.index.tolist()):
            before, k = plain[row]
            mirrored = not torch.equal(batch.pixels[i], before.pixels[k])
            both.add(mirrored)
            assert torch.equal(batch.pixels[i], before.pixels[k].flip(-1) if mirrored else before.pixels[k])
            text = before.text.texts[k]
            assert batch.text.texts[i] == (swap_sides(text) if mirrored else text)
            place = right if mirrored else left
            assert torch.equal(batch.triplets[i, place], before.triplets[k, left])
    assert both == {True, False}


def test_validation_is_in_order_and_without_changes(store: Path, tmp_path: Path) -> None:
    config = tiny_ct.config(store, tmp_path, data=FLIP, train={"batch_size": 2})
    data = loaded(config, tmp_path, Demands())
    rows = [row for batch in data.loader(config, validation=True).epoch(3) for row in batch.index.tolist()]
    assert rows == data.val[: len(rows)].tolist()
    assert rows
    (batch, *_) = data.loader(config, validation=True).epoch(0)
    assert set(batch.extra) == {"affine"}


@pytest.mark.parametrize("world_size", [2])
def test_ranks_workers_and_resume_change_nothing(store: Path, tmp_path: Path, world_size: int) -> None:
    changes: dict[str, Any] = {
        "data": {"augment": {"flip": ["w"], "rotate_degrees": [5, 0, 0], "shuffle_sentences": True}}
    }
    demands = Demands(region=(16, 24, 24), volume_views=(VolumeView("inside", (8, 8, 8), 2),), organs=("heart",))
    config = tiny_ct.config(store, tmp_path, **changes, train={"batch_size": 4})
    threaded = tiny_ct.config(store, tmp_path, data=changes["data"] | {"num_workers": 4}, train={"batch_size": 4})
    data = loaded(config, tmp_path, demands)
    whole = list(data.loader(config).epoch(1))
    ranks = [list(data.loader(threaded, rank=rank, world_size=world_size).epoch(1)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        assert batch.text_augmented.texts == [text for part in parts for text in part.text_augmented.texts]
        assert torch.equal(batch.views[0], torch.cat([part.views[0] for part in parts]))
        for name, value in batch.extra.items():
            assert torch.equal(value, torch.cat([part.extra[name] for part in parts]))
    resumed = next(iter(data.loader(config).epoch(1, 1)))
    assert torch.equal(resumed.pixels, whole[1].pixels)
    assert {"affine", "augment_grid", "augment_values", "start_0", "affine_0", "organs"} == set(resumed.extra)


def test_groups_of_volumes(store: Path, tmp_path: Path) -> None:
    config = tiny_ct.config(store, tmp_path, train={"batch_size": 4})
    data = loaded(config, tmp_path, Demands(group_size=2))
    reports = Store.open(store).samples()["report"]
    for batch in data.loader(config).epoch(0):
        assert batch.pixels.shape == (4, 1, 16, 24, 24)
        assert batch.groups.tolist() == [0, 0, 1, 1]
        assert set(batch.index.tolist()) <= set(data.train.tolist())
    assert reports.notna().all()


def test_what_does_not_fit_is_refused(store: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="store holds volumes, and the method takes images"):
        loaded(tiny_store.config(store, tmp_path, "clip"), tmp_path, Demands())
    with pytest.raises(UserError, match="store holds images, and the method takes volumes"):
        loaded(tiny_ct.config(images, tmp_path), tmp_path, Demands())
    for demands in (Demands(views=(View(32),)), Demands(study_images=2), Demands(image_scale=2)):
        with pytest.raises(UserError, match="not of the kind 'volume'"):
            loaded(tiny_ct.config(store, tmp_path), tmp_path, demands)
    with pytest.raises(UserError, match="not of the kind 'image'"):
        loaded(tiny_store.config(images, tmp_path, "clip"), tmp_path, Demands(region=(8, 8, 8)))
    stored = tiny_ct.TOWER | {"input": {"size": [16, 24, 24], "intensity": "stored"}}
    with pytest.raises(UserError, match="are not in stored"):
        loaded(tiny_ct.config(store, tmp_path, method={"image": stored}), tmp_path, Demands())


def test_the_augmentation_is_of_the_kind_of_the_images(store: Path, images: Path, tmp_path: Path) -> None:
    assert tiny_ct.config(store, tmp_path).data.augment.kind == "volume"
    assert tiny_store.config(images, tmp_path).data.augment.kind == "image"
    base = tiny_ct.config(store, tmp_path).resolved()
    given = {**base, "data": {**base["data"], "augment": {"flipp": ["w"]}}}
    with pytest.raises(UserError, match=r"data\.augment\.flipp is not a key here\. Did you mean 'flip'") as caught:
        load_config(None, [], PretrainConfig, given)
    assert "rot90" in caught.value.what
    given["data"]["augment"] = {"brightness": 0.2}
    with pytest.raises(UserError, match=r"data\.augment\.brightness is not a key here"):
        load_config(None, [], PretrainConfig, given)
    assert PretrainConfig.model_validate(base).sha256() == tiny_ct.config(store, tmp_path).sha256()
