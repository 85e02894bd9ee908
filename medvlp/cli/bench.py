"""`medvlp bench`: suites of tasks, run cell by cell, and their report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvlp.cli import bench_results
from medvlp.cli._common import Overrides, print_table, say, say_next

app = typer.Typer(
    help="Judge encoders by one benchmark: every number with its interval and its hashes.", no_args_is_help=True
)

SuiteFile = Annotated[str, typer.Argument(help="Suite file; shipped ones by their relative path.")]
Stores = Annotated[list[Path] | None, typer.Option(help="Prepared store; once per data set of the suite.")]
StoreRoot = Annotated[Path | None, typer.Option(help="Folder of prepared stores, which are found by their data sets.")]
Encoders = Annotated[
    list[str], typer.Option(help="Run folder, NAME:FILE of the zoo, random:NAME, timm:FOLDER or hf:FOLDER; once each.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.command("list", epilog="Example: medvlp bench list")
def list_suites() -> None:
    """List suites and tasks with their versions, how many cells they have, and what data they need."""
    from medvlp.bench.listing import tables

    for table in tables():
        print_table(table.title, table.columns, table.rows)
    say_next(["medvlp", "bench", "plan", "SUITE", "--store-root", "STORES", "--encoder", "RUN"])


@app.command(
    "plan",
    epilog="Example: medvlp bench plan benchmarks/suites/nih_mini.yaml --store-root stores --encoder mgca_vit:x.ckpt",
)
def plan(
    suite: SuiteFile,
    encoder: Encoders,
    store: Stores = None,
    store_root: StoreRoot = None,
    out: Annotated[Path | None, typer.Option(help="Folder of results: what is done there is not counted.")] = None,
    times: Annotated[list[Path] | None, typer.Option(help="Other results whose times tell the hours.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time.")] = 1,
    device: Device = "auto",
    overrides: Overrides = None,
) -> None:
    """Count the cells of a suite, estimate the hours, and say what is missing; nothing is run."""
    from medvlp.bench.forecast import forecast
    from medvlp.bench.suite import choose_stores, load_suite, resolve_suite
    from medvlp.models.device import resolve_device

    config = load_suite(suite, overrides or [])
    resolved = resolve_suite(config, choose_stores(config, store or [], store_root), missing=True)
    found = forecast(resolved, encoder, out=out, timed=times or [], device=resolve_device(device))
    columns = ("task", "data set", "protocol", "cells", "done", "hours", "hours from")
    print_table(
        f"Cells of {config.name}, version {config.version}",
        columns,
        [
            (row.task, row.dataset, row.protocol, row.cells, row.done, row.hours, "times" if row.timed else "rule")
            for row in found.rows
        ],
    )
    print_table("Encoders", ("name", "given as", "account of the file"), found.encoders)
    if found.not_applicable:
        rows = [(encoder, lack, ", ".join(tasks)) for (encoder, lack), tasks in found.not_applicable.items()]
        print_table("Not run", ("encoder", "why", "tasks"), rows)
    for what, fix in found.missing:
        say(f"missing: {what}\n  next: {fix}")
    hours = found.hours / jobs
    say(f"{found.cells} cells, {found.done} done; about {hours:.1f} hours for the others with {jobs} at a time.")
    if not all(row.timed for row in found.rows):
        say("Rule of hours: docs/how-to/run-a-suite.md; --times RESULTS takes those of cells that were run.")
    if found.missing:
        raise typer.Exit(1)


@app.command(
    "run",
    epilog="Example: medvlp bench run benchmarks/suites/nih_mini.yaml --store stores/nih --encoder runs/medclip "
    "--encoder random:resnet18 --out results",
)
def run(
    suite: SuiteFile,
    encoder: Encoders,
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    store: Stores = None,
    store_root: StoreRoot = None,
    protocol: Annotated[list[str] | None, typer.Option(help="Only these protocols of the suite.")] = None,
    fraction: Annotated[list[float] | None, typer.Option(help="Only these label fractions of the suite.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only these seeds of the suite.")] = None,
    draw: Annotated[list[int] | None, typer.Option(help="Only these draws of label subsets.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks of the suite.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=0, help="Cells at a time, one to a process; 0: in this process. [default: 1]")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Minutes after which a cell is given up.")] = None,
    missing_stores: Annotated[
        bool, typer.Option("--missing-stores", help="Go on without a store; its cells are shown as missing.")
    ] = False,
    audit: Annotated[bool, typer.Option(help="Audit the stores first, and mark the cells that leaks touch.")] = True,
    mlflow: Annotated[bool, typer.Option(help="Track in MLflow.")] = True,
    device: Device = "auto",
    overrides: Overrides = None,
) -> None:
    """Run a suite; cells that exist are kept, a failed cell never stops the others, but ends in exit status 1."""
    from medvlp.bench.runner import How, Selection, run_suite
    from medvlp.bench.suite import choose_stores, load_suite
    from medvlp.config.cluster import OnCluster
    from medvlp.config.load import load_config
    from medvlp.config.train import TrackConfig

    words = overrides or []
    of_cluster = [word for word in words if word.partition("=")[0].partition(".")[0] == "cluster"]
    cluster = load_config(None, of_cluster, OnCluster).cluster
    config = load_suite(suite, [word for word in words if word not in of_cluster])
    alone = 1 if cluster.kind == "none" else 0
    summary = run_suite(
        config,
        stores=choose_stores(config, store or [], store_root),
        encoders=encoder,
        out=out,
        track=TrackConfig(mlflow=mlflow, experiment="medvlp-bench"),
        only=Selection(protocol or None, fraction or None, seed or None, draw or None, task or None),
        how=How(alone if jobs is None else jobs, timeout, cluster),
        device=device,
        missing_stores=missing_stores,
        audit=audit,
    )
    print_table("Scores on the test split", summary.columns, [row for row in summary.rows if "not run" not in row])
    say(f"{summary.done} cells done, {summary.kept} kept from before, {summary.failed} failed, in {out}")
    if summary.no_store:
        say(f"{summary.no_store} cells have no store: `medvlp bench plan` says which.")
    if summary.leaked:
        say(f"{summary.leaked} cells are touched by leaks, which the report names: {out / 'leaks.json'}")
    if summary.failed:
        say(f"Reasons of the failures: {out / 'failures.jsonl'}")
    say_next(["medvlp", "bench", "report", out, "--html", "report.html"])
    if summary.failed:
        raise typer.Exit(1)


@app.command("report", epilog="Example: medvlp bench report results --html report.html --latex tables.tex")
def report(
    results: Annotated[Path, typer.Argument(help="Folder of results.")],
    html: Annotated[Path | None, typer.Option(help="The page to write; it needs no other file.")] = None,
    latex: Annotated[Path | None, typer.Option(help="Tables for LaTeX, with booktabs.")] = None,
    csv: Annotated[Path | None, typer.Option(help="One row for each score.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Tables in Markdown.")] = None,
    rank_published: Annotated[
        bool, typer.Option("--rank-published", help="Let published numbers be marked as best beside measured ones.")
    ] = False,
    patients: Annotated[
        bool, typer.Option(help="Show images and texts of single patients on the page; a page for others may not.")
    ] = True,
) -> None:
    """Write one HTML page with tables, intervals, curves and examples, and the tables for papers."""
    from medvlp.bench.exports import write_exports
    from medvlp.bench.report import write_report

    files = {"latex": latex, "csv": csv, "markdown": markdown}
    if html is None and not any(files.values()):
        raise typer.BadParameter("give --html, --latex, --csv or --markdown, or several of them")
    if html is not None:
        write_report(results, html, rank_published=rank_published, patients=patients)
        say(f"Open {html} in a browser.")
    for written in write_exports(results, files, rank_published=rank_published):
        say(f"Written: {written}")


app.command("diff", epilog=bench_results.DIFF_EXAMPLE)(bench_results.diff)
app.command("compare", epilog=bench_results.COMPARE_EXAMPLE)(bench_results.compare)
app.command("rescore", epilog=bench_results.RESCORE_EXAMPLE)(bench_results.rescore)
app.command("add-results", epilog=bench_results.ADD_EXAMPLE)(bench_results.add_results)
