"""`medvlp pretrain` and `medvlp embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medvlp.cli._common import Overrides, say, say_next

PRETRAIN_EXAMPLE = (
    "Example: medvlp pretrain configs/pretrain/medclip_nih_iu.yaml data.store=stores/nih "
    "data.reports=NLMCXR_reports.tgz run.dir=runs/medclip. On several GPUs: "
    "torchrun --nproc-per-node 8 -m medvlp pretrain ..."
)
PLAN_EXAMPLE = "Example: medvlp plan-memory configs/pretrain/ct_clip.yaml data.store=stores/ct train.precision=bf16"
EMBED_EXAMPLE = "Example: medvlp embed runs/medclip x.dcm radiographs/ --out features.parquet"


def pretrain(
    file: Annotated[
        str, typer.Argument(metavar="CONFIG", help="YAML file of kind pretrain; shipped ones by their relative path.")
    ],
    overrides: Overrides = None,
) -> None:
    """Pre-train a method; run it again to resume from the last checkpoint."""
    from medvlp.config.load import load_config
    from medvlp.config.train import PretrainConfig
    from medvlp.train import pretrain as run

    config = load_config(file, overrides or [], PretrainConfig)
    folder = run(config)
    say(f"The model is in {folder / 'model'}, its curves in {folder / 'metrics.jsonl'}")
    judge = ["medvlp", "bench", "run", _suite_for(config.data.store), "--store", config.data.store]
    say_next(
        [*judge, "--encoder", folder, "--out", f"{folder}-results"],
        ["medvlp", "embed", folder, "IMAGES", "--out", "features.parquet"],
    )


def plan_memory(
    file: Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of kind pretrain.")],
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes (GPUs) that share each batch.")] = 1,
) -> None:
    """Tell how much memory a pre-training takes on its device, before it starts; nothing is trained.

    Without data.store the sizes are those of the configuration, and every text has method.text.max_tokens tokens.
    """
    from medvlp.config.load import check_config, load_config
    from medvlp.config.train import PretrainConfig
    from medvlp.train.memory_plan import plan_memory as plan

    loaded = check_config(file, overrides or [], PretrainConfig)
    if set(loaded.missing) - {"run.dir", "data.store"}:
        load_config(file, overrides or [], PretrainConfig)  # says what is missing
    assert isinstance(loaded.config, PretrainConfig)
    found = plan(loaded.config, from_store="data.store" not in loaded.missing, processes=processes)
    lines = {
        "weights and buffers": found.parameters,
        "gradients": found.gradients,
        "optimiser and copies of weights": found.optimizer,
        f"batch of {found.samples}, as loaded": found.batch,
        "activations": found.activations,
        "most at a time": found.peak,
    }
    if processes > 1:
        say(f"One of {processes} processes:")
    for name, size in lines.items():
        say(f"{name:<32}{size / 2**30:9.3f} GiB")
    say("Besides, a device needs its context and workspaces: leave about 1 GiB and a tenth free.")


def _suite_for(store: Path) -> str:
    """Return the shipped suite whose tasks all run on the data set of a store; of several the one with most tasks."""
    from medvlp.bench.suite import resolve_tasks
    from medvlp.config.load import load_config
    from medvlp.config.resources import shipped
    from medvlp.config.suite import SuiteConfig
    from medvlp.store.array_store import Store

    dataset = Store.open(store).dataset
    fitting = []
    for file in sorted(shipped("benchmarks/suites").glob("*.yaml")):
        tasks = resolve_tasks(load_config(file, (), SuiteConfig))
        if {task.dataset for task in tasks.values()} == {dataset}:
            fitting.append((len(tasks), f"benchmarks/suites/{file.name}"))
    return max(fitting)[1] if fitting else "SUITE"


def embed(
    encoder: Annotated[str, typer.Argument(help="A run folder, or random:NAME, timm:FOLDER, hf:FOLDER.")],
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Radiographs (DICOM, PNG, JPEG); for an encoder of volumes NIfTI, MHD, NRRD, DICOM series; of clips "
            "AVI, MP4, MKV, folders of frames; folders."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="At a time; default 32, of volumes 4, of clips 8.")
    ] = None,
    intensity: Annotated[
        Literal["auto", "hu", "stored"], typer.Option(help="Volumes: what numbers mean where the file does not say it.")
    ] = "auto",
) -> None:
    """Write the features of radiographs, volumes or clips, as in training; a broken file never stops the others."""
    from medvlp.infer.embed import embed as embed_files

    summary = embed_files(encoder, paths, out, intensity=intensity, device=device, batch_size=batch_size)
    say(f"Features of {summary.embedded} {summary.unit} are in {out}")
    if summary.quarantined:
        say(f"{summary.quarantined} files could not be read, with reasons: {summary.quarantine}")
