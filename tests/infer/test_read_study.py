"""`medvlp read-study` on loops of the phantom: by hand, in full, and with everything that a user can get wrong."""

from __future__ import annotations

import json
from pathlib import Path

import clip_stores
import numpy as np
import pandas as pd
import pytest
from command_line import called

from medvlp.errors import UserError
from medvlp.infer.read_study import read_study
from medvlp.store.array_store import Store
from medvlp.zoo import load_encoder

TAKEN = {"size": 32, "frames": 2, "every": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store of loops with their files, and a model that weighs all clips alike."""
    folder = tmp_path_factory.mktemp("reading")
    store = Store.open(clip_stores.make_echo(folder, 24, size=32))
    return store.path, clip_stores.make_model(folder / "run", store.config.resolved(), TAKEN)


def loops(store: Path) -> list[Path]:
    return sorted((store.parent / "echo_raw" / "Videos").iterdir())[:2]


def test_a_study_is_read_from_the_nearest_texts(made, tmp_path, monkeypatch, capsys) -> None:
    path, run = made
    clips, out = loops(path), tmp_path / "new" / "reading.json"
    arguments = ("--known", path, "--out", out, "--neighbours", 3, "--device", "cpu")
    status, said = called(monkeypatch, capsys, "read-study", run, *clips, *arguments)
    assert status == 0, said
    assert "another patient's" in said
    found = json.loads(out.read_text())
    assert found["clips"] == [str(clip) for clip in clips]
    assert [one["question"] for one in found["answers"]] == ["EF", "ESV", "EDV"]
    # By hand: the mean of both clips, against the texts of the training studies.
    store, encoder = Store.open(path), load_encoder(run)
    train = store.studies[store.studies["split"] == "train"]
    values = [json.loads(row) for row in train["values"]]
    texts = [_caption(one) for one in values]
    mean = encoder.embed_features(encoder.encode_image(clips)).mean(0)
    likeness = (encoder.embed_text(texts) @ (mean / mean.norm())).numpy()
    order = np.argsort(-likeness, kind="stable")
    assert likeness[order[2]] - likeness[order[3]] > 1e-5
    measured = np.array([one["EF"] for one in values])
    ef = found["answers"][0]
    assert ef["value"] == pytest.approx(measured[order[:3]].mean())
    assert ef["of_all"] == pytest.approx(measured.mean())
    assert (ef["known"], found["known"]["studies"], ef["meaning"]) == (len(train), len(train), "ejection fraction in %")
    assert found["texts"] == {"report": texts[order[0]]}
    named = {study for study in store.studies["study_id"] if study in out.read_text()}
    assert named == {clip.stem for clip in clips}


def _caption(values: dict[str, float]) -> str:
    ef = values["EF"]
    grade = next(name for bound, name in ((30, "severely reduced"), (41, "moderately reduced"), (52, "mildly reduced"),
                                          (101, "normal")) if ef < bound)  # fmt: skip
    return (
        f"The left ventricular ejection fraction is {round(ef)} percent. "
        f"Left ventricular systolic function is {grade}. "
        f"The end-diastolic volume is {round(values['EDV'])} millilitres. "
        f"The end-systolic volume is {round(values['ESV'])} millilitres."
    )


def test_a_clip_counts_by_the_weight_of_its_view(made, tmp_path) -> None:
    path, run = made
    clips, weights = loops(path), tmp_path / "weights.csv"
    weights.write_text("view,weight\nA4C,0\nPLAX,2\n", encoding="utf-8-sig")  # as spreadsheets write it
    out = tmp_path / "reading.json"
    both = read_study(run, clips, path, out, neighbours=2, views=["A4C", "PLAX"], weights=weights, device="cpu")
    assert json.loads(out.read_text())["weights"] == {"A4C": 0.0, "PLAX": 2.0}
    alone = read_study(run, clips[1:], path, out, neighbours=2, device="cpu")
    assert [one.value for one in both.answers] == pytest.approx([one.value for one in alone.answers])
    none = read_study(run, clips[:1], path, out, views=["A4C"], weights=weights, device="cpu")
    assert [one.value for one in none.answers] == [None] * 3
    assert none.texts == {}


def test_mistakes_are_said(made, tmp_path) -> None:
    path, run = made
    clips, out, weights = loops(path), tmp_path / "reading.json", tmp_path / "weights.csv"

    def refused(message: str, encoder: str = run, given: list[Path] = clips, **options: object) -> None:
        with pytest.raises(UserError, match=message):
            read_study(encoder, given, path, out, device="cpu", **options)  # type: ignore[arg-type]
        assert not out.exists()

    refused("no clip to read", given=[])
    refused("cannot be opened", given=[tmp_path / "none.avi"])
    refused("no split 'training'", split="training")
    refused("Views have no effect", views=["A4C", "A4C"])
    refused("weights cannot be read", views=["A4C", "A4C"], weights=weights)
    for text, message in (
        ("view\nA4C\n", "no weights of views"),
        ("view,weight\nA4C,much\n", "no weights of views"),
        ("view,weight\nA4C,-1\n", "below 0"),
        ("view,weight\nA4C,1\nA4C,2\n", "twice"),
        ("view,weight\nPLAX,1\n", "no weights for the view A4C"),
    ):
        weights.write_text(text)
        refused(message, views=["A4C", "A4C"], weights=weights)
    refused("2 clips have 1 views", views=["A4C"], weights=weights)
    refused("takes no clips", encoder="random:resnet10t@32")
    refused("no text side", encoder=f"random:{run}")


def test_clips_are_embedded_as_the_rows_of_their_store(made, tmp_path, monkeypatch, capsys) -> None:
    path, run = made
    broken, out = tmp_path / "broken.avi", tmp_path / "features.parquet"
    broken.write_bytes(b"RIFF")
    folder = path.parent / "echo_raw" / "Videos"
    status, said = called(monkeypatch, capsys, "embed", run, folder, broken, "--out", out, "--device", "cpu")
    assert status == 0, said
    assert "Features of 24 clips" in said
    assert "1 files could not be read" in said
    store, table = Store.open(path), pd.read_parquet(out)
    rows = [store.images["study_id"].tolist().index(Path(name).stem) for name in table["path"]]
    expected = load_encoder(run).encode_rows(store, np.array(rows)).pooled
    np.testing.assert_allclose(np.stack(table["embedding"]), expected, rtol=1e-4, atol=1e-5)
