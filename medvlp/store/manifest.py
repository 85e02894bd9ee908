"""The tables of a store and its hash.

Guarantee: `images.parquet` has one row per good image, volume or clip, `studies.parquet` one per study and
`masks.parquet` one per good mask or structure, with the columns below and no others; a data set with questions also has
`questions.parquet`, one row per question about a good image. The hash of a store is taken over the content of the
tables, the preprocessing and the card, not over file bytes: the same input and preprocessing give the same hash on
every machine, whatever the number of workers or the shard size.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medvlp.config.base import json_sha256
from medvlp.errors import UserError, nearest
from medvlp.types import Study

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 2
IMAGES, STUDIES, MASKS, QUESTIONS, CARD, META, QUARANTINE = (
    "images.parquet",
    "studies.parquet",
    "masks.parquet",
    "questions.parquet",
    "card.md",
    "store.json",
    "quarantine.jsonl",
)
LABEL_PREFIX = "label:"
UNITS = {"image": "images", "volume": "volumes", "video": "clips", "none": "reports"}
"""Kind of a store -> what it holds."""

_TEXT, _WHOLE, _REAL, _FLAG = "string", "int64", "double", "bool"
IMAGE_COLUMNS: dict[str, str] = {
    "index": _WHOLE,
    "image_id": _TEXT,
    "study_id": _TEXT,
    "patient_id": _TEXT,
    "path": _TEXT,
    "view": _TEXT,
    "modality": _TEXT,
    "split": _TEXT,
    "depth": _WHOLE,
    "height": _WHOLE,
    "width": _WHOLE,
    "frames": _WHOLE,
    "spacing_slice_mm": _REAL,
    "spacing_row_mm": _REAL,
    "spacing_col_mm": _REAL,
    "affine": _TEXT,
    "intensity": _TEXT,
    "hu_applied": _FLAG,
    "fps": _REAL,
    "sha256": _TEXT,
    "pixels_sha256": _TEXT,
    "phash": _TEXT,
    "mean": _REAL,
}
"""`index` is the row of the array, or the number of the volume or clip. Of an image or clip, height, width and spacing
are those of the file; of a volume, depth, height, width, spacing and `affine` (JSON, from the array index to RAS in mm)
are those of the stored array. `intensity` and `hu_applied` are a volume's, `frames` and `fps` (as stored)
a clip's; where a column says nothing it is empty. `sha256` is over the bytes of all source files in their order,
`pixels_sha256` over the stored elements (little-endian), `phash` is the 64-bit perceptual hash (ImageHash, DCT) of the
stored pixels, of the middle frame, or of the middle axial slice from its lowest to its highest value. `mean` is the
share of full scale, and in volumes the mean of the voxels."""

MASK_COLUMNS: dict[str, str] = {
    "index": _WHOLE,
    "image_id": _TEXT,
    "study_id": _TEXT,
    "label": _TEXT,
    "frame": _WHOLE,
    "value": _WHOLE,
    "pixels": _WHOLE,
    "voxels": _WHOLE,
    "sha256": _TEXT,
}
"""`index` is the row of `masks.zarr`, or the number of the volume whose label map has `value` where the structure is.
`frame` is that of the stored clip; `pixels` and `voxels` count the inside as stored; `sha256` is that of the stored
mask or of the whole label map."""

QUESTION_COLUMNS: dict[str, str] = {
    "question_id": _TEXT,
    "image_id": _TEXT,
    "study_id": _TEXT,
    "split": _TEXT,
    "language": _TEXT,
    "kind": _TEXT,
    "closed": _FLAG,
    "group": _TEXT,
    "question": _TEXT,
    "answer": _TEXT,
}
"""`split` is that of the question: where a data set splits questions, not images, it differs from its study's. `group`
is shared by questions that say the same in other words, `kind` is what is asked, in the words of the data set."""

STUDY_COLUMNS: dict[str, str] = {
    "study_id": _TEXT,
    "patient_id": _TEXT,
    "split": _TEXT,
    "subsets": _TEXT,
    "age": _REAL,
    "sex": _TEXT,
    "site": _TEXT,
    "day": _REAL,
    "language": _TEXT,
    "report": _TEXT,
    "boxes": _TEXT,
    "lesions": _TEXT,
    "triplets": _TEXT,
    "masks": _TEXT,
    "values": _TEXT,
    "attributes": _TEXT,
}
"""Then one column `label:<name>` per label. `subsets`, `boxes`, `lesions`, `triplets`, `masks`, `values` and
`attributes` are JSON (NaN as null); `day` counts from the patient's first study that has a date."""
_JSON = ("subsets", "boxes", "lesions", "triplets", "masks", "values", "attributes")


def study_row(study: Study, labels: Sequence[str], day: float | None = None) -> dict[str, Any]:
    """Return the row of a study in `studies.parquet`.

    Args:
        study: The study.
        labels: Label columns, in the order of the card.
        day: Days since the patient's first study, where known.

    Raises:
        UserError: The study has a label that the card does not list.
    """
    for name in study.labels:
        if name not in labels:
            raise UserError(
                f"Study {study.study_id} has the label '{name}', which the data card does not list."
                f"{nearest(name, list(labels))}",
                fix="Correct the adapter, or add the label to the card.",
            )
    row: dict[str, Any] = {name: getattr(study, name) for name in STUDY_COLUMNS if name not in (*_JSON, "day")}
    row["day"] = float("nan") if day is None else float(day)
    plain = asdict(study)
    for name in _JSON:
        row[name] = json.dumps(_without_nan(plain[name]), ensure_ascii=False, sort_keys=True)
    for name in labels:
        row[f"{LABEL_PREFIX}{name}"] = float(study.labels.get(name, float("nan")))
    return row


def question_rows(study: Study) -> list[dict[str, Any]]:
    """Return the rows of a study in `questions.parquet`."""
    return [
        asdict(question)
        | {"study_id": study.study_id, "question": question.text, "split": question.split or study.split}
        for question in study.questions
    ]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: None if inner != inner else inner for name, inner in value.items()}
    return value


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pa.Table:
    """Return rows as an Arrow table of exactly these columns."""
    import pyarrow as pa

    types = {_TEXT: pa.string(), _WHOLE: pa.int64(), _REAL: pa.float64(), _FLAG: pa.bool_()}
    return pa.table({name: pa.array([row[name] for row in rows], types[kind]) for name, kind in columns.items()})


def study_columns(labels: Iterable[str]) -> dict[str, str]:
    """Return the columns of `studies.parquet` for these labels."""
    return STUDY_COLUMNS | {f"{LABEL_PREFIX}{name}": _REAL for name in labels}


def parquet_bytes(data: pa.Table) -> bytes:
    """Return the table as a Parquet file."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(data, buffer, compression="zstd")
    return buffer.getvalue()


def rows_sha256(rows: Sequence[Mapping[str, Any]], leave_out: Sequence[str] = ()) -> str:
    """Return the SHA-256 of rows as canonical JSON lines, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        kept = {name: value for name, value in row.items() if name not in leave_out}
        digest.update(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def store_hash(
    dataset: str,
    preprocessing_sha256: str,
    card_sha256: str,
    images: Sequence[Mapping[str, Any]],
    studies: Sequence[Mapping[str, Any]],
    masks: Sequence[Mapping[str, Any]] = (),
    questions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the hash of a store's content.

    The perceptual hash is left out: it follows from the pixels (which are in by `pixels_sha256`), and its cosine
    transform may round differently on another processor. So is the row of a mask, which depends on the shard size.
    """
    return json_sha256(
        {
            "format_version": FORMAT_VERSION,
            "dataset": dataset,
            "preprocessing": preprocessing_sha256,
            "card": card_sha256,
            "images": rows_sha256(images, leave_out=("phash",)),
            "studies": rows_sha256(studies),
            "masks": rows_sha256(masks, leave_out=("index",)),
            **({"questions": rows_sha256(questions)} if questions else {}),
        }
    )
