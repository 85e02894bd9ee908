"""`medvlp knowledge`: ontologies and reports -> knowledge bank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvlp.cli._common import Overrides, print_table, say, say_next

app = typer.Typer(help="Build a knowledge bank from ontologies and reports, and look into it.", no_args_is_help=True)


@app.command(
    "build",
    epilog="Example: medvlp knowledge build --ontology doid.obo --ontology uberon.obo --reports stores/iu --out bank",
)
def build(
    ontology: Annotated[list[Path], typer.Option(help="OBO or OWL file; give it several times for several files.")],
    out: Annotated[Path, typer.Option(help="Folder of the knowledge bank.")],
    reports: Annotated[
        list[Path] | None, typer.Option(help="Prepared store whose reports are read; may be given several times.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Join ontologies into one concept book and graph, and read the reports of stores into concepts and triplets."""
    from medvlp.config.knowledge import KnowledgeConfig
    from medvlp.config.load import load_config
    from medvlp.store.knowledge_bank import build_bank

    given = {
        "kind": "knowledge",
        "ontologies": [str(path) for path in ontology],
        "reports": [str(path) for path in reports or ()],
        "out": str(out),
    }
    summary = build_bank(load_config(None, overrides or [], KnowledgeConfig, given))
    say(f"{summary.concepts:,} concepts with {summary.relations:,} links are in {summary.bank}")
    if summary.problems:
        say(f"{summary.problems:,} lines or links of the ontologies were left out: {summary.bank / 'problems.jsonl'}")
    if summary.reports:
        say(f"{summary.reports:,} reports: {summary.spans:,} named concepts, {summary.triplets:,} triplets")
    say(f"Bank hash: {summary.hash}")
    say_next(["medvlp", "knowledge", "show", summary.bank])


@app.command("show", epilog="Example: medvlp knowledge show bank")
def show(
    bank: Annotated[Path, typer.Argument(help="A knowledge bank.")],
    store: Annotated[str | None, typer.Option(help="Name of the report store, where the bank has several.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Findings and concepts shown.")] = 15,
) -> None:
    """Print what a knowledge bank holds, and what its reports state most often."""
    from medvlp.knowledge.bank import KnowledgeBank
    from medvlp.knowledge.counts import concept_counts, finding_counts

    opened = KnowledgeBank.open(bank)
    opened.verify()
    print_table("Knowledge bank", ["what", "number"], [[k, v] for k, v in opened.meta["counts"].items()])
    for name in [store] if store else opened.stores:
        columns = ["finding", "present", "absent", "uncertain"]
        print_table(f"Reports of {name} that state a finding", columns, finding_counts(opened, name)[:rows])
        columns = ["id", "concept", "reports"]
        print_table(f"Concepts named in reports of {name}", columns, concept_counts(opened, name)[:rows])
