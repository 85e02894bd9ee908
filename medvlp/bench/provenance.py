"""What an encoder was trained on, as far as it is written down.

Guarantee: nothing is guessed. A run names its store by hash; a released checkpoint the data sets of
`data_cards/trained_on.yaml`; anything else is `unknown`, and the report says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError

from medvlp.config.base import Config
from medvlp.config.resources import shipped
from medvlp.errors import UserError

if TYPE_CHECKING:
    from medvlp.store.array_store import Store

logger = logging.getLogger(__name__)


class TrainedOn(Config):
    """One data set of a released checkpoint."""

    dataset: str
    split: Literal["train", "all", "unknown"]


@dataclass(frozen=True)
class Source:
    """Data that an encoder was trained on. `store` is the hash of a prepared store, where it was one."""

    dataset: str
    split: str
    store: str = ""


@dataclass(frozen=True)
class Training:
    """What an encoder was trained on; `known` is False where nothing is written down."""

    sources: tuple[Source, ...] = ()
    known: bool = False

    def record(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def training_of(spec: str) -> tuple[Training, list[Store]]:
    """Return what an encoder was trained on, and the stores of that which are still where they were.

    Args:
        spec: In full, as `medvlp.zoo.load.full_spec` gives it.
    """
    kind, colon, rest = spec.partition(":")
    if Path(spec).is_dir():
        return _of_run(Path(spec))
    if colon and kind == "random":
        return Training((), known=True), []
    if colon and kind == "zoo":
        entries = released_trainings().get(rest.partition(":")[0])
        if entries is not None:
            return Training(tuple(Source(one.dataset, one.split) for one in entries), known=True), []
    return Training(), []


@cache
def released_trainings() -> dict[str, tuple[TrainedOn, ...]]:
    """Return format of the zoo -> data sets, from `data_cards/trained_on.yaml`.

    Raises:
        UserError: The file is wrong.
    """
    import yaml

    path = shipped("data_cards/trained_on.yaml")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, tuple[TrainedOn, ...]]).validate_python(given)
    except (ValidationError, yaml.YAMLError) as error:
        raise UserError(f"The list of training data is wrong: {error}", path, "Correct the entry.") from None


def _of_run(run: Path) -> tuple[Training, list[Store]]:
    """A run of ours: the model's record has the hash of its store, the run's configuration the place and split."""
    import yaml

    from medvlp.store.array_store import Store

    folder = run / "model" if (run / "model").is_dir() else run
    try:
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))["record"]
        store_hash = str(record["store_hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return Training(), []
    data: dict[str, Any] = {}
    try:
        data = yaml.safe_load((folder.parent / "config.yaml").read_text(encoding="utf-8"))["data"]
        store = Store.open(data["store"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, UserError) as error:
        logger.debug("training data of %s: %s", run.name, error)
        return Training((Source("", str(data.get("split", "train")), store_hash),), known=True), []
    if store.hash != store_hash:
        return Training((Source(store.dataset, str(data.get("split", "train")), store_hash),), known=True), []
    return Training((Source(store.dataset, str(data.get("split", "train")), store_hash),), known=True), [store]


def trainings_of(judged: Iterable[tuple[str, str]]) -> tuple[dict[str, Training], Sequence[Store]]:
    """Return name -> training of encoders, given as (name, spec), and the stores among them that can be opened."""
    found: dict[str, Training] = {}
    stores: dict[str, Store] = {}
    for name, spec in judged:
        training, own = training_of(spec)
        found[name] = training
        stores |= {store.hash: store for store in own}
    return found, list(stores.values())
