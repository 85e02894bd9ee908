"""Formats of one's own, small enough for every test: options, text side, views, positions, bad input, command line."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import called
from PIL import Image
from torch.nn import functional

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.io import read_radiograph, to_stored
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import TextBatch
from medvlp.zoo import load_encoder
from medvlp.zoo.encoder import Encoder
from medvlp.zoo.release import read_release
from medvlp.zoo.released import build_released, load_released

TEXTS = ["no pneumonia is seen", "left pleural effusion", "the heart is normal", "right lower lobe pneumonia"]
HEAD = [{"linear": [64, 8]}, {"batch_norm": 8}, {"relu": True}, {"linear": [8, 6], "bias": False}]
FORMAT: dict[str, Any] = {
    "name": "tiny",
    "title": "Tiny",
    "paper": "none",
    "source": "nowhere",
    "file": "tiny.ckpt.",
    "container": "state_dict",
    "image": {
        "family": "resnet",
        "name": "resnet18",
        "args": {"channels": [8, 16, 32, 64]},
        "views": {
            "plain": {"because": "a benchmark"},
            "native": {"because": "its authors", "tap": "layer3", "upsample": 80},
        },
    },
    "projects": "native",
    "text": {
        "config": {
            "vocab_size": 128,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        "layers": [1, 2],
        "pool": "mean",
        "max_tokens": 12,
    },
    "heads": {"image": {"layers": HEAD}, "text": {"layers": [{"linear": [16, 6], "bias": False}], "normalise": True}},
    "logit_scale": "exp",
    "strip": ["module."],
    "keys": [
        {"ours": "image.backbone.", "file": ["visual.", ""]},
        {"ours": "heads.image.", "file": ["proj_v."], "optional": True},
        {"ours": "heads.text.0.", "file": ["proj_t."], "optional": True},
        {"ours": "text.model.", "file": ["bert."], "optional": True},
        {"ours": "scale", "file": ["logit_scale"], "optional": True},
    ],
    "ignored": [{"because": "another head", "keys": ["fc.{weight,bias}"], "optional": True}],
    "stored": {"size": 64, "crop_from": 72, "interpolation": "bicubic"},
    "input": {"size": 64, "channels": 3, "mean": [0.5], "std": [0.25]},
}


def write(folder: Path, described: dict[str, Any]) -> Path:
    file = folder / f"{described['name']}.yaml"
    file.write_text(yaml.safe_dump(described, sort_keys=False))
    return file


def random_state(described: Path) -> dict[str, torch.Tensor]:
    """Return a full state of the format's model under the names of the file."""
    release = read_release(str(described))
    own = build_released(release).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {}
    for rule in release.keys:
        for name in [name for name in own if name.startswith(rule.ours)]:
            value = (
                torch.randn(own[name].shape, generator=generator)
                / max(1, own[name].numel() // (*own[name].shape, 1)[0]) ** 0.5
            )
            if own[name].ndim == 1 and name.endswith(("running_var", "weight")):
                value = 1 + 0.1 * value.abs()
            state[rule.file[0] + name.removeprefix(rule.ours)] = value.to(own[name].dtype)
    return state


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("formats"), FORMAT)


@pytest.fixture(scope="module")
def state(described: Path) -> dict[str, torch.Tensor]:
    return random_state(described)


@pytest.fixture(scope="module")
def file(described: Path, state: dict[str, torch.Tensor]) -> Path:
    path = described.parent / "tiny.ckpt"
    torch.save({"epoch": 1, "hyper_parameters": argparse.Namespace(lr=1), "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(described: Path) -> Path:
    folder = described.parent / "tokenizer"
    Tokenizer.train(TEXTS * 4, 128).save(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(described: Path, file: Path, tokenizer: Path) -> Encoder:
    return load_encoder(f"zoo:{described}:{file}?tokenizer={tokenizer}&view=native")


def pixels(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_views_tap_and_enlarge_as_declared(described, file):
    plain = load_encoder(f"zoo:{described}:{file}")
    native = load_encoder(f"zoo:{described}:{file}?view=native")
    assert (plain(pixels()).grid, native(pixels()).grid) == ((2, 2), (5, 5))
    assert native(pixels()).tokens.shape == (2, 25, 32)
    enlarged = functional.interpolate(pixels(), size=80, mode="bilinear", align_corners=True)
    torch.testing.assert_close(native(pixels()).pooled, plain(enlarged).pooled)
    assert plain.hash != native.hash
    assert (plain.name, native.name) == ("zoo:tiny", "zoo:tiny@native")
    assert not plain.has_text


def test_a_file_goes_through_the_squares_of_the_format_or_of_a_store(described, file, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (90, 120), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    own = load_encoder(f"zoo:{described}:{file}")
    square = to_stored(read_radiograph(tmp_path / "x.png"), StoredImageConfig.model_validate(FORMAT["stored"]))
    by_hand = (torch.from_numpy(square / 255.0).float() - 0.5) / 0.25
    torch.testing.assert_close(
        own.encode_image([tmp_path / "x.png"]).pooled, own(by_hand.expand(1, 3, 64, 64)).pooled, rtol=1e-4, atol=1e-4
    )
    stored = StoredImageConfig(size=96)
    other = load_encoder(f"zoo:{described}:{file}", stored=stored)
    assert other.preprocessing.stored == stored
    assert other.hash != own.hash


def test_texts_are_scored_by_cosine_and_scale(encoder, described, file, state):
    model, _ = load_released(read_release(str(described)), file)
    questions = TEXTS[1:3]
    found = encoder.zero_shot_features(encoder(pixels()), questions)
    tokenizer = encoder._text.tokenizer

    def vector(text: str) -> torch.Tensor:
        ids, mask, _ = tokenizer.encode([text], 12)
        return model.project_text(model.encode_text(TextBatch(torch.from_numpy(ids), torch.from_numpy(mask))))

    with torch.inference_mode():
        image = model.project_image(model.encode_image(pixels(), "native"))
        scale = state["logit_scale"].exp()
        pairs = [torch.cat([vector(text), vector(f"no {text}")]) for text in questions]
        expected = torch.stack([(scale * image @ pair.T).softmax(1)[:, 0] for pair in pairs], dim=1)
    torch.testing.assert_close(found, expected)
    assert encoder.scores_text
    assert encoder.shared_space
    torch.testing.assert_close(encoder.embed_text(TEXTS).norm(dim=1), torch.ones(4))


def test_a_text_gives_the_same_beside_longer_ones_unless_the_official_fault_is_wanted(described, file, tokenizer):
    spec = f"zoo:{described}:{file}?tokenizer={tokenizer}&view=native"
    right, legacy = load_encoder(spec), load_encoder(f"{spec}&legacy_pad_mean=true")
    short, company = ["no"], ["no", TEXTS[3]]
    torch.testing.assert_close(right.embed_text(short)[0], right.embed_text(company)[0])
    assert not torch.allclose(legacy.embed_text(short)[0], legacy.embed_text(company)[0], atol=1e-3)
    torch.testing.assert_close(legacy.embed_text(short), right.embed_text(short))
    assert legacy.hash != right.hash


def test_heat_maps_lie_on_the_tokens(encoder):
    squares = np.random.default_rng(2).integers(0, 255, (2, 64, 64), dtype=np.uint8)
    assert encoder.heat_map_kind == "Grad-CAM"
    assert encoder.token_heat_maps(squares, TEXTS[:3]).shape == (2, 3, 5, 5)
    assert encoder.heat_maps_stored(squares, TEXTS[:1]).shape == (2, 1, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?view=natve", "has no view 'natve'. Did you mean 'native'"),
        ("?tokeniser=x", "'tokeniser' is no option of a released checkpoint. Did you mean 'tokenizer'"),
        ("?size=large", "The size 'large' is no number"),
        ("?size=3", "The size 3 is not between"),
        ("?view=native&tokenizer=nowhere", "There is no tokenizer folder"),
        ("?tokenizer=nowhere", "'plain' of 'tiny' does not lead to the space of its texts"),
        ("?view=native&legacy_pad_mean=yes", "legacy_pad_mean is 'yes'"),
        ("?", "is no option"),
    ],
)
def test_bad_options_are_named(described, file, options, message):
    with pytest.raises(UserError) as error:
        load_encoder(f"zoo:{described}:{file}{options}")
    assert message in error.value.what


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("zoo:mgca_vit", "names no checkpoint"),
        ("zoo:mgca_vti:x.ckpt", "no checkpoint format 'mgca_vti'. Did you mean 'mgca_vit'"),
        ("zoo:mgca_vit:nowhere.ckpt", "does not exist"),
    ],
)
def test_bad_specs_are_named(spec, message):
    with pytest.raises(UserError) as error:
        load_encoder(spec)
    assert message in error.value.what


def test_a_tokenizer_of_another_vocabulary_is_refused(described, file, tmp_path):
    words = [" ".join(f"w{number}x{other}" for other in range(40)) for number in range(40)]
    Tokenizer.train(words, 400).save(tmp_path)
    with pytest.raises(UserError, match="tokens, the text tower 128"):
        load_encoder(f"zoo:{described}:{file}?view=native&tokenizer={tmp_path}")


def test_a_file_of_the_image_tower_alone_has_no_text_and_no_head(described, state, tmp_path, tokenizer):
    bare = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    torch.save(bare, tmp_path / "encoder.pth")
    model, plan = load_released(read_release(str(described)), tmp_path / "encoder.pth")
    assert plan.absent == ["heads.image.", "heads.text.0.", "text.model.", "scale"]
    assert model.text is None
    assert not model.shared_space
    assert not model.scores_text
    with pytest.raises(UserError, match="has no head 'image'"):
        model.head("image")
    with pytest.raises(UserError, match="has no text tower"):
        load_encoder(f"zoo:{described}:{tmp_path / 'encoder.pth'}?view=native&tokenizer={tokenizer}")


def test_a_file_without_the_head_of_texts_does_not_compare_raw_vectors(described, state, tmp_path):
    torch.save({k: v for k, v in state.items() if not k.startswith("proj_t.")}, tmp_path / "x.pt")
    model, _ = load_released(read_release(str(described)), tmp_path / "x.pt")
    assert not model.shared_space
    with pytest.raises(UserError, match="has no head 'text'"):
        model.project_text(model.encode_text(TextBatch(torch.ones(1, 4).long(), torch.ones(1, 4).bool())))


def test_wrapped_parallel_and_converted_files_are_the_same_encoder(described, file, state, tmp_path):
    from safetensors.torch import save_file

    expected = load_encoder(f"zoo:{described}:{file}").hash
    parallel = {f"module.{name}": value for name, value in state.items()}
    torch.save({"model": parallel}, tmp_path / "a.pt")
    torch.save(state, tmp_path / "b.pt")
    (tmp_path / "folder").mkdir()
    save_file(state, tmp_path / "folder" / "model.safetensors")
    for other in ("a.pt", "b.pt", "folder", "folder/model.safetensors"):
        assert load_encoder(f"zoo:{described}:{tmp_path / other}").hash == expected


def test_no_tensor_stays_as_it_was_made(described, state, tmp_path):
    torch.save(state, tmp_path / "x.pt")
    model, _ = load_released(read_release(str(described)), tmp_path / "x.pt")
    loaded = model.state_dict()
    names = {}
    for rule in model.release.keys:
        names |= {n: rule.file[0] + n.removeprefix(rule.ours) for n in loaded if n.startswith(rule.ours)}
    assert names.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], state[key]) for name, key in names.items())


def test_numbers_that_are_not_finite_are_refused(described, state, tmp_path):
    broken = copy.deepcopy(state)
    broken["visual.layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(broken, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"not finite: visual\.layer2\.0\.conv1\.weight"):
        load_encoder(f"zoo:{described}:{tmp_path / 'x.pt'}")


@pytest.mark.parametrize("kind", ["int8", "bool", "complex64", "sparse"])
def test_weights_that_are_no_plain_numbers_are_refused(kind, described, state, tmp_path):
    name = "visual.layer2.0.conv1.weight"
    changed = state[name].to_sparse() if kind == "sparse" else (30 * state[name]).to(getattr(torch, kind))
    torch.save({**state, name: changed}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=rf"no plain floating-point numbers: {name} "):
        load_encoder(f"zoo:{described}:{tmp_path / 'x.pt'}")


def test_it_is_told_that_a_file_holds_rounded_weights(described, state, tmp_path):
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    half["visual.conv1.weight"] = state["visual.conv1.weight"].bfloat16()
    torch.save(half, tmp_path / "x.pt")
    encoder = load_encoder(f"zoo:{described}:{tmp_path / 'x.pt'}")
    number = sum(value.is_floating_point() for value in state.values())
    assert encoder.loaded[0] == f"{len(state)} tensors of the file used, none unexplained"
    assert encoder.loaded[1:] == ("1 rounded: stored as bfloat16", f"{number - 1} rounded: stored as float16")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Spec of a transformer whose position table has 4 x 4 places."""
    folder = tmp_path_factory.mktemp("vit")
    described = write(
        folder,
        {
            **{key: FORMAT[key] for key in ("title", "paper", "source", "file", "stored", "input")},
            "name": "vit",
            "container": "none",
            "image": {
                "family": "vit",
                "name": "vit_tiny_patch16_224",
                "args": {"img_size": 64, "depth": 2, "embed_dim": 24},
                "views": {"official": {"because": "all", "pool": "cls"}},
            },
            "keys": [{"ours": "image.backbone.", "file": [""]}],
        },
    )
    torch.save(random_state(described), folder / "x.pt")
    return f"zoo:{described}:{folder / 'x.pt'}"


def test_positions_are_resized_for_another_size(vit):
    encoder = load_encoder(f"{vit}?size=96")
    assert encoder.preprocessing.input.size == 96
    features = encoder(pixels(size=96))
    assert features.grid == (6, 6)
    other = load_encoder(vit)
    table = other.image_tower.backbone.pos_embed.detach()
    square = table[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    larger = functional.interpolate(square, size=(6, 6), mode="bicubic", align_corners=False)
    backbone = copy.deepcopy(other.image_tower.backbone)
    backbone.pos_embed = torch.nn.Parameter(torch.cat([table[:, :1], larger.flatten(2).transpose(1, 2)], 1))
    backbone.patch_embed.img_size, backbone.patch_embed.grid_size = (96, 96), (6, 6)
    with torch.inference_mode():
        torch.testing.assert_close(features.tokens, backbone.forward_features(pixels(size=96))[:, 1:])
    with pytest.raises(UserError, match="patches of 16"):
        encoder(pixels(size=70))
    with pytest.raises(UserError, match="patches of 16"):
        load_encoder(f"{vit}?size=70")


def test_another_size_shows_the_same_of_a_file(vit):
    stored = load_encoder(f"{vit}?size=128").preprocessing.stored
    assert (stored.size, stored.crop_from, stored.interpolation) == (128, 144, "bicubic")
    kept = StoredImageConfig(size=80)
    assert load_encoder(f"{vit}?size=128", stored=kept).preprocessing.stored == kept


def test_windows_of_another_size_are_refused():
    release = read_release("medclip_vit")
    with torch.device("meta"):
        model = build_released(release)
    with pytest.raises(UserError, match="windows of the checkpoint are those of 224"):
        model.image.check_size(256, 256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "duel"}, "There is no model 'duel'. Did you mean 'dual'"),
        ({"image": {**FORMAT["image"], "name": "resnet19"}}, "cannot be built"),
        ({"image": {**FORMAT["image"], "args": {"chanels": 3}}}, "cannot be built"),
        ({"heads": {"image": {"layers": [{"linaer": [2, 2]}]}}}, "cannot be built"),
    ],
)
def test_a_format_that_cannot_be_built_is_said_to_be_so(changes, message, file, tmp_path):
    with pytest.raises(UserError) as error:
        load_encoder(f"zoo:{write(tmp_path, FORMAT | changes)}:{file}")
    assert message in error.value.what


def test_the_tower_can_be_trained(vit):
    tower = load_encoder(vit).image_tower.train()
    tower(pixels(size=64)).pooled.sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())


def test_the_command_line_accounts_for_a_file(described, file, state, tmp_path, monkeypatch, capsys):
    status, shown = called(monkeypatch, capsys, "zoo", "check", described, file)
    assert status == 0
    assert f"Every tensor is explained: {len(state)} used." in shown
    assert "image.backbone" in shown
    renamed = {("visual.konv1.weight" if name == "visual.conv1.weight" else name): t for name, t in state.items()}
    torch.save(renamed, tmp_path / "x.pt")
    status, shown = called(monkeypatch, capsys, "zoo", "check", described, tmp_path / "x.pt")
    assert status == 1
    assert "visual.konv1.weight" in shown
    assert "missing (1): visual.conv1.weight" in shown
    assert "Traceback" not in shown


def test_the_command_line_lists_every_format(monkeypatch, capsys):
    from medvlp.zoo.release import release_names

    status, shown = called(monkeypatch, capsys, "zoo", "list")
    assert status == 0
    assert all(name in shown for name in release_names())
    assert len(release_names()) >= 17


def test_the_list_says_which_folder_gives_a_text_side(monkeypatch, capsys):
    from medvlp.zoo.release import read_release, release_names
    from medvlp.zoo.released import MODELS

    monkeypatch.setenv("COLUMNS", "300")
    _, shown = called(monkeypatch, capsys, "zoo", "list")
    rows = {line.split()[1]: line for line in shown.splitlines() if line.startswith("│")}
    for name in release_names():
        release = read_release(name)
        reads_books = hasattr(resolve_name(MODELS[release.model]), "read_books")
        assert not (reads_books and release.text)
        wanted = "with text=FOLDER" if reads_books else "with tokenizer=FOLDER" if release.text else "no"
        assert f" {wanted} " in rows[name], name
    assert {name for name in rows if "text=FOLDER" in rows[name]} == {"medklip", "medslip"}
