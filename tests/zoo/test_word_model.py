"""Scores and heat maps of released models whose words meet image regions, against loops."""

from __future__ import annotations

import copy
from pathlib import Path

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


def built(folder: Path, kind: str) -> tuple[ReleasedModel, Encoder]:
    """Return a model of a kind and its encoder; words of MGCA's kind have a head."""
    described = copy.deepcopy(FORMAT) | {"name": kind, "model": kind, "logit_scale": 10.0}
    described["options"] = {"sharpness": 4.0, "match_scale": 5.0}
    described["heads"]["image_tokens"] = {"layers": [{"linear": [32, 6 if kind == "words" else 16], "bias": False}]}
    described["keys"] = [key for key in described["keys"] if key["ours"] != "log_scale"]
    described["keys"].append({"ours": "heads.image_tokens.0.", "file": ["local_v."]})
    if kind == "words":
        described["heads"]["text_tokens"] = {"layers": [{"linear": [16, 6]}]}
        described["keys"].append({"ours": "heads.text_tokens.0.", "file": ["local_t."]})
    file = write(folder, described)
    torch.save(random_state(file), folder / f"{kind}.pt")
    Tokenizer.train(TEXTS * 4, 128).save(folder / "tokenizer")
    model, _ = load_released(read_release(str(file)), folder / f"{kind}.pt")
    spec = f"zoo:{file}:{folder / f'{kind}.pt'}?view=native&tokenizer={folder / 'tokenizer'}"
    return model, load_encoder(spec)


def word_vectors(model: ReleasedModel, encoder: Encoder, text: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a text's unit vector and its words, one by one, each the sum of its pieces."""
    ids, mask, word_ids = encoder._text.tokenizer.encode([text], 12)
    features = model.encode_text(TextBatch(torch.from_numpy(ids), torch.from_numpy(mask)))
    words = []
    for number in range(int(word_ids.max()) + 1):
        vector = sum(features.tokens[0, t] for t in range(ids.shape[1]) if word_ids[0, t] == number)
        words.append(model.head("text_tokens")(vector) if "text_tokens" in model.heads else vector)
    return model.project_text(features)[0], words


@pytest.mark.parametrize("kind", ["words", "word_regions"])
@torch.inference_mode()
def test_heat_maps(tmp_path: Path, kind: str) -> None:
    model, encoder = built(tmp_path, kind)
    found = encoder._text.method.heat_map(pixels(), TEXTS[:2], lambda prompts: encoder._encode_text(prompts)[0])
    assert found.shape == (2, 2, 5, 5)
    assert encoder.heat_map_kind == "patch-text similarity"
    regions = model.head("image_tokens")(model.encode_image(pixels(), "native").tokens)
    for i in range(2):
        for t, text in enumerate(TEXTS[:2]):
            words = word_vectors(model, encoder, text)[1]
            products = torch.stack([torch.stack([word @ region for region in regions[i]]) for word in words])
            if kind == "words":
                expected = sum(cosine_similarity(regions[i], word[None]) for word in words) / len(words)
            else:
                expected = (4 * products.softmax(0)).softmax(1).mean(0)
            torch.testing.assert_close(found[i, t].flatten(), expected, rtol=1e-4, atol=1e-6)


@torch.inference_mode()
def test_a_question_is_scored_by_vector_and_best_word(tmp_path: Path) -> None:
    model, encoder = built(tmp_path, "word_regions")
    # One space for vectors and words, as in GLoRIA.
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
