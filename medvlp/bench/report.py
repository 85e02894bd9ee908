"""`medvlp bench report`: a results folder as one self-contained HTML page.

Guarantee: every number on the page leads to the configuration, hashes, thresholds and software behind it; what was
planned and has no value is shown as missing with its reason; the page asks the network for nothing and shows no machine
path and no patient identifier.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvlp.bench import report_analysis as analysis
from medvlp.bench import report_sections as parts
from medvlp.bench.report_benchx import as_benchx
from medvlp.bench.report_cells import behind
from medvlp.bench.report_data import Results
from medvlp.bench.report_notes import methods_text, warnings
from medvlp.bench.report_outlines import outlines
from medvlp.bench.report_places import places
from medvlp.bench.report_ranks import ranks
from medvlp.bench.report_record import missing, provenance
from medvlp.bench.report_scores import LOWER_IS_BETTER, METRICS, PROTOCOL_NAMES, is_baseline, number
from medvlp.bench.report_texts import report_texts
from medvlp.bench.report_volumes import volumes
from medvlp.html import render_page, write_page
from medvlp.html.charts import styles, swatches
from medvlp.html.heat import INFERNO, OPACITY

logger = logging.getLogger(__name__)


def write_report(results: Path, html: Path, *, rank_published: bool = False, patients: bool = True) -> None:
    """Write the report of a results folder.

    Args:
        results: Folder that `medvlp bench run` wrote, complete or not.
        html: The page to write; it is replaced in one step.
        rank_published: Let published numbers be marked as best beside measured ones.
        patients: Show images, texts and names of images of single patients.

    Raises:
        UserError: The folder holds no results, or the page cannot be written.
    """
    import medvlp

    found = Results.read(Path(results))
    looks = styles(found.encoder_names, [name for name in found.encoder_names if is_baseline(name)])
    once, samples = swatches(looks)
    boards = list(parts.boards(found, rank_published))
    examples = parts.examples(found, looks) if patients else []
    context = {
        "results": found,
        "title": str(found.suite.get("name") or "Benchmark"),
        "made_by": f"medvlp {medvlp.__version__}",
        "facts": list(_facts(found)),
        "warnings": [(what, text if patients else _without_names(text)) for what, text in warnings(found)],
        "headline": list(parts.headline(found, looks)),
        "ranks": ranks(found, looks),
        "boards": boards,
        "benchx": list(as_benchx(found)),
        "leads": {board["task"]: (found.primary(board["task"]), board["label"]) for board in boards},
        "sources": list(dict.fromkeys(row.source for row in found.published)),
        "all_results": list(parts.all_results(found)),
        "efficiency": list(parts.efficiency_charts(found, looks)),
        "curves": list(parts.curve_charts(found, looks)),
        "comparisons": list(parts.comparisons(found)),
        "calibration": analysis.calibration(found),
        "subgroups": analysis.subgroups(found),
        "prompts": list(parts.prompts(found)),
        "examples": examples,
        "places": list(places(found)) if patients else [],
        "outlines": list(outlines(found)) if patients else [],
        "volumes": list(volumes(found)) if patients else [],
        "texts": list(report_texts(found)) if patients else [],
        "missing": missing(found),
        "methods": methods_text(found),
        "provenance": provenance(found),
        "behind": behind(found, {example["sample"] for example in examples}),
        "inferno": INFERNO,
        "opacity": OPACITY,
        "looks": once,
        "swatches": samples,
        "protocols": PROTOCOL_NAMES,
        "metric_names": METRICS,
        "lower_is_better": LOWER_IS_BETTER,
        "is_baseline": is_baseline,
        "as_json": lambda record: json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True),
    }
    context["sections"] = _sections(context)
    write_page(Path(html), render_page("medvlp.bench", "report.html.j2", **context))
    logger.info("report: %d cells in %d settings", len(found.cells), len(found.groups))


def _without_names(sentence: str) -> str:
    return re.sub(r"[,;] for example .*$", ".", sentence)


def _sections(context: dict[str, Any]) -> list[tuple[str, str]]:
    optional = [
        ("headline", "Main result"),
        ("ranks", "Ranks"),
        ("boards", "Leaderboard"),
        ("all", "All results"),
        ("benchx", "As BenchX reports it"),
        ("efficiency", "Label efficiency"),
        ("curves", "Curves"),
        ("comparisons", "Comparisons"),
        ("calibration", "Calibration"),
        ("subgroups", "Subgroups"),
        ("prompts", "Prompts"),
        ("places", "Heat maps"),
        ("outlines", "Outlines"),
        ("volumes", "Volumes"),
        ("texts", "Reports"),
        ("examples", "Examples"),
        ("missing", "What is missing"),
    ]
    kept = [(key, name) for key, name in optional if key == "all" or context[key]]
    return [*kept, ("methods", "Methods"), ("provenance", "Provenance"), ("records", "Records")]


def _facts(found: Results) -> Iterator[tuple[str, str, str]]:
    groups = [g for g in found.groups if not g.reason.startswith("not applicable")]
    planned, done = len(groups), sum(bool(g.cells) for g in groups)
    yield "Suite", f"{found.suite.get('name', '–')}", f"version {found.suite.get('version', '–')}"
    for name, store in found.stores.items():
        yield "Data set", name, f"store {str(store.get('hash', '–'))[:12]}"
    tested = [name for name in found.encoder_names if not is_baseline(name)]
    yield "Encoders", str(len(tested)), f"and {len(found.encoder_names) - len(tested)} baselines"
    yield "Settings", f"{done} of {planned}", f"{len(found.cells)} cells with seeds and draws"
    date = _date(found)
    yield "Date of results", date, ""
    versions = found.facts.get("versions") or (found.cells[0].result.get("versions") if found.cells else None) or {}
    git = found.facts.get("git") or (found.cells[0].result.get("git") if found.cells else None) or ""
    commit = git.get("commit", "") if isinstance(git, dict) else str(git)
    yield "Software", f"medvlp {versions.get('medvlp', '–')}", f"commit {commit[:12]}" if commit else ""


def _date(found: Results) -> str:
    """The day of the newest result."""
    import datetime

    times = [started for cell in found.cells if (started := number(cell.result.get("started"))) is not None]
    return datetime.datetime.fromtimestamp(max(times), datetime.UTC).date().isoformat() if times else ""
