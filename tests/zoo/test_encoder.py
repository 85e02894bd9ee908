"""The encoder's promises: one preprocessing, batched as one by one, text and zero-shot by their formulas."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import medvlp
from medvlp.config.preprocessing import ModelInputConfig, Preprocessing, StoredImageConfig
from medvlp.data.transforms import normalise, resize_pixels, to_tensor
from medvlp.errors import UserError
from medvlp.io import read_radiograph, to_stored
from medvlp.objectives.group_metric import best_prompts
from medvlp.types import Features, Intensity, Radiograph
from medvlp.zoo import Encoder, load_encoder
from medvlp.zoo.text_side import TextSide


@pytest.fixture(scope="module")
def encoder(run: Path) -> Encoder:
    return load_encoder(str(run))


def same(ours: Features, other: Features, **tolerance: float) -> None:
    assert ours.grid == other.grid
    torch.testing.assert_close(ours.pooled, other.pooled, **tolerance)
    torch.testing.assert_close(ours.tokens, other.tokens, **tolerance)


def test_a_file_gives_the_features_of_its_square_in_a_store(encoder: Encoder, images: list[Path]) -> None:
    config = encoder.preprocessing.stored
    squares = np.stack([to_stored(read_radiograph(path, config), config) for path in images])
    same(encoder.encode_image(images), encoder.encode_stored(squares), rtol=0, atol=0)


def test_training_and_inference_see_the_same_pixels(encoder: Encoder, images: list[Path]) -> None:
    """The method normalises what a loader resized; the encoder does both."""
    config = encoder.preprocessing.stored
    squares = np.stack([to_stored(read_radiograph(path, config), config) for path in images])
    batch = to_tensor(resize_pixels(squares, encoder.preprocessing.input.size))
    method = encoder._text.method
    with torch.inference_mode():
        same(encoder.encode_image(images), method.encode_stored(batch), rtol=0, atol=0)
    same(encoder(normalise(batch, encoder.preprocessing.input)), encoder.encode_stored(squares), rtol=0, atol=0)


@pytest.mark.data
def test_a_dicom_file_gives_the_features_of_its_square(encoder: Encoder, test_data: Path, images: list[Path]) -> None:
    path = test_data / "dicom" / "RG3_J2KI.dcm"
    config = encoder.preprocessing.stored
    radiograph = read_radiograph(path, config)
    mixed = encoder.encode_image([str(path), images[0], radiograph])
    square = to_stored(radiograph, config)[None]
    torch.testing.assert_close(mixed.pooled[[0]], encoder.encode_stored(square).pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed.pooled[2], mixed.pooled[0])
    torch.testing.assert_close(mixed.pooled[[1]], encoder.encode_image(images[:1]).pooled, rtol=1e-5, atol=1e-6)


def test_batched_is_one_by_one_and_repeatable(encoder: Encoder, images: list[Path]) -> None:
    together = encoder.encode_image(images)
    single = [encoder.encode_image([path]) for path in images]
    alone = Features(torch.cat([f.tokens for f in single]), torch.cat([f.pooled for f in single]), single[0].grid)
    same(together, alone, rtol=1e-5, atol=1e-6)
    same(together, encoder.encode_image(images), rtol=0, atol=0)
    assert together.pooled.std(0).max() > 1e-3


def test_the_batch_size_changes_nothing(run: Path, encoder: Encoder, images: list[Path]) -> None:
    other = load_encoder(str(run))
    other.batch_size = 2
    same(other.encode_image(images), encoder.encode_image(images), rtol=1e-5, atol=1e-6)
    texts = ["left pleural effusion", "no pneumonia", "the heart"]
    torch.testing.assert_close(other.embed_text(texts), encoder.embed_text(texts), rtol=1e-5, atol=1e-6)


def test_squares_of_any_size_and_16_bits_are_taken(encoder: Encoder) -> None:
    rng = np.random.default_rng(1)
    small = rng.integers(0, 256, (2, 48, 48)).astype(np.uint8)
    wide = small.astype(np.uint16) * 257
    same(encoder.encode_stored(wide), encoder.encode_stored(small), rtol=1e-5, atol=1e-6)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    same(encoder.encode_stored(large), encoder.encode_stored(small), rtol=0, atol=0)


class Filled(nn.Module):
    """A tower whose features have a value in every field, whatever fields there are."""

    def forward(self, pixels: torch.Tensor) -> Features:
        values = {field.name: pixels.flatten(1)[:, :12].unflatten(1, (4, 3)) for field in fields(Features)}
        return Features(**{**values, "grid": (2, 2)})


class Asked:
    """Stands for a method: keeps what it is asked about."""

    shared_space = scores_text = True

    def to(self, device: torch.device) -> Asked:
        return self

    def eval(self) -> None:
        pass

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def project_image(self, features: Features) -> torch.Tensor:
        self.features = features
        return features.pooled

    def zero_shot(self, features: Features, *_: object) -> torch.Tensor:
        return self.project_image(features)


def test_no_field_of_the_features_is_lost_on_the_way() -> None:
    method, rng = Asked(), np.random.default_rng(3)
    preprocessing = Preprocessing(stored=StoredImageConfig(size=16), input=ModelInputConfig(size=16))
    encoder = Encoder("filled", Filled(), 3, preprocessing, {}, text=TextSide(method, None, 8), batch_size=2)
    squares = rng.integers(0, 256, (5, 16, 16)).astype(np.uint8)
    whole = Filled()(normalise(to_tensor(squares), preprocessing.input))

    def check(found: Features) -> None:
        for field in fields(Features):
            torch.testing.assert_close(getattr(found, field.name), getattr(whole, field.name), rtol=0, atol=0)

    encoded = encoder.encode_stored(squares)
    check(encoded)
    check(encoder(normalise(to_tensor(squares), preprocessing.input)))
    check(encoder.encode_image([Radiograph(s, None, Intensity.UNIT, {}) for s in squares / np.float32(255)]))
    for ask in (encoder.embed_features, lambda features: encoder.zero_shot_features(features, ["a"])):
        ask(encoded)
        check(method.features)


def test_no_gradient_and_no_training_mode(encoder: Encoder) -> None:
    features = encoder(torch.randn(1, 1, 48, 48))
    assert not features.pooled.requires_grad
    assert not any(module.training for module in encoder.image_tower.modules())


def test_texts_are_encoded_alone_as_in_a_batch(encoder: Encoder) -> None:
    texts = ["left pleural effusion is seen", "no pneumonia"]
    features = encoder.encode_text(texts)
    alone = encoder.encode_text(texts[1:])
    torch.testing.assert_close(features.pooled[1:], alone.pooled, rtol=1e-5, atol=1e-6)
    assert features.mask.sum(1).tolist()[1] == alone.mask.sum()
    assert features.word_ids.shape == features.mask.shape
    vectors = encoder.embed_text(texts)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_zero_shot_is_a_softmax_of_each_text_against_its_negative(encoder: Encoder, images: list[Path]) -> None:
    positives, negatives = ["pneumonia", "effusion"], ["normal lungs", "no effusion"]
    vectors = encoder.embed_features(encoder.encode_image(images)).numpy()
    scale = float(encoder._text.method.logit_scale.detach())
    odds = scale * vectors @ (encoder.embed_text(positives) - encoder.embed_text(negatives)).numpy().T
    expected = 1 / (1 + np.exp(-odds))
    probabilities = encoder.zero_shot(images, positives, negatives)
    np.testing.assert_allclose(probabilities.numpy(), expected, rtol=1e-4)
    default = encoder.zero_shot(images, positives)
    torch.testing.assert_close(default[:, 1], probabilities[:, 1])
    assert not torch.allclose(default[:, 0], probabilities[:, 0])
    config = encoder.preprocessing.stored
    squares = np.stack([to_stored(read_radiograph(path, config), config) for path in images])
    torch.testing.assert_close(encoder.zero_shot_stored(squares, positives, negatives), probabilities)


def test_several_prompts_are_reduced_by_mean_or_maximum(encoder: Encoder, images: list[Path]) -> None:
    texts, opposites = [["pneumonia", "lobe pneumonia"]], [["no pneumonia", "normal", "the heart"]]
    vectors = encoder.embed_features(encoder.encode_image(images))
    scale = float(encoder._text.method.logit_scale.detach())
    for reduce in ("mean", "max"):
        sides = []
        for prompts in (texts[0], opposites[0]):
            logits = (scale * vectors @ encoder.embed_text(prompts).T).numpy()
            sides.append(getattr(logits, reduce)(axis=1))
        expected = 1 / (1 + np.exp(sides[1] - sides[0]))
        ours = encoder.zero_shot(images, texts, opposites, reduce=reduce).numpy()[:, 0]
        np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_the_best_pairs_of_prompts_answer_where_asked(encoder: Encoder, images: list[Path]) -> None:
    texts = [["pneumonia", "lobe pneumonia", "right lower lobe"], ["effusion"]]
    opposites = [["no pneumonia", "normal", "the heart"], ["no effusion"]]
    features = encoder.encode_image(images)
    found = encoder.zero_shot(images, texts, opposites, reduce="best")
    vectors, scale = encoder.embed_features(features), encoder._text.method.logit_scale.detach()
    for k, (ours, theirs) in enumerate(zip(texts, opposites, strict=True)):
        pairs = torch.stack(
            [torch.stack(list(encoder.embed_text([one, other]))) for one in ours for other in theirs]
        ).transpose(1, 2)
        logits = scale * vectors @ best_prompts(pairs, vectors)
        torch.testing.assert_close(found[:, k], logits.softmax(1)[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[:, 1], encoder.zero_shot(images, texts, opposites)[:, 1], rtol=1e-4, atol=1e-6)


def test_wrong_questions_are_user_errors(encoder: Encoder, images: list[Path]) -> None:
    with pytest.raises(UserError, match="2 texts and 1 negatives"):
        encoder.zero_shot(images, ["a", "b"], ["c"])
    with pytest.raises(UserError, match="no prompt"):
        encoder.zero_shot(images, [[]])
    with pytest.raises(UserError, match="no images"):
        encoder.encode_image([])
    with pytest.raises(UserError, match="no images"):
        encoder.encode_stored(np.zeros((0, 64, 64), np.uint8))
    with pytest.raises(UserError, match="no images"):
        encoder.heat_maps_stored(np.zeros((0, 64, 64), np.uint8), ["effusion"])
    with pytest.raises(UserError, match="no texts"):
        encoder.encode_text([])
    with pytest.raises(UserError):
        encoder.encode_image([images[0].with_name("missing.png")])


def test_an_encoder_without_text_says_so_before_it_reads(tmp_path: Path) -> None:
    plain = load_encoder("random:resnet18@32")
    assert not plain.has_text
    for call in (lambda: plain.zero_shot([tmp_path / "missing"], ["a"]), lambda: plain.embed_text(["a"])):
        with pytest.raises(UserError, match="no text side"):
            call()


def test_the_package_offers_it(run: Path, images: list[Path]) -> None:
    assert medvlp.load_encoder(str(run)).encode_image(images[0]).pooled.shape == (1, 512)
    assert medvlp.Encoder is Encoder


def test_it_is_said_how_weights_were_read() -> None:
    from medvlp.zoo.key_plan import KeyPlan, Line

    assert load_encoder("random:resnet10t@32").loaded == ("drawn at random, from no file",)
    lines = [
        Line("used", "image.*", 3, "image"),
        Line("split", "qkv", 2, "image"),
        Line("ignored", "queue", 4, "the queue of training"),
        Line("zeros", "-", 0, "bias: the file has none"),
    ]
    assert KeyPlan(lines=lines).said == (
        "5 tensors of the file used, none unexplained",
        "4 ignored: the queue of training",
        "zeros: bias: the file has none",
    )
