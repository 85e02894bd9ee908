"""Clips: their frames against the stored videos, where they begin, texts by template, and batches that depend on
nothing but seed, epoch and step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medvlp.config.train import PretrainConfig
from medvlp.config.volumes import ClipInputConfig
from medvlp.data.clip_loader import ClipLoader
from medvlp.data.clips import Clips, captions_of, cut_clip
from medvlp.data.demands import Demands, View
from medvlp.data.pretraining import load_data
from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.text.clip_captions import template_caption

NO_CHANGE = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "brightness": 0.0, "contrast": 0.0}
INPUT = {"size": 32, "frames": 4, "every": 3}


def config(store: Path, folder: Path, taken: dict[str, Any] = INPUT, **data: Any) -> PretrainConfig:
    image = {"kind": "video", "family": "frames", "name": "resnet10t", "input": taken}
    tree = {
        "run": {"dir": str(folder), "seed": 4},
        "data": {"store": str(store), "num_workers": 0, "augment": NO_CHANGE, **data},
        "method": {"name": "surgclip", "image": image, "text": {"hidden": 32, "heads": 2, "vocab_size": 200}},
        "train": {"batch_size": 8, "device": "cpu"},
    }
    return PretrainConfig.model_validate(tree)


def loaded(made: PretrainConfig, folder: Path, demands: Demands | None = None):
    return load_data(made, demands=demands or Demands(), tokenizer_folder=folder / "tokenizer")


def test_frames_are_those_of_the_video_in_order(echo_store: Path) -> None:
    store = Store.open(echo_store)
    clips = Clips(store, ClipInputConfig(**INPUT))
    rows = np.array([5, 0, 9])
    starts = clips.draw(1, 2, rows)
    for row, start, frames in zip(rows, starts, clips.read(rows, starts), strict=True):
        video = store.read_clip(int(store.images["index"][row])).array
        assert len(video) == 24
        assert 0 <= start <= 24 - clips.span == 14
        assert np.array_equal(frames, video[[start, start + 3, start + 6, start + 9]])


def test_clips_begin_anywhere_and_in_the_middle_in_evaluation(echo_store: Path) -> None:
    clips = Clips(Store.open(echo_store), ClipInputConfig(**INPUT))
    rows = np.arange(24)
    drawn = np.concatenate([clips.draw(0, epoch, rows) for epoch in range(40)])
    assert set(drawn) == set(range(15))
    assert np.bincount(drawn).min() > 960 / 15 / 2
    assert (clips.starts(rows) == 7).all()
    assert (clips.draw(0, 3, rows) == clips.draw(0, 3, rows)).all()
    assert (clips.draw(0, 3, rows, 1) != clips.draw(0, 3, rows)).any()


def test_what_lies_behind_the_end_is_black(echo_store: Path) -> None:
    store = Store.open(echo_store)
    clips = Clips(store, ClipInputConfig(size=32, frames=9, every=4))
    (frames,) = clips.read(np.array([0]), clips.starts(np.array([0])))
    video = store.read_clip(0).array
    assert np.array_equal(frames[:6], video[::4])
    assert not frames[6:].any()
    assert np.array_equal(cut_clip(video, clips.config), frames)


def test_a_clip_of_single_frames_holds_its_frame_and_stays_in_its_video(operations_store: Path) -> None:
    store = Store.open(operations_store)
    clips = Clips(store, ClipInputConfig(size=32, frames=3, every=2))
    patients = store.images["patient_id"].to_numpy()
    pixels = store.read(store.images["index"].to_numpy())
    rows = np.arange(len(patients))
    for epoch in range(3):
        starts = clips.draw(0, epoch, rows)
        for row, start, frames in zip(rows, starts, clips.read(rows, starts), strict=True):
            video = np.flatnonzero(patients == patients[row])
            assert np.array_equal(frames, pixels[video[[start, start + 2, start + 4]]])
            place = int(np.flatnonzero(video == row)[0])
            assert start <= place <= start + 4
    middle = clips.starts(rows)
    places = np.array([int(np.flatnonzero(np.flatnonzero(patients == patients[row]) == row)[0]) for row in rows])
    inner = (places >= 2) & (places <= 9)
    assert (middle[inner] == places[inner] - 2).all()


def test_an_encoder_of_clips_takes_no_radiographs(tmp_path: Path) -> None:
    import tiny_store

    store = tiny_store.make_store(tmp_path, patients=12)
    with pytest.raises(UserError, match="videos or frames of videos, and the store holds images"):
        loaded(config(store, tmp_path), tmp_path)


def test_a_method_of_images_takes_no_videos(echo_store: Path, tmp_path: Path) -> None:
    made = config(echo_store, tmp_path)
    image = {"name": "resnet10t", "input": {"size": 32}}
    made = PretrainConfig.model_validate({**made.resolved(), "method": {"name": "convirt", "image": image}})
    with pytest.raises(UserError, match="clips, and the method takes images"):
        loaded(made, tmp_path)


@pytest.mark.parametrize("changed", [{"num_workers": 2, "prefetch": 3}, {}])
def test_batches_depend_on_seed_epoch_and_step_alone(echo_store: Path, tmp_path: Path, changed: dict) -> None:
    augment = {"crop_scale": [0.5, 1.0], "rotate_degrees": 10.0, "flip": False}
    demands = Demands(candidates=2, study_images=2, views=(View(24, (0.3, 0.6)),) * 2)
    data = loaded(config(echo_store, tmp_path, augment=augment), tmp_path, demands)
    other = config(echo_store, tmp_path, augment=augment, **changed)
    plain = list(data.loader(config(echo_store, tmp_path, augment=augment)).epoch(2))
    assert plain[0].candidates is not None
    assert len(plain[0].candidates.ids) == 2 * len(plain[0].index)
    if changed:
        again = list(data.loader(other).epoch(2))
        pairs = list(zip(plain, again, strict=True))
    else:
        halves = [list(data.loader(other, rank=rank, world_size=2).epoch(2, start_step=1)) for rank in range(2)]
        for whole, *parts in zip(plain[1:], *halves, strict=True):
            assert torch.equal(whole.pixels, torch.cat([part.pixels for part in parts]))
            assert torch.equal(whole.study, torch.cat([part.study for part in parts]))
            for number in range(2):
                assert torch.equal(whole.views[number], torch.cat([part.views[number] for part in parts]))
            assert whole.candidates.texts == [text for part in parts for text in part.candidates.texts]
        return
    for one, two in pairs:
        assert torch.equal(one.pixels, two.pixels)
        assert torch.equal(one.study, two.study)
        assert all(torch.equal(*views) for views in zip(one.views, two.views, strict=True))
        assert one.candidates.texts == two.candidates.texts
        assert one.pixels.shape == (8, 1, 4, 32, 32)
        assert one.views[1].shape == (8, 1, 4, 24, 24)
        assert not torch.equal(one.views[0], one.views[1])


def test_without_changes_pixels_are_the_stored_frames(operations_store: Path, tmp_path: Path) -> None:
    data = loaded(config(operations_store, tmp_path, INPUT | {"every": 1}), tmp_path, Demands(study_images=2))
    store = Store.open(operations_store)
    stored = store.read(store.images["index"].to_numpy())
    patients = store.images["patient_id"].to_numpy()
    for batch in data.loader(config(operations_store, tmp_path, INPUT | {"every": 1})).epoch(0):
        assert batch.pixels.shape[1:] == (3, 4, 32, 32)
        assert torch.equal(batch.study[:, 0], batch.pixels)
        for row, clip in zip(batch.index.tolist(), batch.pixels, strict=True):
            first = clip[:, 0].permute(1, 2, 0).numpy()
            video = np.flatnonzero(patients == patients[row])
            begins = [place for place in video if np.array_equal(stored[place], first)]
            assert any(np.array_equal(clip.permute(1, 2, 3, 0).numpy(), stored[place : place + 4]) for place in begins)


def test_all_frames_of_a_clip_are_changed_alike(echo_store: Path) -> None:
    from medvlp.config.data import AugmentConfig

    store = Store.open(echo_store)
    augment = AugmentConfig(crop_scale=(0.4, 0.6), brightness=0.0, contrast=0.0)
    loader = ClipLoader(
        store, np.arange(8), config=ClipInputConfig(**INPUT), augment=augment, batch_size=8, seed=0, num_workers=0
    )
    still = np.repeat(store.read_clip(0).array[:1], 4, axis=0)[None]
    pixels, _ = loader.reading(still, 0, np.array([3]), 32)
    assert (pixels[0, :, 1:] == pixels[0, :, :1]).all()
    assert not np.array_equal(pixels[0, 0, 0].numpy(), still[0, 0])


def test_captions_say_what_labels_and_measurements_say(echo_store: Path, operations_store: Path) -> None:
    echo = Store.open(echo_store)
    captions = captions_of(echo)
    assert len(captions) == len(echo.studies)
    for study, values in zip(echo.studies["study_id"], echo.studies["values"], strict=True):
        measured = json.loads(values)
        assert f"ejection fraction is {round(measured['EF'])} percent." in captions[study]
        degree = next(
            word for word, bound in (("severely", 30), ("moderately", 41), ("mildly", 52), ("normal", 101))
            if measured["EF"] < bound
        )  # fmt: skip
        assert [word for word in ("severely", "moderately", "mildly", "normal") if word in captions[study]] == [degree]
    store = Store.open(operations_store)
    first = store.studies.iloc[0]
    caption = captions_of(store)[first["study_id"]]
    phase = next(name for name in store.label_names[:7] if first[f"label:{name}"] == 1)
    assert template_caption("cholec80", {phase: 1.0}, {}) in caption
    assert ("A hook is in sight." in caption) == (first["label:Hook"] == 1)
    assert template_caption("cholec80", {"Hook": -1.0, "Grasper": float("nan"), "Clipper": 0.0}, {}) == ""
    assert template_caption("echonet_dynamic", {}, {"EF": float("nan")}) == ""


def test_templates_name_labels_and_measurements_of_the_card() -> None:
    from medvlp.sources.cards import load_card
    from medvlp.text.clip_captions import caption_templates

    for dataset, template in caption_templates().items():
        card = load_card(dataset)
        named = [name for group in template.get("labels", ()) for name in group]
        assert set(named) <= set(card.labels)
        assert set(template.get("values", {})) <= set(card.measurements)


def test_a_report_goes_before_a_caption_and_captions_are_counted(echo_store: Path, tmp_path: Path) -> None:
    import shutil

    data = loaded(config(echo_store, tmp_path), tmp_path)
    assert data.facts["captions_by_template"] == 24
    copy = tmp_path / "copy"
    shutil.copytree(echo_store, copy)
    studies = pd.read_parquet(copy / "studies.parquet")
    studies["report"] = pd.array(["FINDINGS: The valve is calcified."] * len(studies), dtype="string")
    studies.to_parquet(copy / "studies.parquet")
    data = loaded(config(copy, tmp_path), tmp_path)
    assert "captions_by_template" not in data.facts
    assert data.table.texts == ["The valve is calcified."] * 24
    batch = next(data.loader(config(copy, tmp_path)).epoch(0))
    assert set(batch.text.texts) == {"The valve is calcified."}


def test_frames_outside_a_clip_are_refused(echo_store: Path) -> None:
    store = Store.open(echo_store)
    for start, stop in ((-1, 3), (3, 3), (0, 25)):
        with pytest.raises(IndexError, match="not inside a clip of 24"):
            store.read_frames(0, start, stop)
