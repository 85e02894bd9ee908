"""Several stores by one file; the shipped one prepares the whole real test data."""

from __future__ import annotations

from pathlib import Path

import nih_layout as nih
import pytest
import yaml

from medvlp.config.load import load_config
from medvlp.config.prepare import CollectionConfig
from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.store.collection import prepare_collection
from medvlp.store.show import show


def test_one_that_fails_does_not_keep_the_others_from_being_prepared(tmp_path: Path) -> None:
    nih.small(6, 2).write(tmp_path / "raw" / "good")
    entry = {"source": "nih_chestxray14", "image": {"size": 16}, "num_workers": 1}
    stores = {"bad": {**entry, "root": "gone"}, "good": {**entry, "root": "good"}}
    file = tmp_path / "both.yaml"
    file.write_text(yaml.safe_dump({"kind": "collection", "stores": stores}))
    places = {"root": str(tmp_path / "raw"), "out": str(tmp_path / "stores")}
    config = load_config(file, [], CollectionConfig, places)
    with pytest.raises(UserError, match=r"1 of 2 data sets could not be prepared:\s+bad: The root"):
        prepare_collection(config)
    assert len(Store.open(tmp_path / "stores" / "good")) == 6
    with pytest.raises(UserError, match=r"stores.good.imaeg"):
        load_config(file, ["stores.good.imaeg.size=8"], CollectionConfig, places)


@pytest.mark.data
def test_the_whole_real_test_data_is_prepared_by_one_file_and_shown_on_one_page(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDVLP_SALT", str(tmp_path / "salt"))
    places = {"root": str(test_data), "out": str(tmp_path / "stores")}
    config = load_config("configs/data/real_test_data.yaml", ["stores.nih.image.size=64"], CollectionConfig, places)
    summaries = {summary.store.name: summary for summary in prepare_collection(config)}
    assert {name: (summary.studies, summary.images) for name, summary in summaries.items()} == {
        "nih": (755, 755),
        "nih_native": (12, 12),
        "iu_reports": (3955, 0),
        "tbx11k": (3, 3),
        "dicom": (2, 2),
        "ct_head": (1, 1),
        "ct_abdomen": (1, 1),
        "nifti": (2, 2),
    }
    assert Store.open(tmp_path / "stores" / "ct_abdomen").masks["label"].tolist() == ["Liver"]
    page = tmp_path / "all.html"
    show([summary.store for summary in summaries.values()], page)
    text = page.read_text()
    assert all(f'id="{name}"' in text for name in summaries)
    assert str(test_data) not in text
