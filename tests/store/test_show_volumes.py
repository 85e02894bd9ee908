"""Pages of stores of volumes, clips and masks: orientation, proportions, windows and marks, also in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import test_masks_clips_colour as other
from browser import WIDTHS, open_page, overflow
from PIL import Image
from volume_source import run

from medvlp.html.pictures import COLOURS, colour, marks_uri
from medvlp.sources.base import Source
from medvlp.sources.phantom.write import nifti
from medvlp.store.show import show
from medvlp.store.show_clips import chosen_frames
from medvlp.types import ImageRef, Intensity, Lesion, Mask, Study, VolumeFacts

SHAPE, SPACING = (20, 50, 40), np.array([5.0, 1.0, 2.0])
"""100 × 50 × 80 mm."""
AFFINE = np.array([[0.0, 0, 2, 7], [0, 1, 0, -30], [5, 0, 0, 100], [0, 0, 0, 1]])
BLOCK = (slice(14, 18), slice(35, 45), slice(28, 36))
"""A bone near the patient's right, front and top; the lesion's ball is at its centre."""
CENTRE = np.array([15.5, 39.5, 31.5])


def body() -> np.ndarray:
    volume = np.full(SHAPE, -1000, np.int16)
    volume[2:18, 5:45, 4:36] = 40
    volume[BLOCK] = 1200
    volume[4:7, 8:12, 6:10] = -700
    return volume


class Bodies(Source):
    """One volume with marks and geometry, one of stored values without geometry."""

    name = "phantom"
    kind = "volume"

    def studies(self):
        right, front, top, _ = AFFINE @ [*CENTRE, 1]
        lesion = Lesion("SHOWN", "bone island", (right, front, top), 12.0)
        facts = VolumeFacts(Intensity.HU)
        image = ImageRef("SHOWN", "body.nii.gz", "CT", facts=facts)
        mask = Mask("SHOWN", "bone", "bone.nii.gz", values=(1,))
        yield Study("s", "SECRET1", (image,), masks=(mask,), lesions=(lesion,), labels={"Lung Lesion": 1.0}, age=61.0)
        yield Study("t", "SECRET2", (ImageRef("PLAIN", "slices", "CT"),), split="test")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bodies")
    (root / "body.nii.gz").write_bytes(nifti(body(), AFFINE))
    labels = np.zeros(SHAPE, np.uint8)
    labels[BLOCK] = 1
    (root / "bone.nii.gz").write_bytes(nifti(labels, AFFINE))
    (root / "slices").mkdir()
    for number in range(6):
        cv2.imwrite(str(root / "slices" / f"{number}.png"), np.full((30, 30), 20 * number + 50, np.uint8))
    run(root, root / "store", Bodies)
    page = root / "store.html"
    show(root / "store", page)
    return page


def articles(html: Path) -> dict[str, str]:
    found = re.findall(r"<article.*?</article>", html.read_text(), re.S)
    return {re.search(r"<h3[^>]*>(\S+)</h3>", article).group(1): article for article in found}


def pictures(article: str, window: str) -> list[np.ndarray]:
    found = re.findall(rf'class="window window-{window}[^>]*src="data:image/jpeg;base64,([^"]+)"', article)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


@pytest.mark.parametrize(
    ("place", "axes", "sides"),
    [(0, (1, 2), "RLAP"), (1, (0, 2), "RLSI"), (2, (0, 1), "APSI")],
    ids=["axial", "coronal", "sagittal"],
)
def test_planes_lie_and_are_shaped_as_radiologists_look_at_them(
    html: Path, place: int, axes: tuple[int, int], sides: str
) -> None:
    article = articles(html)["SHOWN"]
    picture = pictures(article, "bone")[place]
    extent = np.array(SHAPE) * SPACING
    assert picture.shape[0] / picture.shape[1] == pytest.approx(extent[axes[0]] / extent[axes[1]], rel=0.02)
    rows, columns = np.nonzero(picture > 158)  # halfway between bone and soft tissue
    middle = np.array([rows.mean() + 0.5, columns.mean() + 0.5]) / picture.shape
    # Array axes run to superior, anterior and right; all three are up or left on the page.
    expected = 1 - (CENTRE[list(axes)] + 0.5) / np.array(SHAPE)[list(axes)]
    assert np.allclose(middle, expected, atol=0.02)
    assert (middle < 0.5).all()
    figure = article.split('<div class="planes">')[1].split("</figure>")[place]
    assert "".join(re.findall(r'class="letter l\d">(\w)<', figure)) == sides
    ellipse = re.search(r'<ellipse cx="(\S+)" cy="(\S+)" rx="(\S+)" ry="(\S+)"', figure)
    x, y, rx, ry = (float(value) for value in ellipse.groups())
    assert np.allclose([y / picture.shape[0], x / picture.shape[1]], expected, atol=0.01)
    per_mm = picture.shape[1] / extent[axes[1]]
    assert (rx, ry) == pytest.approx((6 * per_mm, 6 * per_mm), rel=0.12)  # the plane is up to half a voxel off
    overlay = re.search(r'class="mark" src="data:image/png;base64,([^"]+)"', figure).group(1)
    inside = np.asarray(Image.open(io.BytesIO(base64.b64decode(overlay))).convert("RGBA"))[..., 3] > 0
    assert (inside & (picture > 158)).sum() / (inside | (picture > 158)).sum() > 0.85


def test_windows_show_what_they_are_for(html: Path) -> None:
    article = articles(html)["SHOWN"]
    axial = {window: pictures(article, window)[0] for window in ("mediastinum", "lung", "bone", "brain")}
    size = axial["bone"].shape
    soft = (size[0] // 2, size[1] // 2)
    for window, grey in (("mediastinum", 128), ("lung", 238), ("bone", 76), ("brain", 128)):
        assert abs(int(axial[window][soft]) - grey) <= 6, window
    assert axial["mediastinum"][2, 2] <= 4


def test_no_geometry_no_letters(html: Path) -> None:
    article = articles(html)["PLAIN"]
    assert "letter" not in article
    assert "not stated" in article
    assert len(pictures(article, "range")) == 3 + 6
    assert pictures(article, "lung") == []


def test_in_a_browser(html: Path) -> None:
    with open_page(html, viewport={"width": 1280, "height": 900}) as page:
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")

        def shown() -> set[str]:
            names = page.evaluate(
                "[...document.querySelectorAll('.layers img.window')].filter(i => i.offsetWidth)"
                ".map(i => i.className.match(/window-(\\w+)/)[1])"
            )
            return set(names)

        assert shown() == {"mediastinum", "range"}
        for window in ("lung", "bone", "brain"):
            page.locator(f"#window-{window}").check()
            assert shown() == {window, "range"}
        assert page.locator(".layers ellipse:visible").count() >= 3
        page.locator("#marks").uncheck()
        assert page.locator(".mark:visible").count() == 0
        page.locator("#volumes .filters select[name=split]").select_option("test")
        assert page.locator("article:visible h3").all_inner_texts() == ["PLAIN"]
        for width in WIDTHS:
            assert overflow(page, width) <= 0, width


def test_without_scripts_the_first_window_is_seen(html: Path) -> None:
    with open_page(html, viewport={"width": 1280, "height": 900}, java_script_enabled=False) as page:
        page.locator("#window-lung").check()
        assert page.locator("img.window-lung").first.is_visible()
        assert not page.locator("img.window-mediastinum").first.is_visible()


def test_the_page_names_nobody_and_is_the_same_again(html: Path, tmp_path: Path) -> None:
    text = html.read_text()
    assert "SECRET" not in text
    assert str(html.parent) not in text
    assert "bone island" in text
    show(html.parent / "store", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == text


def test_clips_and_marked_images_have_pages(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    (clips / "clip").mkdir(parents=True)
    for number in range(other.FRAMES):
        cv2.imwrite(str(clips / "clip" / f"{number}.png"), other.frame(number))
    run(clips, tmp_path / "c", other.Clips, video={"size": other.CLIP_SIDE}, max_quarantine_share=1)
    show(tmp_path / "c", tmp_path / "c.html")
    with open_page(tmp_path / "c.html") as page:
        frames = page.locator("#clips figcaption").all_inner_texts()
        assert len(frames) == 8
        assert {"5", "11"} <= set(frames)
        assert page.locator("#clips .layers img.mark").count() == 2
        assert page.locator("#structures tbody tr").inner_text().split() == ["ventricle", "1", "1", "128"]
    root = other.write_marked(tmp_path / "marked")
    other.prepare_marked(root, tmp_path / "m")
    show(tmp_path / "m", tmp_path / "m.html")
    with open_page(tmp_path / "m.html") as page:
        assert page.locator("#sheet figure").count() == 5
        assert page.locator("#sheet img.mark").count() == 4
        assert page.locator("#sheet .keys li").count() == 16
        page.locator("#marks").uncheck()
        assert page.locator(".mark:visible").count() == 0
        assert overflow(page, 400) <= 0


def test_marked_frames_are_shown() -> None:
    assert chosen_frames(100, []) == [0, 14, 28, 42, 57, 71, 85, 99]
    assert {3, 50, 51, 52} <= set(chosen_frames(100, [3, 50, 51, 52]))
    assert chosen_frames(3, [1]) == [0, 1, 2]
    assert chosen_frames(100, list(range(20, 40))) == [20, 21, 22, 23, 24, 25, 26, 28]


def test_marks_have_a_line_and_a_faint_filling() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    uri = marks_uri([mask, ~mask & False], [0, 1])
    layer = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))
    assert (layer[0, 0, 3], layer[2, 2, 3] > 200, 20 < layer[4, 4, 3] < 90) == (0, True, True)
    assert marks_uri([mask & False], [0]) is None
    assert len({colour(place) for place in range(120)}) == 120
    assert [colour(place) for place in range(len(COLOURS))] == list(COLOURS)


def test_a_store_of_volumes_without_marks(tmp_path: Path) -> None:
    class Plain(Bodies):
        name = "phantom"

        def studies(self):
            yield list(super().studies())[1]

    (tmp_path / "slices").mkdir()
    for number in range(2):
        cv2.imwrite(str(tmp_path / "slices" / f"{number}.png"), np.full((30, 30), 50, np.uint8))
    run(tmp_path, tmp_path / "store", Plain)
    show(tmp_path / "store", tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text()
    assert 'id="marks"' not in text
    assert 'type="radio"' not in text
    assert json.dumps("PLAIN").strip('"') in text
