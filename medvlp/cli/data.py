"""`medvlp data`: raw data set -> prepared store, and what is in it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer

from medvlp.cli._common import Overrides, print_table, say, say_next
from medvlp.errors import UserError

CELL_CHARACTERS = 60
"""Longest cell of the table of cards; a card itself says everything."""
LEAKS_FOUND = 2
"""Exit status of `audit --strict` where there are leaks."""

app = typer.Typer(help="Prepare data sets, look at them, and audit them for leaks and shortcuts.", no_args_is_help=True)


@app.command("cards", epilog="Example: medvlp data cards padchest")
def cards(
    name: Annotated[str | None, typer.Argument(help="Print the whole card of this data set.")] = None,
) -> None:
    """List all data sets: modality, task, size, licence, access, and what the adapter was tested on."""
    from medvlp.sources import SOURCES
    from medvlp.sources.cards import load_card

    if name is not None:
        SOURCES.check(name)
        say(load_card(name).text)
        return
    columns = ["name", "modality", "tasks", "size", "licence", "access", "tested on"]
    rows = [
        [
            card.name,
            card.modality,
            ", ".join(card.tasks),
            card.size,
            shorten(card.licence, CELL_CHARACTERS, placeholder=" ..."),
            shorten(card.access, CELL_CHARACTERS, placeholder=" ..."),
            card.status,
        ]
        for card in map(load_card, SOURCES.names())
    ]
    print_table("Data sets", columns, rows)
    say_next(
        ["medvlp", "data", "cards", "ct_rate"],
        [
            "medvlp",
            "phantom",
            "write",
            "--layout",
            "ct_rate",
            "--studies",
            12,
            "--out",
            "phantom",
            "options.version=v2",
        ],
    )


@app.command(
    "prepare",
    epilog="Example: medvlp data prepare nih_chestxray14 --root ChestXray14 --out stores/nih image.size=256",
)
def prepare(
    source: Annotated[str, typer.Argument(help="Name of the data set, or a YAML file that names several stores.")],
    root: Annotated[Path, typer.Option(help="Folder or archive of the raw data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the prepared store.")],
    labels: Annotated[
        Path | None, typer.Option(help="Table of labels, for data of your own: the same as options.labels=FILE.")
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(help="Table of reports, likewise: the same as options.reports=FILE.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Turn a raw data set into a prepared store; run it again to go on after an interruption."""
    from medvlp.config.load import load_config
    from medvlp.config.prepare import CollectionConfig, PrepareConfig
    from medvlp.store.collection import prepare_collection
    from medvlp.store.prepare import prepare as prepare_store

    tables = {name: str(file) for name, file in (("labels", labels), ("reports", reports)) if file is not None}
    if source.endswith((".yaml", ".yml")):
        if tables:
            raise UserError(
                "--labels and --reports belong to one data set.", source, "Name them as options in the file."
            )
        places = {"root": str(root), "out": str(out)}
        summaries = prepare_collection(load_config(source, overrides or [], CollectionConfig, places))
        for summary in summaries:
            say(str(summary))
        stores = [summary.store for summary in summaries]
        say_next(["medvlp", "data", "audit", *stores], ["medvlp", "data", "show", *stores, "--html", "stores.html"])
        return
    given = {"kind": "prepare", "source": source, "root": str(root), "out": str(out), "options": tables}
    summary = prepare_store(load_config(None, overrides or [], PrepareConfig, given))
    say(str(summary))
    if summary.quarantined:
        say(f"{summary.quarantined} left out, with reasons: {summary.store / 'quarantine.jsonl'}")
    if summary.key:
        say(f"Ids are hashed; who may know the originals finds them in {summary.key}")
    say(f"Store hash: {summary.hash}")
    say_next(
        ["medvlp", "data", "audit", summary.store], ["medvlp", "data", "show", summary.store, "--html", "store.html"]
    )


@app.command("audit", epilog="Example: medvlp data audit stores/nih stores/rsna --html audit.html --strict")
def audit(
    stores: Annotated[list[Path], typer.Argument(help="Prepared stores, examined alone and against each other.")],
    html: Annotated[Path | None, typer.Option(help="Write one page with tables and pictures.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the whole report there too.")] = None,
    raw: Annotated[
        list[Path] | None, typer.Option(help="Raw data whose DICOM headers are examined for identifiers; repeatable.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="Exit with status 2 if there are leaks.")] = False,
) -> None:
    """Look for leaks, contradictions and identifiers, and for shortcuts that predict a label without any disease."""
    import json

    from medvlp.store.audit import audit as audit_stores
    from medvlp.store.audit_page import write_audit_page

    report = audit_stores(stores, raw or [])
    for table in report.to_tables():
        print_table(table.title, table.columns, table.rows)
    for finding in report.findings:
        say(f"- {finding}")
    if json_file is not None:
        _write_json(json_file, json.dumps(report.to_dict(), indent=1))
        say(f"The whole report is in {json_file}")
    if html is not None:
        write_audit_page(report, stores, html)
        say(f"Open {html} in a browser.")
    if strict and report.has_leaks:
        raise typer.Exit(LEAKS_FOUND)


def _write_json(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise UserError(
            f"The report cannot be written: {error.strerror}.", file, "Choose another file for --json."
        ) from error


@app.command("check-splits", epilog="Example: medvlp data check-splits benchx_splits/RSNA --store stores/rsna --strict")
def check_splits(
    folder: Annotated[Path, typer.Argument(help="Folder with train.txt, test.txt and perhaps others.")],
    store: Annotated[Path | None, typer.Option(help="Compare with the images and patients of this store.")] = None,
    strict: Annotated[bool, typer.Option(help="Exit with status 2 if splits share images or patients.")] = False,
) -> None:
    """Examine the split lists of a benchmark: repeats, overlaps, subsets that do not nest, unknown names, patients."""
    from medvlp.sources.splits import read_split_lists
    from medvlp.store.split_check import check

    report = check(read_split_lists(folder), store)
    counted = store is not None
    columns = ["list", "lines", *(["images in the store"] if counted else [])]
    rows = [[name, lines, *([report.images[name]] if counted else [])] for name, lines in report.sizes.items()]
    print_table("Split lists", columns, rows)
    say(f"These have the numbers of the {report.known}." if report.known else "No known lists have these numbers.")
    kinds = {"note": report.notes, "fault": report.faults, "overlap": report.overlaps}
    for kind, sentences in kinds.items():
        for sentence in sentences:
            say(f"- {kind}: {sentence}")
    if counted:
        say(f"{report.unlisted} images of the store are in no list.")
    if strict and report.leaks:
        raise typer.Exit(LEAKS_FOUND)


@app.command("show", epilog="Example: medvlp data show stores/nih --html nih.html")
def show(
    stores: Annotated[list[Path], typer.Argument(help="Prepared stores.")],
    html: Annotated[Path, typer.Option(help="The page to write; it needs no other file.")],
) -> None:
    """Write one HTML page with images, volumes or clips, histograms and the label table of each store."""
    from medvlp.store.show import show as show_stores

    show_stores(stores, html)
    say(f"Open {html} in a browser.")
