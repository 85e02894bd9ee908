"""MLflow runs of a benchmark: a parent for the suite, a child for each cell.

Guarantee: tracking follows the files and never decides them. A cell whose child run was not finished (a kill in
between, a server that was down, tracking switched off) is tracked by the next run of the suite; a tracked cell is not
tracked again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.config.base import json_sha256
from medvlp.track import Tracker, open_tracker
from medvlp.track.base import RUN_ID_FILE
from medvlp.track.mlflow import tracking_uri

if TYPE_CHECKING:
    from medvlp.bench.cells import Finished
    from medvlp.bench.suite import Suite
    from medvlp.config.train import TrackConfig

FOLDER, DONE = "track", "finished"


class SuiteTracker:
    """Tracks the cells of one suite.

    Args:
        config: MLflow or not, and where.
        out: Folder of the results.
        suite: The resolved suite.
        facts: Versions and git hash.
    """

    def __init__(self, config: TrackConfig, out: Path, suite: Suite, facts: dict[str, Any]) -> None:
        # The children live deeper than the parent: without an address they would make a database of their own.
        uri = tracking_uri(config, out) if config.mlflow else config.uri
        self.config = config.model_copy(update={"uri": uri, "system_metrics": False})
        self.suite = suite
        params = suite.resolved()
        tags = {"medvlp.kind": "bench", "medvlp.suite": suite.config.name, "medvlp.git": str(facts.get("git"))}
        tags |= {"medvlp.hash.suite": json_sha256(params)}
        tags |= {f"medvlp.store.{name}": store.hash for name, store in suite.stores.items()}
        self.parent: Tracker = open_tracker(self.config, out / FOLDER, name=suite.config.name, params=params, tags=tags)

    def cell(self, cell: Finished) -> None:
        """Track a finished cell once."""
        folder = cell.folder / FOLDER
        if (folder / DONE).exists() and (not self.config.mlflow or (folder / RUN_ID_FILE).exists()):
            return
        record = cell.record
        name = "/".join(str(record[key]) for key in ("task", "protocol", "encoder"))
        tags = {f"medvlp.hash.{key}": str(value) for key, value in record["hashes"].items()}
        params = {key: value for key, value in record.items() if key != "hashes"}
        params["config"] = cell.result.get("config", {})
        tracker = open_tracker(
            self.config,
            folder,
            name=name,
            params=params,
            tags=tags | {"medvlp.cell": cell.folder.name},
            parent_id=self.parent.run_id,
            resume_step=-1,  # one line, also where an earlier attempt wrote one
        )
        tracker.log(metrics_of(cell.result["scores"]), 0)
        tracker.artifact(cell.folder / "result.json")
        tracker.finish("FINISHED")
        (folder / DONE).touch()


def metrics_of(scores: list[dict[str, Any]]) -> dict[str, float]:
    """Return `metric/label` -> value, with `.low` and `.high`, in characters that MLflow takes."""
    found = {}
    for row in scores:
        name = re.sub(r"[^\w\-. /]", "_", f"{row['metric']}/{row['label']}")
        for key, suffix in (("value", ""), ("low", ".low"), ("high", ".high")):
            if row[key] is not None:
                found[name + suffix] = float(row[key])
    return found
