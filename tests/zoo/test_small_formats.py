"""Large formats at a fraction of their size: their rules fill every tensor, answers agree with a slow reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from released_files import keys_of
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import TextBatch
from medvlp.zoo.encoder import Encoder
from medvlp.zoo.key_plan import plan_keys
from medvlp.zoo.release import Release, read_release
from medvlp.zoo.released import ReleasedModel, build_released
from medvlp.zoo.released_encoder import released_encoder, with_processor

TEXTS = ["no pneumonia is seen", "left pleural effusion", "the heart is normal", "right lower lobe pneumonia"]
TEXT = {
    "vocab_size": 128,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
VIT = {"img_size": 32, "embed_dim": 24, "num_heads": 2, "depth": 1}
SMALL: dict[str, dict[str, Any]] = {
    "fusion": {"image": VIT, "options": {"fusion": {"dim": 24, "layers": 2, "heads": 2, "ffn": 32, "norm_eps": 1e-5}}},
    "conceptclip": {
        "image": VIT | {"patch_size": 8, "img_size": 32, "mlp_ratio": 2},
        "options": {"local_share": 0.5, "patches": 3},
        "heads": {
            "image": {"layers": [], "normalise": True},
            "text": {"layers": [{"linear": [24, 24], "bias": False}], "normalise": True},
            "image_tokens": {"layers": [{"linear": [24, 24], "bias": False}]},
            "text_tokens": {"layers": [{"linear": [24, 24], "bias": False}]},
        },
    },
    "llm2clip4cxr_visual": {
        "image": {"img_size": 56, "dynamic_img_size": True, "embed_dim": 32, "num_heads": 2, "depth": 2},
        "heads": {"image": {"layers": [{"linear": [32, 8]}], "normalise": True}},
    },
}
POOLS = {"pool": 12, "image_rows": 3, "text_rows": 2, "ends": [0, 2]}
ENTITIES = {"entities": {"dim": 8, "heads": 2, "ffn": 16}}


def small(name: str) -> Release:
    """Return a format with small towers; every rule stays."""
    release = read_release(name)
    change = SMALL["fusion" if name in ("m3ae", "arl", "ptunifier") else name]
    image = release.image.model_copy(update={"args": release.image.args | change["image"]})
    options = dict(change.get("options", {})) | {"arl": ENTITIES, "ptunifier": POOLS}.get(name, {})
    text = None if release.text is None else release.text.model_copy(update={"config": release.text.config | TEXT})
    given = release.resolved() | {"image": image.resolved(), "options": options, "text": text and text.resolved()}
    return Release.model_validate(given | {"heads": change.get("heads", given["heads"])})


def model_of(name: str) -> ReleasedModel:
    """Return a small model whose weights leave nothing uniform."""
    model = build_released(small(name)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(0.3 * torch.randn(value.shape, generator=generator) + key.endswith("norm.weight"))
    return model


def pixels(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def batch(*lengths: int) -> TextBatch:
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 128, mask.shape, generator=torch.Generator().manual_seed(2))
    return TextBatch(ids * mask, mask, word_ids=torch.where(mask, torch.arange(max(lengths))[None], -1))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(TEXTS * 4, 128).save(folder)
    return folder


@pytest.mark.parametrize("name", ["m3ae", "arl", "ptunifier", "conceptclip", "llm2clip4cxr_visual"])
def test_the_rules_hold_at_any_size(name):
    release = small(name)
    own = {key: value.shape for key, value in build_released(release).state_dict().items()}
    with pytest.raises(UserError) as error:
        plan_keys(own, {}, release, "FILE")
    assert "of another shape" not in error.value.what
    assert "missing" in error.value.what


@pytest.mark.parametrize("name", ["m3ae", "arl", "ptunifier"])
def test_a_fused_pair_does_not_depend_on_the_pairs_beside_it(name):
    model, images, texts = model_of(name), pixels(2, 32), batch(7, 4)
    with torch.inference_mode():
        both = model.match(model.fuse(model.encode_image(images), model.encode_text(texts)))
        alone = TextBatch(texts.ids[1:, :4], texts.mask[1:, :4])
        single = model.match(model.fuse(model.encode_image(images[1:]), model.encode_text(alone)))
    torch.testing.assert_close(both[1:], single, rtol=1e-4, atol=1e-5)
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_a_missing_side_is_replaced_by_the_nearest_rows_of_its_pool():
    model, images, texts = model_of("ptunifier"), pixels(2, 32), batch(7, 4)
    with torch.inference_mode():
        from_images = model.fusion.pool(model.fuse_image(images))
        from_texts = model.fusion.pool(model.fuse_text(texts))
        alone = model.fusion.pool(model.fuse_text(TextBatch(texts.ids[1:, :4], texts.mask[1:, :4])))
        torch.testing.assert_close(
            from_images[1:], model.fusion.pool(model.fuse_image(images[1:])), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(from_texts[1:], alone, rtol=1e-4, atol=1e-5)
        states, _ = model.image.embed(images)
        chosen = [
            (pool @ states[n, 1:].mean(0)).topk(2).indices.tolist() for n in (0, 1) for pool in [model.text_pool.rows]
        ]
        unused = [row for row in range(12) if row not in chosen[0] + chosen[1]]
        model.text_pool.rows[unused] = 0  # a row of zeros is near nothing that scores above 0
        assert all((model.text_pool.rows[rows] @ states[n, 1:].mean(0) > 0).all() for n, rows in enumerate(chosen))
        torch.testing.assert_close(model.fusion.pool(model.fuse_image(images)), from_images)


@pytest.mark.parametrize("name", ["m3ae", "arl", "ptunifier"])
def test_prompts_are_scored_by_matching(name, tokenizer):
    model = model_of(name)
    encoder = released_encoder(model, tokenizer=tokenizer)
    images = pixels(3, 32)
    made = encoder.zero_shot_features(encoder(images), ["pneumonia", "effusion"], ["normal", "heart"])
    reader = Tokenizer.from_folder(tokenizer)

    def matching(image: torch.Tensor, text: str) -> torch.Tensor:
        ids, mask, _ = (torch.from_numpy(array) for array in reader.encode([text], 64))
        fused = model.fuse(model.encode_image(image[None]), model.encode_text(TextBatch(ids, mask)))
        return model.match(fused)[0]

    def chance(image: torch.Tensor, positive: str, negative: str) -> torch.Tensor:
        scores = [matching(image, text) for text in (positive, negative)]
        return torch.stack([score[1] - score[0] for score in scores]).softmax(0)[0]

    with torch.inference_mode():
        wanted = [[chance(i, "pneumonia", "normal"), chance(i, "effusion", "heart")] for i in images]
    torch.testing.assert_close(made, torch.tensor(wanted), rtol=1e-3, atol=1e-5)
    assert (encoder.heat_map_kind, encoder.shared_space) == ("cross-attention", False)
    assert model.heat_map(images, ["left effusion", "heart"], encoder.encode_text).shape == (3, 2, 2, 2)


def test_a_tokenizer_with_another_padding_token_is_refused(tokenizer):
    release = small("m3ae")
    text = release.text.model_copy(update={"config": release.text.config | {"pad_token_id": 1}})
    with pytest.raises(UserError, match="pads with token 0, the text tower with 1"):
        released_encoder(build_released(release.model_copy(update={"text": text})), tokenizer=tokenizer)


def test_concepts_are_scored_by_the_average_of_global_and_local(tokenizer):
    model = model_of("conceptclip")
    encoder: Encoder = released_encoder(model, tokenizer=tokenizer)
    images = pixels(2, 32)
    made = encoder.zero_shot_features(encoder(images), ["left effusion"], ["the heart"])
    reader = Tokenizer.from_folder(tokenizer)

    def vectors(text: str, words: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask, _ = (torch.from_numpy(array) for array in reader.encode([text], 77))
        features = model.encode_text(TextBatch(ids, mask))
        pieces = [n for n, piece in enumerate(reader.tokens(ids[0].tolist())) if piece in words]
        local = model.heads["text_tokens"][0](features.tokens)[0, pieces].mean(0)
        whole = model.heads["text"][0](features.tokens[0].mean(0))
        return functional.normalize(whole, dim=0), functional.normalize(local, dim=0)

    with torch.inference_mode():
        # "effusion" is a finding: it alone is the concept; the other prompt names none, and all of its words count.
        sides = [vectors("left effusion", ["effusion"]), vectors("the heart", ["the", "heart"])]
        image = model.encode_image(images)
        patches = functional.normalize(model.heads["image_tokens"][0](image.tokens), dim=2)
        pooled = functional.normalize(image.pooled, dim=1)
        whole = torch.stack([model.logit_scale * pooled @ g for g, _ in sides], 1).softmax(1)[:, 0]
        tops = [(model.concept_log_scale.exp() * patches @ c).topk(3, dim=1).values.mean(1) for _, c in sides]
        wanted = 0.5 * whole + 0.5 * torch.stack(tops, 1).softmax(1)[:, 0]
        maps = model.heat_map(images, ["left effusion"], encoder.encode_text)
    torch.testing.assert_close(made[:, 0], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps[:, 0].flatten(1), patches @ sides[0][1], rtol=1e-4, atol=1e-5)


def test_rotation_follows_the_grid():
    model = model_of("llm2clip4cxr_visual")
    other = build_released(small("llm2clip4cxr_visual"))
    with torch.inference_mode():
        assert model.encode_image(pixels(1, 56)).grid == (4, 4)
        wide = model.encode_image(pixels(1, 112))
        # The same tower built for 112 pixels: timm's own rotation, the position table resized beforehand.
        release = small("llm2clip4cxr_visual")
        larger = release.image.model_copy(
            update={"args": release.image.args | {"img_size": 112, "dynamic_img_size": False}}
        )
        other = build_released(release.model_copy(update={"image": larger})).eval()
        state = model.state_dict()
        table = state["image.backbone.pos_embed"]
        square = functional.interpolate(table[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2), (8, 8), mode="bicubic")
        table = torch.cat([table[:, :1], square.flatten(2).transpose(1, 2)], 1)
        other.load_state_dict(state | {"image.backbone.pos_embed": table})
        native = other.image.backbone.forward_features(pixels(1, 112))
    assert wide.grid == (8, 8)
    torch.testing.assert_close(wide.tokens, native[:, 1:], rtol=1e-4, atol=1e-5)


def test_rotary_tables_and_the_language_side_of_a_real_file_are_ignored(oracles):
    release = read_release("llm2clip4cxr_visual")
    given = {key: torch.Size(shape) for key, (shape, _) in keys_of(oracles, release.name).items()}
    tables = [f"visual.{place}rope.freqs_{part}" for place in ("", "blocks.0.attn.") for part in ("cos", "sin")]
    tables += [f"visual.blocks.{n}.attn.rope.freqs_{part}" for n in range(1, 24) for part in ("cos", "sin")]
    language = [
        "text.projection.0.weight",
        "text.model.layers.3.self_attn.q_proj.lora_A.llm2clip.weight",
        "logit_scale",
    ]
    with torch.device("meta"):
        own = {key: value.shape for key, value in build_released(release).state_dict().items()}
    extra = dict.fromkeys([*tables, *language], torch.Size([1]))
    assert plan_keys(own, given | extra, release, "FILE").ignored.keys() == extra.keys()
    with pytest.raises(UserError, match=r"missing \(1\): visual\.rope\.freqs_cos"):
        plan_keys(own, {key: shape for key, shape in (given | extra).items() if key != tables[0]}, release, "FILE")
    with pytest.raises(UserError, match=r"unexplained \(1\): text\.model\.embed\.weight"):
        plan_keys(own, given | {"text.model.embed.weight": torch.Size([1])}, release, "FILE")


def test_mean_and_deviation_stand_beside_the_weights(tmp_path):
    release = read_release("raddino")
    assert with_processor(release, tmp_path / "model.safetensors").input == release.input
    beside = {"image_mean": [0.5056] * 3, "image_std": [0.252] * 3, "crop_size": {"height": 518, "width": 518}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(beside))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        made = with_processor(release, path).input
        assert (made.mean, made.std, made.size) == ((0.5056,) * 3, (0.252,) * 3, 518)
    assert with_processor(read_release("keep"), tmp_path).input == read_release("keep").input
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        with_processor(release, tmp_path)
