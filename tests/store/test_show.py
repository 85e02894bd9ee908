from __future__ import annotations

import base64
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny_store
from browser import WIDTHS, open_page, overflow
from PIL import Image

from medvlp.config.prepare import PrepareConfig
from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.sources.base import Problem, Source
from medvlp.sources.cards import load_card
from medvlp.store.prepare import prepare
from medvlp.store.show import choose, label_rows, quarantine_summary, show, stored_boxes
from medvlp.types import Box, ImageRef, Study

LABELS = ("Effusion", "Pneumonia")


class Small(Source):
    """Twelve wide radiographs with a white square where the box says; one file is missing."""

    name = "nih_chestxray14"

    def studies(self):
        for i in range(13):
            if i == 5:
                self.problems.append(Problem("row 5", "The age is no number.", "Correct the row."))
            name = f"img{i:02d}"
            yield Study(
                study_id=name,
                patient_id=f"SECRET{i // 2}",
                images=(ImageRef(name, f"{name}.png", view="PA" if i % 2 else "AP"),),
                report="FINDINGS: <b>clear</b> lungs." if i < 3 else None,
                labels={"Effusion": [1.0, 0.0, -1.0][i % 3]} | ({"Pneumonia": 1.0} if i == 11 else {}),
                boxes=(Box(name, "Effusion", 80, 20, 40, 30),) if i == 4 else (),
                age=40.0 + i,
                sex="F" if i % 3 else None,
                split=("train", "val", "test")[min(i // 2 % 3, 2)],
            )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    for i in range(12):
        image = rng.integers(0, 60, (100, 160), dtype=np.uint8)
        if i == 4:
            image[20:50, 80:120] = 255
        Image.fromarray(image).save(root / f"img{i:02d}.png")
    out = root / "store"
    config = PrepareConfig(
        source="nih_chestxray14",
        root=root,
        out=out,
        image=StoredImageConfig(size=64),
        num_workers=1,
        max_quarantine_share=0.5,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medvlp.store.prepare.SOURCES", SimpleNamespace(get=lambda _: Small))
        prepare(config)
    return out


@pytest.fixture(scope="module")
def html(store):
    page = store.parent / "show.html"
    show(store, page)
    return page


def test_page_in_a_browser(html):
    with open_page(html, viewport={"width": 1280, "height": 900}) as page:
        assert page.locator("#sheet figure").count() == 12
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth === 64)")
        bar = page.locator("#images .filters")
        bar.locator("select[name=label]").select_option("Pneumonia")
        assert page.locator("#sheet figure:visible").count() == 1
        bar.locator("select[name=label]").select_option("")
        labels = page.locator("#labels table")
        labels.locator("button.sort", has_text="Present").first.click()
        first = labels.locator("tbody tr").first.inner_text().split()
        assert first[:5] == ["Effusion", "4", "4", "4", "0"]
        for width in WIDTHS:
            assert overflow(page, width) <= 0, width


def test_box_lies_on_the_white_square(html):
    text = html.read_text()
    figure = next(f for f in re.findall(r"<figure.*?</figure>", text, re.S) if "<rect" in f)
    x, y, width, height = (
        float(v) for v in re.search(r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', figure).groups()
    )
    uri = re.search(r'src="data:image/jpeg;base64,([^"]+)"', figure).group(1)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
    rows, columns = np.nonzero(image > 150)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 100 / 64
    assert np.allclose(found, [x, y, x + width, y + height], atol=2.5)


def test_page_holds_counts_reports_and_quarantine_and_no_identifier(html, store):
    text = html.read_text()
    assert "SECRET" not in text
    assert str(store.parent) not in text
    assert "&lt;b&gt;clear&lt;/b&gt;" in text
    assert "The age is no number." in text
    assert "img12.png" in text  # the missing file, by its name alone
    assert load_card("nih_chestxray14").citation.split(".")[0] in text


def test_same_seed_same_page(html, store, tmp_path):
    show(store, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == html.read_bytes()
    show(store, tmp_path / "few.html", images=5, seed=1)
    assert (tmp_path / "few.html").read_text().count("<figcaption>") == 5


def test_boxes_of_a_cropped_store_are_cut_at_its_edge():
    boxes = [{"image_id": "a", "label": "x", "x": 0, "y": 10, "width": 60, "height": 20}]
    boxes += [{"image_id": "a", "label": "gone", "x": 0, "y": 0, "width": 10, "height": 10}]
    boxes += [{"image_id": "b", "label": "other image", "x": 60, "y": 0, "width": 10, "height": 10}]
    row = {"image_id": "a", "height": 100, "width": 160, "boxes": json.dumps(boxes)}
    store = SimpleNamespace(image_config=StoredImageConfig(size=50, aspect="crop"))
    (box,) = stored_boxes(row, store)  # the middle 100 columns are kept, from 30 on
    assert box == {"label": "x", "x": 0.0, "y": 10.0, "width": 30.0, "height": 20.0}


def test_choice_holds_every_label_without_repeats():
    rng = np.random.default_rng(0)
    n = 400
    frame = pd.DataFrame(
        {"boxes": ["[]"] * n, "label:common": np.ones(n), "label:rare": np.eye(n)[7], "label:none": 0.0}
    )
    rows = choose(frame, ["common", "rare", "none"], 10, rng)
    assert len(set(rows.tolist())) == 10
    assert 7 in rows
    assert len(choose(frame.head(3), ["common"], 10, rng)) == 3
    assert len(choose(frame.head(0), [], 10, rng)) == 0


def test_label_rows_agree_with_counting():
    studies = pd.DataFrame(
        {"split": ["train", "train", "test", None], "label:a": [1, 0, 1, np.nan], "label:b": [-1, -1, np.nan, np.nan]}
    )
    first, second = label_rows(studies, ["a", "b"])
    assert (first["present"], first["absent"], first["uncertain"], first["not_mentioned"]) == (2, 1, 0, 1)
    assert first["prevalence"] == pytest.approx(2 / 3)
    assert first["splits"] == [1, 1]
    assert second["prevalence"] is None
    assert second["uncertain"] == 2


def test_quarantine_summary_groups_reasons(tmp_path):
    lines = [
        {"path": f"/data/images/{i}.png", "reason": "The file is cut off.", "next": "Restore it."} for i in range(7)
    ]
    lines.append({"path": "x", "reason": "rare", "next": ""})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = quarantine_summary(tmp_path / "q.jsonl")
    assert (first["reason"], first["count"], first["next"]) == ("The file is cut off.", 7, "Restore it.")
    assert first["names"] == [f"{i}.png" for i in range(5)]
    assert second["count"] == 1
    assert quarantine_summary(tmp_path / "none.jsonl") == []


def test_no_store_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no prepared store"):
        show(tmp_path, tmp_path / "x.html")


def test_several_stores_share_a_page_and_none_of_its_ids(tmp_path: Path) -> None:
    stores = []
    for name in ("one", "two"):
        tiny_store.make_store(tmp_path / name, patients=12, reports=name == "one")
        stores.append((tmp_path / name / "store").rename(tmp_path / f"{name}_store"))
    page = tmp_path / "page.html"
    show(stores, page)
    with open_page(page) as opened:
        ids = opened.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
        assert len(ids) == len(set(ids))
        assert opened.locator("#overview tbody tr").count() == 2
        assert opened.locator("#one_store-images figure").count() == opened.locator("#two_store-images figure").count()
        assert opened.locator("#one_store-reports").count() == 1
        assert opened.locator("#two_store-reports").count() == 0
    with pytest.raises(UserError, match="the same name"):
        show([stores[0], tmp_path / "other" / "one_store"], page)
