"""`medvlp bench diff`, `compare`, `rescore` and `add-results`: what is done with results that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvlp.cli._common import Overrides, print_table, say, say_next
from medvlp.errors import UserError

DIFF_EXAMPLE = "Example: medvlp bench diff results benchmarks/suites/nih_mini.yaml --store-root stores"
COMPARE_EXAMPLE = "Example: medvlp bench compare results --a mgca_vit --b medslip --out compared.csv"
RESCORE_EXAMPLE = "Example: medvlp bench rescore results --metric brier"
ADD_EXAMPLE = "Example: medvlp bench add-results paper.csv --out results --percent"

Results = Annotated[Path, typer.Argument(help="Folder of results.")]


def diff(
    results: Results,
    other: Annotated[str, typer.Argument(help="Another folder of results, or a suite file: what would be run now.")],
    store: Annotated[list[Path] | None, typer.Option(help="With a suite: its prepared stores.")] = None,
    store_root: Annotated[Path | None, typer.Option(help="With a suite: folder of its prepared stores.")] = None,
    encoder: Annotated[
        list[str] | None, typer.Option(help="With a suite: encoders; without any, those of the results.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Say which cells are new, gone or changed, and which part of their hash changed."""
    from medvlp.bench.diff import cells_of_results, cells_of_suite, compare_cells, summary
    from medvlp.bench.suite import choose_stores, load_suite, resolve_suite

    if Path(other).is_dir():
        if store or store_root or encoder or overrides:
            raise UserError(
                "Stores, encoders and overrides belong to a suite.", other, "Leave them out, or name a suite file."
            )
        after = cells_of_results(Path(other))
    else:
        config = load_suite(other, overrides or [])
        suite = resolve_suite(config, choose_stores(config, store or [], store_root), missing=True)
        after, problems = cells_of_suite(suite, results, encoder)
        for problem in problems:
            say(f"left out: {problem}")
    before = cells_of_results(results)
    found = compare_cells(before, after)
    if found:
        print_table("Cells that differ", ("what", "cells", "which", "why"), summary(found))
    else:
        say("No cell differs.")
    say(f"{len(before) - sum(one.kind != 'new' for one in found)} cells are the same.")


def rescore(
    results: Results,
    metric: Annotated[str, typer.Option(help="Metric of the scoring rule of a task, or of a published model.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the model of chexbert_f1_micro, chexbert_similarity, radgraph_f1, rate_score or green."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where that model runs: cpu or cuda.")] = "cpu",
) -> None:
    """Compute a metric from kept predictions, with its intervals; nothing is run again."""
    from medvlp.bench.rescore import rescore as compute

    found = compute(results, metric, weights, device)
    say(f"{metric}: computed for {found.done} cells, {found.kept} had the same numbers.")
    for reason, count in found.others.items():
        say(f"{count} cells without it: {reason}.")
    say_next(["medvlp", "bench", "report", results, "--html", "report.html"])


def add_results(
    table: Annotated[Path, typer.Argument(help="CSV with encoder, task, protocol, metric, value, source, ...")],
    out: Annotated[Path, typer.Option(help="Folder of results to show them beside.")],
    percent: Annotated[bool, typer.Option("--percent", help="The numbers of the table are in percent.")] = False,
) -> None:
    """Add published numbers, which are shown beside the measured ones and always marked."""
    from medvlp.bench.published import add_results as add

    new, total = add(table, out, percent=percent)
    say(f"{new} published numbers added, {total} in {out}")
    say_next(["medvlp", "bench", "report", out, "--html", "report.html"])


def compare(
    results: Results,
    a: Annotated[str, typer.Option("--a", help="Name of the first encoder in tables.")],
    b: Annotated[str, typer.Option("--b", help="Name of the second encoder.")],
    metric: Annotated[str | None, typer.Option(help="Metric; by default the leading one of each task.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks.")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="Only these protocols.")] = None,
    all_labels: Annotated[
        bool, typer.Option("--all-labels", help="Each label, not only the mean over labels.")
    ] = False,
    correction: Annotated[
        str | None, typer.Option(help="holm or benjamini_hochberg; by default that of the suite.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table as .csv or .json, too.")] = None,
) -> None:
    """Compare two encoders on the same test patients, with p values corrected for their number."""
    from typing import get_args

    from medvlp.bench.compare import check_format, compare_encoders, write_comparison
    from medvlp.bench.report_scores import setting_of
    from medvlp.config.suite import Correction
    from medvlp.html.numbers import interval, p_value, signed

    if correction is not None and correction not in get_args(Correction):
        raise UserError(
            f"There is no correction '{correction}'.", "--correction", f"Use {' or '.join(get_args(Correction))}."
        )
    if out is not None:
        check_format(out)
    found = compare_encoders(
        results,
        a,
        b,
        metric=metric,
        tasks=task or (),
        protocols=protocol or (),
        all_labels=all_labels,
        correction=correction,  # type: ignore[arg-type]
    )
    rows = [
        (
            *(row["task"], row["protocol"], setting_of(row | {"encoder": a}).amount, row["metric"], row["label"]),
            *(row["value_a"], row["value_b"], signed(row["difference"]), interval(row["low"], row["high"])),
            *(p_value(row["p"]), p_value(row["p_adjusted"]), p_value(row["p_suite"])),
            row["better"] or "not shown",
        )
        for row in found.rows
    ]
    names = ("task", "protocol", "labels", "metric", "label", "A", "B", "A - B", "interval")
    print_table(f"A {a} against B {b}", (*names, "p", "corrected", "in the suite", "better"), rows)
    for test in dict.fromkeys(row["test"] for row in found.rows if row["test"]):
        say(f"Test: {test}.")
    first = found.rows[0]
    say(
        f"Corrected: for the {first['comparisons']} comparisons of this table ({first['correction']}). In the suite: "
        f"for all pairs of the suite; better is said below {found.alpha:g} there, or where the suite has none, here."
    )
    for text in found.alone:
        say(f"left out: {text}")
    if out is not None:
        write_comparison(found, out)
        say(f"Written: {out}")
