"""The cluster section: by its kind alone or key by key, in any order; what has no effect is a mistake."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import yaml

from medvlp.config.load import load_config
from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError

GIVEN = {"kind": "prepare", "source": "nih_chestxray14", "root": "raw", "out": "store"}


def load(*overrides: str, path: Path | None = None) -> PrepareConfig:
    return load_config(path, list(overrides), PrepareConfig, GIVEN)


@pytest.mark.parametrize(
    "words",
    list(itertools.permutations(["cluster=slurm", "cluster.partition=main", "cluster.sbatch={qos: long}"])),
)
def test_kind_and_keys_in_any_order(words: tuple[str, ...]) -> None:
    cluster = load(*words).cluster
    assert (cluster.kind, cluster.partition, cluster.sbatch) == ("slurm", "main", {"qos": "long"})


def test_a_file_may_name_the_kind_and_the_command_line_the_rest(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"cluster": {"minutes": 30, "kind": "local"}}))
    (tmp_path / "child.yaml").write_text(yaml.safe_dump({"base": "base.yaml", "cluster": "slurm"}))
    cluster = load("cluster.account=lab", path=tmp_path / "child.yaml").cluster
    assert (cluster.kind, cluster.minutes, cluster.account) == ("slurm", 30, "lab")


def test_what_is_resolved_can_be_loaded_again() -> None:
    for kind in ("none", "local", "debug", "slurm"):
        config = load(f"cluster={kind}")
        assert PrepareConfig.model_validate(json.loads(json.dumps(config.resolved()))) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster.partition=main"], "partition has no effect with kind none; write cluster=slurm, or leave it out"),
        (["cluster.max_jobs=4"], "max_jobs has no effect with kind none; write cluster=local or cluster=slurm"),
        (["cluster=local", "cluster.memory_gb=4"], "memory_gb has no effect with kind local"),
        (["cluster=debug", "cluster.minutes=4", "cluster.setup=[a]"], "setup, minutes have no effect with kind debug"),
        (["cluster=slurn"], "Input should be 'none', 'local', 'debug' or 'slurm'"),
        (["cluster=slurm", "cluster.partion=main"], "cluster.partion is not a key here. Did you mean 'partition'?"),
        (["cluster=slurm", "num_workers=4"], "num_workers has no effect with cluster=slurm"),
        (["cluster=slurm", "cluster.sbatch={cpus_per_task: 4}"], "sbatch.cpus_per_task is set by medvlp: change"),
        (["cluster=slurm", "cluster.minutes=0"], "greater than or equal to 1"),
        (["cluster=null"], "cluster"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(*words)
    assert message in caught.value.what


def test_a_method_that_replaces_another_keeps_none_of_its_keys(tmp_path: Path) -> None:
    tree = {"kind": "pretrain", "run": {"dir": "r"}, "data": {"store": "s"}, "method": {"name": "medclip"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**tree, "method": {"name": "medclip", "options": {"x": 1}}}))
    assert load_config(tmp_path / "run.yaml", ["method=convirt"]).resolved()["method"]["name"] == "convirt"
