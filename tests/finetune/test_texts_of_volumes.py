"""Texts about volumes: reports and answers, with experts of volumes, trained, resumed, and given for files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import tiny_ct
import torch
from command_line import called
from made_dicom import random_slices, write_series
from safetensors.torch import load_file

from medvlp.config.finetune import FinetuneConfig
from medvlp.config.load import load_config
from medvlp.config.volumes import VolumeInputConfig
from medvlp.data.inputs import fitting_augmentation
from medvlp.errors import UserError
from medvlp.finetune.run import finetune
from medvlp.finetune.splits import SplitStore, learnt_by_experts
from medvlp.infer.predict import predict
from medvlp.metrics import report_generation
from medvlp.store.array_store import Store
from medvlp.tasks._experts.tuned import TunedExpert
from medvlp.tasks._experts.words import structure_in_words
from medvlp.tasks._fine_tune import FineTuning
from medvlp.tasks._report_writer import as_they_are
from medvlp.tasks._tuned import load_tuned
from medvlp.types import Intensity, Volume

STRUCTURES = ["heart", "right lower lobe"]
LABELS = ["Cardiomegaly", "Lung nodule"]
CAUSAL = {"kind": "causal", "width": 16, "hidden": 16, "layers": 1, "heads": 2, "dropout": 0.0}
REPORTS = {"min_count": 1, "max_tokens": 24, "beams": 2, "max_images": 2, "decoder": CAUSAL}
SMALL = {"question_text": "trained", "width": 16, "hidden": 16, "layers": 1, "heads": 2, "max_tokens": 12}
SHORT = {"steps": 6, "validate_every": 3, "batch_size": 8, "lr": 0.01, "freeze_encoder": True}


def config(store: Path, run: Path, task: str, **fields: Any) -> FinetuneConfig:
    data = {"store": store, "num_workers": 0} | fields.pop("data", {})
    tree = {
        "encoder": "random:vit_tiny_patch16_224@16/8",
        "run": {"dir": run},
        "task": task,
        "data": data,
        "train": SHORT,
        "track": {"mlflow": False},
        "bootstrap_resamples": 20,
        "device": "cpu",
    }
    return FinetuneConfig.model_validate(tree | fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store of CT (`store`), two experts (`findings`, `outlines`), a writer that reads them, and an answerer."""
    folder = tmp_path_factory.mktemp("texts_ct")
    store = tiny_ct.make_store(folder, 28)
    others = tuple(name for name in report_generation.WORDS if name != "meteor")  # whose tables take seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_generation, "computable", lambda: others)
        finetune(config(store, folder / "findings", "classification", data={"labels": LABELS}))
        outlines = {"data": {"labels": STRUCTURES}, "volume_segmentation": {"channels": 4}}
        finetune(config(store, folder / "outlines", "volume_segmentation", **outlines))
        finetune(writer(folder, folder / "writer"))
        asked = {"vqa": SMALL | {"questions": "labels"}, "data": {"labels": ["Cardiomegaly"]}}
        finetune(config(store, folder / "answerer", "vqa", **asked))
        yield folder


def writer(folder: Path, run: Path) -> FinetuneConfig:
    use = [{"run": folder / "findings"}, {"run": folder / "outlines"}]
    return config(
        folder / "store",
        run,
        "report_generation",
        reports=REPORTS | {"experts": {"use": use, "max_tokens": 48}},
    )


def files_of(folder: Path, kept: pd.DataFrame, column: str = "study_id") -> dict[str, str]:
    """Return file -> study, or image, of kept texts."""
    images = Store.open(folder / "store").images
    own = images[images[column].isin(kept["sample_id"])]
    return {str(folder / "raw" / path): str(name) for path, name in zip(own["path"], own[column], strict=True)}


def test_files_get_the_reports_that_were_validated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = pd.read_parquet(folder / "writer" / "predictions" / "test.parquet").set_index("sample_id", drop=False)
    files = files_of(folder, kept)
    assert len(files) == len(kept) > 1
    # The experts that were given are gone: the model holds its own.
    moved = shutil.copytree(folder / "writer", tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(TunedExpert, "check_store", lambda *_: None)
        (folder / "findings").rename(tmp_path / "away")
        done = predict(moved, [Path(file) for file in files], tmp_path / "p.csv")
        (tmp_path / "away").rename(folder / "findings")
    assert (done.predicted, done.refused, done.what) == (len(kept), 0, "studies")
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    for row in table.to_dict("records"):
        assert row["report"] == kept.loc[files[row["path"]], "generated"]
        assert json.loads(row["paths"]) == [row["path"]]
    assert set(table["notes"]) == {"no header; taken as HU by its values"}
    assert str(tmp_path) not in (moved / "model" / "config.json").read_text()
    assert str(folder) not in (moved / "model" / "config.json").read_text()
    card = (moved / "model" / "model_card.md").read_text()
    assert "What the models in `experts/` find" in card
    result = json.loads((moved / "result.json").read_text())
    assert not any("Expert" in note for note in result["notes"]), "the store has splits of its own"


def test_what_a_writer_says_hangs_on_its_experts(folder: Path, tmp_path: Path) -> None:
    """Both experts swapped, the words of the prompt change, and with them what the model is."""
    model = load_tuned(folder / "writer")
    assert [expert.model.task.type for expert in model.experts] == ["classification", "volume_segmentation"]
    moved = shutil.copytree(folder / "writer" / "model", tmp_path / "model")
    (moved / "experts" / "0").rename(moved / "experts" / "x")
    (moved / "experts" / "1").rename(moved / "experts" / "0")
    (moved / "experts" / "x").rename(moved / "experts" / "1")
    with pytest.raises(UserError, match="not the one that it was trained with"):
        load_tuned(moved)
    shutil.rmtree(moved / "experts" / "1")
    with pytest.raises(UserError, match="model of an expert is missing"):
        load_tuned(moved)


def test_experts_that_may_have_learnt_from_test_patients_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = load_tuned(folder / "writer").experts
    store = SplitStore(folder / "store")
    assert learnt_by_experts(experts, store) == []
    monkeypatch.setitem(experts[1].model.record, "store_hash", "of another store of the same data set")
    (note,) = learnt_by_experts(experts, store)
    assert note.startswith("Expert 2 was trained on the same data set")
    monkeypatch.setitem(experts[1].model.record, "dataset", "other")
    assert learnt_by_experts(experts, store) == []
    store.split_rule = "of 9 patients 2 set aside"
    assert learnt_by_experts(experts, store)[0].startswith("Expert 1 was")


def test_a_file_on_which_an_expert_fails_is_set_aside(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = pd.read_parquet(folder / "writer" / "predictions" / "test.parquet")
    good, broken = [Path(file) for file in files_of(folder, kept)][:2]
    scan = nibabel.load(broken)
    plain = TunedExpert.describe

    def describe(self: TunedExpert, stored: Any) -> list[str]:
        if np.array_equal(np.sort(stored[0].array.ravel()), np.sort(np.asanyarray(scan.dataobj).ravel())):
            self.model.network.head.bias.data.fill_(torch.nan)
        return plain(self, stored)

    monkeypatch.setattr(TunedExpert, "describe", describe)
    done = predict(folder / "writer", [good, broken], tmp_path / "p.csv", num_workers=1)
    assert (done.predicted, done.refused) == (1, 1)
    assert pd.read_csv(tmp_path / "p.csv")["path"].tolist() == [str(good)]
    (line,) = map(json.loads, Path(f"{tmp_path / 'p.csv'}.quarantine.jsonl").read_text().splitlines())
    assert line["path"] == str(broken)
    assert "An expert of the writer fails on it" in line["reason"]
    assert "not finite" in line["reason"]


def test_series_of_one_study_are_one_report_and_what_cannot_be_read_is_set_aside(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new, secret = tmp_path / "new", "SECRET^NAME"
    for number, study in enumerate(["1.2.3", "1.2.3", "1.2.3", "1.2.4"]):
        tags = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.{number}", "PatientName": secret}
        tags |= {"Modality": "CT", "BodyPartExamined": "CHEST", "PatientID": secret}
        write_series(new / f"s{number}", random_slices(20, 24, 24, seed=number), **tags)
    mr = {"StudyInstanceUID": "1.2.5", "SeriesInstanceUID": "1.2.5.1", "Modality": "MR"}
    write_series(new / "mr", random_slices(20, 24, 24, seed=9), **mr)
    (new / "x.nii.gz").write_bytes(b"no volume")
    command = ["predict", folder / "writer", new, "--out", tmp_path / "p.csv", "--device", "cpu", "--intensity", "hu"]
    status, shown = called(monkeypatch, capsys, *command)
    assert status == 3, shown
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    assert [json.loads(paths) for paths in table["paths"]] == [[str(new / "s0"), str(new / "s1")], [str(new / "s3")]]
    assert [json.loads(paths) for paths in table["not_shown"]] == [[str(new / "s2")], []]
    assert table["report"].str.len().gt(0).all()
    bad = [json.loads(line) for line in (tmp_path / "p.csv.quarantine.jsonl").read_text().splitlines()]
    assert [one["path"] for one in bad] == [str(new / "mr"), str(new / "x.nii.gz")]
    assert "MR" in bad[0]["reason"]
    everything = "".join(file.read_text() for file in tmp_path.glob("p.csv*")) + shown
    assert secret not in everything
    assert "1.2.3" not in everything
    by_folder = predict(folder / "writer", [new / "s0", new / "s1"], tmp_path / "q.csv", study_by="folder")
    assert by_folder.predicted == 2


def test_a_stopped_writer_of_volumes_ends_like_one_that_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FineTuning._one_step

    def step(self: FineTuning, batch: Any) -> None:
        plain(self, batch)
        if self.step + 1 == 4:
            raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "_one_step", step)
        with pytest.raises(RuntimeError):
            finetune(writer(folder, tmp_path / "run"))
    other = writer(folder, tmp_path / "run")
    use = tuple(one.model_copy(update={"run": folder / "outlines"}) for one in other.reports.experts.use)
    experts = other.reports.experts.model_copy(update={"use": use})
    swapped = other.model_copy(update={"reports": other.reports.model_copy(update={"experts": experts})})
    with pytest.raises(UserError, match="task is not what this run began with"):
        finetune(swapped)
    finetune(writer(folder, tmp_path / "run"))
    for name in ("encoder", "head"):
        one, two = (load_file(run / "model" / f"{name}.safetensors") for run in (tmp_path / "run", folder / "writer"))
        assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert load_tuned(tmp_path / "run").hash == load_tuned(folder / "writer").hash


def test_volumes_get_the_answers_that_were_validated(folder: Path, tmp_path: Path) -> None:
    kept = pd.read_parquet(folder / "answerer" / "predictions" / "test.parquet")
    kept["sample_id"] = kept["sample_id"].str.split("/").str[0]
    files = files_of(folder, kept, "image_id")
    (tmp_path / "ask.csv").write_text("question\nIs there cardiomegaly?\n")
    (tmp_path / "x.nii.gz").write_bytes(b"no volume")
    paths = [*map(Path, files), tmp_path / "x.nii.gz"]
    done = predict(folder / "answerer", paths, tmp_path / "p.csv", questions=tmp_path / "ask.csv")
    assert (done.predicted, done.refused, done.what) == (len(kept), 1, "questions about volumes")
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    given = kept.set_index("sample_id")["given"]
    assert [given[files[path]] for path in table["path"]] == table["answer"].tolist()


def test_the_report_of_texts_about_volumes_names_nobody(folder: Path) -> None:
    for run in ("writer", "answerer"):
        page = (folder / run / "report.html").read_text(encoding="utf-8")
        assert "data:image" in page or run == "answerer"
        assert not [name for name in Store.open(folder / "store").images["image_id"] if f">{name}<" in page]


def test_structures_in_words() -> None:
    mask = np.zeros((12, 10, 8), dtype=bool)
    volume = Volume(np.zeros(mask.shape, np.int16), np.eye(4), (5.0, 4.0, 2.0), Intensity.HU, {})
    assert structure_in_words("right_lung", mask, volume) == "Expert: no right lung."
    mask[:4, :, 6:] = True
    # 80 voxels of 40 mm³ are 3.2 ml; w runs towards the patient's right, d towards the head.
    assert structure_in_words("right_lung", mask, volume) == "Expert: right lung 3 ml, lower right of the volume."
    assert "upper left" in structure_in_words("x", mask[::-1, :, ::-1], volume)
    flat = Volume(volume.array, None, None, Intensity.HU, {})
    assert structure_in_words("x", mask, flat) == "Expert: x covers 8 percent of the volume."
    tiny = np.zeros_like(mask)
    tiny[5, 5, 4] = True
    assert structure_in_words("x", tiny, volume) == "Expert: x less than 1 ml, middle centre of the volume."


@pytest.mark.parametrize("name", ["volume_report_generation", "volume_vqa"])
def test_shipped_configurations_show_volumes_as_they_are(name: str, tmp_path: Path) -> None:
    given = ["encoder=random:vit_tiny_patch16_224@16/8", f"data.store={tmp_path}", f"run.dir={tmp_path / 'run'}"]
    found = load_config(f"configs/finetune/{name}.yaml", given, FinetuneConfig)
    assert as_they_are(fitting_augmentation(found.train.augment, VolumeInputConfig(), ""))
