"""Answers of a fine-tuned model for image files: the preprocessing, calibration and thresholds that were validated.

Guarantee: table and list of refused files appear whole or not at all; every file is in exactly one of them. A row holds
the path as given and answers, and nothing of a file's header. An image that cannot be read, or is of another kind than
those that the model was trained on (see `admission`), gets no answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

import medvlp
from medvlp.data.transforms import resize_pixels, to_tensor
from medvlp.errors import UserError
from medvlp.infer.clips import ClipProbabilities, list_clips, see_clip
from medvlp.infer.images import Bad, list_files, read_ahead, told_by_name, whole_table, write_quarantine
from medvlp.infer.predict_volumes import LabelMaps, VolumeProbabilities
from medvlp.infer.seen import Seen, see, see_volume
from medvlp.infer.volumes import VolumeFiles, list_volumes
from medvlp.progress import progress_bar
from medvlp.store.files import atomic_folder
from medvlp.store.manifest import UNITS
from medvlp.tasks._classifier import logits_of
from medvlp.tasks._tuned import TunedModel, calibrated, load_tuned

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class PredictSummary:
    """What `predict` did. `quarantine` is None where every file got an answer."""

    out: Path
    predicted: int
    refused: int
    quarantine: Path | None
    masks: Path | None
    seconds: float
    what: str = "images"
    """What has a row: images, studies, or questions about images."""


Answer = dict[str, Any] | list[dict[str, Any]] | Bad
"""Of one image: the columns of its row or of its rows, or why it has none."""


class Answers(Protocol):
    """From images to the columns of their rows; an image without a finite answer is a `Bad`."""

    def __call__(self, seen: Sequence[tuple[str, Any]], first: int) -> Sequence[Answer]:
        """Answer images; `first` is the number of the first row."""


def predict(
    run: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    masks: Path | None = None,
    study_by: Literal["header", "folder"] | None = None,
    questions: Path | None = None,
    intensity: Literal["auto", "hu", "stored"] = "auto",
    device: str = "cpu",
    batch_size: int | None = None,
    num_workers: int = 2,
) -> PredictSummary:
    """Answer images, volumes or clips, one row each; write `out`, `<out>.json` and perhaps `<out>.quarantine.jsonl`.

    Columns are `path`, for each label `probability:<label>` and `positive:<label>` (1, 0, or nothing without a
    threshold), `duplicate_of` (an earlier file with the same bytes) and `notes` (what could not be checked). A
    segmentation has `mask:<label>` (a file in `masks`), `pixels:<label>` and `area_mm2:<label>` in their place; one of
    volumes `mask` (a label map in `masks`) and for each label `value:<label>` in it, `voxels:<label>` and
    `volume_ml:<label>`. Written reports have one row per study, see `medvlp.infer.reports`; answers one per image and
    question, with `question`, `closed` and `answer`, see `medvlp.infer.answers`. `<out>.json` says which model it was,
    with its thresholds.

    Args:
        run: `run.dir` of a fine-tuning, or its `model/`.
        paths: Files and folders; folders are searched at any depth.
        out: File to write, .csv or .parquet.
        masks: Folder for the masks of a segmentation: PNG on the pixels of each image, 255 inside; of volumes NIfTI on
            the grid of each file.
        study_by: Written reports: which images are one study, see `medvlp.infer.reports`; None: header.
        questions: Question answering: CSV of what is asked of every image.
        intensity: Volumes: what numbers mean where the files do not say it.
        device: Torch device, or `auto`.
        batch_size: Images, studies, volumes or clips at a time; None is 32, of volumes 1, of clips 8.
        num_workers: Threads that read files.

    Raises:
        UserError: There is no model, no file was given or found, none of them got an answer, or the table cannot be
            written.
    """
    started = time.perf_counter()
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"The table has the suffix '{out.suffix}'.", out, "Name it .csv or .parquet.")
    model = load_tuned(Path(run), device)
    _check_masks(model, masks)
    texts = model.task.type == "report_generation"
    asked = _questions(model, questions)
    if study_by is not None and not texts:
        raise UserError("Images are answered one by one.", "--study-by", "Leave it out: it is for written reports.")
    kind = model.preprocessing.kind
    volumes, clips = kind == "volume", kind == "video"
    if intensity != "auto" and not volumes:
        raise UserError(f"intensity has no effect on {UNITS[kind]}.", "--intensity", "Leave it out.")
    batch_size = batch_size or (1 if volumes else 8 if clips else 32)
    files: Sequence[Path | VolumeFiles]
    files, bad = list_volumes(paths) if volumes else list_clips(paths) if clips else list_files(paths)
    files, bad = told_by_name(files, bad)
    if not files and not bad:
        raise UserError(
            "There is nothing to answer.", "paths", "Give files of what the model takes, or folders of them."
        )
    with whole_table(out) as part:
        with nullcontext() if masks is None else atomic_folder(masks) as scratch:
            read: partial[Any] = partial(see_clip if clips else see, model=model)
            if volumes:
                read = partial(see_volume, model=model, intensity=intensity)
            if texts:
                rows = _reports(model, read, files, bad, study_by or "header", batch_size, num_workers)
            else:
                answers = asked or _answers(model, scratch)
                rows = _rows(read, answers, files, bad, batch_size, num_workers, UNITS[kind])
            quarantine = write_quarantine(out, bad)
            if not rows:
                raise UserError(f"None of the {len(bad)} files got an answer.", quarantine, "Read the reasons there.")
        _write_table(rows, part, out.suffix.lower())
        about = json.dumps(_about(model, len(rows), len(bad)), indent=2, ensure_ascii=False) + "\n"
        out.with_name(f"{out.name}.json").write_text(about, encoding="utf-8")
    units = UNITS[kind]
    what = "studies" if texts else units if asked is None else f"questions about {units}"
    return PredictSummary(out, len(rows), len(bad), quarantine, masks, time.perf_counter() - started, what)


def _check_masks(model: TunedModel, masks: Path | None) -> None:
    """Raise `UserError` unless there is a new folder for masks where the model makes some."""
    if (model.task.type in ("segmentation", "volume_segmentation")) != (masks is not None):
        what, fix = ("The model makes no masks.", "Leave --masks out.")
        if masks is None:
            what, fix = "The model makes masks, and there is no folder for them.", "Give --masks FOLDER."
        raise UserError(what, "--masks", fix)
    if masks is not None and masks.exists() and (not masks.is_dir() or any(masks.iterdir())):
        raise UserError("The folder for masks holds something already.", masks, "Give a new folder.")


def _questions(model: TunedModel, questions: Path | None) -> Answers | None:
    """Return what answers questions, where the model does.

    Raises:
        UserError: A model that answers questions has none, or they cannot be asked; or another model has some.
    """
    if (model.task.type == "vqa") != (questions is not None):
        what, fix = "The model answers no questions.", "Leave --questions out."
        if questions is None:
            what, fix = "The model answers questions, and none is asked.", "Give --questions FILE, a CSV."
        raise UserError(what, "--questions", fix)
    if questions is None:
        return None
    from medvlp.infer.answers import Replying, read_questions

    return Replying(model, read_questions(questions, model))


def _answers(model: TunedModel, folder: Path | None) -> Answers:
    """Return what gives probabilities, or masks in a folder."""
    if model.preprocessing.kind == "volume":
        return VolumeProbabilities(model) if folder is None else LabelMaps(model, folder)
    if model.preprocessing.kind == "video":
        return ClipProbabilities(model)
    if folder is None:
        return Probabilities(model)
    from medvlp.infer.masks import Masks

    return Masks(model, folder)


def _reports(model: TunedModel, *how: Any) -> list[dict[str, Any]]:
    from medvlp.infer.reports import report_rows

    return report_rows(model, *how)


def _rows(
    see_one: Callable[[Any], Any],
    answers: Answers,
    files: Sequence[Path | VolumeFiles],
    bad: list[Bad],
    batch_size: int,
    num_workers: int,
    unit: str,
) -> list[dict[str, Any]]:
    """Return the rows of all files that got an answer; the others are added to `bad`."""
    rows: list[dict[str, Any]] = []
    first_with: dict[str, str] = {}
    with progress_bar("predict", len(files), unit) as advance:
        for seen, failed in read_ahead(see_one, files, batch_size, num_workers):
            bad.extend(failed)
            found = answers(seen, len(rows)) if seen else []
            for (name, image), answer in zip(seen, found, strict=True):
                if isinstance(answer, Bad):
                    bad.append(answer)
                    continue
                other = first_with.setdefault(image.digest, name)
                for row in answer if isinstance(answer, list) else [answer]:
                    notes = [*image.notes, *filter(None, [row.get("notes")])]
                    told = {"duplicate_of": "" if other == name else other, "notes": "; ".join(notes)}
                    rows.append({"path": name, **row, **told})
            advance(len(seen) + len(failed), refused=len(bad))
    return rows


class Probabilities:
    """Calibrated probability and answer of every label."""

    def __init__(self, model: TunedModel) -> None:
        self.model = model

    def __call__(self, seen: Sequence[tuple[str, Seen]], first: int) -> list[dict[str, Any] | Bad]:
        """See `Answers`."""
        model, taken = self.model, self.model.preprocessing.input
        squares = resize_pixels(np.stack([image.square for _, image in seen]), taken.size)
        probabilities = calibrated(model.decisions, logits_of(model.network, to_tensor(squares), taken, model.device))
        return [probability_row(model, name, own) for (name, _), own in zip(seen, probabilities, strict=True)]


def probability_row(model: TunedModel, name: str, probabilities: np.ndarray) -> dict[str, Any] | Bad:
    """Return probability and answer of every label of one image or volume, or that they are not finite."""
    if not np.isfinite(probabilities).all():
        return Bad(name, "The model gives no finite number for it.", "Check the image; report it if it is sound.")
    row: dict[str, Any] = {}
    for decision, value in zip(model.decisions, probabilities.tolist(), strict=True):
        row[f"probability:{decision.label}"] = value
        row[f"positive:{decision.label}"] = None if decision.threshold is None else int(value >= decision.threshold)
    return row


def _write_table(rows: list[dict[str, Any]], part: Path, suffix: str) -> None:
    import pandas as pd

    frame = pd.DataFrame(rows)
    for column in frame.columns[frame.columns.str.startswith("positive:")]:
        frame[column] = frame[column].astype("Int64")
    if suffix == ".csv":
        frame.to_csv(part, index=False, float_format="%.9g")
    else:
        frame.to_parquet(part, index=False)


def _about(model: TunedModel, predicted: int, refused: int) -> dict[str, Any]:
    """Return what made the table."""
    return {
        "task": model.task.type,
        "labels": [asdict(decision) for decision in model.decisions] or model.label_names,
        "model_hash": model.hash,
        "trained_on": {"dataset": model.record.get("dataset"), "store_hash": model.record.get("store_hash")},
        "preprocessing": model.preprocessing.resolved(),
        "scope": asdict(model.scope),
        "medvlp": medvlp.__version__,
        "predicted": predicted,
        "refused": refused,
        "use": "Research software: not a medical device, not for diagnosis.",
    }
