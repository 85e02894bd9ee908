"""EchoPrime and SurgCLIP: what their terms are, that every part trains, and that runs resume and are saved exactly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import clip_stores
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medvlp.config.load import load_config
from medvlp.config.methods import MethodConfig
from medvlp.config.train import PretrainConfig
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods._artifact import load_model
from medvlp.methods.base import complete
from medvlp.methods.context import MethodContext
from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.video_text import surgvlp
from medvlp.store.array_store import Store
from medvlp.track.jsonl import read_lines
from medvlp.train import loop, pretrain
from medvlp.types import Batch, TextBatch
from medvlp.zoo import load_encoder
from tests.methods.test_all_methods import QUIET, overrides

RECIPES = ("echoprime", "surgclip", "surgvlp")
SMALL: dict[str, Any] = {
    "echoprime": {
        "method.image.args": {"stages": [[8, 1, 1], [16, 2, 1]], "stochastic_depth_prob": 0.1},
        "method.image.input": {"size": 16, "frames": 4, "every": 2, "channels": 3, "mean": [0.2], "std": [0.2]},
    },
    "surgclip": {
        "method.image.name": "resnet10t",
        "method.image.input": {"size": 32, "frames": 2, "every": 2, "channels": 3, "mean": [0.5], "std": [0.2]},
    },
}
TEXT = {"hidden": 32, "layers": 4, "heads": 2, "vocab_size": 300, "max_tokens": 48}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {"echoprime": clip_stores.make_echo(folder, 40), "surgclip": clip_stores.make_operations(folder)}


def recipe(name: str, stores: dict[str, Path], run: Path, **changes: Any) -> PretrainConfig:
    method = "echoprime" if name.startswith("echoprime") else "surgclip"
    settings = {"data.store": str(stores[method]), "run.dir": str(run)} | QUIET
    settings |= SMALL[method] | {f"method.text.{key}": value for key, value in TEXT.items()}
    settings |= {"method.projection.dim": 16, "train.optimizer.warmup_steps": 0, "train.batch_size": 8} | changes
    return load_config(f"configs/pretrain/{name}.yaml", overrides(settings), PretrainConfig)


@pytest.mark.parametrize("name", RECIPES)
def test_one_step_trains_every_parameter_and_is_saved_exactly(name, stores, tmp_path) -> None:
    config = recipe(name, stores, tmp_path / "run", **{"train.steps": 1})
    training = loop._Training(config, loop.Processes(0, 1, torch.device("cpu")))
    training.run()
    method = training.method
    assert [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")[0]
    terms = [term for term in config.method.objectives if method.is_on(term)]
    assert terms
    for term in terms:
        assert metrics[f"train/{term}_count"] > 0, term
    encoder = load_encoder(str(tmp_path / "run"))
    assert encoder.kind == "video"
    store, rows = Store.open(config.data.store), np.arange(3)
    found = encoder.encode_rows(store, rows)
    loaded = load_model(tmp_path / "run" / "model").method
    with torch.inference_mode():
        clips = training.data.loader(config, validation=True)
        batch = next(clips.epoch(0))
        again = encoder.encode_rows(store, batch.index.numpy())
        torch.testing.assert_close(again.pooled, loaded.encode_stored(batch.pixels).pooled)
        torch.testing.assert_close(again.pooled, method.eval().encode_stored(batch.pixels).pooled)
    answers = encoder.zero_shot_features(found, ["a hook is in sight", "systolic function is normal"])
    assert answers.shape == (3, 2)
    assert ((answers > 0) & (answers < 1)).all()


@pytest.mark.parametrize("name", ["echoprime-tiny", "surgclip-tiny"])
def test_a_resumed_run_ends_with_the_same_bits(name, stores, tmp_path) -> None:
    settings = {"train.steps": 4, "train.checkpoint_every": 2, "train.ema": 0.9}
    whole = pretrain(recipe(name, stores, tmp_path / "whole", **settings))
    shutil.copytree(whole, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "model")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_000000004")
    resumed = pretrain(recipe(name, stores, tmp_path / "resumed", **settings, **{"data.num_workers": 2}))
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed))
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["echoprime-tiny", "surgclip-tiny"])
def test_a_hundred_steps_lower_every_term(name, stores, tmp_path) -> None:
    settings = {"data.store": str(stores[name.removesuffix("-tiny")]), "run.dir": str(tmp_path / "run")} | QUIET
    settings |= {"train.steps": 100, "train.log_every": 5}
    config = load_config(f"configs/pretrain/{name}.yaml", overrides(settings), PretrainConfig)
    pretrain(config)
    rows = [row for row in read_lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    method = load_model(tmp_path / "run" / "model").method
    for term in ["loss", *(term for term in config.method.objectives if method.is_on(term))]:
        values = np.array([row[f"train/{term}"] for row in rows])
        assert np.isfinite(values).all(), term
        assert (values > 0).all(), term
        start, end = values[:5], values[-5:]
        assert start.mean() - end.mean() > np.sqrt((start.var(ddof=1) + end.var(ddof=1)) / 5), term


def built(name: str, changes: list[str] | None = None, of: str = "surgclip"):
    config = load_config(
        f"configs/pretrain/{name}.yaml",
        overrides({"data.store": "x", "run.dir": "x"} | SMALL[of] | {f"method.text.{k}": v for k, v in TEXT.items()})
        + (changes or []),
        PretrainConfig,
    ).method
    torch.manual_seed(0)
    return METHODS.get(config.name)(config, MethodContext(vocab_size=300)).eval()


def made_batch(views: int = 0, study: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(1)

    def clips(*shape: int) -> torch.Tensor:
        size = 16 if study else 32
        return torch.randint(0, 256, (*shape, 4 if study else 2, size, size), dtype=torch.uint8, generator=draw)

    def texts(number: int) -> TextBatch:
        ids = torch.randint(5, 300, (number, 9), generator=draw)
        mask = torch.arange(9) < torch.randint(3, 10, (number, 1), generator=draw)
        return TextBatch(ids, mask)

    batch = Batch(torch.arange(4), clips(4, 1), text=texts(4), candidates=texts(8))
    batch.views = tuple(clips(4, 1) for _ in range(views))
    if study:
        batch.study = clips(4, study, 1)
        batch.pixels = batch.study[:, 0]
    return batch


def test_the_recipe_of_surgvlp_is_a_quarter_of_its_terms() -> None:
    method, batch = built("surgvlp"), made_batch(views=2)
    with torch.no_grad():
        terms = method.losses(batch)
        pooled = [method.encode_stored(pixels).pooled for pixels in (batch.pixels, *batch.views)]
        clips = [method.image_projection.unscaled(each) for each in pooled]
        text = method.text_projection.unscaled(method.encode_text(batch.text).pooled)
        candidates = method.text_projection.unscaled(method.encode_text(batch.candidates).pooled).view(4, 2, -1)
        expected = surgvlp(clips, text, candidates, torch.tensor(10.0))
    assert terms.keys() == expected.keys()
    for name, (value, count) in terms.items():
        torch.testing.assert_close(value, expected[name][0] / 4)
        assert count == expected[name][1]


def test_surgclip_is_one_contrast_of_one_reading() -> None:
    method, batch = built("surgclip"), made_batch()
    assert method.demands(method.config).candidates == 0
    assert method.demands(method.config).views == ()
    with torch.no_grad():
        terms = method.losses(batch)
        clips, text = method.encode_stored(batch.pixels).pooled, method.encode_text(batch.text)
        expected, _ = info_nce(method.image_projection(clips), method.project_text(text), torch.tensor(10.0))
    assert list(terms) == ["clip_text"]
    torch.testing.assert_close(terms["clip_text"][0], expected)


def test_legacy_counts_positives_twice() -> None:
    right, legacy = (built("surgvlp", [f"method.options.legacy_positives_twice={on}"]) for on in ("false", "true"))
    with torch.no_grad():
        ours, theirs = (method.losses(made_batch(views=2))["mil_nce"][0] for method in (right, legacy))
    assert theirs > ours


def test_a_study_does_not_depend_on_the_order_of_its_clips() -> None:
    method = built("echoprime", of="echoprime")
    clips = torch.nn.functional.normalize(torch.randn(3, 4, 512), dim=-1)
    study = method.study_vectors(clips)
    torch.testing.assert_close(method.study_vectors(clips[:, [2, 0, 3, 1]]), study)
    torch.testing.assert_close(study.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(method.study_vectors(clips[:, :1]), clips[:, 0])
    shares = method.attention(clips)
    by_hand = (shares[..., None] * clips).sum(1)
    torch.testing.assert_close(study, by_hand / by_hand.norm(dim=1, keepdim=True))


def test_echoprime_contrasts_clips_and_studies_with_texts() -> None:
    method, batch = built("echoprime", of="echoprime"), made_batch(study=4)
    with torch.no_grad():
        terms = method.losses(batch)
        text = method.project_text(method.encode_text(batch.text))
        each = [method.project_image(method.encode_stored(batch.study[:, n])) for n in range(4)]
        scale = method.logit_scale
        expected = {
            "clip_text": info_nce(each[0], text, scale)[0],
            "study_text": info_nce(method.study_vectors(torch.stack(each, dim=1)), text, scale)[0],
        }
    assert terms.keys() == expected.keys()
    for name, (value, _) in terms.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("surgclip", "method.options.readings=2", "1 reading or 3"),
        ("surgclip", "method.options.candidates=2", "nothing else takes them"),
        ("surgclip", "method.objectives.two_views.weight=1.0", "set it to 3"),
        ("surgclip", "method.options.legacy_positives_twice=true", "no effect without mil_nce"),
        ("echoprime", "method.options.study_clips=1", "study_text needs 2 or more"),
        ("echoprime", "method.objectives.study_text.weight=0", "nothing else takes them"),
    ],
)
def test_settings_without_effect_are_errors(name: str, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(name, [change], name)


def test_methods_of_clips_refuse_towers_of_images() -> None:
    config = complete(MethodConfig.model_validate({"name": "surgclip", "image": {"name": "resnet10t"}, "text": TEXT}))
    with pytest.raises(UserError, match="does not work with an image tower of kind 'image'"):
        METHODS.get("surgclip")(config, MethodContext(vocab_size=300))
