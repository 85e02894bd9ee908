"""Fine-tuning as BenchX has it: its tasks' settings, schedule, head, validation, and what is tried for each encoder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medvlp.config.classification import ClassificationConfig, TuningConfig
from medvlp.config.load import load_config
from medvlp.config.task import FineTuneConfig, TaskConfig
from medvlp.data.loader import Loader
from medvlp.errors import UserError
from medvlp.sources.cards import load_card
from medvlp.sources.splits import read_split_lists
from medvlp.tasks._classifier import Classifier, F1ClassifierTuning, masked_bce
from medvlp.tasks._fine_tune import FineTuning, Tunable, legacy_rate
from medvlp.tasks._samples import label_subset
from medvlp.tasks.base import Samples
from medvlp.types import Batch, Features
from medvlp.zoo.release import release_names

TASKS = {
    "nih_chestxray14": ("benchx_nih_chestxray14", "nih_14"),
    "vindr_cxr": ("benchx_vindr_cxr", "vindr_cxr"),
    "covidx": ("benchx_covidx", "covidx"),
    "siim_acr": ("benchx_siim_acr", "siim_acr"),
    "rsna_pneumonia": ("benchx_rsna_pneumonia", "rsna_pneumonia"),
}
MULTILABEL = ("nih_chestxray14", "vindr_cxr")
# Tables 9 to 13 of the paper: rate, batch, Adam or SGD on the five data sets; LayerNorm, small start, DLR (0.1).
CHOSEN = """
convirt      1e-4/64/A   5e-5/32/A   5e-4/64/A   1e-4/128/A  5e-5/64/A   LN TNI DLR
gloria       1e-4/64/A   1e-4/64/A   5e-4/32/A   1e-5/128/A  1e-4/32/A   LN -   DLR
medclip_r50  1e-5/64/A   1e-4/128/A  5e-4/64/A   1e-5/128/A  1e-5/32/A   -  -   -
medclip_vit  1e-5/32/A   1e-4/128/A  1e-4/64/A   1e-5/32/A   1e-5/32/A   -  -   -
medklip      1e-4/128/A  1e-4/64/A   1e-4/64/A   1e-4/64/A   1e-4/128/A  -  -   DLR
mflag        1e-4/32/A   1e-4/64/A   5e-4/128/A  1e-4/64/A   1e-4/64/A   LN TNI -
mgca_r50     1e-5/32/A   5e-5/64/A   5e-4/128/A  1e-5/128/A  1e-5/32/A   LN -   -
mgca_vit     1e-2/64/S   3e-2/64/S   5e-4/32/A   1e-2/128/S  1e-2/32/S   LN TNI DLR
mrm          3e-2/64/S   1e-2/64/S   5e-4/64/A   1e-2/64/S   1e-2/32/S   LN TNI DLR
refers       3e-2/32/S   3e-2/128/S  5e-4/64/A   3e-2/64/S   1e-2/32/S   LN TNI -
"""
REFERS_WITH_DLR = ("siim_acr", "rsna_pneumonia")  # in the code, not in the paper
CONVIRT_STEPS = {"nih_chestxray14": (50, 3000), "vindr_cxr": (10, 200)}  # 60, 1200 elsewhere


def task(name: str) -> TaskConfig:
    return load_config(f"benchmarks/tasks/{name}.yaml", (), TaskConfig)


@pytest.mark.parametrize("dataset", list(TASKS))
def test_the_settings_of_every_encoder_are_those_of_benchx(dataset: str) -> None:
    config, column = task(TASKS[dataset][0]), list(TASKS).index(dataset)
    rows = [line.split() for line in CHOSEN.strip().splitlines()]
    assert set(config.per_encoder) == {row[0] for row in rows} <= set(release_names())
    for name, *cells in rows:
        lr, batch, optimizer = cells[column].split("/")
        norm, start, dlr = (cell != "-" for cell in cells[5:])
        dlr |= name == "refers" and dataset in REFERS_WITH_DLR
        found = config.settings_of(name)
        how, head = found.fine_tune, found.classification
        assert (how.lr, how.batch_size) == (float(lr), int(batch)), name
        assert how.optimizer == {"A": "adam", "S": "sgd"}[optimizer], name
        assert how.encoder_lr_ratio == (0.1 if dlr else 1.0), name
        assert (head.norm, head.init == "truncated_normal") == (norm, start), name
        steps = CONVIRT_STEPS.get(dataset, (60, 1200)) if name == "convirt" else (50, 3000)
        assert (how.warmup_steps, how.legacy_total) == steps, name


@pytest.mark.parametrize("dataset", list(TASKS))
def test_the_compat_tasks_are_benchxs_protocol_and_the_fixed_ones_are_not(dataset: str) -> None:
    compat, fixed = (task(name) for name in TASKS[dataset])
    assert compat.dataset == fixed.dataset == dataset
    assert (compat.label_subsets, fixed.label_subsets) == ("lists", "drawn")
    how, head = compat.fine_tune, compat.classification
    assert (how.epochs, how.first_validation, how.validate_epochs, how.patience) == (201, 10, 5, 10)
    assert (how.schedule, how.clip_norm, how.weight_decay, how.last_batch) == ("legacy_cosine", 1.0, 0.0, "keep")
    assert (how.input_size, head.mean, head.std, head.legacy_scores) == (224, 0.4978, 0.2449, True)
    assert (how.augment.crop_scale, how.augment.flip, how.augment.rotate_degrees) == ((0.08, 1.0), True, 0.0)
    assert (how.augment.brightness, how.augment.contrast) == (0.0, 0.0)
    several = dataset in MULTILABEL
    assert head.classes == ("overlapping" if several else "exclusive")
    assert head.select == ("auroc" if several else "f1")
    assert compat.tuning is None
    assert fixed.tuning is not None
    assert not fixed.per_encoder, "every encoder has the same settings and the same grid"
    assert (fixed.fine_tune.schedule, fixed.fine_tune.legacy_total) == ("cosine", None)
    assert (fixed.classification.mean, fixed.classification.legacy_scores) == (None, False)
    assert all(len(set(label.prompts)) == 2 for label in fixed.labels)


@pytest.mark.parametrize("dataset", list(TASKS))
def test_label_counts_and_names(dataset: str) -> None:
    card = load_card(dataset)
    for name in TASKS[dataset]:
        labels = task(name).labels
        assert len(labels) == (14 if dataset in MULTILABEL else 1)
        assert {label.positive for label in labels} <= set(card.labels)
        assert all(label.negative is None for label in labels), "whatever is not positive is negative"


def test_the_vindr_labels_are_found_as_parts_of_the_class_names() -> None:
    config, card = task("benchx_vindr_cxr"), load_card("vindr_cxr")
    assert config.store_options == {"agreement": "union"}
    synonyms = {"Pleural_Thickening": "Pleural thickening", "Effusion": "Pleural effusion"}
    for label in config.labels:
        parts = {label.name.lower(), synonyms.get(label.name, label.name).lower()}
        assert [own for own in card.labels if any(part in own.lower() for part in parts)] == [label.positive]


SPLITS = {
    "nih_chestxray14": ("NIH_Chest_Xray", 78_468, 11_219, 22_433, 785, 7_847),
    "vindr_cxr": ("VinDr_CXR", 12_000, 3_000, 3_000, 120, 1_200),
    "covidx": ("COVIDx", 67_862, 8_472, 8_481, 678, 6_786),
    "siim_acr": ("SIIM", 9_303, 1_372, 1_372, 93, 930),
    "rsna_pneumonia": ("RSNA", 18_678, 4_003, 4_003, 186, 1_867),
}


@pytest.mark.parametrize("dataset", list(SPLITS))
def test_split_counts(dataset: str, test_data: Path) -> None:
    folder, *numbers = SPLITS[dataset]
    expected = dict(zip(("train", "val", "test", "train_1", "train_10"), numbers, strict=True))
    assert load_card(dataset).split_lists["benchx"] == expected
    assert read_split_lists(test_data / "benchx_splits" / folder).sizes == expected


@pytest.mark.parametrize(("images", "factor"), [(785, 1.00), (7_847, 0.66), (78_468, 0.95)])
def test_the_unbounded_cosine_at_epoch_10_of_nih(images: int, factor: float) -> None:
    assert round(legacy_rate(10 * (images // 64), 50, 3_000), 2) == factor


def test_the_unbounded_cosine_is_lambda_lr_step_by_step() -> None:
    assert [legacy_rate(step, 50, 3_000) for step in (0, 25, 50)] == [0.0, 0.5, 1.0]
    for step in range(50, 12_000, 37):
        assert legacy_rate(step, 50, 3_000) == pytest.approx(0.5 * (1 + math.cos(math.pi * (step - 50) / 2_950)))
    assert legacy_rate(3_000, 50, 3_000) == pytest.approx(0, abs=1e-12)
    assert legacy_rate(5_950, 50, 3_000) == pytest.approx(1), "behind the end it climbs again"


class Rows(Loader):
    """Batches of numbered samples without pixels."""

    def made(self, epoch: int, rows: np.ndarray) -> tuple[Batch, np.ndarray]:
        batch = Batch(index=torch.from_numpy(rows.copy()), pixels=torch.zeros(len(rows), 1, 1, 1))
        return batch, np.zeros(len(rows), dtype=bool)


class Pooling(nn.Module):
    """A tower whose pooled features are a parameter."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, dim))

    def forward(self, pixels: torch.Tensor) -> Features:
        pooled = self.weight.expand(len(pixels), -1)
        return Features(pooled[:, None], pooled, (1, 1))


class Stub(Tunable):
    """Three weights that are pulled to the mean of the sample numbers; scores on validation are given."""

    criterion = "f1"

    def __init__(self, samples: int, batch: int, keep_last: bool, scores: Iterator[float]) -> None:
        self.network = nn.ModuleDict({"tower": nn.Linear(1, 2, bias=False), "head": nn.Linear(2, 1, bias=False)})
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.fill_(0.5)
        self.loader = Rows(
            np.arange(samples), batch_size=batch, seed=0, training=True, num_workers=0, keep_last=keep_last
        )
        self.name, self.scores, self.sizes = "stub", scores, list[int]()

    def terms(self, network: Any, batch: Batch) -> dict[str, Any]:
        values = batch.index.float()[:, None]
        self.sizes.append(len(values))
        loss = (network["head"](network["tower"](torch.ones_like(values))) - values).square().mean()
        return {"loss": (loss, torch.tensor(len(values)))}

    def validate(self, network: nn.Module) -> float:
        return next(self.scores)


def tuned(config: dict[str, Any], samples: int = 5, batch: int = 2, scores: Iterator[float] | None = None) -> Any:
    settings = FineTuneConfig.model_validate({"batch_size": batch, **config})
    stub = Stub(samples, batch, settings.last_batch == "keep", scores or (0.0 for _ in count()))
    return stub, FineTuning(stub, settings, 0)


BENCHX: dict[str, Any] = {
    **{"epochs": 201, "first_validation": 10, "validate_epochs": 5, "weight_decay": 0.0, "optimizer": "sgd"},
    **{"schedule": "legacy_cosine", "warmup_steps": 2, "legacy_total": 9, "lr": 0.02, "encoder_lr_ratio": 0.1},
}


def test_validation_begins_at_epoch_10_and_comes_every_5_and_the_last_epoch_is_never_looked_at() -> None:
    stub, tuning = tuned(BENCHX, 2, 2, (step / 1e4 for step in count()))
    tuning.run()
    assert tuning.step == 201 * stub.loader.steps_per_epoch
    assert [entry["epoch"] + 1 for entry in tuning.history] == list(range(10, 201, 5))
    _, short = tuned(BENCHX | {"epochs": 3}, 2, 2)
    short.run()
    assert [entry["epoch"] + 1 for entry in short.history] == [3], "a run that ends before is judged at its end"


def test_patience_counts_validations() -> None:
    _, tuning = tuned(BENCHX | {"patience": 10}, 2, 2, iter([0.2, 0.3, *[0.3] * 30]))
    tuning.run()
    assert [entry["epoch"] + 1 for entry in tuning.history] == list(range(10, 66, 5))
    assert tuning.best_epoch == 1


def test_the_last_batch_of_an_epoch_is_kept_where_the_task_says_so() -> None:
    for last, sizes in (("keep", [2, 2, 1, 2, 2, 1]), ("drop", [2, 2, 2, 2])):
        stub, tuning = tuned({"epochs": 2, "last_batch": last, "warmup_steps": 0})
        tuning.run()
        assert stub.sizes == sizes


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [("sgd", torch.optim.SGD, {"momentum": 0.9}), ("adam", torch.optim.Adam, {"eps": 1e-8})],
)
def test_steps_are_those_of_torch_with_the_encoders_own_rate(name: str, kind: Any, options: dict[str, Any]) -> None:
    settings = {"epochs": 4, "optimizer": name, "clip_norm": 1.0, "last_batch": "keep", "validate_epochs": 4}
    stub, tuning = tuned({**BENCHX, **settings, "first_validation": None})
    reference = Stub(5, 2, True, iter(()))
    network: Any = reference.network
    groups = [
        {"params": list(network["tower"].parameters()), "lr": 0.1 * 0.02},
        {"params": list(network["head"].parameters()), "lr": 0.02},
    ]
    optimizer = kind(groups, **options)

    def factor(step: int) -> float:
        return step / 2 if step < 2 else max(0.0, 0.5 * (1 + math.cos(math.pi * (step - 2) / 7)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for batch in (batch for epoch in range(4) for batch in reference.loader.epoch(epoch)):
        optimizer.zero_grad()
        reference.terms(network, batch)["loss"][0].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    tuning.run()
    for (key, value), expected in zip(stub.network.state_dict().items(), network.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7, msg=key)


def classifier(labels: int = 1, dim: int = 6, **config: Any) -> Classifier:
    return Classifier(Pooling(dim), dim, labels, ClassificationConfig.model_validate(config))


def test_two_exclusive_classes_are_cross_entropy_and_argmax() -> None:
    torch.manual_seed(0)
    network = classifier(classes="exclusive")
    pixels, classes = torch.zeros(5, 1, 1, 1), torch.tensor([1, 0, 0, 1, 1])
    two = network.head(network.tower(pixels).pooled)
    assert two.shape == (5, 2)
    margin = network(pixels)
    torch.testing.assert_close(margin[:, 0].sigmoid(), two.softmax(dim=1)[:, 1])
    assert ((margin[:, 0] > 0) == (two.argmax(dim=1) == 1)).all()
    expected = torch.autograd.grad(nn.functional.cross_entropy(two, classes), network.head.weight)[0]
    loss = masked_bce(margin, classes[:, None].float())
    torch.testing.assert_close(loss, nn.functional.cross_entropy(two, classes))
    torch.testing.assert_close(torch.autograd.grad(loss, network.head.weight)[0], expected)


def test_the_head_has_a_layer_norm_and_starts_small() -> None:
    network = classifier(labels=400, dim=500, norm=True, init="truncated_normal")
    assert isinstance(network.norm, nn.LayerNorm)
    assert network.norm.eps == 1e-6
    weights = network.head.weight.detach()
    assert weights.std().item() == pytest.approx(2e-5, rel=0.01)
    assert weights.mean().item() == pytest.approx(0, abs=3e-7)
    assert network.head.bias.detach().abs().max() > 1e-2, "the bias starts as torch has it"
    x = torch.linspace(-1, 1, 500)
    normed = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-6)
    torch.testing.assert_close(network(torch.zeros(1, 1, 1, 1))[0], network.head(normed), atol=1e-6, rtol=1e-4)
    plain = classifier()
    assert set(plain.state_dict()) == {"tower.weight", "head.weight", "head.bias"}


def test_f1_at_argmax_chooses_and_is_rounded_as_benchx_has_it() -> None:
    labels, logits = np.array([[1.0], [1], [1], [0], [np.nan]]), np.array([[0.0], [0.3], [2.0], [0.1], [9.0]])
    score: Any = F1ClassifierTuning.score
    assert score(None, labels, logits) == round(2 * 2 / (2 * 2 + 1 + 1), 4) == 0.6667
    assert score(None, labels, -np.ones((5, 1))) == 0


def make_task(**changes: Any) -> TaskConfig:
    given = {"name": "t", "version": 1, "dataset": "d", "labels": [{"name": "x", "positive": "x"}]}
    return TaskConfig.model_validate(given | changes)


def test_an_encoder_has_its_own_settings_and_others_the_tasks() -> None:
    own = {"fine_tune": {"lr": 0.01, "augment": {"flip": True}}, "classification": {"norm": True}}
    config = make_task(fine_tune={"lr": 0.5, "epochs": 3}, per_encoder={"mgca_vit": own})
    found, other = config.settings_of("my run", "mgca_vit"), config.settings_of("mrm")
    assert (found.fine_tune.lr, found.fine_tune.epochs, found.classification.norm) == (0.01, 3, True)
    assert found.fine_tune.augment.model_copy(update={"flip": False}) == config.fine_tune.augment
    assert (other.fine_tune, other.classification) == (config.fine_tune, config.classification)
    more = make_task(fine_tune={"lr": 0.5, "epochs": 3}, per_encoder={"mgca_vit": own, "mrm": {"fine_tune": {"lr": 1}}})
    assert more.settings_of("mgca_vit").sha256() == found.sha256(), "another encoder's settings change nothing here"
    assert more.settings_of("mrm").sha256() != other.sha256()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_encoder": {"mrm": {"fine_tune": {"lrr": 1}}}}, r"per_encoder\.mrm: fine_tune\.lrr: Extra inputs"),
        ({"per_encoder": {"mrm": {"fine_tune": {"lr": -1}}}}, r"per_encoder\.mrm: fine_tune\.lr: .*greater than 0"),
        ({"per_encoder": {"mrm": {"head": {}}}}, "Extra inputs"),
        ({"type": "retrieval", "labels": [], "tuning": {"lr": [1, 2]}}, "no effect on retrieval"),
        ({"type": "retrieval", "labels": [], "label_subsets": "lists"}, "label_subsets has no effect"),
        ({"type": "retrieval", "labels": [], "store_options": {"a": "b"}}, "store_options has no effect"),
        (
            {"labels": [{"name": n, "positive": n} for n in "xy"], "classification": {"classes": "exclusive"}},
            "one label",
        ),
        ({"labels": [{"name": n, "positive": n} for n in "xy"], "classification": {"select": "f1"}}, "needs one label"),
        ({"classification": {"mean": 0.5}}, "give mean and std"),
        ({"fine_tune": {"schedule": "legacy_cosine"}}, "legacy_total belongs to"),
        ({"fine_tune": {"legacy_total": 9}}, "legacy_total belongs to"),
        ({"fine_tune": {"schedule": "legacy_cosine", "legacy_total": 20}}, "must be above warmup_steps"),
        ({"fine_tune": {"validate_every": 2, "validate_epochs": 2}}, "not both"),
        ({"fine_tune": {"first_validation": 2}}, "no effect without validate_epochs"),
        ({"tuning": {"lr": [0.1]}}, "one setting only"),
        ({"tuning": {"lr": [0.1, 0.1]}}, "names a value twice"),
        ({"tuning": {"lr": [0.1, 0.2], "trials": 3}}, "the grid has 2 settings"),
        ({"tuning": {"lr": [0.1, -0.2]}}, "greater than 0"),
    ],
)
def test_settings_without_effect_are_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(**changes)


def test_a_typo_in_the_settings_of_an_encoder_is_told(tmp_path: Path) -> None:
    labels = "labels: [{name: x, positive: x}]"
    own = "per_encoder: {mrm: {fine_tune: {lrr: 1}}}"
    (tmp_path / "t.yaml").write_text(f"kind: task\nname: t\nversion: 1\ndataset: d\n{labels}\n{own}\n")
    with pytest.raises(UserError, match=r"per_encoder\.mrm: fine_tune\.lrr"):
        load_config(tmp_path / "t.yaml", (), TaskConfig)


def test_the_grid_is_the_same_for_everyone() -> None:
    config = TuningConfig.model_validate({"lr": [1, 2, 3], "encoder_lr_ratio": [0.1, 1], "trials": 4})
    assert len(config.grid) == 6
    assert config.settings == TuningConfig.model_validate(config.resolved()).settings
    assert len(config.settings) == 4
    assert all(setting in config.grid for setting in config.settings)
    assert TuningConfig.model_validate({"lr": [1, 2]}).settings == [{"lr": 1}, {"lr": 2}]


def listed(*subsets: list[str]) -> Samples:
    n = len(subsets)
    names = [str(i) for i in range(n)]
    return Samples(np.arange(n), names, names, ["x"], (np.arange(n) % 2.0)[:, None], list(subsets))


def test_a_fraction_is_benchxs_list_not_a_draw() -> None:
    train, config = listed(["train_1", "train_10"], ["train_10"], [], ["train_10"]), make_task(label_subsets="lists")
    assert label_subset(train, 0.01, 0, config).sample_ids == ["0"]
    assert label_subset(train, 0.1, 0, config).sample_ids == ["0", "1", "3"]
    assert label_subset(train, 1.0, 0, config) is train
    with pytest.raises(UserError, match=r"in a list 'train_5' \(there are: train_1, train_10\)"):
        label_subset(train, 0.05, 0, config)
    with pytest.raises(UserError, match="one draw"):
        label_subset(train, 0.1, 1, config)
