"""The audit, on a made data set with leaks of every kind planted in it, and on real radiographs."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.sources.phantom.study import generate_study
from medvlp.store import duplicates
from medvlp.store.audit import audit
from medvlp.store.audit_report import PREDICTORS
from medvlp.store.duplicates import hamming_pairs, near_identical
from medvlp.store.prepare import prepare
from medvlp.store.shortcuts import MIN_PER_CLASS, probes, weighted_auroc

COLUMNS = [
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
]
TAIL = ["OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"]


class Raw:
    """A tiny data set in the layout of ChestX-ray14, with random blobs as images."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.rng = root, np.random.default_rng(seed)
        self.rows: list[list[object]] = []
        self.train: list[str] = []
        self.test: list[str] = []
        (root / "images").mkdir(parents=True)

    def picture(self, brightness: float = 110) -> np.ndarray:
        noise = cv2.GaussianBlur(self.rng.standard_normal((96, 96)), (0, 0), 6)
        fine = cv2.GaussianBlur(self.rng.standard_normal((96, 96)), (0, 0), 1.5)
        image = brightness + 30 * noise / noise.std() + 8 * fine / fine.std()
        return np.clip(image, 0, 255).astype(np.uint8)

    def add(self, patient: int, split: str, finding: str, image: np.ndarray, view: str = "PA") -> str:
        name = f"{patient:08d}_{len(self.rows):03d}.png"
        Image.fromarray(image).save(self.root / "images" / name)
        self.rows.append([name, finding, 0, patient, 50, "M", view, 96, 96, 0.1, 0.1])
        (self.test if split == "test" else self.train).append(name)
        return name.removesuffix(".png")

    def prepare(self, out: Path) -> Path:
        pd.DataFrame(self.rows, columns=COLUMNS + TAIL).to_csv(self.root / "Data_Entry_2017_v2020.csv", index=False)
        (self.root / "train_val_list.txt").write_text("\n".join(self.train) + "\n")
        (self.root / "test_list.txt").write_text("\n".join(self.test) + "\n")
        config = {"val_fraction": 0, "num_workers": 1, "image": {"size": 64}}
        return prepare(PrepareConfig(source="nih_chestxray14", root=self.root, out=out, **config)).store


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory):
    """One store with planted leaks; Pneumonia is bright in it, Edema is not."""
    folder = tmp_path_factory.mktemp("audit")
    raw = Raw(folder / "raw", 0)
    for split, first, count in (("train", 1, 60), ("test", 1001, 40)):
        for k in range(count):
            finding = ("Pneumonia", "No Finding", "Edema", "No Finding")[k % 4]
            bright = 150 if finding == "Pneumonia" else 110
            raw.add(first + k, split, finding, raw.picture(bright), "AP" if k % 3 else "PA")
    names = {}
    copied = raw.picture()
    names["identical"] = {raw.add(301, "train", "Mass", copied), raw.add(1301, "test", "Mass", copied)}
    ok, jpeg = cv2.imencode(".jpg", copied2 := raw.picture(), [cv2.IMWRITE_JPEG_QUALITY, 40])
    assert ok
    similar = np.clip(cv2.imdecode(jpeg, cv2.IMREAD_UNCHANGED) * 1.1, 0, 255).astype(np.uint8)
    names["near"] = {raw.add(302, "train", "Mass", copied2), raw.add(1302, "test", "Mass", similar)}
    twice = raw.picture()
    names["within"] = {raw.add(303, "train", "Mass", twice), raw.add(304, "train", "Mass", twice)}
    same_patient = raw.picture()
    raw.add(305, "train", "Mass", same_patient)
    raw.add(305, "train", "Mass", same_patient)
    raw.add(777, "train", "Mass", raw.picture())
    raw.add(1777, "test", "Mass", raw.picture())
    store = raw.prepare(folder / "store")
    for name in ("images.parquet", "studies.parquet"):  # an adapter refuses such a leak, so it is planted afterwards
        table = pd.read_parquet(store / name)
        table.assign(patient_id=table["patient_id"].replace("1777", "777")).to_parquet(store / name)
    return store, names, audit([store]), copied


def short(pair: dict) -> set[str]:
    return {pair[side].split("/")[1].split(" ")[0] for side in ("a", "b")}


def test_patients_across_splits(planted):
    _, _, report, _ = planted
    assert [(x["patient_id"], x["splits"], x["images"]) for x in report.leaks] == [("777", ["test", "train"], 2)]


def test_identical_and_near_identical_images(planted):
    _, names, report, _ = planted
    assert [(pair["kind"], short(pair)) for pair in report.identical] == [
        ("across splits", names["identical"]),
        ("within a split", names["within"]),
    ]
    assert [(pair["kind"], short(pair)) for pair in report.near_duplicates] == [("across splits", names["near"])]
    assert 0.9 <= report.near_duplicates[0]["correlation"] < 1


def test_findings_name_leaks_first(planted):
    _, names, report, _ = planted
    text = report.findings
    assert text[0].startswith("Leak: 1 patient stands in more than one split of nih_chestxray14 (2 images")
    assert text[1].startswith("Leak: 1 pair of identical images across splits")
    assert all(name in text[1] for name in names["identical"])
    kinds = [sentence.split(":")[0] for sentence in text]
    assert kinds == sorted(kinds, key=["Leak", "Duplicates", "Identifiers", "Shortcut"].index)


def test_shortcuts_are_found_where_they_are_and_only_there(planted):
    _, _, report, _ = planted
    table = pd.DataFrame(report.probes).set_index(["label", "against", "predictor"]).sort_index()
    for against in ("absent", "No Finding"):
        bright = table.loc[("Pneumonia", against, "mean_brightness")]
        assert bright["auroc"] > 0.95
        assert bright["low"] > 0.85
        assert bright["scored_on"] == "test"
        view = table.loc[("Pneumonia", against, "view")]
        assert view["low"] < 0.5 < view["high"]
    assert any("Pneumonia" in finding and "mean brightness" in finding for finding in report.findings)
    age = table.loc[("Pneumonia", "No Finding", "age")]
    assert np.isnan(age["auroc"])
    assert "same in all" in age["reason"]
    hernia = table.loc[("Hernia", "absent", "view")]
    assert np.isnan(hernia["auroc"])
    assert "0 positive" in hernia["reason"]


def test_label_counts(planted):
    store, _, report, _ = planted
    counts = pd.DataFrame(report.label_counts).set_index(["label", "split"])
    assert counts.loc[("Pneumonia", "train"), "present"] == 15
    assert counts.loc[("Pneumonia", "test"), "present"] == 10
    assert counts.loc[("Mass", "train"), "present"] == 7
    studies = pd.read_parquet(store / "studies.parquet")
    both = counts.loc["Edema"][["present", "absent", "uncertain", "not_mentioned"]].to_numpy().sum()
    assert both == len(studies)


def test_report_is_json_and_tables(planted):
    _, _, report, _ = planted
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["probes"]
    tables = report.to_tables()
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert [table.title for table in tables][:2] == ["Stores", "Labels per split (studies)"]
    probed = next(table for table in tables if "AUROC" in table.title)
    assert set(PREDICTORS.values()) <= set(probed.columns)


def test_across_stores(planted, tmp_path):
    """A second store of the same data set: a patient and an image that the first one trains on are tested on here."""
    store, _, _, copied = planted
    other = Raw(tmp_path / "raw", 9)
    for k in range(4):
        other.add(5000 + k, "train", "No Finding", other.picture())
    other.add(1, "test", "Pneumonia", other.picture())
    own = other.add(5010, "test", "Pneumonia", copied)
    report = audit([store, other.prepare(tmp_path / "other")])
    assert [leak["patient_id"] for leak in report.leaks] == ["1", "777"]
    [pair] = [pair for pair in report.identical if own in short(pair)]
    assert pair["kind"] == "across splits"
    assert pair["a"].endswith("(train)") != pair["b"].endswith("(train)")
    assert len(report.stores) == 2


def test_misuse(planted, tmp_path):
    store, _, _, _ = planted
    with pytest.raises(UserError, match="No store"):
        audit([])
    with pytest.raises(UserError, match="twice"):
        audit([store, store / ".." / store.name])
    with pytest.raises(UserError, match="no prepared store"):
        audit([tmp_path])


def test_hamming_pairs_are_all_pairs():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, size=700, dtype=np.uint64)
    hashes[600:] = hashes[:100] ^ np.uint64(0b1011)
    got = {tuple(pair) for pair in hamming_pairs(hashes, 3).tolist()}
    values = [int(value) for value in hashes]
    want = {(i, j) for i in range(700) for j in range(i + 1, 700) if (values[i] ^ values[j]).bit_count() <= 3}
    assert got == want
    assert len(got) == 100


def test_blank_images_and_pairs_of_no_interest_are_not_read():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (6, 64, 64)).astype(np.uint8)
    pictures[1], pictures[3], pictures[4:] = pictures[0], pictures[2], 7
    thumbnails = np.stack([cv2.resize(one, (16, 16), interpolation=cv2.INTER_AREA).ravel() for one in pictures])
    hashes = np.array([1, 1, 1 << 40, 1 << 40, 0, 0], np.uint64)
    seen: set[int] = set()

    def read(positions):
        seen.update(positions.tolist())
        return list(pictures[positions])

    pairs, _ = near_identical(hashes, thumbnails.astype(np.float32), read)
    assert (pairs.tolist(), seen) == ([[0, 1], [2, 3]], {0, 1, 2, 3})
    seen.clear()
    pairs, _ = near_identical(hashes, thumbnails.astype(np.float32), read, lambda i, j: (i > 1) & (j > 1))
    assert (pairs.tolist(), seen) == ([[2, 3]], {2, 3})


def test_weighted_auroc_is_scikit_learns_with_repeats():
    rng = np.random.default_rng(0)
    positive = rng.random(80) < 0.4
    scores = rng.integers(0, 9, 80) + positive
    weights = rng.integers(0, 4, (20, 80)).astype(float)
    want = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted_auroc(positive, scores.astype(float), weights), want, rtol=1e-12)
    assert np.isnan(weighted_auroc(np.ones(3, bool), np.arange(3.0), np.ones((1, 3)))).all()


def test_without_a_test_split_patients_stay_together():
    """The predictor names the patient: only a model that has seen the patient can use it."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 4)
    label = np.repeat(rng.integers(0, 2, 60), 4).astype(float)
    samples = pd.DataFrame(
        {"patient_id": patient.astype(str), "study_id": np.arange(240).astype(str), "split": None, "label:X": label}
    )
    one_hot = (patient[:, None] == np.arange(60)).astype(float)
    [by_patient, by_label] = probes("d", samples, {"id": one_hot, "label": label[:, None]}, None)
    assert by_patient.scored_on == "5-fold cross-validation"
    assert by_patient.low < 0.5 < by_patient.high or by_patient.auroc < 0.6
    assert by_label.auroc == 1
    assert by_label.n == 240
    few = (
        samples[label == 1]
        .iloc[:30]
        .assign(**{"label:X": [1.0] * (30 - MIN_PER_CLASS + 1) + [0.0] * (MIN_PER_CLASS - 1)})
    )
    [probe] = probes("d", few, {"label": np.arange(30.0)[:, None]}, None)
    assert np.isnan(probe.auroc)
    assert "needed" in probe.reason


@pytest.mark.data
def test_nih_mini_reports_brightness_and_view(test_data, tmp_path):
    root = test_data / "nih_chestxray14_mini"
    config = {"num_workers": 1, "image": {"size": 64}}
    store = prepare(PrepareConfig(source="nih_chestxray14", root=root, out=tmp_path / "s", **config)).store
    report = audit([store])
    table = pd.DataFrame(report.probes).set_index(["label", "against", "predictor"]).sort_index()
    pneumonia = table.loc[("Pneumonia", "No Finding")]
    assert pneumonia.loc["mean_brightness", "auroc"] == pytest.approx(0.79, abs=0.02)
    assert pneumonia.loc["pixels_16x16", "auroc"] == pytest.approx(0.87, abs=0.03)
    assert pneumonia.loc["view", "auroc"] > 0.65
    assert (pneumonia["n"] == 173).all()
    [finding] = [finding for finding in report.findings if "Pneumonia against No Finding" in finding]
    assert all(word in finding for word in ("mean brightness 0.7", "view 0.", "16×16 pixels 0.8"))
    assert not report.leaks
    assert not report.near_duplicates

    # The brightness AUROC needs no model: one number ranks as itself.
    samples = pd.read_parquet(store / "images.parquet").merge(pd.read_parquet(store / "studies.parquet"), on="study_id")
    test = samples[samples["split_x"] == "test"]
    direct = roc_auc_score(test["label:Pneumonia"], test["mean"])
    assert pneumonia.loc["mean_brightness", "auroc"] == pytest.approx(max(direct, 1 - direct), abs=1e-9)


@pytest.mark.data
def test_copies_are_told_from_other_patients_of_the_same_view(test_data: Path) -> None:
    """On real radiographs: JPEG, a third of the size, gamma and contrast are copies, another patient is none."""
    files = sorted((test_data / "nih_chestxray14_mini").rglob("*.png"))[:80]
    images = [cv2.resize(cv2.imread(str(file), 0), (256, 256), interpolation=cv2.INTER_AREA) for file in files]
    detail = duplicates._standardised(np.stack([duplicates._detail(image) for image in images]))
    people = np.array([file.name.split("_")[0] for file in files])
    others = (detail @ detail.T)[people[:, None] != people[None]]
    assert others.max() < duplicates.MIN_DETAIL_CORRELATION - 0.1
    for image, own in zip(images, detail, strict=True):
        for copy in _copies(image):
            (changed,) = duplicates._standardised(duplicates._detail(copy)[None])
            assert own @ changed >= duplicates.MIN_DETAIL_CORRELATION


def _copies(image: np.ndarray) -> list[np.ndarray]:
    small = cv2.resize(image, (85, 85), interpolation=cv2.INTER_AREA)
    return [
        cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 0),
        cv2.resize(small, (256, 256), interpolation=cv2.INTER_LINEAR),
        np.rint(255 * (image / 255) ** 0.6).astype(np.uint8),
        np.clip((image.astype(float) - 128) * 1.3 + 128, 0, 255).astype(np.uint8),
    ]


def test_laterals_of_phantoms_are_not_taken_for_copies() -> None:
    pictures, people = [], []
    for index in range(14):
        study = generate_study(7, index, size=48, image_size=128)
        shown = [image.pixels for image in study.images if image.view == "LATERAL"]
        pictures += shown
        people += [study.visit.patient] * len(shown)
    detail = duplicates._standardised(np.stack([duplicates._detail(image) for image in pictures]))
    others = (detail @ detail.T)[np.array(people)[:, None] != np.array(people)[None]]
    assert len(others) > 50
    assert others.max() < duplicates.MIN_DETAIL_CORRELATION
