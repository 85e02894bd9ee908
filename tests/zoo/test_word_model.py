"""Scores and heat maps of a released model whose words meet image regions, against loops."""

from __future__ import annotations

import copy

import pytest
import torch
from test_released_encoder import FORMAT, TEXTS, pixels, random_state, write
from torch.nn.functional import cosine_similarity, normalize

from medvlp.text.tokenizer import Tokenizer
from medvlp.types import TextBatch
from medvlp.zoo import load_encoder
from medvlp.zoo.encoder import Encoder
from medvlp.zoo.release import read_release
from medvlp.zoo.released import ReleasedModel, load_released


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReleasedModel, Encoder]:
    """A small model and its encoder."""
    folder, described = tmp_path_factory.mktemp("words"), copy.deepcopy(FORMAT)
    described |= {"model": "words", "logit_scale": 10.0, "options": {"sharpness": 4.0, "match_scale": 5.0}}
    described["heads"]["image_tokens"] = {"layers": [{"linear": [32, 16], "bias": False}]}
    described["keys"] = [key for key in described["keys"] if key["ours"] != "scale"]
    described["keys"].append({"ours": "heads.image_tokens.0.", "file": ["local_v."]})
    file = write(folder, described)
    torch.save(random_state(file), folder / "x.pt")
    Tokenizer.train(TEXTS * 4, 128).save(folder / "tokenizer")
    model, _ = load_released(read_release(str(file)), folder / "x.pt")
    return model, load_encoder(f"zoo:{file}:{folder / 'x.pt'}?view=native&tokenizer={folder / 'tokenizer'}")


def word_vectors(model: ReleasedModel, encoder: Encoder, text: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a text's unit vector and its words, one by one, each the sum of its pieces."""
    ids, mask, word_ids = encoder._text.tokenizer.encode([text], 12)
    features = model.encode_text(TextBatch(torch.from_numpy(ids), torch.from_numpy(mask)))
    words = [
        sum(features.tokens[0, t] for t in range(ids.shape[1]) if word_ids[0, t] == number)
        for number in range(int(word_ids.max()) + 1)
    ]
    return model.project_text(features)[0], words


@torch.inference_mode()
def test_heat_maps_are_cosines_of_regions_and_words(built: tuple[ReleasedModel, Encoder]) -> None:
    model, encoder = built
    found = encoder._text.method.heat_map(pixels(), TEXTS[:2], encoder._text.encode)
    assert found.shape == (2, 2, 5, 5)
    assert encoder.heat_map_kind == "patch-text similarity"
    regions = model.head("image_tokens")(model.encode_image(pixels(), "native").tokens)
    for i in range(2):
        for t, text in enumerate(TEXTS[:2]):
            words = word_vectors(model, encoder, text)[1]
            expected = sum(cosine_similarity(regions[i], word[None]) for word in words) / len(words)
            torch.testing.assert_close(found[i, t].flatten(), expected, rtol=1e-4, atol=1e-6)


@torch.inference_mode()
def test_a_question_is_scored_by_vector_and_best_word(built: tuple[ReleasedModel, Encoder]) -> None:
    model, encoder = built
    found = encoder.zero_shot_features(encoder(pixels()), [TEXTS[1], TEXTS[3]])
    image = model.encode_image(pixels(), "native")
    vectors, regions = model.project_image(image), model.head("image_tokens")(image.tokens)

    def similarity(i: int, text: str) -> torch.Tensor:
        vector, words = word_vectors(model, encoder, text)
        products = torch.stack([torch.stack([word @ region for region in regions[i]]) for word in words])
        attention = (4 * products.softmax(0)).softmax(1)
        contexts = [sum(a * region for a, region in zip(row, regions[i], strict=True)) for row in attention]
        best = max(5 * (normalize(c, dim=0) @ normalize(w, dim=0)) for c, w in zip(contexts, words, strict=True))
        return (vectors[i] @ vector + best) / 2

    for i in range(2):
        for k, text in enumerate((TEXTS[1], TEXTS[3])):
            sides = torch.stack([similarity(i, text), similarity(i, f"no {text}")])
            torch.testing.assert_close(found[i, k], (10 * sides).softmax(0)[0], rtol=1e-4, atol=1e-5)
