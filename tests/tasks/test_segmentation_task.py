"""Segmentation on a tiny phantom: which images, what is drawn, what training keeps, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pandas as pd
import phantom_store
import pytest
import torch
from torch import nn

from medvlp.config.load import load_config
from medvlp.config.preprocessing import ModelInputConfig, StoredImageConfig
from medvlp.config.segmentation import SegmentationConfig
from medvlp.config.task import TaskConfig
from medvlp.errors import UserError
from medvlp.io.stored import stored_transform
from medvlp.store.array_store import Store
from medvlp.tasks import TASKS
from medvlp.tasks._regions import RegionReader, benchx_region, masks_of, runs_of
from medvlp.tasks._segmenter import predicted_masks
from medvlp.tasks.base import Samples, Subject
from medvlp.tasks.segmentation import Outlines
from medvlp.zoo import Encoder, load_encoder

EFFUSION = {"name": "Effusion", "positive": "Pleural Effusion", "regions": ["effusion"]}
LESION = {"name": "Lesion", "positive": "Lung Lesion", "regions": ["nodule", "mass"]}
SHORT = {"steps": 4, "validate_every": 2, "batch_size": 4, "warmup_steps": 1, "lr": 0.003, "schedule": "linear"}
SMALL = {"channels": 16}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(phantom_store.make_store(tmp_path_factory.mktemp("phantom")))


@pytest.fixture(scope="module")
def resnet() -> Encoder:
    return load_encoder("random:resnet18@64")


def task(segmentation: dict[str, Any] | None = None, **fields: Any) -> Any:
    given: dict[str, Any] = {"name": "x", "version": 1, "type": "segmentation", "dataset": "phantom"}
    given |= {"labels": [EFFUSION, LESION], "views": ["PA", "AP"], "fine_tune": SHORT}
    config = TaskConfig.model_validate(given | {"segmentation": SMALL | (segmentation or {})} | fields)
    return TASKS.get("segmentation")(config)


def subject(store: Store, encoder: Encoder | None) -> Subject:
    return Subject("x", store, lambda: np.zeros((len(store), 0)), None if encoder is None else lambda: encoder)


def fitted(
    given: Any, store: Store, encoder: Encoder | None, protocol: str = "frozen"
) -> tuple[Any, dict[str, Samples]]:
    samples = given.samples(store)
    return given.fit(subject(store, encoder), protocol, samples["train"], samples["val"], 0), samples


def drawn(store: Store, names: set[str]) -> set[str]:
    table = store.masks
    return set(table["image_id"][table["label"].isin(names) & (table["pixels"] > 0)])


def test_an_image_without_a_mask_has_no_structure_unless_its_label_says_so(store: Store) -> None:
    frame = store.samples().set_index("image_id")
    for split, samples in task().samples(store).items():
        of_split = frame[(frame["split"] == split) & frame["view"].isin(["PA", "AP"])]
        for k, (names, label) in enumerate([({"effusion"}, "Pleural Effusion"), ({"nodule", "mass"}, "Lung Lesion")]):
            shown = drawn(store, names)
            for image, value in zip(samples.sample_ids, samples.labels[:, k], strict=True):
                said = frame.loc[image, f"label:{label}"]
                assert value == 1 if image in shown else np.isnan(value) if said == 1 else value == 0
        known = {
            image for image, row in zip(samples.sample_ids, samples.labels, strict=True) if not np.isnan(row).all()
        }
        assert known == set(samples.sample_ids) <= set(of_split.index)
    only = task({"unmarked": "ignore"}).samples(store)
    assert set(np.unique(only["train"].labels[~np.isnan(only["train"].labels)])) == {1.0}


def test_masks_of_one_label_are_united_and_read_by_row(store: Store) -> None:
    given = task()
    reader = RegionReader(store, given.config.labels, "masks", None, "x")
    rows = np.arange(len(store.images))[::-1][:20]
    found = reader(rows)
    for i, row in enumerate(rows):
        image = store.images["image_id"].iloc[row]
        for k, names in enumerate([{"effusion"}, {"nodule", "mass"}]):
            own = store.masks[(store.masks["image_id"] == image) & store.masks["label"].isin(names)]
            wanted = np.zeros((64, 64), bool)
            for mask in store.read_masks(own["index"].to_numpy()):
                wanted |= mask != 0
            assert np.array_equal(found[i, k] != 0, wanted)


def test_runs_and_masks_are_the_same_thing() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((40, 9, 9)) < rng.random((40, 1, 1))
    masks[0], masks[1] = False, True
    runs = [runs_of(mask) for mask in masks]
    assert np.array_equal(masks_of(runs, 9), masks)
    assert runs[0].tolist() == []
    assert runs[1].tolist() == [0, 81]


@pytest.mark.parametrize("aspect", ["pad", "squash"])
def test_boxes_are_drawn_as_the_scripts_of_benchx_draw_them(aspect: str) -> None:
    config = StoredImageConfig.model_validate({"size": 64, "aspect": aspect})
    rng = np.random.default_rng(1)
    scale_y, scale_x, offset_y, offset_x = stored_transform(200, 160, config)
    for _ in range(20):
        x, y, width, height = rng.uniform(0, 80, 4)
        box = {"x": x, "y": y, "width": width, "height": height}
        left, top = int(x * scale_x + offset_x), int(y * scale_y + offset_y)
        size, corners = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
        for row in range(64):
            for column in range(64):
                size[row, column] = top <= row < top + int(height * scale_y) and left <= column < left + int(
                    width * scale_x
                )
                corners[row, column] = top <= row <= int((y + height) * scale_y + offset_y) and left <= column <= int(
                    (x + width) * scale_x + offset_x
                )
        assert np.array_equal(benchx_region(box, 200, 160, config, "size"), size)
        for shape in ("rectangle", "ellipse"):
            assert np.array_equal(benchx_region(box | {"shape": shape}, 200, 160, config, "corners"), corners)
    triangle = {"shape": "polygon", "points": [[0, 0], [100, 0], [0, 100]], "x": 0, "y": 0, "width": 100, "height": 100}
    found = benchx_region(triangle, 200, 160, config, "corners")
    assert found[0 + int(offset_y), int(offset_x)]
    assert not found[-1, -1]


def test_boxes_may_be_the_target(store: Store) -> None:
    label = {"name": "Effusion", "positive": "Pleural Effusion"}
    given = task({"target": "boxes"}, labels=[label])
    samples = given.samples(store)["train"]
    reader = RegionReader(store, given.config.labels, "boxes", None, "x")
    boxes = {
        image: json.loads(text or "[]")
        for image, text in zip(store.samples()["image_id"], store.samples()["boxes"], strict=True)
    }
    for i, image in enumerate(samples.sample_ids):
        own = [box for box in boxes[image] if box["image_id"] == image and box["label"] == "Pleural Effusion"]
        assert (samples.labels[i, 0] == 1) == bool(own)
        area = reader(samples.rows[i : i + 1])[0, 0].sum()
        assert (area > 0) == bool(own)
        if len(own) == 1:
            assert area == pytest.approx(own[0]["width"] * own[0]["height"], rel=0.2)


@pytest.mark.parametrize(("protocol", "decoder"), [("frozen", "upernet"), ("fine_tune", "unet")])
def test_a_head_is_trained_and_its_masks_lie_on_the_stored_square(
    store: Store, resnet: Encoder, protocol: str, decoder: str
) -> None:
    before = copy.deepcopy(resnet.image_tower.state_dict())
    given = task({"decoder": decoder})
    head, samples = fitted(given, store, resnet, protocol)
    found = head.predict(samples["test"])
    assert all(torch.equal(value, before[name]) for name, value in resnet.image_tower.state_dict().items())
    known = [
        (image, given.config.labels[k].name)
        for image, row in zip(samples["test"].sample_ids, samples["test"].labels, strict=True)
        for k in np.flatnonzero(~np.isnan(row))
    ]
    assert list(zip(found.sample_ids, found.labels, strict=True)) == known
    reference, predicted = found.masks(slice(None))
    assert reference.shape == predicted.shape == (len(known), 64, 64)
    shown = drawn(store, {"effusion"})
    assert [bool(mask.any()) for mask, (_, name) in zip(reference, known, strict=True) if name == "Effusion"] == [
        image in shown for image, name in known if name == "Effusion"
    ]
    history = head.best_params["history"]
    assert [entry["step"] for entry in history] == [2, 4]
    assert head.best_params["val_dice"] == max(entry["val_dice"] for entry in history)
    again, _ = fitted(given, store, resnet, protocol)
    pd.testing.assert_frame_equal(again.predict(samples["test"]).to_frame(), found.to_frame())


def test_a_plain_transformer_sees_another_size_than_it_was_made_for(store: Store) -> None:
    given = task({"select": "pooled_dice"}, fine_tune=SHORT | {"input_size": 96})
    head, samples = fitted(given, store, load_encoder(bench_store.RANDOM))
    assert head.predict(samples["val"]).side == 64
    assert 0 <= head.best_params["val_pooled_dice"] <= 1


def test_training_learns_where_the_structure_is(store: Store, resnet: Encoder) -> None:
    """Two dozen steps on a bright square, which any features show."""
    made = Bright(store)
    given = task(labels=[EFFUSION], fine_tune=SHORT | {"steps": 24, "validate_every": 8, "lr": 0.01})
    head, samples = fitted(given, made, resnet)
    assert head.best_params["val_dice"] > 0.7
    found = head.predict(samples["test"])
    reference, predicted = found.masks(slice(None))
    there = reference.any(axis=(1, 2))
    common = (reference & predicted).sum(axis=(1, 2))
    total = (reference.sum(axis=(1, 2)) + predicted.sum(axis=(1, 2)))[there]
    assert (2 * common[there] / total).mean() > 0.7


class Bright(Store):
    """A store whose effusions are white and everything else black."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.path)

    def read(self, indices: np.ndarray) -> np.ndarray:
        position = {int(index): row for row, index in enumerate(self.images["index"])}
        pixels = np.zeros((len(indices), 64, 64), np.uint8)
        for out, index in zip(pixels, np.asarray(indices), strict=True):
            image = self.images["image_id"].iloc[position[int(index)]]
            own = self.masks[(self.masks["image_id"] == image) & (self.masks["label"] == "effusion")]
            for mask in self.read_masks(own["index"].to_numpy()):
                out[mask != 0] = 255
        return pixels


def test_predictions_survive_their_table(store: Store, resnet: Encoder, tmp_path: Path) -> None:
    head, samples = fitted(task(), store, resnet)
    found = head.predict(samples["test"])
    found.to_frame().to_parquet(tmp_path / "x.parquet", index=False)
    again = Outlines.from_frame(pd.read_parquet(tmp_path / "x.parquet"))
    assert (again.sample_ids, again.labels, again.label_names) == (
        found.sample_ids,
        found.labels,
        ["Effusion", "Lesion"],
    )
    assert (again.side, again.tolerance) == (64, (2.0, 2.0))
    for name in ("reference", "predicted"):
        assert [runs.tolist() for runs in getattr(again, name)] == [runs.tolist() for runs in getattr(found, name)]
    assert np.isnan(again.spacing_mm).all(), "PNG files say no spacing"
    empty = dataclasses.replace(
        found, sample_ids=[], patient_ids=[], labels=[], reference=[], predicted=[], spacing_mm=np.zeros((0, 2))
    )
    assert Outlines.from_frame(empty.to_frame()).labels == []


def test_the_spacing_is_that_of_the_stored_square(store: Store) -> None:
    made = Store.open(store.path)
    made.images["spacing_row_mm"], made.images["spacing_col_mm"] = 0.5, 0.25
    made.images["height"], made.images["width"] = 128, 64  # padded to 128, then halved
    head, samples = fitted(task(), made, None)
    assert np.unique(head.predict(samples["test"]).spacing_mm, axis=0).tolist() == [[1.0, 0.5]]


def test_the_location_prior_is_where_the_structure_often_is(store: Store) -> None:
    given = task(labels=[EFFUSION])
    head, samples = fitted(given, store, None)
    found = head.predict(samples["test"])
    _, predicted = found.masks(slice(None))
    assert (predicted == predicted[0]).all()
    reader = RegionReader(store, given.config.labels, "masks", None, "x")
    train, val = (reader(samples[split].rows)[samples[split].labels[:, 0] == 1, 0] != 0 for split in ("train", "val"))
    share = train.mean(axis=0)
    best = -1.0
    for level in np.arange(1, 20) / 20:
        guess = share > level
        dice = np.mean([2 * (guess & mask).sum() / max(guess.sum() + mask.sum(), 1) for mask in val])
        if dice > best:
            best, wanted = dice, guess
    assert np.array_equal(predicted[0], wanted)
    assert wanted.any()


class Pointwise(nn.Module):
    """Logits from each pixel alone."""

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([pixels - 0.3, 0.1 - pixels], 1)]


def test_sliding_windows_cover_the_square() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (3, 50, 50)).astype(np.uint8)
    taken = ModelInputConfig(size=24, mean=(0.5,), std=(0.25,))
    given = {"inference": "sliding", "overlap": 0.25}
    found = predicted_masks(Pointwise(), stored, taken, SegmentationConfig.model_validate(given), torch.device("cpu"))
    value = (stored / 255 - 0.5) / 0.25
    assert np.array_equal(found[:, 0], value > 0.3)
    assert np.array_equal(found[:, 1], value < 0.1)
    exclusive = SegmentationConfig.model_validate(given | {"classes": "exclusive"})
    found = predicted_masks(Pointwise(), stored, taken, exclusive, torch.device("cpu"))
    assert np.array_equal(found[:, 0], 0.1 - value > value - 0.3)


def test_windows_in_training_are_as_large_as_in_inference(store: Store, resnet: Encoder) -> None:
    given = task({"inference": "sliding"}, fine_tune=SHORT | {"input_size": 32, "augment": {"crop_scale": [0.8, 1.0]}})
    samples = given.samples(store)
    tunable = given.tunable(resnet, store, samples["train"], samples["val"], 0)
    assert tunable.loader.augment.crop_scale == (0.2, 0.25)
    given = task({"inference": "sliding"}, fine_tune=SHORT | {"input_size": 64})
    with pytest.raises(UserError, match="do not slide over stored squares of 64"):
        given.tunable(resnet, store, samples["train"], samples["val"], 0)


@pytest.mark.parametrize(
    ("labels", "segmentation", "message", "fix"),
    [
        ([EFFUSION | {"regions": ["efusion"]}], {}, "no masks named 'efusion'. Did you mean 'effusion'", "`regions`"),
        ([EFFUSION | {"regions": ["Edemas"]}], {"target": "boxes"}, "no boxes named 'Edemas'", "`regions`"),
    ],
)
def test_masks_of_other_names_are_refused(
    store: Store, labels: list[Any], segmentation: dict[str, Any], message: str, fix: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        task(segmentation, labels=labels).samples(store)
    assert fix in caught.value.fix


def test_a_store_without_masks_is_refused(tmp_path: Path) -> None:
    store = Store.open(bench_store.make_store(tmp_path, patients=4, test_patients=2))
    given = task(labels=[EFFUSION | {"positive": "Effusion"}], views=[], dataset="nih_chestxray14")
    with pytest.raises(UserError, match="The store has no masks") as caught:
        given.samples(store)
    assert "target: boxes" in caught.value.fix


def test_a_split_without_a_structure_is_refused(store: Store) -> None:
    made = Store.open(store.path)
    of_test = set(made.images["image_id"][made.images["split"] == "test"])
    made.masks.loc[made.masks["image_id"].isin(of_test), "pixels"] = 0
    with pytest.raises(UserError, match="No image of the split 'test' shows"):
        task().samples(made)
    given = task()
    samples = given.samples(store)
    none = samples["train"].take(np.flatnonzero((samples["train"].labels != 1).all(axis=1))[:3])
    with pytest.raises(UserError, match="None of the 3 training images"):
        given.fit(subject(store, None), "frozen", none, samples["val"], 0)


def test_exclusive_labels_must_not_overlap(store: Store, resnet: Encoder) -> None:
    twice = [EFFUSION, EFFUSION | {"name": "Fluid"}]
    with pytest.raises(UserError, match="Masks of two labels of the task overlap in the image"):
        fitted(task({"classes": "exclusive"}, labels=twice), store, resnet)
    head, samples = fitted(task({"classes": "exclusive", "dice": 0.0}, labels=[EFFUSION]), store, resnet)
    assert set(head.predict(samples["val"]).labels) == {"Effusion"}


def test_numbers_that_are_not_finite_end_the_training(store: Store) -> None:
    broken = load_encoder("random:resnet18@64")
    with torch.no_grad():
        broken.image_tower.backbone.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        fitted(task(), store, broken)


def test_an_encoder_without_a_grid_is_refused(store: Store, resnet: Encoder) -> None:
    blind = copy.copy(resnet)
    blind.image_tower = nn.Flatten()
    with pytest.raises(UserError, match="The features of 'Flatten' have no grid"):
        fitted(task(), store, blind)


def test_batches_of_one_image_are_refused(store: Store, resnet: Encoder) -> None:
    with pytest.raises(UserError, match="A batch has a single image"):
        fitted(task(fine_tune=SHORT | {"batch_size": 1}), store, resnet)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cross_entropy": 0, "dice": 0}, "nothing would be trained"),
        ({"mean": 0.5}, "give mean and std"),
        ({"legacy_boxes": "size"}, "no effect on masks"),
        ({"overlap": 0.3}, "overlap has no effect"),
        ({"decoder": "unet", "auxiliary": 0.1}, "auxiliary has no effect"),
    ],
)
def test_settings_without_effect_are_mistakes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationConfig.model_validate(fields)


BENCHX = {
    "siim_acr": (1e-3, "masks", None),
    "rsna_pneumonia": (1e-4, "boxes", "size"),
    "object_cxr": (1e-3, "boxes", "corners"),
    "tbx11k": (1e-3, "boxes", "size"),
}


@pytest.mark.parametrize("name", list(BENCHX))
def test_the_benchx_tasks_are_its_mmsegmentation_configs(name: str) -> None:
    lr, target, boxes = BENCHX[name]
    config = load_config(f"benchmarks/tasks/benchx_{name}_segmentation.yaml", (), TaskConfig)
    assert (config.name, config.dataset, config.type) == (f"benchx_{name}_segmentation", name, "segmentation")
    found, train = config.segmentation, config.fine_tune
    assert (found.target, found.legacy_boxes, found.unmarked) == (target, boxes, "empty")
    assert (found.decoder, found.channels, found.level_norm, found.legacy_drop_path) == ("upernet", None, False, 0.1)
    assert (found.mean, found.std, found.inference, found.classes) == (0.4978, 0.2449, "whole", "exclusive")
    assert (found.cross_entropy, found.dice, found.auxiliary, found.select) == (1.0, 0.0, 0.4, "pooled_dice")
    assert (train.lr, train.weight_decay, train.batch_size, train.input_size) == (lr, 0.05, 8, 512)
    assert (train.steps, train.validate_every, train.warmup_steps, train.schedule) == (20_000, 2_000, 1_500, "linear")
    assert (train.clip_norm, train.ema, train.patience) == (None, None, None)
    neutral = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "brightness": 0.0, "contrast": 0.0, "flip": True}
    assert train.augment == type(train.augment).model_validate(neutral)
    right = load_config(f"benchmarks/tasks/{name}_segmentation.yaml", (), TaskConfig)
    assert right.labels == config.labels
    assert (right.segmentation.legacy_boxes, right.segmentation.legacy_drop_path) == (None, 0.0)
    assert right.segmentation.mean is None


def test_the_rates_of_benchx_rise_and_fall_in_lines() -> None:
    from medvlp.tasks._fine_tune import rate

    found = [rate(step, 1500, 20_000, "linear") for step in (0, 749, 1499, 1500, 10_750, 19_999)]
    assert found == pytest.approx([1 / 1500, 0.5, 1.0, 1.0, 0.5, 1 / 18_500])


def test_phantom_segmentation_names_masks_that_the_phantom_has(store: Store) -> None:
    config = load_config("benchmarks/tasks/phantom_segmentation.yaml", (), TaskConfig)
    reader = RegionReader(store, config.labels, "masks", None, config.name)
    there, seen = reader.marked()
    assert (there == seen).all()
    named = {name for label in config.labels for name in label.regions}
    assert named == set(store.masks["label"]) - {"emphysema", "fibrosis", "fracture"}
    assert {f"label:{label.positive}" for label in config.labels} <= set(store.studies.columns)
