"""Retrieval of volumes by volumes on a tiny CT phantom: which volumes, what is kept, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from medvlp.config.prepare import PrepareConfig
from medvlp.config.task import TaskConfig
from medvlp.errors import UserError
from medvlp.metrics.scoring import SCORINGS
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare
from medvlp.tasks import TASKS
from medvlp.tasks.base import Subject

FINDINGS = ("Cardiomegaly", "Lung nodule", "Pleural effusion", "Emphysema", "Atelectasis", "Consolidation")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder, options = tmp_path_factory.mktemp("ct_rate"), {"version": "v2"}
    write_layout("ct_rate", folder / "raw", 30, seed=5, size=32, options=options)
    how = PrepareConfig(source="ct_rate", root=folder / "raw", out=folder / "store", options=options, num_workers=1)
    return Store.open(prepare(how).store)


def task(*names: str, **fields: Any) -> Any:
    given: dict[str, Any] = {"name": "x", "version": 1, "type": "image_retrieval", "dataset": "ct_rate"}
    labels = [{"name": name, "positive": name} for name in names]
    return TASKS.get("image_retrieval")(TaskConfig.model_validate(given | {"labels": labels} | fields))


def test_vectors_of_the_test_volumes_are_kept_with_their_findings(store: Store) -> None:
    own = task(*FINDINGS)
    samples = own.samples(store)
    frame = store.samples().set_index("image_id")
    assert {*samples["test"].sample_ids} == {*frame.index[frame["split"] == "test"]}
    features = np.random.default_rng(0).normal(size=(len(store), 4))
    kept = own.fit(Subject("x", store, lambda: features), "knn", samples["train"], samples["val"], 0).predict(
        samples["test"]
    )
    rows = [store.images["image_id"].tolist().index(name) for name in kept.sample_ids]
    np.testing.assert_array_equal(kept.vectors, features[rows])
    wanted = frame.loc[kept.sample_ids, [f"label:{name}" for name in FINDINGS]].to_numpy()
    np.testing.assert_array_equal(kept.labels, wanted)
    scores = SCORINGS.get(own.rule)().scores(kept, {})
    assert all(0 <= row.value <= 1 and 0 <= row.chance <= 1 for row in scores)


def test_what_cannot_be_asked_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="does not have two patients with a finding"):
        task("Hiatal hernia").samples(store)
    own = task(*FINDINGS)
    found = own.samples(store)
    head = own.fit(Subject("x", store, lambda: np.zeros((1, 1))), "zero_shot", found["train"], found["val"], 0)
    with pytest.raises(UserError, match="is no encoder"):
        head.predict(found["test"])
    for fields in ({"labels": []}, {"retrieval": {"pool": 3}}, {"retrieval": {"sections": ["findings"]}}):
        with pytest.raises(ValidationError, match=r"no effect|must name"):
            task(*FINDINGS, **fields)
