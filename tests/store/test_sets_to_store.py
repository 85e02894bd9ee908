"""Data sets of organs, loops and operations through `prepare`: what is in the store is what the phantom drew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.sources.cards import load_card
from medvlp.sources.phantom.examples import Example, phantom_examples
from medvlp.sources.phantom.layouts import LAYOUTS
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare


def stored(
    tmp_path: Path, name: str, needs: str, options: dict[str, Any], **config: Any
) -> tuple[Store, list[Example]]:
    """Write two examples in the layout of a data set and prepare them."""
    root = tmp_path / "raw"
    root.mkdir()
    made = list(phantom_examples(2, seed=3, size=32, needs=needs))
    LAYOUTS.get(name)(root, options).write(made)
    fields = {"source": name, "root": root, "out": tmp_path / "store", "options": options, "num_workers": 1}
    prepare(PrepareConfig(**{**fields, "val_fraction": 0, **config}))
    return Store.open(tmp_path / "store"), made


def painted(example: Example, names: dict[str, int]) -> np.ndarray:
    """Return the structures of an example under the numbers of a data set."""
    assert example.volume is not None
    assert example.volume.structures is not None
    result = np.zeros(example.volume.array.shape, int)
    for value, name in example.volume.names.items():
        result[example.volume.structures == value] = names.get(name, 0)
    return result


@pytest.mark.parametrize(("version", "kidney", "aorta"), [("v1", 2, 7), ("v2", 2, 52)])
def test_files_of_many_structures_become_one_label_map(tmp_path: Path, version: str, kidney: int, aorta: int) -> None:
    store, made = stored(tmp_path, "totalsegmentator", "abdomen", {"version": version})
    card = load_card("totalsegmentator")
    structures = card.structures if version == "v2" else card.adapter["v1"]
    numbers = {name: value for value, name in enumerate(structures, 1)}
    numbers |= {
        part: numbers[name] for name, parts in card.phantom.items() if name in numbers for part in parts.split("|")
    }
    assert (numbers["kidney_right"], numbers["aorta"]) == (kidney, aorta)
    for index, example in enumerate(made):
        assert example.volume is not None
        volume = store.read_volume(index)
        assert np.array_equal(volume.array, example.volume.array)
        assert np.allclose(np.asarray(volume.affine), example.volume.affine, atol=1e-3)
        labels, names = store.read_labels(index)
        assert names[kidney] == "kidney_right"
        assert np.array_equal(labels, painted(example, numbers))


def test_the_named_channel_of_four_is_in_the_store(tmp_path: Path) -> None:
    options = {"task": "Task01_BrainTumour", "channel": "t1gd"}
    store, made = stored(tmp_path, "msd", "abdomen", options)
    for index, study in enumerate(store.images["study_id"]):
        example = made[int(study.rsplit("_", 1)[1])]
        assert example.volume is not None
        volume = store.read_volume(index)
        assert np.array_equal(volume.array, example.volume.array + 200)
        assert volume.intensity == "stored"


def test_outlines_lie_where_the_ventricle_is(tmp_path: Path) -> None:
    store, made = stored(tmp_path, "echonet_dynamic", "heart", {}, video={"size": 112})
    for index, example in enumerate(made):
        assert example.clip is not None
        clip = store.read_clip(index)
        assert clip.array.shape == example.clip.frames.shape
        assert np.abs(clip.array.astype(int) - example.clip.frames).mean() < 12
        own = store.masks[store.masks["image_id"] == store.images["image_id"][index]]
        masks = store.read_masks(own["index"].to_numpy())
        for mask, frame in zip(masks, own["frame"], strict=True):
            dark = cv2.medianBlur(example.clip.frames[int(frame)], 7) < 40
            assert (mask.astype(bool) & dark).sum() / (mask.astype(bool) | dark).sum() > 0.85


@pytest.mark.parametrize("edition", ["frames", "videos"])
def test_phases_belong_to_their_frames(tmp_path: Path, edition: str) -> None:
    options = {"edition": edition, "split": "40/40"}
    image = {"size": 96, "colour": "keep"}
    store, made = stored(tmp_path, "cholec80", "surgery", options, image=image)
    free = {"train": iter(range(1, 33)), "val": iter(range(33, 41)), "test": iter(range(41, 81))}
    by_video = {f"video{next(free[example.split]):02d}": example for example in made}
    labels = store.studies.set_index("study_id")
    phases = load_card("cholec80").adapter["phases"]
    pixels = store.read(np.arange(len(store)))
    for picture, study, video in zip(pixels, store.images["study_id"], store.images["patient_id"], strict=True):
        clip, second = by_video[video].clip, int(study.split("_")[1]) // 25
        assert clip is not None
        assert np.abs(picture.astype(int) - clip.frames[second]).mean() < (1 if edition == "frames" else 12)
        assert labels.loc[study, f"label:{phases[clip.phases[second]]}"] == 1
        # The green of the tissue rises by 18 with each phase.
        green = float(np.median(picture[: len(picture) // 3, :, 1]))
        assert abs(green - 40 - 18 * clip.phases[second]) < 9


@pytest.mark.parametrize("name", ["cholec80", "pathology_tiles"])
def test_colours_that_the_user_refuses_are_refused_at_once(tmp_path: Path, name: str) -> None:
    config = PrepareConfig(source=name, root=tmp_path, out=tmp_path / "store", image={"size": 32, "colour": "refuse"})
    with pytest.raises(UserError, match="are coloured"):
        prepare(config)
    assert not (tmp_path / "store" / "images.zarr").exists()
