"""Answers for new files: those that were validated, for images of the trained kind, and for nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import own_data
import pandas as pd
import pytest
from command_line import called
from PIL import Image
from safetensors.torch import load_file, save_file

from medvlp.errors import UserError
from medvlp.infer import predict as predict_module
from medvlp.infer.predict import predict
from medvlp.store.array_store import Store
from medvlp.tasks._tuned import Scope
from medvlp.types import Intensity, Radiograph

LABELS = ("Blob", "Bar")


@pytest.fixture(scope="module")
def answered(own_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers for the whole export."""
    out = tmp_path_factory.mktemp("answers") / "all.csv"
    predict(own_run / "run", [own_run / "export"], out, batch_size=7)
    return out


def reasons(out: Path) -> dict[str, str]:
    lines = out.with_name(f"{out.name}.quarantine.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(row["reason"] and row["fix"] for row in rows)
    return {Path(row["path"]).name: row["reason"] for row in rows}


def test_new_files_get_what_was_validated(own_run: Path, answered: Path) -> None:
    found = pd.read_csv(answered).set_index("path")
    assert len(found) == 96
    store = Store.open(own_run / "store")
    files = dict(zip(store.images["image_id"], store.images["path"], strict=True))
    decisions = json.loads((own_run / "run" / "model" / "decisions.json").read_text())
    for split in ("val", "test"):
        kept = pd.read_parquet(own_run / "run" / "predictions" / f"{split}.parquet")
        paths = [str(own_run / "export" / files[image]) for image in kept["sample_id"]]
        for decision in decisions:
            label = decision["label"]
            own = found.loc[paths, f"probability:{label}"].to_numpy()
            np.testing.assert_allclose(own, kept[f"score:{label}"], atol=1e-6)
            called = kept[f"score:{label}"].to_numpy() >= decision["threshold"]
            assert (found.loc[paths, f"positive:{label}"].to_numpy() == called).all()


def test_parquet_says_the_same_and_the_model_stands_beside_it(own_run: Path, answered: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "all.parquet"
    done = predict(own_run / "run" / "model", [own_run / "export"], out, batch_size=64, num_workers=1)
    assert (done.predicted, done.refused, done.quarantine) == (96, 0, None)
    one, two = pd.read_parquet(out), pd.read_csv(answered, keep_default_na=False)
    assert list(one.columns) == list(two.columns)
    assert one.columns[0] == "path"
    assert one["path"].tolist() == two["path"].tolist()
    np.testing.assert_allclose(one["probability:Blob"], two["probability:Blob"].astype(float), atol=1e-6)
    about = json.loads(out.with_name("all.parquet.json").read_text())
    described = json.loads((own_run / "run" / "model" / "config.json").read_text())
    assert about["model_hash"] == described["hash"]
    assert [label["label"] for label in about["labels"]] == list(LABELS)
    assert (about["predicted"], about["refused"]) == (96, 0)


def test_no_identifier_of_a_header_is_in_what_is_written(own_run: Path, tmp_path: Path) -> None:
    own_data.write_file(tmp_path / "a.dcm", 1)
    own_data.write_file(tmp_path / "hand.dcm", 2, BodyPartExamined="HAND")
    broken = tmp_path / "broken.dcm"
    broken.write_bytes((tmp_path / "a.dcm").read_bytes()[:600])
    predict(own_run / "run", [tmp_path], tmp_path / "out.csv")
    written = b"".join(path.read_bytes() for path in tmp_path.glob("out.csv*"))
    assert len(list(tmp_path.glob("out.csv*"))) == 3
    assert not any(secret in written for secret in (b"Doe", b"MRN", b"ACC0", b"1.2.9", b"2024"))


def test_what_is_no_image_or_of_another_kind_is_set_aside(own_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    own_data.write_file(folder / "good.dcm", 1, blob=True)
    own_data.write_file(folder / "cr.dcm", 2, Modality="CR", ViewPosition="PA", BodyPartExamined="THORAX")
    own_data.write_file(folder / "silent.dcm", 3, ViewPosition="", BodyPartExamined="")
    own_data.write_file(folder / "ct.dcm", 4, Modality="CT")
    own_data.write_file(folder / "lateral.dcm", 5, ViewPosition="LL")
    own_data.write_file(folder / "hand.dcm", 6, BodyPartExamined="HAND")
    own_data.write_file(folder / "black.dcm", 7, pixels=np.zeros((40, 40), np.uint8))
    whole = (folder / "good.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[: len(whole) - 200])
    (folder / "corrupt.dcm").write_bytes(whole[:140] + bytes(range(200)) * 3)
    (folder / "text.dcm").write_text("no image")
    (folder / "notes.txt").write_text("passed over")
    Image.fromarray(own_data.picture(True, False, 9)).save(folder / "film.png")
    frames = np.stack([own_data.picture(False, False, seed) for seed in range(3)])
    loop = own_data.write_file(folder / "loop.dcm", 8, pixels=frames[0], NumberOfFrames=3)
    loop.write_bytes(loop.read_bytes().replace(frames[0].tobytes(), frames.tobytes()))
    movie = tmp_path / "movie.avi"
    writer = cv2.VideoWriter(str(movie), cv2.VideoWriter_fourcc(*"MJPG"), 5, (36, 40), isColor=False)
    for frame in frames:
        writer.write(frame)
    writer.release()
    out, empty = tmp_path / "out.csv", tmp_path / "empty"
    empty.mkdir()
    given = [folder, movie, tmp_path / "gone.dcm", empty]
    done = predict(own_run / "run", given, out)
    found = pd.read_csv(out, keep_default_na=False)
    assert [Path(path).name for path in found["path"]] == ["cr.dcm", "film.png", "good.dcm", "silent.dcm"]
    assert found["notes"].tolist() == ["", "no header", "", "view not stated; body part not stated"]
    told = reasons(out)
    assert done.refused == len(told) == 11
    for name, reason in (
        ("ct.dcm", "The image is CT; the model was trained on DX"),
        ("lateral.dcm", "The view is LATERAL; the model was trained on AP, PA"),
        ("hand.dcm", "another body part"),
        ("black.dcm", "All pixels of the image are equal"),
        ("cut.dcm", ""),
        ("corrupt.dcm", ""),
        ("text.dcm", "neither DICOM nor PNG nor JPEG"),
        ("loop.dcm", "3 frames"),
        ("movie.avi", "is a video"),
        ("gone.dcm", "does not exist"),
        ("empty", "holds no DICOM"),
    ):
        assert reason in told[name], (name, told[name])


def test_a_name_that_is_not_in_utf8_costs_no_other_file_its_answer(own_run: Path, tmp_path: Path) -> None:
    good = own_data.write_file(tmp_path / "new" / "good.dcm", 501)
    for name in (b"bild\xe9.dcm", b"leer\xe9.dcm"):
        (tmp_path / "new" / os.fsdecode(name)).write_bytes(good.read_bytes() if name.startswith(b"bild") else b"")
    done = predict(own_run / "run", [tmp_path / "new"], tmp_path / "out.csv")
    assert (done.predicted, done.refused) == (1, 2)
    assert done.quarantine is not None
    bad = [json.loads(line) for line in done.quarantine.read_text(encoding="utf-8").splitlines()]
    assert [Path(one["path"]).name for one in bad] == ["bild\\xe9.dcm", "leer\\xe9.dcm"]
    assert {one["reason"] for one in bad} == {"The name of the file is not in UTF-8."}


def test_files_given_twice_are_one_and_copies_are_told(own_run: Path, tmp_path: Path) -> None:
    first = own_data.write_file(tmp_path / "a" / "one.dcm", 1)
    shutil.copy(first, tmp_path / "a" / "two.dcm")
    predict(own_run / "run", [tmp_path / "a", first], tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert found["path"].tolist() == [str(first), str(tmp_path / "a" / "two.dcm")]
    assert found["duplicate_of"].tolist() == ["", str(first)]
    assert found["probability:Blob"].nunique() == 1


def test_an_answer_that_is_not_finite_is_none(own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [own_data.write_file(tmp_path / f"{n}.dcm", n) for n in range(3)]
    plain = predict_module.logits_of

    def broken(*arguments: Any) -> np.ndarray:
        found = plain(*arguments)
        found[1, 0] = np.nan
        return found

    monkeypatch.setattr(predict_module, "logits_of", broken)
    predict(own_run / "run", files, tmp_path / "out.csv")
    assert len(pd.read_csv(tmp_path / "out.csv")) == 2
    assert "no finite number" in reasons(tmp_path / "out.csv")["1.dcm"]


def test_the_command_ends_in_status_3_where_something_was_set_aside(
    own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = own_data.write_file(tmp_path / "good.dcm", 1)
    (tmp_path / "bad.dcm").write_text("x")
    command = ["predict", own_run / "run", good, "--out", tmp_path / "out.csv"]
    status, shown = called(monkeypatch, capsys, *command)
    assert status == 0
    assert "Answers for 1 images" in shown
    status, shown = called(monkeypatch, capsys, *command, tmp_path / "bad.dcm")
    assert status == 3
    assert "1 files got no answer" in shown
    assert "out.csv.quarantine.jsonl" in shown
    status, shown = called(monkeypatch, capsys, *command)
    assert status == 0
    assert not (tmp_path / "out.csv.quarantine.jsonl").exists()
    before = (tmp_path / "out.csv").read_bytes()
    status, shown = called(monkeypatch, capsys, "predict", own_run / "run", tmp_path / "bad.dcm", "--out", command[-1])
    assert status == 1
    assert "None of the 1 files got an answer" in shown
    assert (tmp_path / "out.csv").read_bytes() == before, "an older table is kept"
    assert not list(tmp_path.glob(".*.part"))


def damaged(own_run: Path, tmp_path: Path, case: str) -> Path:
    """Return something that is no fine-tuned run."""
    run = tmp_path / "run"
    if case == "missing":
        return run
    if case == "empty":
        run.mkdir()
        return run
    if case == "pre-training":
        import bench_store

        return bench_store.make_run(run)
    if case == "unfinished":
        shutil.copytree(own_run / "run", run)
        shutil.rmtree(run / "model")
        return run
    shutil.copytree(own_run / "run", run)
    model = run / "model"
    if case == "other weights":
        state = load_file(model / "head.safetensors")
        save_file({"other.weight": next(iter(state.values()))}, model / "head.safetensors")
    elif case == "cut weights":
        content = (model / "encoder.safetensors").read_bytes()
        (model / "encoder.safetensors").write_bytes(content[: len(content) // 2])
    elif case == "other format":
        described = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(described | {"format": 99}))
    elif case == "other threshold":
        decisions = json.loads((model / "decisions.json").read_text())
        decisions[0]["threshold"] = 0.01
        (model / "decisions.json").write_text(json.dumps(decisions))
    elif case == "weights of another run":
        state = load_file(model / "head.safetensors")
        save_file({name: value + 1 for name, value in state.items()}, model / "head.safetensors")
    elif case == "no preprocessing":
        (model / "preprocessing.json").write_text("{}")
    else:
        (model / case).write_text("{")
    return run


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("missing", "There is no such run"),
        ("empty", "This is no run of fine-tuning"),
        ("pre-training", "an encoder without a head"),
        ("unfinished", "no finished model"),
        ("other weights", "not the one that was validated"),
        ("weights of another run", "not the one that was validated"),
        ("cut weights", "not the one that was validated"),
        ("other threshold", "not the one that was validated"),
        ("no preprocessing", "not the one that was validated"),
        ("other format", "has format 99"),
        ("decisions.json", "not the one that was validated"),
        ("config.json", "cannot be read"),
    ],
)
def test_a_run_that_cannot_be_used_is_told(case: str, what: str, own_run: Path, tmp_path: Path) -> None:
    file = own_data.write_file(tmp_path / "a.dcm", 1)
    with pytest.raises(UserError, match=what) as caught:
        predict(damaged(own_run, tmp_path, case), [file], tmp_path / "out.csv")
    assert caught.value.where
    assert caught.value.fix
    assert not (tmp_path / "out.csv").exists()


def test_a_call_that_makes_no_sense_is_told(own_run: Path, tmp_path: Path) -> None:
    file = own_data.write_file(tmp_path / "a.dcm", 1)
    with pytest.raises(UserError, match=r"suffix '\.txt'"):
        predict(own_run / "run", [file], tmp_path / "out.txt")
    with pytest.raises(UserError, match="makes no masks"):
        predict(own_run / "run", [file], tmp_path / "out.csv", masks=tmp_path / "masks")
    with pytest.raises(UserError, match="answered one by one"):
        predict(own_run / "run", [file], tmp_path / "out.csv", study_by="folder")
    with pytest.raises(UserError, match="There is nothing to answer"):
        predict(own_run / "run", [], tmp_path / "out.csv")
    with pytest.raises(UserError, match="None of the 1 files"):
        predict(own_run / "run", [tmp_path / "nothing"], tmp_path / "out.csv")
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match="cannot be written"):
        predict(own_run / "run", [file], tmp_path / "taken" / "out.csv")


@pytest.mark.parametrize(
    ("scope", "tags", "answer"),
    [
        (Scope(), {"Modality": "CT", "ViewPosition": "LL"}, []),
        (Scope(("CR",)), {"Modality": "MG"}, "The image is MG"),
        (Scope(("CR",)), {"Modality": ""}, ["modality not stated"]),
        (Scope(("MG",)), {"Modality": "DX"}, "The image is DX"),
        (Scope(("DX",), ("PA",)), {"ViewPosition": "AP"}, ["view AP was not among the training images"]),
        (Scope(("DX",), ("LATERAL",)), {"ViewPosition": "AP"}, "The view is AP"),
        (Scope(("DX",), ("LATERAL", "PA")), {"ViewPosition": "LL"}, []),
        (Scope(("DX",), (), ("HAND",)), {"BodyPartExamined": "CHEST"}, "another body part"),
        (Scope(("DX",), (), ("THORAX",)), {"BodyPartExamined": "chest"}, []),
    ],
)
def test_the_rules_of_admission(scope: Scope, tags: dict[str, str], answer: list[str] | str, tmp_path: Path) -> None:
    from medvlp.infer.admission import admit

    path = own_data.write_file(tmp_path / "a.dcm", 1, **tags)
    radiograph = Radiograph(np.zeros((2, 2)), None, Intensity.UNIT, {"format": "dicom"})
    if isinstance(answer, str):
        with pytest.raises(UserError, match=answer):
            admit(path, radiograph, scope)
    else:
        assert admit(path, radiograph, scope) == answer
