"""A suite with report generation, from the command line to the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import phantom_store
import pytest
import yaml
from browser import WIDTHS, open_page, overflow
from transformers import BertConfig

from medvlp.bench.cells import Finished
from medvlp.bench.report import write_report
from medvlp.bench.report_texts import differences, pieces
from medvlp.bench.results import finished_cells
from medvlp.errors import UserError
from medvlp.metrics.clinical.chexbert import CheXbert, cosine
from medvlp.tasks.report_generation import Reports
from tests.metrics.clinical.released import WORDS, write_chexbert

ENCODER = "random:resnet18@64"
DECODER = {"width": 16, "hidden": 16, "layers": 1, "heads": 2, "memory_heads": 2}
PLAIN = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "brightness": 0.0, "contrast": 0.0}
TASK = {
    "kind": "task",
    "name": "reports",
    "version": 1,
    "type": "report_generation",
    "dataset": "phantom",
    "views": ["PA", "AP"],
    "reports": {"min_count": 2, "max_tokens": 40, "max_images": 1, "beams": 2, "decoder": DECODER},
    "fine_tune": {"epochs": 1, "steps": 4, "batch_size": 8, "lr": 0.01, "warmup_steps": 1, "augment": PLAIN},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of `medvlp bench run` on 64 studies, without METEOR, whose tables take seconds to read."""
    from typer.testing import CliRunner

    from medvlp.cli import app
    from medvlp.metrics import report_generation

    folder = tmp_path_factory.mktemp("reports")
    store = phantom_store.make_store(folder, 64)
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    entries = [{"task": str(folder / "task.yaml"), "protocols": ["frozen", "knn"]}]
    suite = {"kind": "suite", "name": "reports", "version": 1, "entries": entries, "bootstrap_resamples": 40}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite | {"baselines": ["random", "metadata", "majority"]}))
    command = ["bench", "run", str(folder / "suite.yaml"), "--store", str(store), "--encoder", ENCODER]
    command += ["--out", str(folder / "out"), "--jobs", "0", "--no-audit", "--no-mlflow", "--device", "cpu"]
    others = tuple(name for name in report_generation.WORDS if name != "meteor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_generation, "computable", lambda: others)
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return folder / "out"


def cell(results: Path, protocol: str, encoder: str) -> Finished:
    return next(
        c for c in finished_cells(results) if (c.record["protocol"], c.record["encoder"]) == (protocol, encoder)
    )


def test_every_encoder_and_baseline_has_its_texts_and_scores(results: Path) -> None:
    found = {(c.record["protocol"], c.record["encoder"]) for c in finished_cells(results)}
    assert found == {("frozen", ENCODER), ("knn", ENCODER), ("knn", "metadata"), ("knn", "majority")}
    written = cell(results, "frozen", ENCODER)
    kept = Reports.from_frame(pd.read_parquet(written.folder / "predictions.parquet"))
    assert len(kept.generated) == written.result["n"] > 1
    assert any(kept.generated)
    scores = {(row["metric"], row["label"]): row for row in written.result["scores"]}
    assert written.leading == "finding_f1_micro"
    for metric in ("finding_f1_micro", "bleu_4", "rouge_l", "cider_d"):
        assert scores[metric, "macro"]["low"] <= scores[metric, "macro"]["high"]
    usual = cell(results, "knn", "majority")
    assert len(set(Reports.from_frame(pd.read_parquet(usual.folder / "predictions.parquet")).generated)) == 1
    assert written.result["best_params"]["tokens"] > 10


def test_the_page_shows_texts_beside_the_reference_with_their_findings(results: Path, tmp_path: Path) -> None:
    page_file = tmp_path / "report.html"
    write_report(results, page_file)
    kept = Reports.from_frame(pd.read_parquet(cell(results, "knn", "metadata").folder / "predictions.parquet"))
    with open_page(page_file) as page:
        studies = page.locator("#texts article")
        assert studies.count() == min(6, len(set(kept.patient_ids)))
        name = studies.nth(0).locator("h3 .mono").inner_text()
        reference = studies.nth(0).locator(".told").nth(0)
        shown = reference.evaluate(
            "e => { const c = e.cloneNode(true); c.querySelectorAll('b, .away').forEach(x => x.remove()); "
            "return c.textContent }"
        )
        assert shown == kept.references[kept.sample_ids.index(name)]
        assert studies.nth(0).locator(".told").count() == 5
        assert studies.nth(0).locator("img").count() == 1
        marks = page.locator("#texts .told mark")
        assert marks.count() > 0
        signs = {"present": "+", "absent": "\u2212", "uncertain": "?"}
        styles = {}
        for i in range(min(marks.count(), 40)):
            mark = marks.nth(i)
            kind = mark.get_attribute("class")
            assert mark.locator("b").inner_text() == signs[kind]
            assert mark.locator(".away").inner_text().strip("() ").endswith(("affirmed", "denied", "left open"))
            styles[kind] = mark.evaluate("e => getComputedStyle(e).borderBottomStyle")
        assert len(set(styles.values())) == len(styles) > 1, "kinds differ by their line"
        assert page.locator("nav.page a[href='#texts']").count() == 1
        assert page.locator("#headline h3", has_text="Frozen encoder").count() == 1
        for width in WIDTHS:
            assert overflow(page, width) <= 0
    text = page_file.read_text()
    assert "Findings F1" in text
    assert "BLEU-4" in text
    assert "the report of the training study with the nearest features" in text
    examples = json.loads((results / "examples" / "studies.json").read_text())
    assert all((results / "examples" / name).is_file() for entry in examples for name in entry["files"])


def test_what_only_one_text_affirms_is_told() -> None:
    found = differences("The heart is enlarged. No effusion.", "Small pleural effusion. No edema.")
    assert found == {"missed": ["Pleural Effusion"], "added": ["Cardiomegaly"]}
    kinds = [piece["kind"] for piece in pieces("No effusion. Possible pneumonia. Edema.") if piece["finding"]]
    assert kinds == ["absent", "uncertain", "present"]


def test_a_published_model_judges_kept_texts_by_rescore(results: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from medvlp.cli import app

    shutil.copytree(results, tmp_path / "out")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    (tmp_path / "chexbert").mkdir()
    folder = write_chexbert(tmp_path / "chexbert", config)
    command = ["bench", "rescore", str(tmp_path / "out"), "--metric", "chexbert_similarity"]
    done = CliRunner().invoke(app, [*command, "--weights", str(folder)])
    assert done.exit_code == 0, done.output
    assert "computed for 4 cells" in done.output
    written = cell(tmp_path / "out", "frozen", ENCODER)
    (row,) = [row for row in written.result["scores"] if row["metric"] == "chexbert_similarity"]
    kept = Reports.from_frame(pd.read_parquet(written.folder / "predictions.parquet"))
    model = CheXbert(folder)
    near = cosine(model.embeddings(kept.generated), model.embeddings(kept.references))
    assert row["value"] == pytest.approx(near.mean(), abs=1e-6)
    assert row["low"] <= row["value"] <= row["high"]
    write_report(tmp_path / "out", tmp_path / "page.html")
    assert "CheXbert similarity" in (tmp_path / "page.html").read_text()
    for wrong, said in (
        (command, "needs the weights"),
        ([*command[:-1], "bleu_4", "--weights", str(folder)], "needs no weights"),
        ([*command, "--weights", str(tmp_path)], "CheXbert has no chexbert.pth"),
    ):
        with pytest.raises(UserError, match=said):
            CliRunner().invoke(app, wrong, catch_exceptions=False)
