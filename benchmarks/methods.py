"""All methods on one phantom store: `python benchmarks/methods.py --store phantom-store --runs runs --out results`.

Guarantee: trains what `configs/pretrain/*-tiny.yaml` say and nothing else, one run after the other; finished runs and
cells are kept, so that the same command goes on after a stop. Writes `benchmarks/results/methods.json` and the table
made from it, also between the markers of README.md where they stand. A method that fails has a row that says so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medvlp.bench.report import write_report
from medvlp.bench.runner import run_suite
from medvlp.config.about import describe
from medvlp.config.base import json_sha256
from medvlp.config.load import load_config
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import PretrainConfig, TrackConfig
from medvlp.store.array_store import Store
from medvlp.track import run_record

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "methods.json"
PAGE = ROOT / "README.md"
BEGIN, END = "<!-- begin: benchmarks/methods.py -->", "<!-- end: benchmarks/methods.py -->"
SUITE = "benchmarks/suites/methods_phantom.yaml"
RANDOM = {"resnet": "random:resnet10t@96", "vit": "random:vit_tiny_patch16_224@96"}
"""Family of image towers -> the encoder with random weights that a probe is to beat."""
COLUMNS = {
    "probe": ("phantom_findings", "linear_probe", "auroc", "Probe, AUROC"),
    "zero_shot": ("phantom_findings", "zero_shot", "auroc", "Zero-shot, AUROC"),
    "pointing": ("phantom_grounding", "zero_shot", "pointing", "Pointing"),
    "retrieval": ("phantom_retrieval", "zero_shot", "recall_at_10", "Retrieval, recall@10"),
}
logger = logging.getLogger("medvlp")


def train(file: Path, store: Path, run: Path, device: str, threads: int) -> str:
    """Pre-train by a configuration, or go on with it; return why it failed, or nothing."""
    if not (run / "model").is_dir():
        places = [f"data.store={store}", f"run.dir={run}", f"train.device={device}", "track.mlflow=false"]
        command = [sys.executable, "-m", "medvlp", "pretrain", str(file), *places]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = next((line for line in lines if line.startswith("error:")), lines[-1] if lines else "no message")
            logger.warning("%s failed: %s", file.stem, reason)
            return reason
    logger.info("%s is trained", file.stem)
    return ""


def training(file: Path, run: Path) -> dict[str, Any]:
    """Return what a run did, from its curves: steps and the minutes that they took, pauses aside."""
    config = load_config(file, ["data.store=s", "run.dir=r"], PretrainConfig)
    minutes, before, loss = 0.0, 0, None
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for row in sorted((json.loads(line) for line in lines), key=lambda row: row["step"]):
        if "train/samples_per_second" in row and row["step"] > before:
            samples = (row["step"] - before) * config.train.batch_size
            minutes += samples / row["train/samples_per_second"] / 60
            before, loss = row["step"], row.get("train/loss")
    return {"steps": before, "batch_size": config.train.batch_size, "minutes": round(minutes, 1), "loss": loss}


def scores_of(aggregate: list[dict[str, Any]], encoder: str) -> dict[str, Any]:
    """Return the leading score of each column, or why there is none."""
    found: dict[str, Any] = {}
    for column, (task, protocol, metric, _) in COLUMNS.items():
        wanted = (task, protocol, metric, "macro", encoder)
        for row in aggregate:
            if (row["task"], row["protocol"], row["metric"], row["label"], row["encoder"]) == wanted:
                keys = ("value", "low", "high", "n", "chance") if row["status"] == "ok" else ("status",)
                found[column] = {key: row.get(key) for key in keys}
    return found


def against_random(comparisons: list[dict[str, Any]], encoder: str, tower: str) -> dict[str, Any] | None:
    """Return the difference of a probe to that of a random tower of the same family, paired over patients."""
    task, protocol, metric, _ = COLUMNS["probe"]
    other = next(RANDOM[family] for family in RANDOM if tower.startswith(family))
    for row in comparisons:
        if (row["task"], row["protocol"], row["metric"], row["label"]) != (task, protocol, metric, "macro"):
            continue
        known = {"b": other, "p_holm": row["p_holm"]}
        if (row["a"], row["b"]) == (encoder, other):
            return known | {key: row[key] for key in ("value_b", "difference", "low", "high")}
        if (row["a"], row["b"]) == (other, encoder):
            turned = {"difference": row["difference"], "low": row["high"], "high": row["low"]}
            return known | {"value_b": row["value_a"]} | {key: -value for key, value in turned.items()}
    return None


def summary(files: list[Path], failures: dict[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the whole result."""
    aggregate = json.loads((arguments.out / "aggregate.json").read_text(encoding="utf-8"))
    comparisons = json.loads((arguments.out / "comparisons.json").read_text(encoding="utf-8"))
    store = Store.open(arguments.store)
    rows = []
    for file in files:
        name = file.stem.removesuffix("-tiny")
        method = load_config(file, ["data.store=s", "run.dir=r"], PretrainConfig).method
        about = describe(method.name).about
        row: dict[str, Any] = {"name": name, "title": about.title if about else name, "config": file.name}
        if about is not None:
            row |= {"year": about.year, "faithful": about.faithful}
        if name in failures:
            rows.append(row | {"failed": failures[name]})
            continue
        run = arguments.runs / name
        rows.append(row | {"training": training(file, run)} | scores_of(aggregate, name))
        rows[-1]["probe_minus_random"] = against_random(comparisons, name, method.image.name)
    others = sorted({row["encoder"] for row in aggregate} - {row["name"] for row in rows})
    suite = load_config(SUITE, (), SuiteConfig)
    facts = {key: value for key, value in run_record().items() if key in ("versions", "git")}
    return {
        "store": {"dataset": store.dataset, "hash": store.hash, "studies": len(store.studies), "images": len(store)},
        "suite": {"name": suite.name, "version": suite.version, "sha256": json_sha256(suite.resolved())},
        "device": arguments.device,
        "cores": len(os.sched_getaffinity(0)),
        "threads": arguments.threads,
        **facts,
        "methods": rows,
        "baselines": [{"name": name} | scores_of(aggregate, name) for name in others],
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table, the best probe first."""

    def cell(score: dict[str, Any] | None) -> str:
        if score is None or score.get("value") is None:
            return "–"
        return f"{score['value']:.3f} ({score['low']:.3f}–{score['high']:.3f})"

    def order(row: dict[str, Any]) -> float:
        return -(row.get("probe", {}).get("value") or 0.0)

    heads = [head for *_, head in COLUMNS.values()]
    lines = [f"| Method | {' | '.join(heads)} | Minutes |", "|" + "---|" * (len(heads) + 2)]
    for row in sorted(result["methods"], key=order):
        if "failed" in row:
            lines.append(f"| {row['title']} | failed: {row['failed']} |" + " |" * len(heads))
            continue
        delta = row["probe_minus_random"]
        mark = " ¹" if delta is not None and (delta["low"] is None or delta["low"] <= 0) else ""
        title = row["title"] + ("" if row.get("faithful", True) else " (stand-in)") + mark
        cells = " | ".join(cell(row.get(column)) for column in COLUMNS)
        lines.append(f"| {title} | {cells} | {row['training']['minutes']:.0f} |")
    for row in result["baselines"]:
        lines.append(f"| *{row['name']}* | {' | '.join(cell(row.get(column)) for column in COLUMNS)} | |")
    scored = [row for row in result["methods"] if "failed" not in row]
    chances = [
        next((f"{s['chance']:.3f}" for row in scored if (s := row.get(column, {})).get("chance")), "–")
        if column not in ("probe", "zero_shot")
        else "0.500"
        for column in COLUMNS
    ]
    lines.append(f"| *chance* | {' | '.join(chances)} | |")
    if any(" ¹ |" in line for line in lines):
        lines += [
            "",
            "¹ Not above random weights of the same family of towers: the interval of the paired difference holds 0.",
        ]
    return "\n".join(lines)


def put_into_page(text: str) -> None:
    """Write the table between the markers of README.md, if it has them."""
    page = PAGE.read_text(encoding="utf-8")
    if BEGIN in page:
        before, rest = page.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="prepared store of the phantom")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the benchmark's results")
    parser.add_argument("--only", nargs="*", default=[], help="names of methods; all by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of each training")
    parser.add_argument("--at-once", type=int, default=1, help="trainings at a time")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name} and README.md; else print alone")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    files = sorted((ROOT / "configs" / "pretrain").glob("*-tiny.yaml"))
    files = [file for file in files if not arguments.only or file.stem.removesuffix("-tiny") in arguments.only]
    names = [file.stem.removesuffix("-tiny") for file in files]
    with ThreadPoolExecutor(arguments.at_once) as pool:
        reasons = pool.map(
            lambda pair: train(pair[0], arguments.store, arguments.runs / pair[1], arguments.device, arguments.threads),
            zip(files, names, strict=True),
        )
        failures = {name: reason for name, reason in zip(names, reasons, strict=True) if reason}
    encoders = [str(arguments.runs / name) for name in names if name not in failures]
    run_suite(
        load_config(SUITE, (), SuiteConfig),
        stores=[arguments.store],
        encoders=[*encoders, *RANDOM.values()],
        out=arguments.out,
        track=TrackConfig(mlflow=False),
        device=arguments.device,
    )
    write_report(arguments.out, arguments.out / "report.html")
    result = summary(files, failures, arguments)
    if arguments.write:
        RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        put_into_page(table(result))
    sys.stdout.write(table(result) + "\n")


if __name__ == "__main__":
    main()
