"""MedKLIP, MeDSLIP and DeViDe as wholes: their terms, what they refuse, and how they answer prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from medvlp.config.methods import MethodConfig, method_file
from medvlp.config.tree import read_yaml
from medvlp.errors import UserError
from medvlp.knowledge.books import anatomy_names, finding_book, finding_names
from medvlp.knowledge.questions import sided_places
from medvlp.methods import METHODS
from medvlp.methods.base import Method
from medvlp.methods.context import MethodContext
from medvlp.objectives.triplets import finding_labels
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import Batch, TextFeatures

NAMES = ("medklip", "medslip", "devide")
DECODER = {"width": 16, "layers": 2, "heads": 2, "ffn": 16}
TINY: dict[str, Any] = {
    "image": {
        "name": "resnet10t",
        "args": {"channels": [8, 8, 16, 16], "stem_width": 4},
        "input": {"size": 64, "mean": [0.4], "std": [0.2]},
    },
    "text": {"hidden": 16, "layers": 1, "heads": 2, "vocab_size": 400, "max_tokens": 24},
    "projection": {"dim": 8},
    "options": {"decoder": DECODER},
}
EFFUSION, CLEAR, LEFT = finding_names().index("effusion"), finding_names().index("clear"), 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([note.description for note in finding_book()], 400)


def method(name: str, tokenizer: Tokenizer | None, **fields: Any) -> Method:
    torch.manual_seed(0)
    config = MethodConfig.model_validate({"name": name, **TINY, **fields})
    return METHODS.get(name)(config, MethodContext(400) if tokenizer is None else MethodContext.of(tokenizer))


def batch(tokenizer: Tokenizer, labelled: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.full((4, 51, 75), -1, dtype=torch.int8)
    if labelled:
        matrix[0, LEFT, EFFUSION], matrix[0, 7, CLEAR] = 1, 0
        matrix[1, LEFT + 1, EFFUSION], matrix[1, LEFT, EFFUSION] = 1, 1
        matrix[2, 6, EFFUSION] = 0
    texts = ["fluid in the space", "dark lung", "no fluid", "a"]
    text = MethodContext.of(tokenizer).tokenise(texts, 24)
    pixels = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8, generator=generator)
    return Batch(torch.arange(4), pixels, text=text, triplets=matrix)


def encoder(model: Method, tokenizer: Tokenizer) -> Any:
    def encode(texts: list[str]) -> TextFeatures:
        return model.encode_text(MethodContext.of(tokenizer).tokenise(texts, 24))

    return encode


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name: str, tokenizer: Tokenizer) -> None:
    model = method(name, tokenizer).train()
    terms = model(batch(tokenizer))
    assert set(terms) == set(model.config.objectives)
    assert all(value.isfinite() and value != 0 and count > 0 for value, count in terms.values())
    sum(value for value, _ in terms.values()).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    for part in ("image_encoder.backbone.conv1", "word_embeddings", "query.weight", "classifier", "multihead_attn"):
        assert all(p.grad.any() for key, p in model.named_parameters() if part in key), part


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_labels_has_terms_of_zero(name: str, tokenizer: Tokenizer) -> None:
    model = method(name, tokenizer).train()
    terms = model(batch(tokenizer, labelled=False))
    for term, (value, count) in terms.items():
        if term != "itc":
            assert (value.item(), count.item()) == (0.0, 0.0), term
    sum(value for value, _ in terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_suit_is_refused(name: str, tokenizer: Tokenizer) -> None:
    data = batch(tokenizer)
    data.triplets = None
    with pytest.raises(UserError, match="needs triplets"):
        method(name, tokenizer)(data)
    with pytest.raises(UserError, match="needs a tokenizer"):
        method(name, None)
    with pytest.raises(UserError, match="does not split into 3 heads"):
        method(name, tokenizer, options={"decoder": DECODER | {"heads": 3}})


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_yaml_is_a_whole_method(name: str, tokenizer: Tokenizer) -> None:
    tree = read_yaml(method_file(name))
    about = tree.pop("about")
    config = MethodConfig.model_validate(tree)
    kind = METHODS.get(name)
    assert tuple(about["needs"]) == kind.demands(config).names
    assert about["heat_map"] == kind.heat_map_kind
    small = config.text.model_copy(update={"hidden": 32, "layers": 1, "heads": 2})
    with torch.device("meta"):
        model = kind(config.model_copy(update={"text": small}), MethodContext.of(tokenizer))
    assert model.image_encoder.token_dim == (768 if name == "devide" else 1024)


def test_medklip_is_existence_plus_one_place_against_seven(tokenizer: Tokenizer) -> None:
    model, data = method("medklip", tokenizer).eval(), batch(tokenizer)
    torch.manual_seed(3)
    terms = model(data)
    image = model.encode_stored(data.pixels)
    output = model.findings(image, model.query(model.finding_book(model.text_encoder)))
    rows = [(0, EFFUSION, 1), (1, EFFUSION, 1), (2, EFFUSION, 0), (0, CLEAR, 0)]
    expected = [functional.cross_entropy(output.logits[b, q], torch.tensor(label)) for b, q, label in rows]
    torch.testing.assert_close(terms["exist"][0], torch.stack(expected).mean())
    assert (terms["exist"][1], terms["position"][1]) == (4, 2)
    scores = output.projected @ model.anatomy_book(model.text_encoder).T
    values = {float(terms["position"][0].detach())}
    for seed in range(4):
        torch.manual_seed(seed)
        values.add(float(model(data)["position"][0].detach()))
    assert len(values) > 1  # places are drawn by torch's generator
    assert abs(max(values) - min(values)) < float(scores.max() - scores.min())


def test_medslip_adds_up_its_streams(tokenizer: Tokenizer) -> None:
    model, data = method("medslip", tokenizer).eval(), batch(tokenizer)
    terms = model(data)
    tokens = model.encode_stored(data.pixels).tokens
    mask = model.gate.linear(tokens)
    findings, places = model.finding_embeddings(), model.anatomy_embeddings()
    finding = model.finding_stream(mask * tokens, model.query(findings))
    anatomy = model.anatomy_stream((1 - mask) * tokens, model.query(places))
    cross = functional.cross_entropy
    of_findings = [
        cross(finding.logits[b, q], torch.tensor(y))
        for b, q, y in [(0, EFFUSION, 1), (0, CLEAR, 0), (1, EFFUSION, 1), (2, EFFUSION, 0)]
    ]
    of_places = [
        cross(anatomy.logits[b, a], torch.tensor(y))
        for b, a, y in [(0, LEFT, 1), (0, 7, 0), (1, LEFT, 1), (1, LEFT + 1, 1), (2, 6, 0)]
    ]
    torch.testing.assert_close(terms["exist"][0], torch.stack(of_findings).mean() + torch.stack(of_places).mean())
    assert [float(terms[name][1]) for name in ("exist", "protocl", "icl")] == [9, 5, 5]
    cells = [(0, LEFT, EFFUSION, 1.0), (0, 7, CLEAR, 0.0), (1, LEFT, EFFUSION, 1.0)]
    cells += [(1, LEFT + 1, EFFUSION, 1.0), (2, 6, EFFUSION, 0.0)]
    products = [anatomy.features[b, a] @ finding.features[b, f] for b, a, f, _ in cells]
    icl = functional.binary_cross_entropy_with_logits(torch.stack(products), torch.tensor([y for *_, y in cells]))
    torch.testing.assert_close(terms["icl"][0], icl)


def test_decoders_share_their_last_norm_only_as_a_legacy(tokenizer: Tokenizer) -> None:
    for legacy in (False, True):
        model = method("medslip", tokenizer, options={"decoder": DECODER, "legacy_shared_norm": legacy})
        assert (model.finding_stream.decoder.norm is model.anatomy_stream.decoder.norm) == legacy
        assert {"finding_stream.decoder.norm.weight", "anatomy_stream.decoder.norm.weight"} <= set(model.state_dict())


def test_devide_draws_each_text_of_an_entity_in_training_and_means_them_afterwards(tokenizer: Tokenizer) -> None:
    model = method("devide", tokenizer, text=TINY["text"] | {"dropout": 0.0})
    texts = [[note.definition, *note.appearance] for note in finding_book()]
    torch.manual_seed(0)
    drawn = torch.stack([model.draw_texts() for _ in range(200)])
    flat = [(k, text) for k, own in enumerate(texts) for text in own]
    seen = {(column, int(row)) for draw in drawn for column, row in enumerate(draw)}
    assert seen == {(k, row) for row, (k, _) in enumerate(flat)}
    model.eval()
    encode = encoder(model, tokenizer)
    expected = torch.stack([encode(own).pooled.mean(0) for own in texts])
    torch.testing.assert_close(model.finding_embeddings(), expected, rtol=1e-4, atol=1e-5)


def test_devide_adds_up_its_terms(tokenizer: Tokenizer) -> None:
    model, data = method("devide", tokenizer).eval(), batch(tokenizer)
    terms, image = model(data), model.encode_stored(data.pixels)
    vectors, embeddings = model.project_image(image), model.finding_embeddings()
    entities = functional.normalize(model.text_projection.layers(embeddings), dim=1)
    logits = (vectors @ entities.T) / 0.07
    expected = [logits[row].logsumexp(0) - logits[row, EFFUSION] for row in (0, 1)]
    torch.testing.assert_close(terms["tnc"][0], torch.stack(expected).mean())
    present = model.classifier(
        model.decoder(model.query(embeddings).expand(4, -1, -1), model.tokens(image.tokens)).features
    )
    labels = finding_labels(data.triplets)
    known = labels >= 0
    bce = functional.binary_cross_entropy_with_logits(present[..., 0][known], labels[known].float())
    torch.testing.assert_close(terms["bce"][0], bce)
    assert [float(terms[name][1]) for name in ("itc", "tnc", "pta", "bce")] == [8, 2, 2, 4]


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_answered_by_the_queries_that_they_name(name: str, tokenizer: Tokenizer) -> None:
    model, data = method(name, tokenizer).eval(), batch(tokenizer)
    encode = encoder(model, tokenizer)
    with torch.inference_mode():
        image = model.encode_stored(data.pixels)
        output = model.findings(image, model.query(model.finding_embeddings()), attention=True)
        present = output.logits.softmax(2)[..., 1]
        asked = [["there is a pleural effusion", "clear"], ["no pleural effusion"], ["covid"], ["mass", "nodule"]]
        scores = model.zero_shot(image, asked, [["no"]] * 4, encode)
        largest = model.zero_shot(image, asked, [["no"]] * 4, encode, reduce="max")
        alone = model.zero_shot(image, [["covid"]], [["no"]], encode)
        maps = model.heat_map(model.normalised(data.pixels), ["effusion", "covid"], encode)
    mass, nodule = (present[:, finding_names().index(word)] for word in ("mass", "nodule"))
    torch.testing.assert_close(scores[:, 0], (present[:, EFFUSION] + present[:, CLEAR]) / 2)
    torch.testing.assert_close(largest[:, 3], torch.maximum(mass, nodule))
    torch.testing.assert_close(scores[:, 1], 1 - present[:, EFFUSION])
    torch.testing.assert_close(scores[:, 2:3], alone)
    assert ((scores > 0) & (scores < 1)).all()
    torch.testing.assert_close(maps[:, 0].flatten(1), output.attention.mean(0)[:, EFFUSION])
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(4, 2))


@pytest.mark.parametrize("name", NAMES)
def test_evidence_maps_are_those_of_each_image_alone(name: str, tokenizer: Tokenizer) -> None:
    model = method(name, tokenizer, options={"decoder": DECODER, "heat_map": "evidence"}).eval()
    pixels, encode = model.normalised(batch(tokenizer).pixels), encoder(model, tokenizer)
    with torch.inference_mode():
        maps = model.heat_map(pixels, ["effusion", "covid"], encode)
        alone = model.heat_map(pixels[1:2], ["covid"], encode)
    assert maps.shape[:2] == (4, 2)
    assert (maps >= 0).all()
    assert maps.any()
    torch.testing.assert_close(maps[1:2, 1:], alone)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(UserError, match="heat_map is 'gradcam'"):
        method(name, tokenizer, options={"decoder": DECODER, "heat_map": "gradcam"})


@pytest.mark.parametrize("name", ["medklip", "medslip"])
def test_a_prompt_with_a_side_asks_for_the_place_too(name: str, tokenizer: Tokenizer) -> None:
    model, data = method(name, tokenizer).eval(), batch(tokenizer)
    encode = encoder(model, tokenizer)
    with torch.inference_mode():
        image = model.encode_stored(data.pixels)
        output = model.findings(image, model.query(model.finding_embeddings()))
        asked = [["pleural effusion"], ["left pleural effusion"], ["right pleural effusion"]]
        plain, left, right = model.zero_shot(image, asked, [["no"]] * 3, encode).unbind(1)
        scores = output.projected[:, EFFUSION] @ model.anatomy_embeddings().T
    best = scores[:, list(sided_places())].amax(1)
    for side, found in (("left", left), ("right", right)):
        row = anatomy_names().index(f"{side}_pleural")
        torch.testing.assert_close(found, plain * (scores[:, row] - best).exp())
    assert (left <= plain).all()


@pytest.mark.parametrize("name", NAMES)
def test_saving_and_loading_is_exact_with_a_frozen_text_tower(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from medvlp.config.preprocessing import Preprocessing, StoredImageConfig
    from medvlp.methods._artifact import load_model, save_model

    text = TINY["text"] | {"freeze": True}
    model, data = method(name, tokenizer, text=text).eval(), batch(tokenizer)
    preprocessing = Preprocessing(stored=StoredImageConfig(size=64), input=model.config.image.input)
    save_model(tmp_path / "model", model, preprocessing=preprocessing, tokenizer=tokenizer, record={}, state=None)
    loaded = load_model(tmp_path / "model").method
    for first in (model, loaded):
        first.eval()
    answers = []
    for each in (model, loaded):
        with torch.inference_mode():
            image = each.encode_stored(data.pixels)
            prompts = [["effusion"], ["covid"]]
            answers.append(each.zero_shot(image, prompts, prompts, encoder(each, tokenizer)))
    assert torch.equal(*answers)
    assert not any(isinstance(part, nn.Dropout) and part.training for part in loaded.modules())


@pytest.mark.parametrize("name", NAMES)
def test_many_images_are_answered_as_one_by_one(name: str, tokenizer: Tokenizer, monkeypatch: Any) -> None:
    from medvlp.methods import _queries

    model, data = method(name, tokenizer).eval(), batch(tokenizer)
    encode, prompts = encoder(model, tokenizer), [["left effusion"], ["covid"]]
    with torch.inference_mode():
        image = model.encode_stored(data.pixels)
        together = model.zero_shot(image, prompts, prompts, encode)
        monkeypatch.setattr(_queries, "IMAGES_AT_ONCE", 3)
        torch.testing.assert_close(model.zero_shot(image, prompts, prompts, encode), together)
