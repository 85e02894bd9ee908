"""The suite of BenchX: what it holds, and all of it by one command on miniatures, killed and not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchx_miniature
import pytest

from medvlp.bench.plan import Judged, not_applicable, settings_of
from medvlp.bench.report_data import Results
from medvlp.bench.report_notes import _mixed
from medvlp.bench.schedule import Schedule
from medvlp.bench.suite import Suite, load_suite, resolve_tasks
from medvlp.config.suite import SuiteConfig
from medvlp.config.task import TaskConfig
from medvlp.errors import UserError
from medvlp.tasks import TASKS
from medvlp.tasks.base import HEAT_MAPS, SCORES, SPACE, Task

SUITE = "benchmarks/suites/benchx.yaml"
CLASSIFICATION = ("nih_chestxray14", "vindr_cxr", "covidx", "siim_acr", "rsna_pneumonia")
SEGMENTATION = ("object_cxr", "rsna_pneumonia", "siim_acr", "tbx11k")
ROOT = Path(__file__).parents[2]


def tasks_of(suite: SuiteConfig) -> dict[str, Task]:
    return {key: TASKS.get(task.type)(task) for key, task in resolve_tasks(suite).items()}


def able(name: str, datasets: Sequence[str]) -> list[Judged]:
    spec = f"zoo:{name.removeprefix('zoo:').partition('@')[0]}:file"
    return [Judged(name, spec, "h", one, "encoder", 0, True, (SCORES, SPACE, HEAT_MAPS)) for one in datasets]


def cells(suite: SuiteConfig, name: str) -> Counter[tuple[str, str]]:
    tasks = tasks_of(suite)
    datasets = list(dict.fromkeys(task.config.dataset for task in tasks.values()))
    return Counter((key, protocol) for key, protocol, *_ in settings_of(suite, tasks, able(name, datasets)))


def test_benchx_has_every_cell_of_the_paper() -> None:
    """Five data sets at three fractions with three seeds, four segmentations, reports, and retrieval."""
    suite = load_suite(SUITE)
    found = cells(suite, "zoo:mgca_vit")
    wanted = {(f"benchx_{name}", "fine_tune"): 9 for name in CLASSIFICATION}
    wanted |= {(f"benchx_{name}_segmentation", "frozen"): 3 for name in SEGMENTATION}
    wanted |= {("benchx_iu_xray_reports", "frozen"): 3, ("benchx_mimic_5x200", "zero_shot"): 1}
    assert found == wanted
    assert {seed for entry in suite.entries if entry.protocols != ("zero_shot",) for seed in entry.seeds} == {42, 0, 1}
    assert {entry.draws for entry in suite.entries} == {1}, "its lists are one subset a fraction"
    configs = resolve_tasks(suite)
    assert {configs[f"benchx_{name}"].label_subsets for name in CLASSIFICATION} == {"lists"}


def test_ptunifier_classifies_nothing_and_the_reason_is_said() -> None:
    suite = load_suite(SUITE)
    found = cells(suite, "zoo:ptunifier")
    assert not {task for task, protocol in found if protocol == "fine_tune"}
    assert len(found) == len(cells(suite, "zoo:mgca_vit")) - len(CLASSIFICATION)
    tasks = tasks_of(suite)
    said = not_applicable(suite, tasks, able("zoo:ptunifier", ["nih_chestxray14"]))
    assert said == [("benchx_nih_chestxray14", "fine_tune", "zoo:ptunifier", said[0][3])]
    assert said[0][3].startswith("left out: BenchX classifies with the other ten")
    assert cells(suite, "zoo:gloria@native") == {("benchx_mimic_5x200", "zero_shot"): 1}
    assert cells(suite, "zoo:gloria") == cells(suite, "zoo:mgca_vit")


@pytest.mark.parametrize("name", ["ptunifer", "metadata"])
def test_only_encoders_are_excluded_and_a_typing_mistake_is_refused(name: str) -> None:
    entry = {"task": "phantom_findings", "protocols": ["knn"], "exclude": {name: "no settings"}}
    suite = SuiteConfig.model_validate({"name": "s", "version": 1, "entries": [entry]})
    schedule = Schedule(Suite(suite, resolve_tasks(suite), {}))
    with pytest.raises(UserError, match=f"no encoder '{name}'"):
        list(schedule.plan([Judged("metadata", "metadata", "h", "phantom", "baseline")]))


def test_benchx_fixed_searches_alike_and_has_few_labels_everywhere() -> None:
    suite = load_suite("benchmarks/suites/benchx_fixed.yaml")
    configs: dict[str, TaskConfig] = resolve_tasks(suite)
    tuned = [entry for entry in suite.entries if "fine_tune" in entry.protocols and "reports" not in entry.task]
    assert all(
        set(entry.fractions) == {0.01, 0.1, 1.0} and entry.draws > 1 and len(entry.seeds) == 3 for entry in tuned
    )
    classified = [config for config in configs.values() if config.type == "classification"]
    assert len(classified) == 5
    assert len({json.dumps(config.resolved()["tuning"]) for config in classified}) == 1
    assert all(config.tuning is not None and not config.per_encoder for config in classified)
    assert {config.fine_tune.schedule for config in configs.values()} <= {"cosine", "linear"}
    protocols = {
        config.name: {p for e in suite.entries if e.task == config.name for p in e.protocols} for config in classified
    }
    assert all(own == {"fine_tune", "linear_probe", "knn", "few_shot", "zero_shot"} for own in protocols.values())
    assert suite.baselines == SuiteConfig.model_fields["baselines"].default, "all of them"
    assert {config.type for config in configs.values()} >= {"segmentation", "report_generation", "class_retrieval"}


def test_the_suites_on_the_phantom_have_every_kind_of_task() -> None:
    suites = [load_suite(f"benchmarks/suites/{name}.yaml") for name in ("phantom", "phantom_ct", "echo")]
    types = {config.type for suite in suites for config in resolve_tasks(suite).values()}
    # Retrieval by class is one on a list of MIMIC-CXR-JPG, and volumes are searched by volumes in CT-RATE.
    assert types == {*TASKS.names()} - {"class_retrieval", "image_retrieval"}


def test_settings_of_an_encoder_are_no_other_definition_of_the_task() -> None:
    def said(per_encoder: dict[str, Any], *cells: tuple[str, str]) -> int:
        infos = [{"task": "t", "encoder": name, "hashes": {"task": value}} for name, value in cells]
        given = {"stale": 0, "tasks": {"t": {"per_encoder": per_encoder}}}
        results: Any = SimpleNamespace(cells=[SimpleNamespace(info=info) for info in infos], **given)
        return len(list(_mixed(results)))

    assert said({"b": {}}, ("a", "1"), ("b", "2")) == 0
    assert said({"b": {}}, ("a", "1"), ("a", "3"), ("b", "2")) == 1
    assert said({}, ("a", "1"), ("b", "2")) == 1


def changes() -> list[str]:
    """Return the overrides that make the suite small: one fraction, one seed, two steps, little images and models."""
    found = ["entries.*.seeds=[42]", "bootstrap_resamples=50", "permutations=100"]
    found += [f"entries.*.set.fine_tune.{text}" for text in ("steps=2", "warmup_steps=1", "input_size=64")]
    for name in CLASSIFICATION:
        found.append(f"entries.benchx_{name}.fractions=[0.1]")
        found += [f"entries.benchx_{name}.set.fine_tune.{key}=1" for key in ("first_validation", "validate_epochs")]
    for name in SEGMENTATION:
        head = f"entries.benchx_{name}_segmentation.set"
        found += [f"{head}.fine_tune.validate_every=2", f"{head}.segmentation.channels=32"]
    small = [f"reports.decoder.{text}" for text in ("width=32", "hidden=32", "layers=1", "heads=2", "memory_heads=2")]
    small += ["reports.max_tokens=12", "reports.min_count=1", "reports.beams=1"]
    found += [f"entries.benchx_iu_xray_reports.set.{text}" for text in small]
    return [*found, "entries.benchx_mimic_5x200.set.retrieval.max_tokens=16"]


def command(verb: str, folder: Path, *more: object) -> list[str]:
    encoders = [word for spec in benchx_miniature.specs(folder) for word in ("--encoder", spec)]
    words = [sys.executable, "-m", "medvlp", "bench", verb, SUITE, "--store-root", folder / "stores", *encoders, *more]
    return [*map(str, words), *changes()]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def finished(out: Path) -> int:
    return len(list(out.glob("cells/*/result.json")))


def killed_after(words: list[str], out: Path, cells: int, seconds: float) -> None:
    """Start a run in a process group, and kill all of it some seconds after it has so many more cells."""
    before = finished(out)
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL)
    while finished(out) < before + cells:
        assert process.poll() is None, "it ended before it was to be killed"
        time.sleep(0.2)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def tables(out: Path) -> dict[str, Any]:
    """Return what a run leaves, but times and locks: sums, comparisons, ranks, and each cell's numbers."""
    names = ("aggregate", "comparisons", "ranks", "calibration", "subgroups", "leaks")
    found: dict[str, Any] = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    for folder in sorted((out / "cells").iterdir()):
        found[folder.name] = json.loads((folder / "result.json").read_text())
        found[f"{folder.name} predictions"] = (folder / "predictions.parquet").read_bytes()
    return found


def exported(out: Path) -> str:
    files = {kind: out / f"tables.{kind}" for kind in ("csv", "markdown", "latex")}
    words = [word for kind, file in files.items() for word in (f"--{kind}", str(file))]
    report = [sys.executable, "-m", "medvlp", "bench", "report", str(out), "--html", str(out / "report.html"), *words]
    subprocess.run(report, cwd=ROOT, env=ENVIRONMENT, check=True)
    return "".join(file.read_text() for file in files.values())


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_whole_suite_by_one_command_also_when_it_is_killed(oracles: Path, tmp_path: Path) -> None:
    """Eleven released encoders, a timm folder and all baselines on nine data sets: 166 cells."""
    benchx_miniature.make(tmp_path, oracles)
    planned = subprocess.run(command("plan", tmp_path), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    whole, out = tmp_path / "whole", tmp_path / "killed"
    options = ("--no-mlflow", "--jobs", "2")
    done = subprocess.run(command("run", tmp_path, "--out", whole, *options), cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0
    assert f"{finished(whole)} cells, 0 done" in planned.stdout
    words, rng = command("run", tmp_path, "--out", out, *options), random.Random(0)
    for _ in range(3):
        killed_after(words, out, rng.randint(5, 40), rng.uniform(0, 5))
    assert subprocess.run(words, cwd=ROOT, env=ENVIRONMENT).returncode == 0
    assert tables(out) == tables(whole)
    assert exported(out) == exported(whole)
    check_results(whole)


def fixed_changes() -> list[str]:
    """Return the overrides that make the fixed suite small; its fractions are chosen by options."""
    found = ["entries.*.seeds=[0]", "bootstrap_resamples=50", "permutations=100"]
    found += [f"entries.*.set.fine_tune.{text}" for text in ("steps=2", "warmup_steps=1", "input_size=64")]
    for name in ("nih_14", "vindr_cxr", "covidx", "siim_acr", "rsna_pneumonia"):
        found += [f"entries.{name}.{text}" for text in ("draws=1", "set.tuning.lr=[3.0e-4]")]
        found.append(f"entries.{name}.set.fine_tune.batch_size=8")
    for name in SEGMENTATION:
        head = f"entries.{name}_segmentation"
        found += [f"{head}.draws=1", f"{head}.set.fine_tune.validate_every=2", f"{head}.set.segmentation.channels=32"]
    small = [f"decoder.{text}" for text in ("width=32", "hidden=32", "layers=1", "heads=2")]
    small += ["max_tokens=12", "min_count=1", "beams=1"]
    found += [f"entries.iu_xray_reports.set.reports.{text}" for text in small]
    return [*found, "entries.mimic_5x200.set.retrieval.max_tokens=16"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_fixed_suite_from_raw_data_to_a_page(oracles: Path, tmp_path: Path) -> None:
    """Two released encoders with texts, a timm folder and all baselines, at a tenth and at all of the labels."""
    collection = benchx_miniature.FIXED
    encoders = ("mgca_vit", "convirt")
    words = benchx_miniature.make(tmp_path, oracles, encoders=encoders, collection=collection)
    given = [word for spec in words for word in ("--encoder", spec)]
    run = [sys.executable, "-m", "medvlp", "bench", "run", "benchmarks/suites/benchx_fixed.yaml"]
    run += ["--store-root", str(tmp_path / "stores"), *given, "--out", str(tmp_path / "out"), "--no-mlflow"]
    run += ["--jobs", "2", "--fraction", "0.1", "--fraction", "1.0", *fixed_changes()]
    assert subprocess.run(run, cwd=ROOT, env=ENVIRONMENT).returncode == 0
    out = tmp_path / "out"
    exported(out)
    results = Results.read(out)
    names = {*(f"zoo:{name}" for name in encoders), "timm:imagenet", "random:resnet18"}
    kinds = ("fine_tune", "linear_probe", "knn", "few_shot", "frozen")
    done = {(g.setting.task, g.setting.protocol, g.setting.encoder) for g in results.groups if g.cells}
    for key, task in tasks_of(load_suite("benchmarks/suites/benchx_fixed.yaml")).items():
        asked = {p for e in results.suite["entries"] if e["task"] == key for p in e["protocols"]}
        assert {(key, protocol, name) for protocol in asked & {*kinds} for name in names} <= done
        if "zero_shot" in asked:
            assert {(key, "zero_shot", f"zoo:{name}") for name in encoders} <= done, task.config.type
    tuned = next(c for g in results.groups if g.setting.protocol == "fine_tune" for c in g.cells)
    assert len(tuned.result["best_params"].get("trials", [1, 2])) == 2, "every encoder has the same grid"
    assert list(out.glob("cells/*/maps.parquet")), "there are heat maps behind the numbers"


def check_results(out: Path) -> None:
    """Every encoder has its cells or a reason, and an account of its file."""
    results = Results.read(out)
    reasons = {group.reason for group in results.groups if not group.cells}
    assert all(reason.startswith("not applicable: ") for reason in reasons), reasons
    fine_tuned = Counter(g.setting.encoder for g in results.groups if g.cells and g.setting.protocol == "fine_tune")
    names = {f"zoo:{name}" for name in benchx_miniature.ENCODERS}
    assert fine_tuned == dict.fromkeys((names - {"zoo:ptunifier"}) | {"timm:imagenet", "random:resnet18"}, 5)
    frozen = Counter(g.setting.encoder for g in results.groups if g.cells and g.setting.protocol == "frozen")
    assert {frozen[name] for name in names} == {5}
    retrieved = {g.setting.encoder for g in results.groups if g.cells and g.setting.protocol == "zero_shot"}
    with_texts = {f"zoo:{name}" for name in benchx_miniature.WITH_TEXTS}
    assert retrieved >= with_texts | {f"zoo:{name}@native" for name in benchx_miniature.ANOTHER_VIEW}
    loaded = {entry["name"]: entry["loaded"] for entry in results.encoders}
    assert all(loaded[name] for name in names)
    page = (out / "report.html").read_text()
    assert "BenchX classifies with the other ten encoders" in page
    assert "Numbers do not compare" not in page
    assert all(sentence in page for sentence in loaded["zoo:mgca_vit"])
