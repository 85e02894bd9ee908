"""Experts: what they say is what their model predicts, enters the prompt, changes texts, is made of pixels alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import phantom_store
import pytest
import torch

from medvlp.config.finetune import FinetuneConfig
from medvlp.config.reports import ExpertConfig, ReportsConfig
from medvlp.errors import UserError
from medvlp.finetune.run import finetune
from medvlp.infer.predict import predict
from medvlp.metrics import report_generation
from medvlp.models.causal_decoder import CausalDecoder, fresh_model
from medvlp.models.report_decoder import Visual
from medvlp.store.array_store import Store
from medvlp.tasks._experts import EXPERTS
from medvlp.tasks._experts.base import Expert
from medvlp.tasks._experts.prompts import Prompts, build_experts
from medvlp.tasks._experts.words import findings_in_words, mask_in_words
from medvlp.tasks._study_images import StudyImages
from medvlp.text.vocabulary import WordVocabulary
from medvlp.zoo import Encoder, load_encoder
from tests.tasks.test_report_generation import subject, task

CAUSAL = {"kind": "causal", "width": 16, "hidden": 16, "layers": 1, "heads": 2, "dropout": 0.0}
LABELS = ["Pneumothorax", "Pleural Effusion"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return Store.open(phantom_store.make_store(folder, 40))


@pytest.fixture(scope="module")
def encoder(store: Store) -> Encoder:
    return load_encoder("random:test_vit@32", stored=store.image_config)


@pytest.fixture(scope="module")
def run(store: Store, folder: Path) -> Path:
    return fine_tuned(store, folder / "classifier", "classification", {"labels": LABELS})


def fine_tuned(store: Store, out: Path, kind: str, data: dict[str, Any]) -> Path:
    tree = {
        "kind": "finetune",
        "task": kind,
        "encoder": "random:resnet10t@32",
        "run": {"dir": str(out)},
        "data": {"store": str(store.path), "num_workers": 0} | data,
        "train": {"epochs": 1, "batch_size": 16},
        "device": "cpu",
        "track": {"mlflow": False},
    }
    finetune(FinetuneConfig.model_validate(tree))
    return out


def experts(run: Path) -> dict[str, Any]:
    return {"experts": {"use": [{"run": str(run)}], "max_tokens": 40}, "decoder": CAUSAL}


def prompts(store: Store, run: Path, number: int = 1) -> Prompts:
    found = build_experts(ReportsConfig.model_validate(experts(run)).experts, torch.device("cpu"))
    return Prompts(found * number, store, StudyImages(store, (), 2))


def test_a_classifier_says_its_validated_probabilities(store: Store, run: Path, tmp_path: Path, folder: Path) -> None:
    rows = np.arange(6)
    expert = EXPERTS.get("tuned")(ExpertConfig(run=run), torch.device("cpu"))
    said = expert.describe(store.read(store.images["index"].to_numpy()[rows]))
    files = [folder / "raw" / path for path in store.images["path"].iloc[rows]]
    predict(run, files, tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv").set_index("path")
    for text, file in zip(said, files, strict=True):
        row = table.loc[str(file)]
        assert text == findings_in_words(LABELS, [row[f"probability:{name}"] for name in LABELS])


def test_numbers_and_masks_in_words() -> None:
    assert findings_in_words(["Lung_Opacity", "Edema"], [0.844, 0.02]) == (
        "Expert: Lung Opacity 80 percent, Edema 0 percent."
    )
    mask = np.zeros((30, 30), dtype=bool)
    assert mask_in_words("heart", mask) == "Expert: no heart."
    mask[22:28, 2:8] = True
    assert mask_in_words("heart", mask) == "Expert: heart covers 4 percent, lower left of the picture."
    assert mask_in_words("heart", mask[::-1, ::-1]) == "Expert: heart covers 4 percent, upper right of the picture."
    assert mask_in_words("heart", np.eye(30, dtype=bool)).endswith("middle centre of the picture.")


def test_the_prompt_of_a_study_is_said_of_its_shown_images_in_order(store: Store, run: Path) -> None:
    table = prompts(store, run)
    rows = task().samples(store)["test"].rows
    shown = StudyImages(store, (), 2).of(rows)
    places = store.images["index"].to_numpy()
    for prompt, own in zip(table(rows), shown, strict=True):
        each = [table.experts[0].describe(store.read(places[[image]]))[0] for image in own[own >= 0]]
        assert prompt == " ".join(each)
    calls = []
    table.experts = [replace_describe(table.experts[0], calls)]
    assert table(rows) == prompts(store, run)(rows)
    assert calls == []


def replace_describe(expert: Expert, calls: list[int]) -> Any:
    class Counting:
        def describe(self, squares: np.ndarray) -> list[str]:
            calls.append(len(squares))
            return expert.describe(squares)

    return Counting()


def test_what_experts_say_holds_no_truth(store: Store, run: Path, tmp_path: Path) -> None:
    """Other labels, reports and boxes of the same pixels: the same prompts."""
    shutil.copytree(store.path, tmp_path / "copy")
    studies = pd.read_parquet(tmp_path / "copy" / "studies.parquet")
    for name in [name for name in studies if name.startswith("label:")]:
        studies[name] = 1.0 - studies[name]
    studies["report"] = pd.array(["FINDINGS: Zyxw."] * len(studies), dtype="string")
    studies["boxes"], studies["triplets"] = "[]", "[]"
    studies.to_parquet(tmp_path / "copy" / "studies.parquet")
    other = Store.open(tmp_path / "copy")
    rows = task().samples(store)["test"].rows
    assert prompts(store, run)(rows) == prompts(other, run)(rows)


def test_a_prompt_changes_what_a_decoder_says_and_missing_tokens_do_not() -> None:
    torch.manual_seed(0)
    vocabulary = WordVocabulary(["expert", "edema", "80", "percent", "no", "there", "is", "."])
    model = fresh_model(vocabulary.size, 16, 16, 2, 2, 64, 0.0)
    decoder = CausalDecoder(5, model, vocabulary).eval()
    visual = Visual(torch.randn(2, 3, 5))
    ids, mask = (torch.from_numpy(part) for part in vocabulary.encode(["Expert edema 80 percent.", "no."], 12))
    words, _ = vocabulary.encode(["there is no edema."] * 2, 12)
    target = torch.from_numpy(words)
    asked = replace(visual, prompt=ids, prompt_mask=mask)
    with torch.no_grad():
        plain, told = decoder(visual, target), decoder(asked, target)
        assert not torch.allclose(plain, told)
        swapped = replace(visual, prompt=ids.flip(0), prompt_mask=mask.flip(0))
        assert not torch.allclose(decoder(swapped, target), told)
        short = replace(
            Visual(visual.tokens[1:]), prompt=ids[1:, : int(mask[1].sum())], prompt_mask=mask[1:][:, mask[1]]
        )
        torch.testing.assert_close(decoder(short, target[1:]), told[1:], rtol=1e-4, atol=1e-5)
        pads = torch.cat([ids, torch.full((2, 4), 3)], dim=1)
        padded = replace(visual, prompt=pads, prompt_mask=torch.cat([mask, torch.zeros(2, 4, dtype=torch.bool)], 1))
        torch.testing.assert_close(decoder(padded, target), told, rtol=1e-4, atol=1e-5)
    rows = decoder.generate(asked, 8, beams=2)
    alone = decoder.generate(short, 8, beams=2)
    assert rows[1].tolist() == alone[0].tolist()


def test_a_writer_learns_with_experts_and_its_cells_are_others(store: Store, encoder: Encoder, run: Path) -> None:
    with_experts, without = task(experts(run)), task({"decoder": CAUSAL})
    samples = with_experts.samples(store)
    heads = [
        made.fit(subject(store, encoder), "frozen", samples["train"], samples["val"], 0)
        for made in (with_experts, with_experts, without)
    ]
    kept, again, plain = (head.predict(samples["test"]) for head in heads)
    assert kept == again
    losses = [[entry["loss"] for entry in head.best_params["history"]] for head in heads]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][1] < losses[0][0]
    assert kept.references == plain.references
    settings = [made.settings("frozen") for made in (with_experts, without)]
    assert settings[0]["experts"] == [build_experts(with_experts.config.reports.experts, torch.device("cpu"))[0].hash]
    assert "experts" not in settings[1]
    assert "experts" not in settings[1]["reports"]
    assert str(run) not in str(settings[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": {"kind": "memory"}}, "experts speak to a language model"),
        ({"experts": {"use": []}}, "at least 1 item"),
        ({"experts": {"use": [{"run": "x", "options": {"a": 1}}]}}, "takes run, and no options"),
    ],
)
def test_bad_settings_are_named(run: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReportsConfig.model_validate(experts(run) | change)


def test_what_is_no_expert_is_refused(store: Store, encoder: Encoder, run: Path, tmp_path: Path) -> None:
    made = task(experts(tmp_path / "missing"))
    samples = made.samples(store)
    with pytest.raises(UserError, match="no such run"):
        made.fit(subject(store, encoder), "frozen", samples["train"], samples["val"], 0)
    unknown = {"decoder": CAUSAL, "experts": {"use": [{"name": "tunde"}]}}
    with pytest.raises(UserError, match="no expert named 'tunde'") as error:
        build_experts(ReportsConfig.model_validate(unknown).experts, torch.device("cpu"))
    assert "tuned" in error.value.what + error.value.fix
    with pytest.raises(UserError, match="names no fine-tuned model"):
        task({"decoder": CAUSAL, "experts": {"use": [{}]}}).settings("frozen")
    expert = EXPERTS.get("tuned")(ExpertConfig(run=run), torch.device("cpu"))
    other = store.image_config.model_copy(update={"aspect": "crop"})
    with pytest.raises(UserError, match="aspect is crop, was pad"):
        expert.check_store(other)
    expert.check_store(store.image_config.model_copy(update={"size": 512}))


def test_a_writer_for_use_keeps_its_experts(store: Store, run: Path, folder: Path, tmp_path: Path) -> None:
    reports = experts(run) | {"max_images": 1, "min_count": 1, "max_tokens": 16, "beams": 1}
    given = {"steps": 8, "batch_size": 8, "lr": 0.01, "freeze_encoder": True}
    tree = {
        "kind": "finetune",
        "task": "report_generation",
        "encoder": "random:resnet10t@32",
        "run": {"dir": str(tmp_path / "writer")},
        "data": {"store": str(store.path), "num_workers": 0},
        "reports": reports,
        "train": given,
        "bootstrap_resamples": 20,
        "device": "cpu",
        "track": {"mlflow": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_generation, "computable", lambda: ("bleu_1", "bleu_4"))
        finetune(FinetuneConfig.model_validate(tree))
    kept = pd.read_parquet(tmp_path / "writer" / "predictions" / "test.parquet").set_index("sample_id")["generated"]
    images = store.images.sort_values("image_id").drop_duplicates("study_id").set_index("study_id").loc[kept.index]
    done = predict(tmp_path / "writer", [folder / "raw" / path for path in images["path"]], tmp_path / "out.csv")
    assert done.predicted == len(kept)
    written = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert written["report"].tolist() == kept.tolist()
