"""Answering questions about one's own data: made from labels or of a table, trained, shown, and asked of new images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import own_data
import pandas as pd
import pytest
from browser import WIDTHS, open_page, overflow
from command_line import called

from medvlp.config.finetune import FinetuneConfig
from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.finetune.run import finetune
from medvlp.infer.predict import predict
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.prepare import prepare
from medvlp.tasks._answerer import Answerer
from medvlp.tasks._tuned import load_tuned
from medvlp.tasks.vqa import ANSWERS

PLAIN = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "brightness": 0.0, "contrast": 0.0}
SMALL = {"question_text": "trained", "width": 16, "hidden": 16, "layers": 1, "heads": 2, "max_tokens": 12}


def config(store: Path, run: Path, **changes: Any) -> FinetuneConfig:
    train = {"steps": 40, "validate_every": 20, "batch_size": 16, "lr": 0.01, "freeze_encoder": True, "augment": PLAIN}
    given = {"task": "vqa", "train": train, "vqa": SMALL | {"questions": "labels"}, "data": {"labels": ["Blob"]}}
    return own_data.config(store, run, bootstrap_resamples=40, **(given | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export (`export`), its store (`store`), and a model that answers whether there is a blob (`run`)."""
    folder = tmp_path_factory.mktemp("questions")
    own_data.make_store(folder, identifiers={"ids": "keep"})
    finetune(config(folder / "store", folder / "run"))
    return folder


def asked(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_the_run_keeps_answers_and_scores_beside_the_usual_one(folder: Path) -> None:
    run = folder / "run"
    result, kept = (json.loads((run / "result.json").read_text()), pd.read_parquet(run / "predictions/test.parquet"))
    scores = {row["metric"]: row["value"] for row in result["scores"] if row["label"] == "macro"}
    assert scores["accuracy"] == pytest.approx((kept["given"] == kept["answer"]).mean())
    assert result["usual"]["accuracy"] == pytest.approx((kept["usual"] == kept["answer"]).mean())
    assert set(kept["given"]) <= {"yes", "no"}
    learnt = json.loads((run / "model" / ANSWERS).read_text())
    assert (learnt["closed"], learnt["open"]) == (["no", "yes"], [])
    assert learnt["wordings"] == {"is there blob": [True]}
    model = load_tuned(run)
    assert model.hash == json.loads((run / "model" / "config.json").read_text())["hash"]
    card = (run / "model" / "model_card.md").read_text()
    assert "One of 2 answers to closed questions" in card
    assert f"{len(kept)} questions" in card or result["record"]["samples"]["test"]["images"] == len(kept)
    again = finetune(config(folder / "store", folder / "run"))
    assert again.scores == result["scores"]


def test_new_images_get_the_answers_that_were_validated(folder: Path, tmp_path: Path) -> None:
    file = asked(tmp_path / "ask.csv", "question", "Is there Blob?", "Is there a blob?")
    with pytest.raises(UserError, match="training has no question of this wording"):
        predict(folder / "run", [folder / "export"], tmp_path / "no.csv", questions=file)
    asked(file, "question,closed", "Is there Blob?,", "Is there a blob?,1")
    done = predict(folder / "run", [folder / "export"], tmp_path / "out.csv", questions=file, batch_size=7)
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert (done.predicted, done.refused, done.what) == (192, 0, "questions about images")
    assert list(table.columns) == ["path", "question", "closed", "answer", "notes", "duplicate_of"]
    same = table[table["question"] == "Is there Blob?"].set_index("path")["answer"]
    kept = pd.concat(pd.read_parquet(folder / "run" / "predictions" / f"{s}.parquet") for s in ("val", "test"))
    numbers = {int(Path(path).stem[2:]): answer for path, answer in same.items()}
    images = _numbers(kept["sample_id"].tolist())
    assert [numbers[number] for number in images] == kept["given"].tolist()
    other = table[table["question"] == "Is there a blob?"]["notes"]
    assert all("no question of this wording; words that training does not have: a" in note for note in other)
    about = json.loads((tmp_path / "out.csv.json").read_text())
    assert about["task"] == "vqa"


def _numbers(questions: list[str]) -> list[int]:
    """Return the number of the file behind each question: part of the UID of its image."""
    return [int(question.split("/")[0].split(".")[3]) for question in questions]


def test_the_page_shows_wrong_answers_and_names_nobody(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = {"steps": 1, "batch_size": 16, "freeze_encoder": True, "augment": PLAIN}
    finetune(config(folder / "store", run, train=train))
    kept = pd.read_parquet(run / "predictions" / "test.parquet")
    with open_page(run / "report.html") as page:
        assert page.locator("h1").inner_text() == "Blob"
        assert "most frequent training answer" in page.locator("#headline").inner_text()
        wrong = page.locator("#mistakes figure")
        assert wrong.count() == min(6, int((kept["given"] != kept["answer"]).sum()))
        for number in range(wrong.count()):
            shown = wrong.nth(number).inner_text()
            row = kept.iloc[int(shown.split("row ")[-1])]
            assert f"{row['given']}, right: {row['answer']}" in shown
            assert "Is there blob?" in shown
        assert [overflow(page, width) for width in WIDTHS] == [0, 0, 0]
        text = page.content()
    assert not [name for name in (*kept["patient_id"], own_data.SECRET, str(folder)) if name in text]


def test_a_table_of_questions_is_learnt_and_a_tower_may_be_tuned(tmp_path: Path) -> None:
    write_layout("vqa_rad", tmp_path / "raw", 16, seed=3, size=32, image_size=32)
    source = {"source": "vqa_rad", "root": tmp_path / "raw", "out": tmp_path / "store", "image": {"size": 32}}
    prepare(PrepareConfig.model_validate(source | {"num_workers": 1}))
    train = {"steps": 3, "batch_size": 8, "augment": PLAIN}
    done = finetune(config(tmp_path / "store", tmp_path / "run", train=train, vqa=SMALL, data={}))
    assert {row["metric"] for row in done.scores} == {
        *("accuracy", "accuracy_closed", "accuracy_open", "unseen_answers")
    }
    network = load_tuned(tmp_path / "run").network
    assert isinstance(network, Answerer)
    assert network.learnt.open
    assert all(parameter.requires_grad for parameter in network.tower.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vqa": {"question_text": "encoder", "questions": "labels"}}, "question_text must be trained"),
        ({"vqa": {"question_text": "trained"}}, "data.labels has no effect on vqa.questions: table"),
        ({"task": "classification"}, "vqa has no effect on task: classification"),
        ({"train": {"augment": {"flip": True}}}, "a text names them"),
        ({"decision": {"calibration": "none"}}, "decision has no effect on task: vqa"),
    ],
)
def test_settings_without_effect_are_mistakes(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["text", "Is there Blob?"], "names no question"),
        (["question"], "has no row"),
        (["question,closed", "Is there Blob?,yes"], "neither 1 nor 0"),
        (["question,closed", "Est-ce que?,1"], "row 1: training has none of its words"),
        (["question,closed", " ,1"], "row 1: it is blank"),
        (["question,closed", "Is there Blob?,0"], "training has no open question"),
    ],
)
def test_questions_that_cannot_be_asked_are_listed(folder: Path, tmp_path: Path, rows: list[str], message: str) -> None:
    file = asked(tmp_path / "ask.csv", *rows)
    with pytest.raises(UserError, match=message):
        predict(folder / "run", [folder / "export"], tmp_path / "out.csv", questions=file)
    assert not (tmp_path / "out.csv").exists()


def test_questions_belong_to_models_that_answer_them(
    folder: Path, own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = asked(tmp_path / "ask.csv", "question", "Is there Blob?")
    with pytest.raises(UserError, match="answers no questions"):
        predict(own_run / "run", [own_run / "export"], tmp_path / "out.csv", questions=file)
    with pytest.raises(UserError, match="none is asked"):
        predict(folder / "run", [folder / "export"], tmp_path / "out.csv")
    (folder / "run" / "model" / ANSWERS).rename(tmp_path / ANSWERS)
    with pytest.raises(UserError, match="answers of the model are missing"):
        load_tuned(folder / "run")
    (tmp_path / ANSWERS).rename(folder / "run" / "model" / ANSWERS)
    words = ["predict", folder / "run", folder / "export", "--out", tmp_path / "out.parquet", "--questions", file]
    assert called(monkeypatch, capsys, *words)[0] == 0
    assert set(pd.read_parquet(tmp_path / "out.parquet")["answer"]) <= {"yes", "no"}
