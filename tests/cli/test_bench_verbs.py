"""The verbs of `medvlp bench`, one after the other, on a tiny store."""

from __future__ import annotations

from pathlib import Path

import bench_store
import pytest
import yaml
from typer.testing import CliRunner, Result

from medvlp.cli.bench import app
from medvlp.errors import UserError


def medvlp_bench(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    bench_store.make_store(folder / "stores")
    suite = bench_store.suite(folder, [{"protocols": ["linear_probe", "knn"]}]).resolved()
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite | {"baselines": ["majority"]}))
    return folder


def test_from_plan_to_tables(folder: Path, tmp_path: Path) -> None:
    suite, out = folder / "suite.yaml", tmp_path / "results"
    given = ["--store-root", folder / "stores", "--encoder", bench_store.RANDOM]
    planned = medvlp_bench("plan", suite, *given, "--out", out, "--device", "cpu")
    assert "3 cells, 0 done" in planned.output
    run = ["run", suite, *given, "--out", out, "--no-audit", "--no-mlflow", "--device", "cpu"]
    assert "2 cells done, 0 kept" in medvlp_bench(*run, "--protocol", "linear_probe", "--jobs", 0).output
    # by default in a process of its own
    assert "1 cells done, 2 kept from before, 0 failed" in medvlp_bench(*run).output
    assert "3 cells, 3 done; about 0.0 hours" in medvlp_bench("plan", suite, *given, "--out", out).output
    same = medvlp_bench("diff", out, suite, "--store-root", folder / "stores")
    assert "No cell differs." in same.output
    assert "3 cells are the same." in same.output
    changed = medvlp_bench("diff", out, suite, "--store-root", folder / "stores", "entries.*.set.knn_k=[7]")
    assert "knn_k" in changed.output
    assert "0 cells are the same." in changed.output
    assert "0 cells, 3 had the same numbers" in medvlp_bench("rescore", out, "--metric", "auroc").output
    paper = tmp_path / "paper.csv"
    paper.write_text("encoder,task,protocol,metric,value,source\nTheirs,tiny,linear_probe,auroc,91,A paper\n")
    assert "1 published numbers added" in medvlp_bench("add-results", paper, "--out", out, "--percent").output
    files = [tmp_path / name for name in ("t.tex", "t.csv", "t.md")]
    words = [word for pair in zip(("--latex", "--csv", "--markdown"), files, strict=True) for word in pair]
    medvlp_bench("report", out, *words)
    assert all("0.91" in file.read_text() for file in files)
    assert medvlp_bench("report", out, code=2).output


def test_a_plan_with_something_missing_says_what_and_fails(folder: Path, tmp_path: Path) -> None:
    result = medvlp_bench("plan", folder / "suite.yaml", "--encoder", "no/such/run", code=1)
    assert "no store of nih_chestxray14" in result.output.replace("\n", " ")
    assert "medvlp data prepare nih_chestxray14" in result.output.replace("\n", " ")


def test_settings_that_do_not_fit_are_user_errors(folder: Path, tmp_path: Path) -> None:
    words = ["run", folder / "suite.yaml", "--encoder", bench_store.RANDOM, "--out", tmp_path]
    for more, said in (
        (["--jobs", 0, "--timeout", 1], "cannot be stopped"),
        (["--jobs", 2, "cluster=local"], "exclude each other"),
        (["cluster.partition=main"], "no effect with kind none"),
        (["nonsense=1"], "nonsense is not a key"),
    ):
        result = CliRunner().invoke(app, [str(word) for word in [*words, "--store-root", folder / "stores", *more]])
        assert isinstance(result.exception, UserError)
        assert said in result.exception.what
