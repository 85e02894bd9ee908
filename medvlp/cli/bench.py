"""`medvlp bench`: suites of tasks, run cell by cell, and their report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvlp.cli._common import print_table, say, say_next

app = typer.Typer(
    help="Judge encoders by one benchmark: every number with its interval and its hashes.", no_args_is_help=True
)


@app.command(
    "run",
    epilog="Example: medvlp bench run benchmarks/suites/nih_mini.yaml --store stores/nih --encoder runs/medclip "
    "--encoder random:resnet18 --out results",
)
def run(
    suite: Annotated[str, typer.Argument(help="Suite file; shipped ones by their relative path.")],
    store: Annotated[list[Path], typer.Option(help="Prepared store; once per data set of the suite.")],
    encoder: Annotated[list[str], typer.Option(help="Run folder, random:NAME, timm:FOLDER or hf:FOLDER; once each.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    protocol: Annotated[list[str] | None, typer.Option(help="Only these protocols of the suite.")] = None,
    fraction: Annotated[list[float] | None, typer.Option(help="Only these label fractions of the suite.")] = None,
    mlflow: Annotated[bool, typer.Option(help="Track in MLflow.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Run a suite; cells that exist are kept, a failed cell never stops the others, but ends in exit status 1."""
    from medvlp.bench.runner import run_suite
    from medvlp.config.load import load_config
    from medvlp.config.suite import SuiteConfig
    from medvlp.config.train import TrackConfig

    summary = run_suite(
        load_config(suite, (), SuiteConfig),
        stores=store,
        encoders=encoder,
        out=out,
        track=TrackConfig(mlflow=mlflow, experiment="medvlp-bench"),
        protocols=protocol or None,
        fractions=fraction or None,
        device=device,
    )
    print_table("Scores on the test split", summary.columns, [row for row in summary.rows if "not run" not in row])
    say(f"{summary.done} cells done, {summary.kept} kept from before, {summary.failed} failed, in {out}")
    if summary.failed:
        say(f"Reasons of the failures: {out / 'failures.jsonl'}")
    say_next(["medvlp", "bench", "report", out, "--html", "report.html"])
    if summary.failed:
        raise typer.Exit(1)


@app.command("report", epilog="Example: medvlp bench report results --html report.html")
def report(
    results: Annotated[Path, typer.Argument(help="Folder of results.")],
    html: Annotated[Path, typer.Option(help="The page to write; it needs no other file.")],
) -> None:
    """Write one HTML page with tables, intervals, curves and examples."""
    from medvlp.bench.report import write_report

    write_report(results, html)
    say(f"Open {html} in a browser.")
