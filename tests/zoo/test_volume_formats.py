"""Formats of volumes: axes, scales, names, and the road from a file to features, on small models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from released_files import keys_of, tensor_of

import medvlp
from medvlp.config.load import load_config
from medvlp.errors import UserError
from medvlp.text.tokenizer import Tokenizer
from medvlp.zoo import load_encoder
from medvlp.zoo.axes import from_axes, to_axes
from medvlp.zoo.key_plan import plan_keys
from medvlp.zoo.rebuild import describe_tower, rebuild_tower
from medvlp.zoo.release import FOLDER, Release, read_release
from medvlp.zoo.released import ReleasedModel, build_released, load_released
from medvlp.zoo.released_encoder import released_encoder
from medvlp.zoo.text_side import set_apart


def changed(name: str, *overrides: str) -> Release:
    """Return a shipped format with some settings changed."""
    return load_config(FOLDER / f"{name}.yaml", overrides, Release)


SMALL = {
    "ctclip": (
        "image.args.size=[8,12,16]",
        "image.args.patch=[2,4,4]",
        "image.args.dim=12",
        "image.args.heads=2",
        "image.args.head_dim=6",
        "image.args.codes=50",
        "image.args.latent=8",
        "input.size=[8,16,12]",
        "text.config={vocab_size: 128, max_position_embeddings: 16, hidden_size: 8, num_hidden_layers: 1, "
        "num_attention_heads: 2, intermediate_size: 8}",
        "heads.text.layers=[{linear: [8, 8], bias: false}]",
    ),
    "fvlm": (
        "image.args.size=[32,32,64]",
        "image.args.embed_dim=24",
        "image.args.depth=10",
        "image.args.num_heads=2",
        "options.width=6",
        "heads.text.layers=[{linear: [24, 6]}]",
        "input.size=[32,32,64]",
    ),
}


def small(name: str, seed: int = 0) -> Any:
    """Return a small model of a format with values drawn by its own names, in evaluation mode."""
    model = build_released(changed(name, *SMALL[name]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.mark.parametrize("axes", ["SAR", "SLP", "SPL", "SRA", "RAS", "IPL", "PLI"])
def test_axes_are_those_of_nibabel(axes: str) -> None:
    ours = np.random.default_rng(0).integers(0, 99, (3, 4, 5))
    image = nibabel.Nifti1Image(ours.T.astype(np.int16), np.eye(4))  # x, y, z in RAS
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(tuple(axes))
        )
    )
    assert nibabel.aff2axcodes(turned.affine) == tuple(axes)
    volume = torch.from_numpy(ours)[None]
    np.testing.assert_array_equal(to_axes(volume, axes)[0].numpy(), np.asarray(turned.dataobj))
    assert torch.equal(from_axes(to_axes(volume, axes), axes), volume)


@pytest.mark.parametrize("axes", ["SAA", "SA", "SARL", "XYZ"])
def test_other_axes_are_refused(axes: str) -> None:
    with pytest.raises(UserError, match="axes are three letters"):
        changed("voco_b", f"image.axes={axes}")


@pytest.mark.parametrize(
    ("name", "stored", "factor"),
    [
        ("ctclip", 1.0, np.e),
        ("merlin", 1.0, np.e),
        ("m3d_clip", 2.66, 2.66),
        ("fvlm", 0.07, 1 / 0.07),
        ("fvlm", 3.0, 2.0),
        ("fvlm", -1.0, 1000.0),
    ],
)
def test_the_stored_number_is_read_as_the_format_says(name: str, stored: float, factor: float) -> None:
    model = ReleasedModel.__new__(ReleasedModel)
    torch.nn.Module.__init__(model)
    model.release, model.scale = read_release(name), torch.nn.Parameter(torch.tensor(stored))
    assert model.logit_scale.item() == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize("name", ["voco_l", "voco_h"])
def test_the_larger_vocos_have_the_names_of_the_small_one(oracles: Path, name: str) -> None:
    release, given = read_release(name), keys_of(oracles, "voco_b")
    own = {key: value.shape for key, value in build_released(release).state_dict().items()}
    shapes = {key: torch.Size(shape) for key, (shape, _) in given.items()}
    with pytest.raises(UserError, match="of another shape"):
        plan_keys(own, shapes, release, "FILE")
    grown = {key: own.get(f"image.{key}", shapes[key]) for key in shapes}
    assert plan_keys(own, grown, release, "FILE").sources.keys() == own.keys()


def test_the_image_tower_of_m3d_alone_is_an_encoder(oracles: Path) -> None:
    release = read_release("m3d_clip")
    with torch.device("meta"):
        own = {key: value.shape for key, value in build_released(release).state_dict().items()}
    prefix = "vision_encoder."
    given = {
        key.removeprefix(prefix): torch.Size(shape)
        for key, (shape, _) in keys_of(oracles, "m3d_clip").items()
        if key.startswith(prefix)
    }
    plan = plan_keys(own, given, release, "pretrained_ViT.bin")
    assert plan.absent == ["heads.image.0.", "text.model.", "heads.text.0.", "scale"]
    assert len(plan.sources) == len(given)


def test_heat_maps_lie_where_the_voxels_are() -> None:
    model, other = small("ctclip"), small("ctclip")
    other.image.config = other.image.config.model_copy(update={"axes": "SAR"})
    pixels = torch.randn(2, 1, 8, 16, 12, generator=torch.Generator().manual_seed(1))  # axes SLP: w is 12, h is 16
    directions = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    for each in (model, other):
        each.text_directions = lambda texts, encode: directions
    made = model.heat_map(pixels, ["a", "b", "c"], lambda texts: None)
    assert made.shape == (2, 3, 4, 4, 3)
    assert made.amax() > 0
    turned = other.heat_map(to_axes(pixels, "SLP"), ["a", "b", "c"], lambda texts: None)
    torch.testing.assert_close(to_axes(made, "SLP"), turned)


def test_volumes_are_asked_by_texts_and_show_where(scan: Path, tmp_path: Path) -> None:
    texts = ["pleural effusion", "no pleural effusion"]
    Tokenizer.train(texts * 8, 128).save(tmp_path / "tokenizer")
    model = small("ctclip")
    model.release = model.release.model_copy(update={"text": model.release.text.model_copy(update={"max_tokens": 16})})
    encoder = released_encoder(model, tokenizer=tmp_path / "tokenizer")
    image = encoder.embed_features(encoder.encode_image([scan]))
    with torch.no_grad():
        model.scale.fill_(0.7)
    logits = np.exp(0.7) * (image @ encoder.embed_text(texts).T)
    torch.testing.assert_close(encoder.zero_shot([scan], texts[:1], texts[1:]), logits.softmax(1)[:, :1])
    volume = medvlp.read_volume(scan)
    (maps,) = encoder.heat_maps([scan], texts[:1])
    assert maps.shape == (1, *volume.array.shape)
    seen = np.isfinite(maps[0])
    # 8 x 16 x 12 voxels of 1.5 x 0.75 x 0.75 mm in the middle of 30 x 36 x 40 of 2 x 1.6 x 1.4 mm
    assert [np.ptp(np.nonzero(seen)[axis]) + 1 for axis in range(3)] == pytest.approx([6, 7.5, 6.4], abs=1.5)
    with pytest.raises(UserError, match="does not lead to the space"):
        released_encoder(model, tokenizer=tmp_path / "tokenizer", view="codes")


def test_vectors_of_organs_come_from_the_tokens_of_their_masks() -> None:
    model = small("fvlm")
    pixels = torch.randn(1, 1, 32, 32, 64, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(1, 4, 2, 2, 2, dtype=torch.bool)
    masks[:, :2, 0, 1, 1], masks[:, 2:, 1] = True, True
    with torch.no_grad():
        vectors = model.organ_vectors(pixels, masks)
        same = model.organ_vectors(pixels, masks.roll(1, 1).roll(-1, 1))
        other = model.organ_vectors(pixels, torch.cat([masks[:, 2:], masks[:, 2:]], dim=1))
    assert vectors.shape == (1, 4, 6)
    torch.testing.assert_close(vectors.norm(dim=2), torch.ones(1, 4))
    torch.testing.assert_close(same, vectors)
    assert not torch.allclose(other[:, :2], vectors[:, :2])
    torch.testing.assert_close(other[:, 2:], vectors[:, 2:])
    with pytest.raises(UserError, match="one of them is empty"):
        model.organ_vectors(pixels, torch.zeros_like(masks))


def test_a_tower_is_built_again_from_its_description() -> None:
    tower = small("ctclip").image
    tower.view = "codes"
    again, dim = rebuild_tower(json.loads(json.dumps(describe_tower(tower))))
    again.load_state_dict(tower.state_dict(), strict=True)
    pixels = torch.randn(1, 1, 8, 16, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made, expected = again(pixels), tower(pixels)
    assert torch.equal(made.pooled, expected.pooled)
    assert torch.equal(made.tokens, expected.tokens)
    assert dim == made.pooled.shape[1] == 12


def test_a_tower_refuses_sizes_that_it_cannot_take() -> None:
    for name, size in (("ctclip", (8, 12, 12)), ("fvlm", (32, 40, 64))):
        with pytest.raises(UserError, match="The tower cannot take a volume"):
            small(name).image.check_size(*size)


def test_a_pool_of_another_family_is_refused() -> None:
    with pytest.raises(UserError, match="has no pool cls"):
        build_released(changed("merlin", "image.views={x: {because: y, pool: cls}}", "image.name=resnet10t"))


def test_words_and_marks_are_set_apart_as_nltk_does() -> None:
    assert set_apart("Liver: No mass (2.5 cm).") == "liver : no mass ( 2 . 5 cm )."


@pytest.fixture(scope="module")
def voco(oracles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file as the authors of VoCo wrap it, under the names without their beginnings."""
    state = {
        name.removeprefix("backbone."): tensor_of(name, shape, dtype, {})
        if "index" not in name
        else torch.from_numpy(np.load(oracles / "zoo" / "voco_b" / "buffers.npz")[name])
        for name, (shape, dtype) in keys_of(oracles, "voco_b").items()
        if name.startswith("backbone.")
    }
    file = tmp_path_factory.mktemp("voco") / "VoCo_B_SSL_head.pt"
    torch.save({"network_weights": state}, file)
    return file


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Return a CT in HU whose voxels lie along left, posterior, superior."""
    values = np.random.default_rng(0).integers(-1000, 600, (40, 36, 30)).astype(np.int16)
    values[:5] = -1024
    affine = np.diag([-1.4, -1.6, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def test_a_file_gives_the_features_of_its_voxels(voco: Path, scan: Path) -> None:
    encoder = load_encoder(f"zoo:voco_b:{voco}?size=64x32x32")
    volume = medvlp.read_volume(scan)
    features, again = encoder.encode_image([scan]), encoder.encode_image(volume)
    assert features.pooled.shape == (1, encoder.dim) == (1, 1152)
    assert torch.equal(features.pooled, again.pooled)
    flipped = replace(volume, array=np.ascontiguousarray(volume.array[:, ::-1]))
    assert not torch.allclose(encoder.encode_image(flipped).pooled, features.pooled)
    assert encoder.loaded == ("145 tensors of the file used, none unexplained",)
    mean = load_encoder(f"zoo:voco_b:{voco}?size=64x32x32&view=mean")
    assert mean.encode_image([scan]).pooled.shape[1] == mean.dim == 768


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?size=32", "is not three numbers"),
        ("?size=40x32x32", "no multiples of 32"),
        ("?size=32x32x32", "one token alone"),
        ("?size=4x32x32", "is no model input"),
        ("?tokenizer=nowhere", "has no text tower"),
        ("?view=cls", "has no view 'cls'"),
    ],
)
def test_bad_options_are_named(voco: Path, options: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_encoder(f"zoo:voco_b:{voco}{options}")
    assert message in error.value.what


def test_a_file_with_a_name_too_many_is_refused(voco: Path, tmp_path: Path) -> None:
    state = torch.load(voco, weights_only=True)["network_weights"]
    torch.save({**state, "decoder5.conv.weight": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"unexplained \(1\): decoder5.conv.weight"):
        load_released(read_release("voco_b"), tmp_path / "x.pt")
