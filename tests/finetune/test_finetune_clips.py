"""Fine-tuning on clips, and its answers for files: those of the store, to the last digits; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clip_stores
import numpy as np
import pandas as pd
import pytest
from command_line import called

from medvlp.config.finetune import FinetuneConfig
from medvlp.config.volumes import ClipInputConfig
from medvlp.data.inputs import InputLoader, read_inputs
from medvlp.data.transforms import normalise
from medvlp.errors import UserError
from medvlp.finetune.run import finetune
from medvlp.infer.clips import list_clips
from medvlp.infer.predict import predict
from medvlp.store.array_store import Store
from medvlp.zoo import load_encoder

TAKEN = {"size": 32, "frames": 4, "every": 3}
LABELS = [{"name": "reduced", "positive": "EF", "below": 55}]


def config(store: Path, encoder: str, run: Path, **changes: Any) -> FinetuneConfig:
    given: dict[str, Any] = {
        "run": {"dir": str(run)},
        "encoder": encoder,
        "data": {"store": str(store), "labels": LABELS, "num_workers": 0},
        "train": {"steps": 6, "batch_size": 8, "warmup_steps": 1, "lr": 1e-3},
        "bootstrap_resamples": 20,
        "device": "cpu",
        "track": {"mlflow": False},
    }
    return FinetuneConfig.model_validate(given | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """A store, an encoder, and a fine-tuned run."""
    folder = tmp_path_factory.mktemp("tuned_clips")
    store = clip_stores.make_echo(folder, 40, size=32)
    encoder = clip_stores.make_model(folder / "encoder", Store.open(store).config.resolved(), TAKEN)
    finetune(config(store, encoder, folder / "run"))
    return store, encoder, folder / "run"


def test_files_get_the_answers_of_their_rows_in_the_store(made, tmp_path, monkeypatch, capsys) -> None:
    store, _, run = made
    kept = pd.read_parquet(run / "predictions" / "test.parquet").set_index("sample_id")
    videos = {path.stem: path for path in (store.parent / "echo_raw" / "Videos").iterdir()}
    broken = tmp_path / "broken.avi"
    broken.write_bytes(b"RIFF")
    files = [videos[name] for name in kept.index]
    status, said = called(
        monkeypatch, capsys, "predict", run, *files, broken, "--out", tmp_path / "p.csv", "--device", "cpu"
    )
    assert status == 3, said
    found = pd.read_csv(tmp_path / "p.csv")
    assert found["path"].tolist() == [str(file) for file in files]
    column = next(name for name in kept.columns if name.startswith("score"))
    np.testing.assert_allclose(found["probability:reduced"], kept[column], rtol=1e-5)
    assert (found["notes"] == "no header").all()
    assert "broken.avi" in (tmp_path / "p.csv.quarantine.jsonl").read_text()


def test_clips_of_the_middle_are_validated_and_drawn_ones_are_trained_on(made) -> None:
    path, encoder, _ = made
    store, taken, rows = Store.open(path), ClipInputConfig.model_validate(TAKEN), np.arange(5)
    loaded = load_encoder(encoder)
    pixels = read_inputs(store, rows, taken)
    assert pixels.shape == (5, 1, 4, 32, 32)
    features = loaded(normalise(pixels, taken))
    np.testing.assert_allclose(features.pooled, loaded.encode_rows(store, rows).pooled, rtol=1e-5, atol=1e-6)
    options = {"batch_size": 5, "taken": taken, "seed": 0, "num_workers": 0}
    (still,) = InputLoader(store, rows, augment=None, **options).epoch(0)
    np.testing.assert_array_equal(still.pixels, pixels)
    changed = InputLoader(store, rows, augment=config(path, encoder, Path("x")).train.augment, **options)
    first, again, other = (next(changed.epoch(epoch)) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels[first.index.argsort()], other.pixels[other.index.argsort()])


def test_phases_of_operations_are_scored_within_videos(tmp_path) -> None:
    store = clip_stores.make_operations(tmp_path, 8)
    encoder = clip_stores.make_model(
        tmp_path / "encoder", Store.open(store).config.resolved(), {"size": 32, "frames": 2, "every": 1}, "surgclip",
        clip_stores.RESNET,
    )  # fmt: skip
    labels = [{"name": name, "positive": name} for name in ("Preparation", "CalotTriangleDissection")]
    how = config(store, encoder, tmp_path / "run", classification={"video_scores": True})
    done = finetune(
        how.model_copy(update={"data": how.data.model_validate(how.data.model_dump() | {"labels": labels})})
    )
    found = {(row["metric"], row["label"]) for row in done.scores}
    assert {("video_accuracy", "macro"), ("video_f1", "Preparation")} <= found
    with pytest.raises(UserError, match="None of the 1 files got an answer"):
        predict(tmp_path / "run", [frame_folder(tmp_path)], tmp_path / "p.csv")
    assert "frames of videos" in (tmp_path / "p.csv.quarantine.jsonl").read_text()


def frame_folder(folder: Path) -> Path:
    from PIL import Image

    (folder / "clips" / "one").mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((32, 32), 40 * number, np.uint8)).save(folder / "clips" / "one" / f"{number}.png")
    return folder / "clips"


def test_what_does_not_fit_is_said(made, tmp_path) -> None:
    store, encoder, run = made
    data = {"store": str(store), "num_workers": 0}
    for changes, message in (
        ({"train": {"steps": 2, "input_size": 64}}, "takes clips, and 64"),
        ({"encoder": str(folder_of_images(tmp_path))}, r"takes images, and the store holds clips"),
        ({"task": "report_generation", "data": data}, r"classification, not to report_generation|has no report"),
        ({"data": data}, r"no labels|label"),
    ):
        with pytest.raises(UserError, match=message):
            finetune(config(store, changes.pop("encoder", encoder), tmp_path / "other", **changes))
    (tmp_path / "empty").mkdir()
    found, bad = list_clips([tmp_path / "empty", frame_folder(tmp_path), tmp_path / "none.avi"])
    assert found == [tmp_path / "clips" / "one"]
    assert [one.reason for one in bad] == ["The folder holds no video and no frames.", "The file does not exist."]
    with pytest.raises(UserError, match="no effect on clips"):
        predict(run, [found[0]], tmp_path / "p.csv", intensity="hu")


def folder_of_images(folder: Path) -> Path:
    import bench_store

    bench_store.make_run(folder / "images")
    return folder / "images"
