"""Leaks between splits and stores, contradictions, identifiers, and shortcuts that predict a label without any disease.

Guarantee: everything reported is measured in the stores as they are; a pair of images is named only where file, pixels
or fine detail agree (`medvlp.store.duplicates`) or the leak map ties their ids (`medvlp.store.exposure`), a shortcut
only where a fitted model reaches it on unseen patients (`medvlp.store.shortcuts`). `findings` lists the consequences in
plain sentences, worst first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.store.audit_labels import conflicts
from medvlp.store.audit_report import ACROSS_SPLITS, ACROSS_STORES, WITHIN_SPLIT, AuditReport, findings
from medvlp.store.audit_texts import divided_questions, repeated_texts, text_identifiers
from medvlp.store.burnt_in import burnt_in_text
from medvlp.store.duplicates import hash_bits, near_identical
from medvlp.store.exposure import PERSONAL, exposures, id_pairs, overlap_rows, picture_groups
from medvlp.store.header_identifiers import header_identifiers
from medvlp.store.shortcuts import THUMBNAIL_SIDE, Probe, image_statistics, predictors, probes
from medvlp.types import ABSENT, PRESENT, UNCERTAIN, UNKNOWN_PATIENT

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int


def audit(stores: Sequence[Path], raw: Sequence[Path] = ()) -> AuditReport:
    """Examine prepared stores, each alone and against each other.

    Args:
        stores: Folders of prepared stores; the order does not matter.
        raw: Folders of raw data whose DICOM headers are examined for identifiers.

    Raises:
        UserError: No store is named, one is named twice, two have one name, or one cannot be opened; or a raw folder
            does not exist.
    """
    if not stores:
        raise UserError("No store is named.", fix="Name one or more folders made by `medvlp data prepare`.")
    if len({Path(path).resolve() for path in stores}) < len(stores):
        raise UserError("A store is named twice.", ", ".join(map(str, stores)), "Name each store once.")
    opened = [Store.open(Path(path)) for path in stores]
    names = [store.path.name for store in opened]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        fix = "Rename a folder, or name it by a symbolic link: the report tells stores by the names of their folders."
        raise UserError(f"Two stores are called {', '.join(twice)}.", ", ".join(map(str, stores)), fix)
    results: list[Probe] = []
    thumbnails = []
    for store in opened:
        if store.kind != "image":
            thumbnails.append(np.zeros((len(store.images), THUMBNAIL_SIDE**2), np.float32))
            continue
        small, histograms = image_statistics(store)
        thumbnails.append(small)
        samples = store.samples()
        features = predictors(samples, small, histograms)
        results += probes(store.path.name, samples, features, _normal_label(store))
    images = _joint_table(opened)
    identical = _identical(images)
    pairs, correlation = _near_pairs(images, np.concatenate(thumbnails), opened)
    near = _near(images, pairs, correlation, identical)
    groups = picture_groups(images, [(int(i), int(j)) for i, j in pairs])
    tied = id_pairs(images)
    report = AuditReport(
        stores=[
            {
                "store": store.path.name,
                "dataset": store.dataset,
                "images": len(store.images),
                "studies": len(store.studies),
                "hash": store.hash[:12],
            }
            for store in opened
        ],
        leaks=_patient_leaks(images),
        identical=identical,
        near_duplicates=near,
        label_counts=[row for store in opened for row in _label_counts(store)],
        probes=[probe.to_dict() for probe in results],
        overlaps=overlap_rows(images, groups, tied),
        exposures=exposures(images, groups, tied),
        conflicts=conflicts(opened, images, list(groups.members().values())),
        repeated_texts=repeated_texts(opened),
        text_identifiers=text_identifiers(opened),
        divided_questions=divided_questions(opened),
        burnt_in=[row for store in opened if store.kind == "image" for row in burnt_in_text(store)],
        header_identifiers=[{"root": root.name, **row} for root in map(Path, raw) for row in header_identifiers(root)],
    )
    report.findings = findings(report, results)
    return report


def _normal_label(store: Store) -> str | None:
    declared = store.card.normal_label
    name = declared or "No Finding"
    return name if name in store.label_names else None


Columns = dict[str, np.ndarray]
"""Columns of the joint image table as object arrays: single cells are looked up often."""

COMPARED_PER_GROUP = 20
"""Members of a group of identical images that each other member is set against."""


def _columns(images: pd.DataFrame) -> Columns:
    return {name: images[name].to_numpy(dtype=object) for name in images.columns}


def _joint_table(stores: Sequence[Store]) -> pd.DataFrame:
    import pandas as pd

    columns = ["index", "image_id", "study_id", "patient_id", "split", "sha256", "pixels_sha256", "phash"]
    frames = []
    for place, store in enumerate(stores):
        names = {"store": store.path.name, "dataset": store.dataset, "people": _people(store)}
        own = store.images[columns].assign(place=place, **names)
        facts = dict(zip(store.studies["study_id"], map(json.loads, store.studies["attributes"]), strict=True))
        frames.append(own.assign(attributes=own["study_id"].map(facts)))
    joint = pd.concat(frames, ignore_index=True)
    joint["split"] = joint["split"].astype(object).where(joint["split"].notna(), None)
    return joint


def _people(store: Store) -> str:
    """Return which numbering of patients a store uses: that of its data set, or that of a salt."""
    settings = store.meta["made_from"]["settings"].get("identifiers", {})
    if settings.get("ids") != "hash":
        return ""
    kind = PERSONAL if store.card.identifiers == "personal" else "ids hashed with "
    return f"{kind}{settings['salt_sha256']} "


def _patient_leaks(images: pd.DataFrame) -> list[dict[str, Any]]:
    known = images[(images["patient_id"] != UNKNOWN_PATIENT) & images["split"].notna()]
    personal = known["people"].str.startswith(PERSONAL)
    known = known.assign(numbering=known["people"] + known["dataset"].where(~personal, ""))
    keys = ["numbering", "patient_id"]
    crossing = known[known.groupby(keys)["split"].transform("nunique") > 1]
    rows = [
        {
            "dataset": " and ".join(sorted(set(own["dataset"]))),
            "patient_id": patient,
            "splits": sorted(set(own["split"])),
            "images": len(own),
        }
        for (_, patient), own in crossing.groupby(keys, sort=True)
    ]
    return sorted(rows, key=lambda row: (row["dataset"], row["patient_id"]))


def _identical(images: pd.DataFrame) -> list[dict[str, Any]]:
    """Return pairs with the same file or stored pixels; of a group, each member with one other."""
    columns = _columns(images)
    pairs: dict[tuple[int, int], None] = {}
    for column in ("pixels_sha256", "sha256"):
        repeated = images[images.duplicated(column, keep=False)]
        for _, group in repeated.groupby(column, sort=True):
            rows = group.index.tolist()
            for at, row in enumerate(rows[1:], 1):
                kinds = [(other, _kind(columns, other, row)) for other in rows[: min(at, COMPARED_PER_GROUP)]]
                named = [(other, kind) for other, kind in kinds if kind]
                named.sort(key=lambda item: item[1] != ACROSS_SPLITS)
                if named:
                    pairs[(named[0][0], row)] = None
    return _described(columns, list(pairs), [1.0] * len(pairs))


def _near_pairs(
    images: pd.DataFrame, thumbnails: Float[np.ndarray, "n 256"], stores: Sequence[Store]
) -> tuple[Int[np.ndarray, "pairs 2"], Float[np.ndarray, " pairs"]]:
    """Return pairs of near-identical pictures; volumes and clips are compared by their files and voxels alone.

    Two training images of one patient of one store are passed over: that they look alike is as it should be (the frames
    of a video do), and a test image that is like both is paired with each of them.
    """
    place, index = images["place"].to_numpy(), images["index"].to_numpy()
    pictures = np.flatnonzero(np.array([store.kind == "image" for store in stores], bool)[place])

    def read(positions: Int[np.ndarray, " b"]) -> list[np.ndarray]:
        rows = pictures[positions]
        pixels: dict[int, np.ndarray] = {}
        for store_place in np.unique(place[rows]):
            own = rows[place[rows] == store_place]
            pixels |= zip(own.tolist(), map(_luminance, stores[store_place].read(index[own])), strict=True)
        return [pixels[row] for row in rows.tolist()]

    own = images["patient_id"].where(images["patient_id"] != UNKNOWN_PATIENT, images.index.astype(str) + " unknown")
    person = (images["place"].astype(str) + "/" + own + "/" + images["split"].map(str)).factorize()[0][pictures]
    tested = (images["split"] == "test").to_numpy()[pictures]

    def wanted(i: Int[np.ndarray, " p"], j: Int[np.ndarray, " p"]) -> Bool[np.ndarray, " p"]:
        return (person[i] != person[j]) | tested[i]

    hashes = hash_bits(images["phash"].iloc[pictures])
    pairs, correlation = near_identical(hashes, thumbnails[pictures], read, wanted)
    return pictures[pairs], correlation


def _luminance(image: np.ndarray) -> np.ndarray:
    return image if image.ndim == 2 else image.mean(axis=-1).astype(image.dtype)


def _near(
    images: pd.DataFrame,
    pairs: Int[np.ndarray, "pairs 2"],
    correlation: Float[np.ndarray, " pairs"],
    identical: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    columns = _columns(images)
    already = {frozenset((pair["a"], pair["b"])) for pair in identical}
    pixels = columns["pixels_sha256"]
    differ = [at for at, (i, j) in enumerate(pairs.tolist()) if pixels[i] != pixels[j]]
    chosen = [(int(pairs[at, 0]), int(pairs[at, 1])) for at in differ]
    found = _described(columns, chosen, correlation[differ].tolist())
    return [pair for pair in found if frozenset((pair["a"], pair["b"])) not in already]


def _kind(images: Columns, i: int, j: int) -> str | None:
    """Return how two equal images stand to each other, or None where that is as it should be."""
    split, patient, dataset, image, place = (
        images[name][[i, j]] for name in ("split", "patient_id", "dataset", "image_id", "place")
    )
    if split[0] is not None and split[1] is not None and split[0] != split[1]:
        return ACROSS_SPLITS
    if dataset[0] != dataset[1]:
        return ACROSS_STORES
    if place[0] != place[1] and image[0] == image[1]:
        return None  # the same image of one data set, prepared twice
    same_patient = patient[0] == patient[1] and patient[0] != UNKNOWN_PATIENT
    return None if same_patient else WITHIN_SPLIT


def _name(images: Columns, row: int) -> str:
    return f"{images['store'][row]}/{images['image_id'][row]} ({images['split'][row] or 'no split'})"


def _described(images: Columns, pairs: list[tuple[int, int]], values: list[float]) -> list[dict[str, Any]]:
    rank = {ACROSS_SPLITS: 0, ACROSS_STORES: 1, WITHIN_SPLIT: 2}
    rows = []
    for (i, j), value in zip(pairs, values, strict=True):
        kind = _kind(images, i, j)
        if kind:
            rows.append({"kind": kind, "a": _name(images, i), "b": _name(images, j), "correlation": round(value, 4)})
    return sorted(rows, key=lambda row: (rank[row["kind"]], -row["correlation"], row["a"], row["b"]))


def _label_counts(store: Store) -> list[dict[str, Any]]:
    studies = store.studies
    splits = studies["split"].astype(object).where(studies["split"].notna(), "none").to_numpy()
    order = [split for split in ("train", "val", "test", "none") if (splits == split).any()]
    order += sorted(set(splits) - set(order))
    rows = []
    for label in store.label_names:
        values = studies[f"label:{label}"].to_numpy(float)
        for split in order:
            own = values[splits == split]
            counts = {
                "present": int((own == PRESENT).sum()),
                "absent": int((own == ABSENT).sum()),
                "uncertain": int((own == UNCERTAIN).sum()),
                "not_mentioned": int(np.isnan(own).sum()),
            }
            rows.append({"store": store.path.name, "label": label, "split": split, **counts})
    return rows
