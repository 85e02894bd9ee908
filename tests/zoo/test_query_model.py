"""MedKLIP's and MeDSLIP's files with a local text model: books, answers and heat maps against plain transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from released_files import image_of, weights_of
from transformers import BertConfig, BertModel

from medvlp.errors import UserError
from medvlp.knowledge.books import anatomy_book, finding_book, finding_names
from medvlp.text.tokenizer import Tokenizer
from medvlp.zoo import load_encoder
from medvlp.zoo.encoder import Encoder
from medvlp.zoo.query_model import QueryModel
from medvlp.zoo.release import read_release
from medvlp.zoo.released import build_released, load_released
from medvlp.zoo.released_encoder import released_encoder

NAMES = ("medklip", "medslip")
MAPPED = {"Infiltration": "infiltrate", "Pleural_Thickening": "thicken", "Fibrosis": "tail_abnorm_obs", "Mass": "mass"}
"""Labels of ChestX-ray14 and the findings that the official test scripts read for them."""


@pytest.fixture(scope="module")
def clinical_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model as wide as Bio_ClinicalBERT, with one small layer."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer = Tokenizer.train([note.description for note in finding_book()], 2048)
    tokenizer.save(folder)
    sizes = {"num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": tokenizer.vocab_size}
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=NAMES)
def file(request: pytest.FixtureRequest, oracles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / f"{request.param}.pth"
    torch.save({"model": weights_of(oracles, request.param), "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> QueryModel:
    loaded = load_released(read_release(file.stem), file)[0]
    assert isinstance(loaded, QueryModel)
    return loaded


@pytest.fixture(scope="module")
def encoder(file: Path, clinical_bert: Path) -> Encoder:
    return load_encoder(f"zoo:{file.stem}:{file}?text={clinical_bert}")


def embedded(folder: Path, texts: list[str]) -> torch.Tensor:
    """Return the class states of texts, one by one."""
    tokenizer, bert = Tokenizer.from_folder(folder), BertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = [torch.from_numpy(tokenizer.encode([text], 128)[0]) for text in texts]
        return torch.cat([bert(row).last_hidden_state[:, 0] for row in rows])


@pytest.fixture(scope="module")
def findings(clinical_bert: Path) -> torch.Tensor:
    return embedded(clinical_bert, [note.description for note in finding_book()])


def decoded(model: QueryModel, pixels: torch.Tensor, book: torch.Tensor):
    with torch.inference_mode():
        return model.decode(model.encode_image(pixels), {"finding": book}, attention=True)["finding"]


@pytest.fixture(scope="module")
def pixels(oracles: Path, file: Path) -> torch.Tensor:
    return image_of(oracles / "zoo" / file.stem)


def test_labels_are_answered_by_the_queries_that_the_official_scripts_read(encoder, model, pixels, findings):
    output = decoded(model, pixels, findings)
    made = encoder.zero_shot_features(encoder(pixels), list(MAPPED))
    wanted = output.logits.softmax(2)[:, [finding_names().index(name) for name in MAPPED.values()], 1]
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    assert made.std() > 1e-3


def test_a_heat_map_is_the_attention_of_the_query_on_the_pixels_of_the_image(encoder, model, findings, tmp_path):
    assert encoder.heat_map_kind == "query attention"
    image = np.random.default_rng(0).integers(0, 255, (112, 224), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    made = encoder.heat_maps([tmp_path / "x.png"], ["pneumonia", "effusion"])[0]
    square = encoder.preprocess(tmp_path / "x.png")
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    attention = decoded(model, ((torch.from_numpy(square) / 255.0 - mean) / std)[None].float(), findings).attention
    rows = [finding_names().index(name) for name in ("pneumonia", "effusion")]
    grid = attention.mean(0)[0, rows].unflatten(1, (14, 14)).numpy()
    # A cell of the grid lies under 8 x 16 pixels of the squashed image; at its centre the map has the cell's value.
    assert made.shape == (2, 112, 224)
    coarse = made.reshape(2, 14, 8, 14, 16).mean((2, 4))
    assert np.corrcoef(coarse.ravel(), grid.ravel())[0, 1] > 0.9


def test_the_authors_descriptions_become_the_queries(encoder, model, pixels, clinical_bert, tmp_path):
    texts = {("eumonia" if n == "pneumonia" else n): f"words about {n.replace('_', ' ')}" for n in finding_names()}
    book = tmp_path / "book.json"
    book.write_text(json.dumps(texts))
    authors = released_encoder(copy.deepcopy(model), text=clinical_bert, book=book)
    output = decoded(model, pixels, embedded(clinical_bert, list(texts.values())))
    made = authors.zero_shot_features(authors(pixels), ["pneumonia"])
    torch.testing.assert_close(made[:, 0], output.logits.softmax(2)[:, 20, 1], rtol=1e-4, atol=1e-5)
    assert authors.hash != encoder.hash


def test_a_sentence_that_names_no_finding_is_one_query_more(encoder, model, pixels, findings, clinical_bert):
    output = decoded(model, pixels, torch.cat([findings, embedded(clinical_bert, ["quite another matter"])]))
    made = encoder.zero_shot_features(encoder(pixels), ["quite another matter"])
    torch.testing.assert_close(made[:, 0], output.logits.softmax(2)[:, 75, 1], rtol=1e-4, atol=1e-5)


def test_a_side_lowers_the_answer_by_how_much_nearer_another_place_is(encoder, model, pixels, findings, clinical_bert):
    trailing = model.release.name == "medslip"
    places = embedded(clinical_bert, [note.prompt(trailing) for note in anatomy_book()])
    output = decoded(model, pixels, findings)
    row = finding_names().index("effusion")
    scores = output.projected[:, row] @ places.T
    names = [note.name for note in anatomy_book()]
    sided = [n for n, name in enumerate(names) if {"left", "right"} & set(name.split("_"))]
    sided = [n for n in sided if names[n] not in ("right_atrium", "right_ventricle")]
    nearness = (scores[:, names.index("left_pleural")] - scores[:, sided].amax(1)).exp()
    made = encoder.zero_shot_features(encoder(pixels), ["left pleural effusion"])
    torch.testing.assert_close(made[:, 0], output.logits[:, row].softmax(1)[:, 1] * nearness, rtol=1e-3, atol=1e-5)


def test_names_with_module_in_front_are_the_same_model(file, pixels, oracles, tmp_path):
    state = weights_of(oracles, file.stem)
    other = (
        {name.removeprefix("module."): value for name, value in state.items()}
        if file.stem == "medklip"
        else {f"module.{name}": value for name, value in state.items()}
    )
    torch.save({"model": other}, tmp_path / "other.pth")
    one, two = load_encoder(f"zoo:{file.stem}:{file}"), load_encoder(f"zoo:{file.stem}:{tmp_path / 'other.pth'}")
    assert one.hash == two.hash
    assert torch.equal(one(pixels).tokens, two(pixels).tokens)


def test_without_a_text_model_images_alone_are_encoded(file, pixels):
    encoder = load_encoder(f"zoo:{file.stem}:{file}")
    assert (encoder.has_text, encoder.dim, encoder(pixels).grid) == (False, 1024, (14, 14))
    with pytest.raises(UserError, match="no text side"):
        encoder.zero_shot_features(encoder(pixels), ["mass"])


def test_files_that_do_not_fit_are_refused(model, clinical_bert, tmp_path):
    with pytest.raises(UserError, match="has no text tower") as error:
        released_encoder(model, tokenizer=clinical_bert)
    assert "text=FOLDER" in str(error.value)
    with pytest.raises(UserError, match="no text model reads them"):
        released_encoder(model, book=tmp_path / "book.json")
    short = tmp_path / "short.json"
    short.write_text(json.dumps({"normal": "as it should be"}))
    with pytest.raises(UserError, match="no mapping of 75 findings"):
        released_encoder(model, text=clinical_bert, book=short)
    with pytest.raises(UserError, match="cannot be read"):
        released_encoder(model, text=clinical_bert, book=tmp_path / "nowhere.json")
    narrow = tmp_path / "narrow"
    Tokenizer.from_folder(clinical_bert).save(narrow)
    vocabulary = Tokenizer.from_folder(clinical_bert).vocab_size
    BertModel(
        BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=vocabulary)
    ).save_pretrained(narrow)
    with pytest.raises(UserError, match="width 24, the checkpoint takes 768"):
        released_encoder(model, text=narrow)


def test_a_format_with_a_text_tower_reads_no_books(clinical_bert):
    with pytest.raises(UserError, match="reads no books"):
        released_encoder(build_released(read_release("refers")), text=clinical_bert)
