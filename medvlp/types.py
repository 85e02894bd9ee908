"""Records that cross module borders: studies, arrays with geometry, features, batches, predictions.

Guarantee: importing this module imports neither torch nor pandas. Shapes use jaxtyping; dimension letters are the same
everywhere: `b` batch, `n` samples, `c` channels, `d h w` depth, height and width of a volume, `p` image tokens,
`l` text tokens, `d` feature width, `k` labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from jaxtyping import Bool, Float, Int, Int8, Int16, UInt8

PRESENT, ABSENT, UNCERTAIN, NOT_MENTIONED = 1.0, 0.0, -1.0, float("nan")
"""Values of a label. They are never filled in silently; a task names the policy that collapses them."""

AS_A_WHOLE = "\x02"
"""Before an identifier that is removed from texts as a whole only: Heart Clinic is not all hearts."""
UNKNOWN_PATIENT = "unknown"
"""Patient of a study whose data set does not say whose it is."""


class Intensity(StrEnum):
    """What the numbers of an image array mean."""

    HU = "hu"
    STORED = "stored"
    UNIT = "unit"


class Space(StrEnum):
    """Axes of an array: `IMAGE` is rows from the top, columns from the left; `RAS` is right-anterior-superior."""

    IMAGE = "image"
    RAS = "ras"


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """What a data set says of a volume whose file does not say it, or says it wrongly.

    Nothing here is guessed: an adapter fills in what the data set's tables or its card state.

    Args:
        intensity: What the numbers of the file mean once `slope` and `intercept` are applied.
        slope: Factor from stored values, where the data set's tables give it and the file's header does not.
        intercept: Offset from stored values, likewise.
        affine: From the array index of the file (i, j, k, 1), fastest axis first, to RAS in mm, row by row, in place of
            the file's own.
        size: Columns, rows and slices that the tables give beside their geometry: a file of another size is another
            volume and is refused.
        channel: Which volume of a file with four dimensions, from 0.
        label_values: Values besides 0 that the label map of this volume may hold, where the data set lists all of them:
            a map with another value is of another numbering and is refused. Empty: any.
    """

    intensity: Intensity
    slope: float | None = None
    intercept: float | None = None
    affine: tuple[tuple[float, float, float, float], ...] | None = None
    size: tuple[int, int, int] | None = None
    channel: int | None = None
    label_values: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image, volume or clip of a study: a path relative to the data set's root, never pixels."""

    image_id: str
    path: str
    """A file; for a series of files the folder that holds them, or any one of them."""
    modality: str = "CR"
    view: str | None = None
    """PA, AP, LATERAL or None where the data set does not say."""
    files: tuple[str, ...] = ()
    """Files of one series, relative to the root, where they are more than one."""
    frame: int | None = None
    """Frame of a multi-frame file or video, from 0; None where the file is one image, or the whole of it is meant."""
    facts: VolumeFacts | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A place in pixels of the image file: x, y of the top-left corner, then width and height.

    An ellipse fills its box and touches its sides; a polygon has its corners in `points`, and the box is its bounds.
    """

    image_id: str
    label: str
    x: float
    y: float
    width: float
    height: float
    shape: str = "rectangle"
    """rectangle, ellipse or polygon."""
    points: tuple[tuple[float, float], ...] = ()
    """Corners (x, y) of a polygon."""
    reader: str | None = None
    """Who drew it, where several readers did and the data set tells them apart."""


@dataclass(frozen=True, slots=True)
class Lesion:
    """A ball in a volume: its centre (right, anterior, superior) and diameter in mm."""

    image_id: str
    label: str
    centre_mm: tuple[float, float, float]
    diameter_mm: float | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """Where one structure is in one image or volume, in one of three forms: a file, runs, or a polygon.

    A file (PNG, NIfTI, MHD, NRRD, DICOM SEG) has the pixels of its image. Runs are start, length, start, length, ... in
    row-major order of `size` (h, w). A polygon has its corners (x, y) in pixels of the image.
    """

    image_id: str
    label: str
    path: str | None = None
    """File relative to the root."""
    values: tuple[int, ...] = ()
    """Values of the file that are this structure; empty: every value but 0."""
    size: tuple[int, int] | None = None
    runs: tuple[int, ...] = ()
    points: tuple[tuple[float, float], ...] = ()
    frame: int | None = None
    """Frame of a clip, from 0."""


@dataclass(frozen=True, slots=True)
class Triplet:
    """One statement of a report: a finding at an anatomical place, present (1), absent (0) or uncertain (-1)."""

    anatomy: str
    finding: str
    value: float


@dataclass(frozen=True, slots=True)
class Question:
    """One question about an image of a study, with its answer, as the data set words both."""

    question_id: str
    image_id: str
    text: str
    answer: str
    closed: bool
    """The answer is one of a few that the question names or implies (yes or no, left or right); else it is open."""
    kind: str
    """What is asked, in the words of the data set (PRES, Position, ...)."""
    language: str | None = None
    """Of question and answer, as in ISO 639-1."""
    split: str | None = None
    """Where the data set splits its questions, not its images; None: that of the study."""
    group: str | None = None
    """Questions of one group say the same in other words."""


@dataclass(frozen=True, slots=True)
class Study:
    """One examination. Labels hold 1 present, 0 absent, -1 uncertain, NaN not mentioned."""

    study_id: str
    patient_id: str
    images: tuple[ImageRef, ...] = ()
    report: str | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    lesions: tuple[Lesion, ...] = ()
    masks: tuple[Mask, ...] = ()
    triplets: tuple[Triplet, ...] = ()
    questions: tuple[Question, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    """Measurements that the card names with their units (ejection fraction, votes of readers); NaN where not given."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Further facts that the card names (scanner, race, source); absent where not given."""
    language: str | None = None
    """Of the report, as in ISO 639-1."""
    age: float | None = None
    """Years."""
    sex: str | None = None
    """M, F or None."""
    site: str | None = None
    date: str | None = None
    """YYYYMMDD, as the data set gives it; a store keeps only days since the patient's first study."""
    split: str | None = None
    """train, val or test; None where the data set gives no split."""
    identifiers: tuple[str, ...] = ()
    """Strings that identify the patient (name, number, accession): never kept; they are removed from the report."""
    subsets: tuple[str, ...] = ()
    """Named subsets that the study belongs to, such as the label fractions train_1 and train_10 of BenchX."""


@dataclass(frozen=True, slots=True)
class Radiograph:
    """A 2D image `[h w]`, or `[h w 3]` in colour, with its geometry and the meaning of its numbers.

    `spacing_mm` is (row, column) distance in mm, None where the file does not say. `provenance` records every choice
    that made the array (path, format, transfer syntax, VOI transformation, inversion, spacing tag, frame).
    """

    array: Float[np.ndarray, "h w *c"]
    spacing_mm: tuple[float, float] | None
    intensity: Intensity
    provenance: Mapping[str, Any]
    space: Space = Space.IMAGE


@dataclass(frozen=True, slots=True)
class Volume:
    """A 3D image `[d h w]` in RAS: d runs towards superior, h towards anterior, w towards the patient's right.

    `affine` maps the array index (d, h, w, 1) to (right, anterior, superior, 1) in mm; it may be oblique, but each
    array axis runs closest to the direction above. `spacing_mm` is along d, h, w. Both are None where nobody says
    (slices saved as pictures). `provenance` records every choice that made the array, among them `hu_applied`: whether
    slope and intercept were applied here.
    """

    array: Int16[np.ndarray, "d h w"]
    affine: Float[np.ndarray, "4 4"] | None
    spacing_mm: tuple[float, float, float] | None
    intensity: Intensity
    provenance: Mapping[str, Any]
    space: Space = Space.RAS


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames of a video in order, each as a stored square: `[f h w]` grey or `[f h w 3]` red, green and blue.

    `fps` is that of the frames kept here, None where the file does not say (a folder of pictures). `provenance` records
    every choice that made the array, among them the frames and the size of the file.
    """

    array: UInt8[np.ndarray, "f h w *c"]
    fps: float | None
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Features:
    """Output of an image tower: `grid` lays out the row-major tokens, (h, w) in 2D and (d, h, w) in 3D.

    `cls_attention` is what the class token attends to in the last block, a softmax over all tokens cut to the patches;
    None unless the tower's configuration asks for it. `embedding` is the mean of the patches before the first block;
    None unless the method asks for it. `levels` are the patches after some blocks, likewise.
    """

    tokens: Float[torch.Tensor, "b p d"]
    pooled: Float[torch.Tensor, "b e"]
    grid: tuple[int, ...]
    cls_attention: Float[torch.Tensor, "b heads p"] | None = None
    embedding: Float[torch.Tensor, "b d"] | None = None
    levels: Float[torch.Tensor, "b l p d"] | None = None

    def to(self, device: torch.device | str) -> Features:
        """Return the features with every tensor on a device."""
        return _moved(self, device)


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """Output of a text tower. `mask` is True at real tokens; `word_ids` are -1 at special tokens and pads.

    `cls_attention` is what the class token attends to in the last layer, averaged over heads; None unless asked for.
    """

    tokens: Float[torch.Tensor, "b l d"]
    pooled: Float[torch.Tensor, "b d"]
    mask: Bool[torch.Tensor, "b l"]
    word_ids: Int[torch.Tensor, "b l"] | None = None
    cls_attention: Float[torch.Tensor, "b l"] | None = None


@dataclass(slots=True)
class TextBatch:
    """Token ids of `b` texts; `mask` is True at real tokens; `labels` are each text's findings (NaN not mentioned).

    `hidden` are the tokens that masked language modelling hides. `sentence_ids` number the sentence of each token from
    0, -1 at special tokens and pads; None unless the method asks for them. `spans` are the tokens (first, last + 1) of
    each concept of a text, `concepts` its row in the method's concept table; both are -1 where a text has fewer.
    """

    ids: Int[torch.Tensor, "b l"]
    mask: Bool[torch.Tensor, "b l"]
    labels: Float[torch.Tensor, "b k"] | None = None
    texts: Sequence[str] = ()
    word_ids: Int[torch.Tensor, "b l"] | None = None
    hidden: Bool[torch.Tensor, "b l"] | None = None
    spans: Int[torch.Tensor, "b s 2"] | None = None
    concepts: Int[torch.Tensor, "b s"] | None = None
    sentence_ids: Int[torch.Tensor, "b l"] | None = None

    def to(self, device: torch.device | str) -> TextBatch:
        """Move the tensors to a device."""
        return _moved(self, device)


@dataclass(slots=True)
class Batch:
    """One training batch.

    `pixels` are as stored: uint8 of images and clips, int16 of volumes; normalisation happens on the device. In a
    paired batch `text` row i belongs to image i; in an unpaired batch (`paired=False`) the texts are drawn on their own
    and labels tie the two. `text_augmented` is a second, augmented reading of the same texts. What else a batch holds
    is what the method's `Demands` ask for.
    """

    index: Int[torch.Tensor, b]
    """Row of each sample in the data set: with seed and epoch it decides the sample's augmentation."""
    pixels: Int[torch.Tensor, "b c *s"]
    """Images `[b c h w]`, volumes `[b 1 d h w]` in RAS, clips `[b c f h w]`."""
    labels: Float[torch.Tensor, "b k"] | None = None
    text: TextBatch | None = None
    text_augmented: TextBatch | None = None
    candidates: TextBatch | None = None
    """Sentences of the texts, as many for each sample, one sample after the other."""
    paired: bool = True
    triplets: Int8[torch.Tensor, "b a f"] | None = None
    """Ternary matrix of places and findings: 1 present, 0 absent, -1 not mentioned."""
    views: tuple[Int[torch.Tensor, "b *n c *s"], ...] = ()
    """Further readings of the same images, each augmented on its own; sides may differ between views. Of volumes
    `[b n 1 d h w]`: `n` of each."""
    study: UInt8[torch.Tensor, "b v c *s"] | None = None
    """Images or clips of the study of each sample, the sample's own first; a study with fewer repeats them."""
    groups: Int[torch.Tensor, b] | None = None
    """Semantic group of each sample, 0 to g-1; the samples of a group are neighbours."""
    related: Bool[torch.Tensor, "g all_g"] | None = None
    """Groups that must not be each other's negatives: one concept, or ancestor and descendant. Columns are the groups
    of all ranks, in rank order; a group is related to itself."""
    extra: dict[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """Move the tensors to a device."""
        return _moved(self, device)


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a copy of a record, or of what is in it, with every tensor changed."""
    if hasattr(value, "to") and not is_dataclass(value):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)})
    if isinstance(value, dict):
        return {name: map_tensors(item, change) for name, item in value.items()}
    return tuple(map_tensors(item, change) for item in value) if isinstance(value, tuple) else value


def _moved(value: Any, device: torch.device | str) -> Any:
    # A copy to the host that nobody waits for could be read before it is there.
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=not str(device).startswith("cpu")))


@dataclass(frozen=True)
class Predictions:
    """Scores of a task, one row per sample. Every metric is computed from these and nothing else.

    `labels` hold 1, 0 or NaN (left out of that label's score); `scores` are probabilities in [0, 1].
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    label_names: Sequence[str]
    labels: Float[np.ndarray, "n k"]
    scores: Float[np.ndarray, "n k"]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per sample: `sample_id`, `patient_id`, then `label:<name>` and `score:<name>` per label."""
        import pandas as pd

        columns: dict[str, Any] = {"sample_id": list(self.sample_ids), "patient_id": list(self.patient_ids)}
        for k, name in enumerate(self.label_names):
            columns[f"label:{name}"] = self.labels[:, k]
            columns[f"score:{name}"] = self.scores[:, k]
        return pd.DataFrame(columns)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Predictions:
        """Inverse of `to_frame`."""
        names = [column.removeprefix("label:") for column in frame.columns if column.startswith("label:")]
        return cls(
            sample_ids=frame["sample_id"].tolist(),
            patient_ids=frame["patient_id"].tolist(),
            label_names=names,
            labels=frame[[f"label:{name}" for name in names]].to_numpy(dtype="float64"),
            scores=frame[[f"score:{name}" for name in names]].to_numpy(dtype="float64"),
        )
