"""Writing the reports of one's own data: trained, resumed, shown, and written for new studies of several images."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import own_data
import pandas as pd
import pytest
import tiny_decoder
import torch
from browser import WIDTHS, open_page, overflow
from command_line import called
from safetensors.torch import load_file

from medvlp.config.finetune import FinetuneConfig
from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.finetune.run import finetune
from medvlp.infer import reports as reports_module
from medvlp.infer.predict import predict
from medvlp.metrics import report_generation
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare
from medvlp.tasks._fine_tune import FineTuning
from medvlp.tasks._tuned import load_tuned
from medvlp.text.vocabulary import WORDS

STUDIES = 48
PLAIN = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "brightness": 0.0, "contrast": 0.0}
DECODER = {"width": 16, "hidden": 16, "layers": 1, "heads": 2, "memory_heads": 2, "dropout": 0.1}
REPORTS = {"sections": ["findings"], "min_count": 1, "max_tokens": 12, "beams": 2}


def report(study: int) -> str:
    blob = "There is a pneumothorax." if study % 2 == 0 else "No pneumothorax."
    return f"{blob} {'Small pleural effusion.' if study % 3 == 0 else 'No pleural effusion.'}"


def write_study(folder: Path, study: int, images: int, **tags: Any) -> list[Path]:
    """Write the radiographs of a study, each into a folder of its own."""
    ids = {"PatientID": f"MRN{study}", "StudyInstanceUID": f"1.2.8.{study}", "AccessionNumber": f"ACC{study:04d}"}
    numbers = range(3 * study, 3 * study + images)
    drawn = {"blob": study % 2 == 0, "bar": study % 3 == 0, "ViewPosition": "PA"}
    return [own_data.write_file(folder / f"{n % 3}" / f"im{n:03d}.dcm", n, **{**drawn, **ids, **tags}) for n in numbers]


def config(folder: Path, run: Path, **changes: Any) -> FinetuneConfig:
    train = {"steps": 8, "validate_every": 4, "batch_size": 8, "lr": 0.01, "freeze_encoder": True, "augment": PLAIN}
    given = {"task": "report_generation", "train": train, "reports": REPORTS | {"decoder": DECODER}} | changes
    return own_data.config(folder / "store", run, bootstrap_resamples=40, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An export with 1 to 3 images a study (`export`), its store (`store`), and a trained writer (`run`).

    METEOR, whose tables take seconds to read, is left out.
    """
    folder = tmp_path_factory.mktemp("reports")
    for study in range(STUDIES):
        write_study(folder / "export", study, 1 + study % 3)
    rows = [f'ACC{study:04d},"{report(study)}"' for study in range(STUDIES)]
    (folder / "export" / "reports.csv").write_text("\n".join(["AccessionNumber,findings", *rows]) + "\n")
    source: dict[str, Any] = {"source": "dicom_folder", "root": folder / "export", "out": folder / "store"}
    source |= {"options": {"reports": "reports.csv"}, "image": {"size": 32}, "num_workers": 1}
    source["identifiers"] = {"salt": folder / "private" / "salt", "ids": "keep"}
    prepare(PrepareConfig.model_validate(source))
    others = tuple(name for name in report_generation.WORDS if name != "meteor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_generation, "computable", lambda: others)
        finetune(config(folder, folder / "run"))
        yield folder


def test_the_run_keeps_texts_scores_and_the_words_of_the_model(folder: Path) -> None:
    run = folder / "run"
    result = json.loads((run / "result.json").read_text())
    kept = pd.read_parquet(run / "predictions" / "test.parquet")
    counted = result["record"]["samples"]["test"]
    assert len(kept) == counted["samples"] < counted["images"]
    assert kept["reference"].tolist() == [report(int(sample.split(".")[-1])) for sample in kept["sample_id"]]
    words = json.loads((run / "model" / WORDS).read_text())["words"]
    assert {"pneumothorax", "effusion", "<unk>"} <= set(words)
    model = load_tuned(run)
    assert model.hash == json.loads((run / "model" / "config.json").read_text())["hash"]
    assert model.label_names == []
    known = {(row["label"], row["split"]): row for row in result["balance"]}
    total = sum(known["Pneumothorax", split]["positives"] for split in ("train", "val", "test"))
    assert total == STUDIES // 2
    learnt = [report(int(study)) for study in _studies_of(folder, {*kept["sample_id"]}, run)]
    usual = Counter(learnt).most_common(1)[0][0]
    hits = [(report(int(s.split(".")[-1])), usual) for s in kept["sample_id"]]
    exact = sum(one == other for one, other in hits) / len(hits)
    assert result["usual"]["bleu_4"] >= exact**4 / 2, "the usual report is scored, and is right for some studies"
    card = (run / "model" / "model_card.md").read_text()
    assert f"{counted['samples']} studies" in card
    assert "It knows" not in card


def _studies_of(folder: Path, test: set[str], run: Path) -> list[str]:
    validation = set(pd.read_parquet(run / "predictions" / "val.parquet")["sample_id"])
    studies = Store.open(folder / "store").studies["study_id"].astype(str)
    return [study.split(".")[-1] for study in studies if study not in test | validation]


def test_the_page_shows_reference_beside_generated(folder: Path) -> None:
    kept = pd.read_parquet(folder / "run" / "predictions" / "test.parquet")
    with open_page(folder / "run" / "report.html") as page:
        studies = page.locator("#texts article")
        assert studies.count() == min(12, kept["patient_id"].nunique())
        for number in range(studies.count()):
            own = studies.nth(number)
            row = kept.iloc[int(own.locator("h3").inner_text().split()[1])]
            assert row["reference"].split(".")[0] in own.inner_text().replace("+", "").replace("\u2212", "")
            assert own.locator("img").count() == min(2, 1 + int(row["sample_id"].split(".")[-1]) % 3)
        assert page.locator("#curves").count() == page.locator("#mistakes").count() == 0
        assert "most frequent training report" in page.locator("#headline").inner_text()
        assert [overflow(page, width) for width in WIDTHS] == [0, 0, 0]
        text = page.content()
    assert not [
        name for name in (*kept["patient_id"], *kept["sample_id"], own_data.SECRET, str(folder)) if name in text
    ]


def test_new_studies_get_the_reports_that_were_validated(folder: Path, tmp_path: Path) -> None:
    done = predict(folder / "run", [folder / "export"], tmp_path / "out.parquet", batch_size=7)
    assert (done.predicted, done.refused, done.what) == (STUDIES, 0, "studies")
    table = pd.read_parquet(tmp_path / "out.parquet")
    paths = [json.loads(text) for text in table["paths"]]
    hidden = [json.loads(text) for text in table["not_shown"]]
    named = [path for own in (*paths, *hidden) for path in own]
    assert sorted(named) == sorted(str(path) for path in (folder / "export").rglob("*.dcm"))
    assert {len(own) for own in paths} == {1, 2}
    numbers = [{int(Path(path).stem[2:]) // 3 for path in own} for own in paths]
    assert all(len(own) == 1 for own in numbers), "images of one study stand together, though in several folders"
    written = {f"1.2.8.{next(iter(own))}": text for own, text in zip(numbers, table["report"], strict=True)}
    for split in ("val", "test"):
        kept = pd.read_parquet(folder / "run" / "predictions" / f"{split}.parquet")
        assert [written[sample] for sample in kept["sample_id"]] == kept["generated"].tolist()
    about = json.loads((tmp_path / "out.parquet.json").read_text())
    assert about["model_hash"] == load_tuned(folder / "run").hash
    notes = table["notes"][[bool(own) for own in hidden]]
    assert set(notes) == {"images of the study that were not looked at: 1"}


def test_what_cannot_be_read_is_set_aside_and_a_study_without_an_image_has_no_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    good, cut = write_study(new, 100, 2)
    cut.write_bytes(cut.read_bytes()[:900])
    (hand,) = write_study(new, 101, 1, BodyPartExamined="HAND")
    (new / "letter.png").write_text("no image")
    (flat,) = write_study(new, 102, 1, pixels=np.full((40, 36), 7, dtype=np.uint8))
    twice = own_data.write_file(new / "copy.dcm", 0)
    twice.write_bytes(good.read_bytes())
    out = tmp_path / "out.csv"
    command = ["predict", str(folder / "run"), str(new), "--out", str(out), "--device", "cpu"]
    status, shown = called(monkeypatch, capsys, *command)
    assert status == 3, shown
    table = pd.read_csv(out, keep_default_na=False)
    assert [json.loads(text) for text in table["paths"]] == [[str(good)]]
    assert [json.loads(text) for text in table["not_shown"]] == [[str(twice)]], "no image is shown twice"
    assert "1 studies" in shown
    lines = [json.loads(line) for line in Path(f"{out}.quarantine.jsonl").read_text().splitlines()]
    assert {line["path"] for line in lines} == {str(cut), str(hand), str(new / "letter.png"), str(flat)}
    assert all(line["reason"] and line["fix"] for line in lines)
    assert table["notes"][0].split("; ")[-2:] == [
        "images of the study that could not be used: 1",
        "images of the study that were not looked at: 1",
    ]
    assert "1.2.8." not in out.read_text() + Path(f"{out}.json").read_text()
    status, shown = called(monkeypatch, capsys, *command[:2], str(hand), "--out", str(out), "--device", "cpu")
    assert status == 1
    assert "None of the 1 files" in shown
    assert len(pd.read_csv(out)) == 1, "the older table is kept"


def test_pictures_are_studies_by_themselves_unless_folders_are_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    for name, number in (("a/1.png", 1), ("a/2.png", 2), ("b/1.png", 1)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), own_data.picture(True, False, number))
    given = [tmp_path / "a", tmp_path / "b"]
    predict(folder / "run", given, tmp_path / "one.csv")
    one = pd.read_csv(tmp_path / "one.csv", keep_default_na=False)
    assert one["path"].tolist() == [str(tmp_path / name) for name in ("a/1.png", "a/2.png", "b/1.png")]
    assert one["duplicate_of"].tolist() == ["", "", str(tmp_path / "a/1.png")]
    assert set(one["notes"]) == {"no header"}
    command = ["predict", folder / "run", *given, "--out", tmp_path / "two.csv", "--study-by", "folder"]
    status, shown = called(monkeypatch, capsys, *map(str, command), "--device", "cpu")
    assert status == 0, shown
    two = pd.read_csv(tmp_path / "two.csv", keep_default_na=False)
    assert [len(json.loads(paths)) for paths in two["paths"]] == [2, 1]
    assert two["duplicate_of"].tolist() == ["", ""], "one image of another study is no duplicate of that study"


def test_an_answer_without_words_or_numbers_is_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_study(tmp_path / "new", 103, 1) + write_study(tmp_path / "new", 104, 1)
    with monkeypatch.context() as patch:
        patch.setattr(reports_module.ReportWriter, "write", lambda *_: [" .", "Clear lungs."])
        done = predict(folder / "run", files, tmp_path / "out.csv")
    assert (done.predicted, done.refused) == (1, 1)
    assert "writes no word" in Path(f"{tmp_path / 'out.csv'}.quarantine.jsonl").read_text()
    plain = reports_module.normalise

    def broken(*given: Any) -> torch.Tensor:
        pixels = plain(*given)
        pixels[0] = torch.nan
        return pixels

    monkeypatch.setattr(reports_module, "normalise", broken)
    done = predict(folder / "run", files, tmp_path / "out.csv")
    assert (done.predicted, done.refused) == (1, 1)
    assert "no finite number" in Path(f"{tmp_path / 'out.csv'}.quarantine.jsonl").read_text()


def test_a_stopped_run_ends_like_one_that_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FineTuning._one_step

    def step(self: FineTuning, batch: Any) -> None:
        plain(self, batch)
        if self.step + 1 == 6:
            raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "_one_step", step)
        with pytest.raises(RuntimeError):
            finetune(config(folder, tmp_path / "run"))
    assert not (tmp_path / "run" / "model").exists()
    finetune(config(folder, tmp_path / "run"))
    for name in ("encoder", "head"):
        one, two = (load_file(run / "model" / f"{name}.safetensors") for run in (tmp_path / "run", folder / "run"))
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[key]) for key, value in one.items())
    one, two = (json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", folder / "run"))
    assert one["scores"] == two["scores"]
    assert one["chosen"] == two["chosen"]


def test_damaged_words_are_refused(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "run" / "model", tmp_path / "model")
    words = json.loads((run / WORDS).read_text())
    words["words"][2] += "x"
    (run / WORDS).write_text(json.dumps(words))
    with pytest.raises(UserError, match="missing or damaged"):
        load_tuned(run)


def test_a_decoder_of_a_folder_is_kept_with_its_tokenizer_and_another_one_is_another_run(
    folder: Path, tmp_path: Path
) -> None:
    decoder = tiny_decoder.write_folder(tmp_path / "decoder")
    how = {"sections": ["findings"], "max_tokens": 12, "beams": 2}
    how["decoder"] = {"kind": "causal", "folder": str(decoder)}
    train = {"steps": 4, "validate_every": 4, "batch_size": 8, "lr": 0.01, "augment": PLAIN, "freeze_encoder": True}
    given = {"reports": how, "train": train}
    finetune(config(folder, tmp_path / "run", **given))
    shutil.move(decoder, tmp_path / "away")
    done = predict(tmp_path / "run", [folder / "export"], tmp_path / "out.csv")
    assert done.predicted + done.refused >= STUDIES
    kept = pd.read_parquet(tmp_path / "run" / "predictions" / "test.parquet")
    written = pd.read_csv(tmp_path / "out.csv", keep_default_na=False).set_index("path")["report"]
    for sample, text in zip(kept["sample_id"], kept["generated"], strict=True):
        number = 3 * int(sample.split(".")[-1])
        path = str(folder / "export" / f"{number % 3}" / f"im{number:03d}.dcm")
        assert written.get(path, text) == text
    assert str(tmp_path) not in (tmp_path / "run" / "model" / "config.json").read_text()
    tiny_decoder.write_folder(tmp_path / "decoder", seed=1)
    with pytest.raises(UserError, match="task is not what this run began with"):
        finetune(config(folder, tmp_path / "run", **given))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"labels": ["Edema"]}}, "data.labels has no effect"),
        ({"decision": {"calibration": "none"}}, "decision has no effect"),
        ({"segmentation": {"cross_entropy": 0.5}}, "segmentation has no effect"),
        ({"train": {"augment": {"flip": True}}}, "swaps the sides"),
        ({"task": "classification"}, "reports has no effect"),
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, tmp_path / "run", **changes)
