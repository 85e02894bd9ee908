from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.html import data_uri, write_page
from medvlp.html.charts import Axis, Series, Style, histogram, line_chart, marker_path, simplified, styles, swatches
from medvlp.html.markdown import to_html
from medvlp.html.numbers import decimal, interval, p_value, percent, signed, ticks
from medvlp.html.private import public, scrub


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8126, "0.813"),
        (-0.0416, "−0.042"),
        (-0.0001, "0.000"),
        (float("nan"), "–"),
        (None, "–"),
        (1, "1.000"),
        (True, "–"),
    ],
)
def test_decimal(value, text):
    assert decimal(value) == text


def test_differences_and_intervals_use_minus_sign_and_en_dash():
    assert signed(0.0131) == "+0.013"
    assert signed(-0.0131) == "−0.013"
    assert signed(0.0001) == "0.000"
    assert interval(0.784, 0.8421) == "0.784–0.842"
    assert interval(-0.01, 0.02) == "−0.010 – 0.020"
    assert interval(None, 0.3) == ""
    assert p_value(0.0004) == "<0.001"
    assert p_value(0.0312) == "0.031"
    assert percent(1.0) == "100\u202f%"
    assert percent(0.0067) == "0.7\u202f%"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.43, 1.02), (-0.08, 0.2), (0, 93), (0, 123456)])
def test_ticks_are_round_inside_and_even(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert low <= found[0]
    assert found[-1] <= high
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert round(mantissa, 6) in (1, 2, 5)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("No file '/home/jane/data/x.png' here", "No file 'x.png' here"),
        ("where: ../shared/data/nih", "where: nih"),
        ("~/runs/medclip/model is cut off", "model is cut off"),
        (r"C:\Users\jane\x.dcm", "x.dcm"),
        ("file:///home/jane/x.png", "x.png"),
        ("root=/mnt/pacs/", "root=pacs"),
        ("AP/PA and 1/2 and https://example.org/a/b", "AP/PA and 1/2 and https://example.org/a/b"),
        ("images_001/images/x.png", "images_001/images/x.png"),
        ("3 / 4, and / or", "3 / 4, and / or"),
    ],
)
def test_scrub_leaves_no_machine_path(text, kept):
    assert scrub(text) == kept


def test_public_withholds_identifiers_in_nested_records():
    record = {"encoder": {"spec": "/a/b/run"}, "rows": [{"patient_id": "P1", "sample_id": "s"}], "n": 3}
    assert public(record) == {"encoder": {"spec": "run"}, "rows": [{"sample_id": "s"}], "n": 3}


def test_markdown_escapes_and_keeps_structure():
    text = (
        "# T\n\nA *b* `c*d*` <script>x</script>\n[l](https://e.org/a) [m](javascript:alert)\n\n"
        "- one\n  more\n- two\n\n| a | b |\n|---|--:|\n| 1 | `x` |\n\n```\n<b>\n```"
    )
    html = str(to_html(text))
    assert "<script" not in html
    assert "javascript:alert" in html
    assert 'href="javascript' not in html
    assert "<h3>T</h3>" in html
    assert "<em>b</em> <code>c*d*</code>" in html
    assert '<a href="https://e.org/a"' in html
    assert "<ul><li>one more</li><li>two</li></ul>" in html
    assert "<td>1</td><td><code>x</code></td>" in html
    assert "<pre>&lt;b&gt;</pre>" in html


def test_styles_tell_encoders_apart_and_draw_baselines_in_grey():
    names = [f"e{i}" for i in range(9)] + ["random:resnet18", "majority"]
    looks = styles(names, names[-2:])
    assert len({(s.colour, s.dash, s.marker) for s in looks.values()}) == len(names)
    assert all(looks[name].colour.startswith("var(--grey") for name in names[-2:])
    assert all(looks[name].colour.startswith("var(--series") for name in names[:-2])


def test_charts_are_valid_xml_and_place_points_to_scale():
    x, y = Axis.linear("a < b", 0, 1), Axis.linear("y", 0, 2)
    svg = line_chart([Series("<i>", [0, 0.5, 1], [0, 1, 2], Style("red"))], x, y, 'say "hi"', diagonal=True)
    root = ET.fromstring(svg)
    line = next(e for e in root.iter("path") if e.get("class") == "line")
    points = np.array([[float(v) for v in p.split()] for p in line.get("d")[1:].split("L")])
    assert np.allclose(points[1], points[[0, 2]].mean(axis=0))
    assert points[0, 1] > points[2, 1]
    assert root.get("aria-label") == 'say "hi"'
    bars = list(ET.fromstring(histogram([1, 4, 0], [0, 1, 2, 3], "x", "n", "d")).iter("rect"))
    heights = [float(b.get("height")) for b in bars]
    assert heights[1] == pytest.approx(4 * heights[0], abs=0.3)
    assert heights[2] == 0
    once, samples = swatches({"a": Style("red", "1 2", "hexagon", "x"), "b": Style("blue", id="y")})
    ids = {each.get("id") for each in ET.fromstring(once).iter("g")}
    assert {ET.fromstring(sample)[0].get("href") for sample in samples.values()} == {f"#{name}" for name in ids}
    assert all(marker_path(name, 1, 2) for name in ("square", "diamond", "triangle", "down"))


def test_log_axis_spaces_decades_evenly():
    axis = Axis("x", 0.01, 1, log=True)
    assert axis.place(0.1, 0, 100) == pytest.approx(50)
    assert axis.place(5, 0, 100) == 100


def test_write_page_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    page = tmp_path / "deep" / "page.html"
    write_page(page, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        write_page(page, "new")
    assert page.read_text() == "old"
    assert [p.name for p in page.parent.iterdir()] == ["page.html"]


def test_data_uri_keeps_the_image():
    import base64
    import io

    from PIL import Image

    image = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    uri = data_uri(image)
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert np.abs(decoded.astype(int) - image).mean() < 2


def test_a_simplified_line_stays_within_its_tolerance():
    x = np.linspace(0, 300, 201)
    y = np.cumsum(np.random.default_rng(0).random(201) ** 4)
    kept = simplified(x, y, 0.3)
    assert kept[0] == 0
    assert kept[-1] == 200
    assert len(kept) < 150
    assert np.abs(np.interp(x, x[kept], y[kept]) - y).max() < 0.5  # 0.3 across the line, a little more upwards
    assert simplified([0, 1, 2], [0, 0, 0]) == [0, 2]
    assert simplified([5, 9, 5], [5, 5, 5]) == [0, 1, 2]
