"""Configs: every mistake is listed, a config stays data, the hash depends on values alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medvlp.bench.suite import load_suite, resolve_tasks
from medvlp.config.load import check_config, load_config
from medvlp.config.prepare import PrepareConfig
from medvlp.config.resources import shipped
from medvlp.config.suite import SuiteConfig
from medvlp.config.task import TaskConfig
from medvlp.config.train import PretrainConfig
from medvlp.errors import UserError

MINIMAL = {"kind": "pretrain", "run": {"dir": "run"}, "data": {"store": "store"}, "method": "convirt"}


def write(folder: Path, name: str, tree: dict[str, object]) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_five_mistakes_are_all_listed(tmp_path: Path) -> None:
    tree = {
        **MINIMAL,
        "run": {"dir": "run", "sed": 3},
        "data": {"store": "store", "augment": {"brightness": 2}},
        "method": {"name": "convirt", "objectives": {"infonc": {"weight": 1}}},
        "train": {"optimizer": {"lr": -1}, "strategy": "dpp"},
    }
    path = write(tmp_path, "bad.yaml", tree)
    with pytest.raises(UserError) as caught:
        load_config(path, [], PretrainConfig)
    message = caught.value.what
    assert message.startswith("5 mistakes")
    for part in (
        "run.sed is not a key here. Did you mean 'seed'?",
        "data.augment.brightness = 2: Input should be less than 1",
        "method.objectives.infonc is not a key of this method",
        "train.optimizer.lr = -1: Input should be greater than 0",
        "train.strategy = 'dpp': Input should be 'ddp' or 'fsdp2'",
    ):
        assert part in message
    assert message.count(str(path)) == 5


def test_missing_keys_are_mistakes_when_run_and_notes_when_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "open.yaml", {"kind": "pretrain", "run": {}, "data": {}, "method": "convirt"})
    assert set(check_config(path).missing) == {"run.dir", "data.store"}
    with pytest.raises(UserError, match=r"2 mistakes") as caught:
        load_config(path, [], PretrainConfig)
    assert "data.store" in caught.value.fix
    assert load_config(path, ["run.dir=a", "data.store=b"], PretrainConfig).run.dir == Path("a")


def test_base_is_one_level_and_overrides_come_last(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", {**MINIMAL, "train": {"steps": 10, "batch_size": 8}})
    path = write(tmp_path, "child.yaml", {"base": "base.yaml", "train": {"steps": 20}})
    config = load_config(path, ["train.batch_size=16", "train.optimizer.lr=1e-3"], PretrainConfig)
    assert (config.train.steps, config.train.batch_size, config.train.optimizer.lr) == (20, 16, 1e-3)
    grandchild = write(tmp_path, "grandchild.yaml", {"base": "child.yaml"})
    with pytest.raises(UserError, match="must not have a base itself"):
        load_config(grandchild, [], PretrainConfig)


def test_hash_depends_on_values_not_on_how_they_are_written(tmp_path: Path) -> None:
    a = load_config(write(tmp_path, "a.yaml", {**MINIMAL, "train": {"steps": 7}}), [], PretrainConfig)
    b = load_config(write(tmp_path, "b.yaml", MINIMAL), ["train.steps=7"], PretrainConfig)
    c = load_config(write(tmp_path, "c.yaml", MINIMAL), ["train.steps=8"], PretrainConfig)
    assert a.sha256() == b.sha256() != c.sha256()
    reloaded = load_config(write(tmp_path, "resolved.yaml", a.resolved()), [], PretrainConfig)
    assert reloaded == a


def test_method_constants_take_the_declared_type(tmp_path: Path) -> None:
    path = write(tmp_path, "m.yaml", MINIMAL)
    declared = load_config(path, [], PretrainConfig).method.objectives
    term = next(iter(declared))
    changed = load_config(path, [f"method.objectives.{term}.weight=5e-1"], PretrainConfig)
    assert changed.method.objectives[term]["weight"] == 0.5
    for value in ("much", "null"):
        with pytest.raises(UserError, match="must be of type float"):
            load_config(path, [f"method.objectives.{term}.weight={value}"], PretrainConfig)


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"protocols": ["few_shot"]}, "few_shot needs shots"),
        ({"protocols": ["knn"], "shots": [4]}, "shots has no effect"),
        ({"protocols": ["zero_shot"], "fractions": [0.1]}, "fractions has no effect"),
        ({"protocols": ["knn"], "draws": 3}, "draws has no effect"),
        ({"protocols": ["knn"], "fractions": []}, "at least 1 item"),
    ],
)
def test_a_suite_entry_without_effect_is_a_mistake(tmp_path: Path, entry: dict, part: str) -> None:
    suite = {"kind": "suite", "name": "s", "version": 1, "entries": [{"task": "nih_14", **entry}]}
    with pytest.raises(UserError, match=part):
        load_config(write(tmp_path, "s.yaml", suite), [], SuiteConfig)


def test_fine_tuning_refuses_changes_of_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fine-tuning has none"):
        load_config("benchmarks/tasks/nih_14.yaml", ["fine_tune.augment.drop_words=0.1"], TaskConfig)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("kind: [", "not valid YAML"),
        ("- a\n- b\n", "no mapping"),
        ("kind: pretrain\nkind: suite\n", "given twice"),
        ("kind: pretrian\n", "Did you mean 'pretrain'"),
        ("kind: suite\nname: x\nversion: 1\nentries: []\n", "not 'pretrain'"),
        ("kind: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("[a]: 1\n", "not valid YAML"),
        ("? {a: b}\n: 1\n", "not valid YAML"),
        ("kind: 2026-13-45\n", "not valid YAML"),
        ("a: " + "[" * 3000, "not valid YAML"),
        ("kind: [pretrain]\n", "The key 'kind' is ['pretrain']"),
        ("kind: {a: b}\n", "The key 'kind' is {'a': 'b'}"),
    ],
)
def test_broken_files_are_user_errors(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_config(path, [], PretrainConfig)
    assert part in str(caught.value)


@pytest.mark.parametrize("text", ["train.steps", "=3", "train..steps=3", "a=[1"])
def test_bad_overrides_are_user_errors(text: str) -> None:
    with pytest.raises(UserError):
        load_config(None, [text], PrepareConfig)


@pytest.mark.parametrize("text", ["image={size: 32, size: 64}", "a={[b]: 1}", "a=2026-13-45"])
def test_the_value_of_an_override_is_read_as_strictly_as_a_file(text: str) -> None:
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(None, [text], PrepareConfig)


@pytest.mark.parametrize(
    "override",
    [
        "train.optimizer.lr=.inf",
        "train.optimizer.weight_decay=.inf",
        "train.optimizer.clip_norm=.nan",
        "method.image.input.std=[.nan]",
        "data.augment.crop_ratio=[.inf, 1]",
        "train.optimizer.betas=[1.5, 0.9]",
        "train.optimizer.betas=[0.9, -0.1]",
        "train.steps=true",
        "train.grad_cache=yes",
        "data.augment.invert=true",
        "run.seed=99999999999999999999",
    ],
)
def test_values_that_no_training_can_use_or_that_mean_another_one_are_mistakes(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, "m.yaml", MINIMAL)
    with pytest.raises(UserError) as caught:
        load_config(path, [override], PretrainConfig)
    assert override.partition("=")[0] in caught.value.what


def test_unknown_method_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "m.yaml", {**MINIMAL, "method": "convrit"})
    with pytest.raises(UserError, match="Did you mean 'convirt'"):
        load_config(path, [], PretrainConfig)


def test_missing_file_lists_what_there_is() -> None:
    with pytest.raises(UserError) as caught:
        load_config("configs/pretrain/nothing.yaml", [], PretrainConfig)
    assert "medclip_nih_iu.yaml" in caught.value.fix


def shipped_files() -> list[Path]:
    return sorted([*shipped("configs/pretrain").glob("*.yaml"), *shipped("benchmarks").glob("*/*.yaml")])


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.stem)
def test_shipped_files_are_right(path: Path) -> None:
    assert set(check_config(path).missing) <= {"run.dir", "data.store", "data.reports"}


def test_suite_tasks_exist() -> None:
    for path in shipped("benchmarks/suites").glob("*.yaml"):
        for entry in load_config(path, [], SuiteConfig).entries:
            assert shipped(f"benchmarks/tasks/{entry.task}.yaml").is_file()


def test_one_way_of_timing_validations_takes_the_place_of_another() -> None:
    task = "benchmarks/tasks/benchx_siim_acr.yaml"  # it counts epochs
    found = load_config(task, ["fine_tune.validate_every=3"], TaskConfig).fine_tune
    assert (found.validate_every, found.validate_epochs, found.first_validation) == (3, None, None)
    back = load_config("benchmarks/tasks/siim_acr_segmentation.yaml", ["fine_tune.validate_epochs=2"], TaskConfig)
    assert (back.fine_tune.validate_every, back.fine_tune.validate_epochs) == (None, 2)
    with pytest.raises(UserError, match="not both"):
        load_config(task, ["fine_tune.validate_every=3", "fine_tune.validate_epochs=1"], TaskConfig)
    suite = load_suite("benchmarks/suites/benchx.yaml", ["entries.benchx_siim_acr.set.fine_tune.validate_every=3"])
    assert resolve_tasks(suite)["benchx_siim_acr"].fine_tune.validate_every == 3
