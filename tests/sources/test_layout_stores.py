"""Every raw layout goes through `medvlp data prepare`, and the store holds what was written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
from example_strategy import HEIGHT, WIDTH, examples, plain
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_layouts import COMBINATIONS

from medvlp.config.prepare import PrepareConfig
from medvlp.sources.cards import Card, load_card
from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts import LAYOUTS
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare
from medvlp.types import Mask, Study

SIDE = max(HEIGHT, WIDTH)
SPACING_OF = {"ct_rate": (0, 2, 2), "rad_chestct": (0, 0, 0)}
"""Data sets that hold one number for several axes: which of the example's axes gives each of the volume's."""


def prepared(name: str, options: dict[str, Any], root: Path) -> Store:
    """Prepare without resampling, and fail on anything that was set aside."""
    config = {
        "image": {"size": SIDE},
        "volume": {"intensity": "auto"},
        "num_workers": 1,
        "val_fraction": 0,
        "max_quarantine_share": 0,
        "identifiers": {"ids": "keep", "text": "none"},
    }
    out = root.with_name(f"{root.name}_store")
    return Store.open(prepare(PrepareConfig(source=name, root=root, out=out, options=options, **config)).store)


@pytest.mark.parametrize(("name", "options"), COMBINATIONS, ids=lambda part: str(part))
@given(data=st.data())
@settings(max_examples=1, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
def test_the_store_holds_what_the_layout_wrote(
    name: str, options: dict[str, Any], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layout = LAYOUTS.get(name)
    root = tmp_path_factory.mktemp(name)
    made = data.draw(examples(layout))
    written = {study.study_id: study for study in layout(root, options).write(made)}
    store = prepared(name, options, root)
    assert (store.path / "quarantine.jsonl").read_text() == ""
    assert list(store.studies["study_id"]) == list(written)
    for row in store.studies.to_dict("records"):
        wanted = written[row["study_id"]]
        assert facts(row, store.label_names) == expected(wanted, store.label_names)
    splits = dict(zip(store.images["image_id"], store.images["split"], strict=True))
    assert {name: none(split) for name, split in splits.items()} == {
        image.image_id: study.split for study in written.values() for image in study.images
    }
    if store.kind == "image" and len(store.images):
        check_masks(store, root, [mask for study in written.values() for mask in study.masks])
    if store.kind == "volume":
        check_volumes(store, made, load_card(name))


def facts(row: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """What a row of `studies.parquet` says, in comparable form."""
    names = ("patient_id", "split", "age", "sex", "site", "language", "report")
    found = {name: none(row[name]) for name in names}
    found |= {name: json.loads(row[name]) for name in ("boxes", "lesions", "values", "attributes", "subsets")}
    return plain(found | {"labels": {name: row[f"label:{name}"] for name in labels}})


def expected(study: Study, labels: list[str]) -> dict[str, Any]:
    names = ("patient_id", "split", "age", "sex", "site", "language", "report")
    wanted = {name: getattr(study, name) for name in names}
    wanted |= {name: plain(getattr(study, name)) for name in ("boxes", "lesions", "attributes", "subsets")}
    wanted["values"] = {name: None if math.isnan(value) else value for name, value in study.values.items()}
    return plain(wanted | {"labels": {name: study.labels.get(name, math.nan) for name in labels}})


def none(value: Any) -> Any:
    """NaN and missing of pandas as None."""
    return None if value is None or value != value else value


def check_masks(store: Store, root: Path, masks: list[Mask]) -> None:
    """Stored masks are the written ones, in the padded square where their image lies."""
    left = (SIDE - WIDTH) // 2
    table = store.masks.groupby(["image_id", "label"], sort=False)["index"].apply(list) if masks else {}
    wanted: dict[tuple[str, str], list[np.ndarray]] = {}
    for mask in masks:
        if mask.points:
            continue  # how a polygon covers pixels at its rim is tested with medvlp.io.masks
        wanted.setdefault((mask.image_id, mask.label), []).append(decoded(mask, root))
    for key, drawn in wanted.items():
        stored = store.read_masks(np.asarray(table[key]))
        assert len(stored) == len(drawn)
        for found, truth in zip(stored, drawn, strict=True):
            assert np.array_equal(found[:HEIGHT, left : left + WIDTH] > 0, truth)
            assert int((found > 0).sum()) == int(truth.sum())


def decoded(mask: Mask, root: Path) -> np.ndarray:
    """A mask by a few lines of numpy."""
    if mask.path is not None:
        pixels = cv2.imread(str(root / mask.path), cv2.IMREAD_UNCHANGED)
        return np.isin(pixels, mask.values) if mask.values else pixels > 0
    assert mask.size is not None
    flat = np.zeros(mask.size[0] * mask.size[1], bool)
    for start, length in zip(mask.runs[::2], mask.runs[1::2], strict=True):
        flat[start : start + length] = True
    return flat.reshape(mask.size)


def check_volumes(store: Store, made: list[Example], card: Card) -> None:
    """Volumes in HU are the examples' own voxels, at the same places of the patient, with the same structures."""
    originals = {example.volume.array.tobytes(): example.volume for example in made if example.volume is not None}
    assert len(store.images)
    for row in store.images.to_dict("records"):
        volume = store.read_volume(row["index"])
        if row["intensity"] != "hu":
            continue
        original = originals[np.ascontiguousarray(volume.array).tobytes()]
        if volume.affine is not None and not np.isnan(row["spacing_slice_mm"]):
            spacing = np.linalg.norm(original.affine[:3, :3], axis=0)[list(SPACING_OF.get(card.name, (0, 1, 2)))]
            assert np.allclose(volume.spacing_mm, spacing, atol=1e-3), (volume.spacing_mm, spacing)
        masks = store.masks[store.masks["image_id"] == row["image_id"]] if card.modality == "CT" else []
        if len(masks) and original.structures is not None:
            labels, _ = store.read_labels(row["index"])
            for mask in masks.to_dict("records"):
                values = [value for value, name in original.names.items() if name == mask["label"]]
                if values:
                    assert np.array_equal(labels == mask["value"], np.isin(original.structures, values)), mask


def test_the_reference_reads_nifti_as_the_phantom_writes_it(tmp_path: Path) -> None:
    from medvlp.sources.phantom.write import nifti

    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.array([[0, 0, 1, 5], [0, 2, 0, 6], [3, 0, 0, 7], [0, 0, 0, 1]], float)
    (tmp_path / "x.nii.gz").write_bytes(nifti(array, affine))
    image = nibabel.load(tmp_path / "x.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), array)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
