"""`medvlp finetune` and `medvlp predict`: a model of one's own, and its answers for new images."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from medvlp.cli._common import Overrides, print_table, say, say_next

FINETUNE_EXAMPLE = (
    "Example: medvlp finetune configs/finetune/classification.yaml encoder=runs/medclip data.store=stores/ours "
    "run.dir=runs/ours"
)
PREDICT_EXAMPLE = "Example: medvlp predict runs/ours new/ --out predictions.csv"


class StudyBy(StrEnum):
    """What makes images one study."""

    header = "header"
    folder = "folder"


REFUSED = 3
"""Exit status of `predict` where some files got no answer."""


def finetune(
    file: Annotated[
        str, typer.Argument(metavar="CONFIG", help="YAML file of kind finetune; shipped ones by their relative path.")
    ],
    overrides: Overrides = None,
) -> None:
    """Fine-tune an encoder on a store of your own; run it again to resume from the last checkpoint."""
    from medvlp.config.finetune import FinetuneConfig
    from medvlp.config.load import load_config
    from medvlp.finetune.run import finetune as run

    config = load_config(file, overrides or [], FinetuneConfig)
    done = run(config)
    leading = [row for row in done.scores if row["metric"] == done.scores[0]["metric"]]
    shown = [
        (
            row["label"],
            *("–" if row[key] is None or row[key] != row[key] else row[key] for key in ("value", "low", "high")),
        )
        for row in leading
    ]
    print_table(f"{done.scores[0]['metric']} on the test patients", ("label", "value", "low", "high"), shown)
    for note in done.notes:
        say(f"Note: {note}")
    say(f"The model is in {done.folder / 'model'}, its report is {done.folder / 'report.html'}")
    say_next(["medvlp", "predict", done.folder, "FILES", "--out", "predictions.csv"])


def predict(
    run: Annotated[Path, typer.Argument(help="run.dir of `medvlp finetune`.")],
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Images (DICOM, PNG, JPEG), volumes (NIfTI, MHD, NRRD, DICOM series) or clips (AVI, MP4, MKV, "
            "folders of frames); and folders."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Table to write, .csv or .parquet.")],
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Segmentation: folder for masks, PNG on the pixels of each image, NIfTI on each volume's grid."
        ),
    ] = None,
    study_by: Annotated[
        StudyBy | None,
        typer.Option(
            help="Reports: images with one StudyInstanceUID (header, the default) or in one folder are a study."
        ),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Question answering: CSV with the column question, asked of every image.")
    ] = None,
    intensity: Annotated[
        Literal["auto", "hu", "stored"], typer.Option(help="Volumes: what numbers mean where the file does not say it.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="At a time; default 32, of volumes 1, of clips 8.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read files.")] = 2,
) -> None:
    """Answer new files as it was validated; what cannot be read, or is of another kind, is set aside (status 3)."""
    from medvlp.infer.predict import predict as answer

    by: Literal["header", "folder"] | None = None if study_by is None else study_by.value
    done = answer(
        run,
        paths,
        out,
        masks=masks,
        study_by=by,
        questions=questions,
        intensity=intensity,
        device=device,
        batch_size=batch_size,
        num_workers=workers,
    )
    say(f"Answers for {done.predicted} {done.what} are in {done.out}" + (f", masks in {masks}" if masks else ""))
    if done.refused:
        say(f"{done.refused} files got no answer, with reasons: {done.quarantine}")
        raise typer.Exit(REFUSED)
