"""The encoders and baselines of a run: loaded, named and hashed.

Guarantee: an encoder that cannot be loaded is a recorded failure and stops no other. Names are unique within a folder
of results: two encoders of one name get a piece of their hash. At most one encoder is held in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medvlp.bench.baselines import FEATURES, baseline_hash, baseline_names
from medvlp.bench.encoder_records import EncoderRecords
from medvlp.bench.failures import lost_disk
from medvlp.bench.plan import Judged
from medvlp.errors import UserError
from medvlp.html.private import public
from medvlp.tasks.base import HEAT_MAPS, SCORES, SPACE

if TYPE_CHECKING:
    from medvlp.bench.suite import Suite
    from medvlp.store.array_store import Store
    from medvlp.zoo import Encoder

logger = logging.getLogger(__name__)

DEFAULT_RANDOM = {
    "image": "random:resnet18",
    "volume": "random:vit_tiny_patch16_224@96/16",
    "video": "random:resnet18@112",
}
"""What the stores of a suite hold -> its random encoder, where none is given."""


class EncoderSlot:
    """Loads encoders, keeping the last one.

    Args:
        device: Torch device.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._key: tuple[str, int, str] | None = None
        self._encoder: Encoder | None = None

    def get(self, spec: str, seed: int, store: Store) -> Encoder:
        """Return an encoder for the images of a store; `seed` gives the weights of a random one."""
        from medvlp.zoo import load_encoder

        key = (spec, seed, store.config.sha256())
        if self._encoder is None or self._key != key:
            self._encoder = None
            self._encoder = load_encoder(spec, stored=store.config, device=self.device, seed=seed)
            self._key = key
        return self._encoder

    def clear(self) -> None:
        """Give the memory of the encoder back."""
        import torch

        self._encoder = self._key = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def shown_spec(spec: str) -> str:
    """Return a spec without the folder in which its path lies."""
    kind, colon, rest = spec.partition(":")
    if colon and kind == "zoo":
        name, _, file = rest.partition(":")
        return f"zoo:{name}:{Path(file.partition('?')[0]).name}"
    if colon and kind in ("timm", "hf", "random"):
        return f"{kind}:{rest if kind == 'random' else Path(rest).name}"
    return Path(spec).name


def with_random(specs: Sequence[str], suite: Suite) -> list[str]:
    """Return the specs in full, in their order, and a random encoder where the suite wants one and none is given."""
    from medvlp.zoo.load import full_spec

    wanted = list(dict.fromkeys(map(full_spec, specs)))
    if "random" in suite.config.baselines and not any(spec.startswith("random:") for spec in wanted):
        kinds = dict.fromkeys(store.kind for store in suite.stores.values())
        wanted += [DEFAULT_RANDOM[kind] for kind in kinds or ["image"] if kind in DEFAULT_RANDOM]
    return wanted


def judge(
    suite: Suite, specs: Sequence[str], slot: EncoderSlot, known: Iterable[dict[str, Any]], records: EncoderRecords
) -> tuple[list[Judged], list[dict[str, Any]]]:
    """Load every encoder once, for its name and hash, unless it is on record, and add the baselines.

    Args:
        suite: The resolved suite.
        specs: Encoder specs as given by the user.
        slot: Where encoders are loaded.
        known: Encoders of earlier runs into the same results (`suite.json`), whose names are taken.
        records: What is known of encoders that were loaded before.

    Returns:
        What is judged on each data set, and the failures.
    """
    judged: list[Judged] = []
    failures: list[dict[str, Any]] = []
    owners: dict[str, set[str]] = {name: {baseline_hash(name)} for name in FEATURES}
    for entry in known:
        owners.setdefault(entry["name"], set()).add(entry["hash"])
    for spec in with_random(specs, suite):
        try:
            found = _load_all(suite, spec, slot, records)
        except UserError as error:
            if lost_disk(error):
                raise
            failures.append(_failure(shown_spec(spec), error.what, error.fix))
        except Exception as error:
            logger.exception("the encoder %s cannot be loaded", shown_spec(spec))
            failures.append(_failure(shown_spec(spec), f"{type(error).__name__}: {error}", "See the log."))
        else:
            name, hashes = found[0].name, {one.hash for one in found}
            taken = owners.get(name, set())
            # A random encoder is its name and seed: another hash only means another store or seed.
            if taken and found[0].kind != "random" and not hashes & taken:
                name = f"{name}@{found[0].hash[:6]}"
            owners.setdefault(name, set()).update(hashes)
            found = [replace(one, name=name) for one in found]
            # Cells of data sets without a store are planned too, and shown as missing.
            by_seed = {one.seed: one for one in found}.values()
            judged += found + [replace(one, dataset=name, hash="") for name in suite.missing for one in by_seed]
    for name in baseline_names(suite.config.baselines):
        datasets = [*suite.stores, *suite.missing]
        judged += [Judged(name, name, baseline_hash(name), dataset, "baseline") for dataset in datasets]
    return judged, failures


def seeds_of(suite: Suite, spec: str) -> list[int]:
    """Return the seeds of an encoder's weights: all of the suite where they are random."""
    is_random = spec.startswith("random:")
    return sorted({seed for entry in suite.config.entries for seed in entry.seeds}) if is_random else [0]


def _load_all(suite: Suite, spec: str, slot: EncoderSlot, records: EncoderRecords) -> list[Judged]:
    """Return an encoder on every data set; a random one with every seed of the suite."""
    is_random = spec.startswith("random:")
    found = []
    for dataset, store in suite.stores.items():
        for seed in seeds_of(suite, spec):
            record = records.get(spec, seed, store.config)
            if record is None:
                encoder = slot.get(spec, seed, store)
                record = {
                    "name": encoder.name.partition("#")[0] if is_random else encoder.name,
                    "hash": encoder.hash,
                    "has_text": encoder.has_text,
                    "offers": _offers(encoder),
                    "other_preprocessing": _other_preprocessing(encoder, store),
                    "loaded": encoder.loaded,
                }
                records.put(spec, seed, store.config, record)
            if record["other_preprocessing"]:
                logger.warning(
                    "%s was trained on images made otherwise than those of the store %s: %s",
                    *(record["name"], store.path.name, "; ".join(record["other_preprocessing"])),
                )
            lists = {key: tuple(record[key]) for key in ("offers", "other_preprocessing", "loaded")}
            kind: Literal["random", "encoder"] = "random" if is_random else "encoder"
            found.append(Judged(spec=spec, dataset=dataset, kind=kind, seed=seed, **record | lists))
    return found


def _offers(encoder: Encoder) -> tuple[str, ...]:
    offered = {
        SCORES: encoder.scores_text,
        SPACE: encoder.shared_space,
        HEAT_MAPS: encoder.heat_map_kind is not None,
    }
    return tuple(name for name, is_offered in offered.items() if is_offered)


def _other_preprocessing(encoder: Encoder, store: Store) -> tuple[str, ...]:
    if encoder.kind != store.kind:
        return ()
    own, given = encoder.preprocessing.stored.resolved(), store.config.resolved()
    return tuple(f"{key}: {own[key]} in training, {given[key]} here" for key in own if own[key] != given[key])


def _failure(name: str, what: str, fix: str) -> dict[str, Any]:
    return {"encoder": name} | public({"reason": what, "next": fix})
