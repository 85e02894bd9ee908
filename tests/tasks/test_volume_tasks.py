"""Tasks on volumes of a tiny CT phantom: which volumes, what is trained, what is kept and scored, what is refused."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from medvlp.config.data import AugmentConfig, VolumeAugmentConfig
from medvlp.config.finetune import FinetuneConfig
from medvlp.config.load import load_config
from medvlp.config.prepare import PrepareConfig
from medvlp.config.preprocessing import StoredVolumeConfig, VolumePreprocessing
from medvlp.config.task import LabelConfig, TaskConfig
from medvlp.config.volumes import VolumeInputConfig, WindowConfig
from medvlp.data.volume_augment import on_device
from medvlp.data.volume_rows import CLASSES
from medvlp.data.volume_views import part_of, stretched
from medvlp.errors import UserError
from medvlp.io import read_volume
from medvlp.metrics.scoring import SCORINGS
from medvlp.metrics.volume_grounding import cell_auroc, pointing
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare
from medvlp.tasks import TASKS
from medvlp.tasks._fine_tune import seeded
from medvlp.tasks._volume_regions import VolumeRegions
from medvlp.tasks._volume_segmenter import found_classes, segment
from medvlp.tasks.base import Subject
from medvlp.tasks.volume_segmentation import VolumeOutlines
from medvlp.types import Intensity, Volume
from medvlp.zoo import Encoder, load_encoder

HEART = {"name": "heart", "positive": "heart"}
RIGHT = {"name": "right lung", "positive": "right lung", "regions": ["right upper lobe", "right lower lobe"]}
SHORT = {"steps": 4, "validate_every": 2, "batch_size": 2, "warmup_steps": 1, "lr": 0.01}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("ct")
    write_layout("phantom_ct", folder / "raw", 48, seed=2, size=32)
    config = PrepareConfig(source="phantom_ct", root=folder / "raw", out=folder / "store", num_workers=1)
    return Store.open(prepare(config).store)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("random:vit_tiny_patch16_224@32/16")


def task(kind: str = "volume_segmentation", **fields: Any) -> Any:
    given: dict[str, Any] = {"name": "x", "version": 1, "type": kind, "dataset": "phantom_ct"}
    if kind == "volume_segmentation":
        given |= {"labels": [HEART, RIGHT], "fine_tune": SHORT, "volume_segmentation": {"decoder": "linear"}}
    return TASKS.get(kind)(TaskConfig.model_validate(given | fields))


def subject(store: Store, encoder: Encoder) -> Subject:
    return Subject("x", store, lambda: np.zeros((len(store), 1)), lambda: encoder)


class Thresholds(nn.Module):
    """A network whose second class has what lies above the middle of the window."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(pixels), pixels * self.one], dim=1)


def test_a_head_is_trained_and_references_are_the_label_maps(store: Store, encoder: Encoder) -> None:
    given = task()
    samples = given.samples(store)
    head = given.fit(subject(store, encoder), "frozen", samples["train"], samples["val"], 0)
    kept = head.predict(samples["test"])
    assert len(kept.labels) == 2 * len(samples["test"])
    for row, (sample, label) in enumerate(zip(kept.sample_ids, kept.labels, strict=True)):
        place = store.images["image_id"].tolist().index(sample)
        values, names = store.read_labels(int(store.images["index"].iloc[place]))
        wanted = [
            value for value, name in names.items() if name in ({"heart"} if label == "heart" else RIGHT["regions"])
        ]
        assert np.array_equal(kept.masks(row)[0], np.isin(values, wanted))
        assert np.allclose(kept.spacing_mm[row], store.spacing_mm(int(store.images["index"].iloc[place])))
    again = VolumeOutlines.from_frame(kept.to_frame())
    assert all(np.array_equal(*pair) for pair in zip(kept.predicted, again.predicted, strict=True))
    assert [entry["step"] for entry in head.best_params["history"]] == [2, 4]


def test_the_same_seed_trains_the_same_head(store: Store, encoder: Encoder) -> None:
    given = task(volume_segmentation={"decoder": "linear", "spacing_mm": [12.0, 12.0, 12.0], "foreground": 0.5})
    samples = given.samples(store)
    first, second = (
        given.fit(subject(store, encoder), "frozen", samples["train"], samples["val"], 3).predict(samples["test"])
        for _ in range(2)
    )
    assert all(np.array_equal(*pair) for pair in zip(first.predicted, second.predicted, strict=True))


@pytest.mark.parametrize("spacing", [None, (2.0, 3.0, 4.0), (1.0, 3.0, 4.0)])
def test_windows_and_the_stretched_whole_find_what_lies_in_the_volume(spacing: Any) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.random((7, 6, 9)) > 0.5
    array = np.where(coarse.repeat(6, 0).repeat(5, 1).repeat(4, 2), 400, -400).astype(np.int16)
    taken = VolumeInputConfig(size=(16, 16, 16), spacing_mm=spacing, mean=(0.5,), std=(0.5,))
    volume = Volume(array, np.diag([4.0, 3.0, 2.0, 1.0]), (2.0, 3.0, 4.0), Intensity.HU, {})
    found = segment(Thresholds(), volume, taken, 0.5)
    assert found.shape == array.shape
    if spacing == (2.0, 3.0, 4.0):
        assert np.array_equal(found == 1, array > 0)
    else:
        middle = (slice(2, -2),) * 3
        assert ((found == 1) == (array > 0))[middle].mean() > (0.6 if spacing is None else 0.9)


@pytest.mark.parametrize("length", range(9, 19))
def test_voxels_at_the_border_have_the_class_of_their_neighbours(length: int) -> None:
    """A whole number of coarse voxels covers up to half of one less than the volume: that is no background."""
    array = np.full((length, 20, 20), 400, np.int16)
    array[: length // 2] = -400
    taken = VolumeInputConfig(size=(8, 8, 8), spacing_mm=(5.0, 2.0, 2.0), mean=(0.5,), std=(0.5,))
    volume = Volume(array, np.diag([1.0, 1.0, 1.0, 1.0]), (1.0, 1.0, 1.0), Intensity.HU, {})
    found = segment(Thresholds(), volume, taken, 0.5)
    assert (found[-3:] == 1).all()
    assert (found[:3] == 0).all()


def test_a_volume_of_more_voxels_than_memory_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spacing that was written in another unit makes thousands of voxels a side."""
    volume = Volume(np.zeros((8, 8, 8), np.int16), np.diag([9.0, 9.0, 9.0, 1.0]), (9.0,) * 3, Intensity.HU, {})
    taken = VolumeInputConfig(size=(8, 8, 8), spacing_mm=(1, 1, 1))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=18 * 72**3 - 1))
    with pytest.raises(UserError, match="72 x 72 x 72 voxels") as caught:
        segment(Thresholds(), volume, taken, 0.5, "a.nii.gz")
    assert caught.value.where == "a.nii.gz"


def test_a_label_of_two_structures_is_unknown_where_a_map_names_one_of_them() -> None:
    """The other lobe would be taught as background, and asked as if it were not there."""
    named = {"a": RIGHT["regions"], "b": RIGHT["regions"][:1], "c": ["heart"], "d": RIGHT["regions"]}
    rows = [(image, name, int(image != "d")) for image, names in named.items() for name in names]
    made: Any = SimpleNamespace(
        kind="volume",
        dataset="x",
        images=pd.DataFrame({"image_id": list("abcde"), "index": range(5)}),
        masks=pd.DataFrame(rows, columns=["image_id", "label", "voxels"]),
    )
    label = LabelConfig(name="right lung", positive="right lung", regions=(*RIGHT["regions"], "of another edition"))
    found = VolumeRegions(made, [label], "x").marked()[:, 0]
    np.testing.assert_array_equal(found, [1, np.nan, np.nan, 0, np.nan])


def test_an_mr_among_the_ct_is_left_out_or_refused(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    """AMOS22 has both in one store, and windows of HU mean nothing on an MR."""
    shutil.copytree(store.path, tmp_path / "store")
    mixed = Store.open(tmp_path / "store")
    train = np.flatnonzero(mixed.images["split"] == "train")[:3]
    mixed.images.loc[train, ["modality", "intensity"]] = ["MR", "stored"]
    other = set(mixed.images["image_id"].iloc[train])
    every, asked = task(), subject(mixed, encoder)
    samples = every.samples(mixed)
    assert other & set(samples["train"].sample_ids)
    with pytest.raises(UserError, match="not in hu") as caught:
        every.fit(asked, "frozen", samples["train"], samples["val"], 0)
    assert "volume_segmentation.modalities" in caught.value.fix
    config = {"decoder": "linear", "modalities": ["CT"]}
    ct = task(volume_segmentation=config)
    own = ct.samples(mixed)
    assert set(own["train"].sample_ids) == set(samples["train"].sample_ids) - other
    head = ct.fit(asked, "frozen", own["train"], own["val"], 0)
    with pytest.raises(UserError, match="not in hu"):
        head.predict(samples["train"])
    with pytest.raises(UserError, match="modalities"):
        task(volume_segmentation=config | {"modalities": ["PT"]}).samples(mixed)


def test_a_volume_of_other_numbers_is_refused() -> None:
    volume = Volume(np.zeros((8, 8, 8), np.int16), None, None, Intensity.STORED, {})
    taken = VolumeInputConfig(size=(8, 8, 8), spacing_mm=(1, 1, 1))
    with pytest.raises(UserError, match="stored"):
        segment(Thresholds(), volume, taken, 0.5)
    with pytest.raises(UserError, match="distance"):
        segment(Thresholds(), Volume(volume.array, None, None, Intensity.HU, {}), taken, 0.5)


def test_numbers_that_are_not_finite_are_no_background() -> None:
    network = Thresholds()
    network.one.data.fill_(float("nan"))
    shape, taken = (8, 8, 8), VolumeInputConfig(size=(8, 8, 8))
    array = np.zeros(shape, np.int16)
    with pytest.raises(UserError, match="not finite"):
        found_classes(network, part_of(array), shape, stretched(shape, shape), taken, 0.5, torch.device("cpu"))


def test_scores_are_per_volume_and_in_mm() -> None:
    def runs(mask: np.ndarray) -> np.ndarray:
        edges = np.flatnonzero(np.diff(mask.ravel().astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        return np.stack([edges[:, 0], edges[:, 1] - edges[:, 0]], axis=1).ravel()

    truth, moved, empty = (np.zeros((12, 10, 8), bool) for _ in range(3))
    truth[2:6, 2:6, 2:6] = True
    moved[4:8, 2:6, 2:6] = True  # two slices towards the head
    rows = [(truth, truth), (truth, moved), (truth, empty), (empty, empty), (empty, moved)]
    kept = VolumeOutlines(
        [f"v{i}" for i in range(5)],
        [f"p{i}" for i in range(5)],
        ["a"],
        ["a"] * 5,
        [runs(reference) for reference, _ in rows],
        [runs(predicted) for _, predicted in rows],
        np.tile([12, 10, 8], (5, 1)),
        np.tile([5.0, 1.0, 2.0], (5, 1)),
        2.0,
    )
    scoring = SCORINGS.get("volume_segmentation")()
    found = {score.metric: score for score in scoring.scores(kept, {}) if score.label == "a"}
    assert found["dice"].value == pytest.approx((1 + 0.5 + 0) / 3)
    diagonal = np.sqrt(60**2 + 10**2 + 16**2)
    assert found["hd95_mm"].value == pytest.approx((0 + 2 * 5.0 + diagonal) / 3)
    assert found["specificity"].value == pytest.approx(0.5)
    assert found["dice"].n == 3
    assert found["specificity"].n == 2


def test_validation_volumes_can_be_the_test(store: Store) -> None:
    own, other = (
        task(volume_segmentation={"decoder": "linear", "test_split": split}).samples(store) for split in ("test", "val")
    )
    assert list(other["test"].sample_ids) == list(own["val"].sample_ids)
    assert set(other["train"].sample_ids) | set(other["val"].sample_ids) == set(own["train"].sample_ids)
    assert not set(other["train"].patient_ids) & set(other["val"].patient_ids)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([{"name": "x", "positive": "hart"}], "heart"),
        ([HEART, {"name": "again", "positive": "heart"}], "two labels"),
    ],
)
def test_structures_that_do_not_fit_are_refused(store: Store, labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(labels=labels).samples(store)


def test_an_encoder_of_images_is_refused(store: Store) -> None:
    given = task()
    samples = given.samples(store)
    image = load_encoder("random:resnet18@32")
    with pytest.raises(UserError, match="takes images"):
        given.fit(subject(store, image), "frozen", samples["train"], samples["val"], 0)


def test_settings_of_pictures_have_no_effect_on_volumes() -> None:
    with pytest.raises(ValueError, match="no effect on volumes"):
        task(fine_tune=SHORT | {"input_size": 64})


def test_findings_are_fine_tuned_on_volumes(store: Store, encoder: Encoder) -> None:
    label = {"name": "Cardiomegaly", "positive": "Cardiomegaly"}
    how = {"steps": 2, "batch_size": 4, "validate_every": 2, "warmup_steps": 1}
    given = task("classification", labels=[label], fine_tune=how)
    samples = given.samples(store)
    train = samples["train"]
    head = given.fit(subject(store, encoder), "fine_tune", train, train, 0)
    scores = head.predict(samples["test"]).scores
    assert scores.shape == (len(samples["test"]), 1)
    assert ((scores > 0) & (scores < 1)).all()
    for wrong, message in (({"augment": {"flip": True}}, "augment is of pictures"), ({"input_size": 64}, "input_size")):
        other = task("classification", labels=[label], fine_tune=how | wrong)
        with pytest.raises(UserError, match=message):
            other.fit(subject(store, encoder), "fine_tune", train, train, 0)


MOVED = {"kind": "volume", "flip": ["h"], "rot90": True, "shift": 100, "noise": 50}


def test_a_classifier_is_trained_on_changed_volumes_and_asked_on_plain_ones(store: Store, encoder: Encoder) -> None:
    label = {"name": "Cardiomegaly", "positive": "Cardiomegaly"}
    found = {}
    for name, augment in (("plain", {}), ("kind", {"kind": "volume"}), ("moved", MOVED), ("again", MOVED)):
        how = {"steps": 2, "batch_size": 4, "validate_every": 2, "warmup_steps": 1, "augment": augment}
        given = task("classification", labels=[label], fine_tune=how)
        samples = given.samples(store)
        known = samples["train"].labels[:, 0]
        train = samples["train"].take(np.concatenate([np.flatnonzero(known == value)[:4] for value in (0, 1)]))
        found[name] = given.fit(subject(store, encoder), "fine_tune", train, train, 0).predict(samples["test"]).scores
    assert np.array_equal(found["plain"], found["kind"])
    assert np.array_equal(found["moved"], found["again"])
    assert not np.array_equal(found["plain"], found["moved"])


def test_a_segmenter_is_trained_on_changed_volumes_and_their_classes(store: Store, encoder: Encoder) -> None:
    augment = {"kind": "volume", "flip": ["d", "h", "w"]}
    fine_tune = SHORT | {"augment": augment, "batch_size": 4}
    given = task(labels=[HEART], fine_tune=fine_tune)
    samples = given.samples(store)
    train = samples["train"].take(np.arange(4))
    tunable = given.tunable(encoder, store, train, train, 5)
    (batch,) = tunable.loader.epoch(0)
    seen = on_device(batch, "cpu")
    moved = 0
    for row, pixels, classes in zip(seen.index.tolist(), seen.pixels[:, 0], seen.extra[CLASSES], strict=True):
        voxels, values, _ = tunable._window(0, row)
        ways = list(itertools.product((1, -1), repeat=3))
        (way,) = [(d, h, w) for d, h, w in ways if np.array_equal(voxels[::d, ::h, ::w], pixels)]
        assert np.array_equal(values[:: way[0], :: way[1], :: way[2]], classes)
        assert (values == 1).any()
        moved += way != (1, 1, 1)
    assert moved
    found = []
    for how in (augment, augment, {}):
        given = task(labels=[HEART], fine_tune=SHORT | {"augment": how})
        head = given.fit(subject(store, encoder), "frozen", train, samples["val"], 3)
        found.append(head.best_params["history"])
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize(
    ("kind", "fine_tune", "message"),
    [
        ("report_generation", {"augment": {"kind": "volume", "flip": ["w"]}}, "a text names them"),
        ("vqa", {"augment": {"kind": "volume", "flip": ["d"]}}, "a text names them"),
        ("volume_segmentation", {"augment": {"flip": True}}, "is of pictures, and the task of volumes"),
        ("segmentation", {"augment": {"kind": "volume"}}, "is of volumes, and the task of pictures"),
    ],
)
def test_an_augmentation_that_does_not_fit_the_task_is_refused(kind: str, fine_tune: Any, message: str) -> None:
    labels = [] if kind in ("report_generation", "vqa") else [HEART]
    with pytest.raises(ValueError, match=message):
        task(kind, fine_tune=fine_tune, labels=labels)


def test_labels_that_name_a_side_are_not_mirrored(store: Store, encoder: Encoder) -> None:
    for augment in ({"kind": "volume", "flip": ["h"]}, {"kind": "volume", "rot90": True}):
        given = task(fine_tune=SHORT | {"augment": augment})
        samples = given.samples(store)
        if "flip" not in augment:
            given.tunable(encoder, store, samples["train"], samples["val"], 0)
            continue
        with pytest.raises(UserError, match="the label 'right lung' names one"):
            given.tunable(encoder, store, samples["train"], samples["val"], 0)


def test_another_kind_of_augmentation_takes_the_place_of_the_tasks() -> None:
    label = {"name": "Cardiomegaly", "positive": "Cardiomegaly"}
    own = {"fine_tune": {"augment": {"kind": "volume", "noise": 5}}}
    given = task("classification", labels=[label], per_encoder={"x": own}).config
    assert given.settings_of("x").fine_tune.augment == VolumeAugmentConfig(noise=5)
    assert given.settings_of("y").fine_tune.augment == AugmentConfig()
    tree = ["run.dir=r", "data.store=s", "encoder=e", "train.augment.noise=5", "train.augment.kind=volume"]
    found = load_config("configs/finetune/classification.yaml", tree, FinetuneConfig)
    assert found.train.augment == VolumeAugmentConfig(noise=5)


def test_retrieval_searches_among_a_number_of_studies(store: Store) -> None:
    everything, few = (task("retrieval", retrieval=how).samples(store)["test"] for how in ({}, {"pool": 3}))
    assert len(few) == 3
    assert set(few.sample_ids) < set(everything.sample_ids)
    with pytest.raises(UserError, match="searches among 500"):
        task("retrieval", retrieval={"pool": 500}).samples(store)


def test_grounding_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    cells, inside = rng.integers(0, 5, (4, 5, 6)).astype(float), rng.random((4, 5, 6)) < 0.2
    assert cell_auroc(cells, inside) == pytest.approx(roc_auc_score(inside.ravel(), cells.ravel()))
    assert pointing(cells, inside) == pytest.approx(inside[cells == cells.max()].mean())
    unseen = np.where(rng.random(cells.shape) < 0.3, np.nan, cells)
    assert cell_auroc(unseen, inside) == pytest.approx(
        roc_auc_score(inside.ravel(), np.nan_to_num(unseen, nan=-1.0).ravel())
    )
    assert pointing(np.full(cells.shape, np.nan), inside) == 0
    assert cell_auroc(np.full(cells.shape, np.nan), inside) == 0.5
    hidden = np.where(inside, np.nan, cells)
    assert cell_auroc(hidden, inside) == 0, "what is not seen is missed, and does not drop out"
    assert np.isnan(cell_auroc(cells, np.zeros_like(inside)))


class Looking(Encoder):
    """An encoder of volumes that sees evidence where the voxels are dense."""

    def __init__(self) -> None:
        self.kind = "volume"
        self.preprocessing = VolumePreprocessing(input=VolumeInputConfig(size=(32, 32, 32)))

    def check_store(self, store: Store) -> None:
        return None

    def token_heat_maps(self, pixels: np.ndarray, texts: Any) -> torch.Tensor:
        cubes = torch.from_numpy(pixels).double()[:, None]
        return nn.functional.avg_pool3d(cubes, 4).expand(-1, len(texts), -1, -1, -1)


def heart_voxels(store: Store, row: int, _: Any) -> np.ndarray:
    labels, names = store.read_labels(int(store.images["index"].iloc[row]))
    return (labels == next(value for value, name in names.items() if name == "heart")).astype(np.int16)


def test_maps_of_tokens_lie_where_they_were_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvlp.tasks.volume_grounding.stored_input_voxels", heart_voxels)
    given = task("volume_grounding", labels=[HEART])
    samples = given.samples(store)
    kept = given.fit(subject(store, Looking()), "zero_shot", samples["train"], samples["val"], 0).predict(
        samples["test"]
    )
    scores = {score.metric: score for score in SCORINGS.get("volume_grounding")().scores(kept, {})}
    assert scores["pointing"].value == 1
    assert scores["cell_auroc"].value > 0.97
    assert scores["pointing"].chance == pytest.approx(kept.inside.mean(), rel=0.3)


def test_reports_and_questions_are_answered_from_volumes(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    labels = [{"name": name, "positive": name} for name in ("Cardiomegaly", "Pleural effusion", "Emphysema")]
    how = {"epochs": 1, "batch_size": 4, "warmup_steps": 1}
    vqa = task("vqa", labels=labels, vqa={"questions": "labels", "width": 16, "heads": 2, "layers": 1}, fine_tune=how)
    samples = vqa.samples(store)
    kept = vqa.fit(subject(store, encoder), "frozen", samples["train"], samples["val"], 0).predict(samples["test"])
    assert len(kept.sample_ids) == len(samples["test"])


@pytest.mark.parametrize("kind", ["vqa", "report_generation"])
def test_answers_and_reports_are_learnt_from_changed_volumes(store: Store, encoder: Encoder, kind: str) -> None:
    labels = [{"name": name, "positive": name} for name in ("Cardiomegaly", "Pleural effusion")]
    fields: dict[str, Any] = {"labels": labels, "vqa": {"questions": "labels", "width": 16, "heads": 2, "layers": 1}}
    if kind == "report_generation":
        fields = {"reports": {"decoder": {"width": 16, "hidden": 16, "layers": 1, "heads": 2, "memory_heads": 2}}}
    losses, kept = {}, {}
    for name, augment in (("plain", {}), ("kind", {"kind": "volume"}), ("moved", MOVED | {"flip": []})):
        how = {"batch_size": 4, "freeze_encoder": True, "augment": augment}
        given = task(kind, fine_tune=how, **fields)
        samples = given.samples(store)
        with seeded(1, "cpu"):
            tunable = given.tunable(encoder, store, samples["train"], samples["val"], 3)
        tunable.network.eval()
        batch = next(iter(tunable.loader.epoch(0)))
        ((losses[name], _),) = tunable.terms(tunable.network, batch).values()
        kept[name] = tunable.kept
    assert losses["plain"].item() == pytest.approx(losses["kind"].item(), rel=1e-5)
    assert losses["plain"].item() != pytest.approx(losses["moved"].item(), rel=1e-5)
    assert kept["moved"] is None
    assert kept["kind"] is not None, "volumes that do not change pass a frozen encoder once"


@pytest.mark.data
@pytest.mark.parametrize("name", ["nifti/CT_AVM.nii.gz", "nifti/CT_pitch.nii.gz", "ct_series_abdomen_3slice"])
def test_real_volumes_are_segmented_on_their_own_voxels(name: str, test_data: Path) -> None:
    volume = read_volume(test_data / name, StoredVolumeConfig(intensity="hu"))
    assert volume.spacing_mm is not None
    step = tuple(2 * spacing for spacing in volume.spacing_mm)
    for spacing in (None, step):
        taken = VolumeInputConfig(size=(16, 64, 64), spacing_mm=spacing, windows=(WindowConfig(centre=-300, width=20),))
        found = segment(Thresholds(), volume, taken, 0.25)
        assert found.shape == volume.array.shape
        assert ((found == 1) == (volume.array > -300)).mean() > 0.8
