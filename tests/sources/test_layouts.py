"""Every raw layout that the phantom writes is read back by its adapter as what was written."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from example_strategy import differences, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medvlp.sources import SOURCES
from medvlp.sources.phantom.layouts import LAYOUTS
from medvlp.sources.phantom.layouts.write import write_layout

COMBINATIONS = [
    (name, dict(zip(layout.editions, values, strict=True)))
    for name in LAYOUTS.names()
    for layout in [LAYOUTS.get(name)]
    for values in itertools.product(*layout.editions.values())
]


@pytest.mark.parametrize("name", LAYOUTS.names())
def test_the_phantom_itself_is_written_and_read_in_every_layout(name: str, tmp_path: Path) -> None:
    options = {"version": "v2"} if name in ("ct_rate", "totalsegmentator") else {}
    number = write_layout(name, tmp_path / "raw", 5, seed=3, size=32, image_size=64, options=options)
    source = SOURCES.get(name)(tmp_path / "raw", options)
    studies = list(source.studies())
    assert len(studies) == number >= 3
    assert not source.problems
    assert all((tmp_path / "raw" / image.path).exists() for study in studies for image in study.images)


@pytest.mark.parametrize(("name", "options"), COMBINATIONS, ids=lambda part: str(part))
@given(data=st.data())
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_adapter_reads_back_what_the_layout_wrote(
    name: str, options: dict[str, object], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layout = LAYOUTS.get(name)
    root: Path = tmp_path_factory.mktemp(name)
    written = layout(root, options).write(data.draw(examples(layout)))
    source = SOURCES.get(name)(root, options)
    found = list(source.studies())
    assert [study.study_id for study in found] == [study.study_id for study in written]
    wrong = {a.study_id: differences(a, b) for a, b in zip(found, written, strict=True) if differences(a, b)}
    assert not wrong
    assert not source.problems
    assert all((root / image.path).exists() for study in found for image in study.images)
