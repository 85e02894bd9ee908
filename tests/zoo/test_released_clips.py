"""EchoPrime's released files, rebuilt key by key: official features of clips and texts, and the encoder of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from released_files import folder_of, image_of, weights_of
from released_outputs import text_of

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.types import Clip
from medvlp.zoo import load_encoder
from medvlp.zoo.release import read_release
from medvlp.zoo.released import ReleasedModel, load_released

TOLERANCE = 1e-4
"""Of the largest absolute value of an array."""


@pytest.fixture(scope="module")
def files(oracles: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("echoprime")
    state = weights_of(oracles, "echoprime")
    parts = {
        "clips": {key: value for key, value in state.items() if not key.startswith("text:")},
        "texts": {key.removeprefix("text:"): value for key, value in state.items() if key.startswith("text:")},
    }
    for name, part in parts.items():
        torch.save(part, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in parts}


@pytest.fixture(scope="module")
def model(files: dict[str, Path]) -> ReleasedModel:
    return load_released(read_release("echoprime"), files["clips"], files["texts"])[0]


def difference(made: torch.Tensor, reference: np.ndarray) -> float:
    assert made.shape == reference.shape
    return float(np.abs(made.numpy() - reference).max() / np.abs(reference).max())


def test_texts_are_the_official_ones(model: ReleasedModel, oracles: Path) -> None:
    reference = dict(np.load(folder_of(oracles, "echoprime_text") / "features.npz"))
    with torch.inference_mode():
        features = model.encode_text(text_of(reference))
        made = {
            "text_hidden": features.tokens[:1, ::8],
            "text_cls": features.pooled,
            "text_proj": model.head("text")(features.pooled),
        }
    for name, values in made.items():
        assert difference(values, reference[name]) <= TOLERANCE, name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_clips_are_the_official_ones(model: ReleasedModel, oracles: Path) -> None:
    folder = folder_of(oracles, "echoprime")
    reference = dict(np.load(folder / "features.npz"))
    with torch.inference_mode():
        features = model.encode_image(image_of(folder))
        made = {
            "tokens": features.tokens[:1, ::2],
            "pooled": features.pooled,
            "proj": model.head("image")(features.pooled),
        }
        assert features.grid == (8, 7, 7)
    for name, values in made.items():
        assert difference(values, reference[name]) <= TOLERANCE, name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_file_alone_encodes_clips_and_says_that_it_has_no_texts(files: dict[str, Path]) -> None:
    encoder = load_encoder(f"zoo:echoprime:{files['clips']}")
    assert encoder.kind == "video"
    assert not encoder.has_text
    video = np.random.default_rng(0).integers(0, 256, (40, 224, 224, 3)).astype(np.uint8)
    features = encoder.encode_image([Clip(video, 30.0, {})])
    assert features.grid == (8, 7, 7)
    with torch.inference_mode():
        pixels = torch.from_numpy(video[4:36:2]).permute(3, 0, 1, 2)[None].float()
        norm = [torch.tensor(values).view(1, 3, 1, 1, 1) * 255 for values in (
            [0.11416, 0.1101, 0.1141], [0.18819, 0.18218, 0.1851])]  # fmt: skip
        by_hand = encoder.image_tower((pixels - norm[0]) / norm[1])
    torch.testing.assert_close(features.pooled, by_hand.pooled, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_said(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a checkpoint of the format"):
        load_released(read_release("echoprime"), files["texts"], files["clips"])
    with pytest.raises(UserError, match="no text tower") as error:
        load_encoder(f"zoo:echoprime:{files['clips']}?tokenizer={tokenizer_folder(tmp_path)}")
    assert "text=FILE" in error.value.fix
    for options, message in (("size=112", "224 pixels alone"), ("view=first", "no view 'first'")):
        with pytest.raises(UserError, match=message):
            load_encoder(f"zoo:echoprime:{files['clips']}?{options}")
    with pytest.raises(UserError, match="takes videos"):
        load_encoder(f"zoo:echoprime:{files['clips']}", stored=StoredImageConfig())


def test_with_its_text_file_clips_and_texts_share_a_space(files: dict[str, Path], tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path)
    encoder = load_encoder(f"zoo:echoprime:{files['clips']}?text={files['texts']}&tokenizer={folder}")
    assert encoder.shared_space
    assert not encoder.scores_text
    vectors = encoder.embed_text(["the left ventricle is normal", "mild mitral regurgitation"])
    assert vectors.shape == (2, 512)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def tokenizer_folder(folder: Path) -> Path:
    from medvlp.text.tokenizer import Tokenizer

    Tokenizer.train(["the left ventricle is normal", "mild mitral regurgitation"] * 3, 100).save(folder / "tokenizer")
    return folder / "tokenizer"
