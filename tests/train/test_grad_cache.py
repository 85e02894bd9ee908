"""A gradient cache gives the gradients of the whole batch, on one process and on several, or refuses."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny_store
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pydantic import ValidationError

from medvlp.config.methods import MethodConfig
from medvlp.config.train import TrainConfig
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods.base import Method
from medvlp.methods.context import MethodContext
from medvlp.train import pretrain
from medvlp.train.grad_cache import GradCache
from medvlp.types import Batch, TextBatch

VIT = {"name": "test_vit", "input": {"size": 32, "mean": [0.4], "std": [0.2]}}
BERT = {"hidden": 16, "layers": 2, "heads": 2, "vocab_size": 64, "max_tokens": 12, "pool": "mean", "dropout": 0.0}
CT = {
    "kind": "volume",
    "family": "vit",
    "name": "vit_tiny_patch16_224",
    "args": {"depth": 2, "embed_dim": 48, "num_heads": 2},
    "patch": [8, 8, 8],
    "input": {"size": [16, 16, 16]},
}


def method(name: str, **fields: Any) -> Method:
    torch.manual_seed(0)
    tree = {"name": name, "image": VIT, "text": BERT, "projection": {"dim": 8, "hidden": None}}
    return METHODS.get(name)(
        MethodConfig.model_validate({**tree, **fields}), MethodContext(64, 0, ("No Finding", "Edema"))
    )


def batch(number: int = 10, volumes: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 64, (number, 7), generator=generator)
    mask = torch.arange(7) < torch.randint(3, 8, (number, 1), generator=generator)
    labels = torch.randint(0, 2, (number, 2), generator=generator).float()
    text = TextBatch(torch.where(mask, ids, 0), mask, labels, [f"text {i % 7}" for i in range(number)])
    pixels = torch.randint(0, 256, (number, 1, 32, 32), dtype=torch.uint8, generator=generator)
    if volumes:
        pixels = torch.randint(-1000, 1000, (number, 1, 16, 16, 16), dtype=torch.int16, generator=generator)
    return Batch(torch.arange(number), pixels, labels, text)


def found(model: Method, given: Batch, size: int | None) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and the gradient of every parameter, by the cache or at once."""
    model.zero_grad()
    torch.manual_seed(5)
    cache = None if size is None else GradCache(model, size, nullcontext)
    terms = model.losses(given) if cache is None else cache.losses(given)
    loss = torch.stack([value for value, _ in terms.values()]).sum()
    loss.backward() if cache is None else cache.backward(loss)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.item() for name, (value, _) in terms.items()}, gradients


def check_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert one.keys() == two.keys()
    for name in one:
        scale = float(one[name].abs().max())
        assert float((one[name] - two[name]).abs().max()) <= tolerance * max(scale, 1.0), name


CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("clip", {}, False),
    ("convirt", {"matryoshka": {"prefixes": [4, 8]}}, False),
    ("siglip", {"options": {"project": True}}, False),
    ("medclip", {}, False),
    ("fdt", {}, False),
    ("clip", {"image": CT}, True),
    ("merlin", {"image": CT}, True),
    ("ct_clip", {"image": CT}, True),
]


@pytest.mark.parametrize(("name", "fields", "volumes"), CASES)
def test_the_gradients_are_those_of_the_whole_batch(name: str, fields: dict[str, Any], volumes: bool) -> None:
    model, given = method(name, **fields).double().train(), batch(volumes=volumes)
    plain = model.normalised
    model.normalised = lambda pixels: plain(pixels).double()  # type: ignore[method-assign]
    losses, wanted = found(model, given, None)
    for size in (1, 4, 32):
        made, gradients = found(model, given, size)
        assert made == pytest.approx(losses, rel=1e-9)
        check_equal(gradients, wanted, 1e-9)
    assert not [way for way in vars(model) if way.startswith(("encode_", "project_"))]


def test_dropout_draws_the_same_in_both_passes() -> None:
    model, given = method("clip", text={**BERT, "dropout": 0.3}).train(), batch()
    _, one = found(model, given, 4)
    _, two = found(model, given, 4)
    check_equal(one, two, 0.0)
    loss = torch.zeros(())
    torch.manual_seed(5)  # by hand: vectors of parts under the states that the cache passes through, in one graph
    vectors = {"image": [], "text": []}
    for side in ("image", "text"):
        for begin in (0, 4, 8):
            rows, text = slice(begin, begin + 4), given.text
            if side == "image":
                vectors[side].append(model.project_image(model.encode_stored(given.pixels[rows])))
            else:
                part = TextBatch(text.ids[rows], text.mask[rows])
                vectors[side].append(model.project_text(model.encode_text(part)))
    logits = model.logit_scale * torch.cat(vectors["image"]) @ torch.cat(vectors["text"]).T
    target = torch.arange(10)
    loss = (torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)) / 2
    model.zero_grad()
    loss.backward()
    check_equal(one, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def test_no_more_samples_than_asked_are_in_a_tower_at_a_time() -> None:
    model, seen = method("clip").train(), []
    model.image_encoder.register_forward_hook(lambda *values: seen.append(len(values[1][0])))
    found(model, batch(), 4)
    assert seen == [4, 4, 2, 4, 4, 2]


@pytest.mark.parametrize(("name", "need"), [("gloria", "word_ids"), ("filip", "tokens")])
def test_losses_of_more_than_vectors_are_refused(name: str, need: str) -> None:
    with pytest.raises(UserError, match=f"the method '{name}' needs the {need} of each sample"):
        found(method(name).train(), batch(), 4)


def test_towers_that_normalise_over_the_batch_are_refused() -> None:
    resnet = {"name": "resnet10t", "args": {"channels": [8, 16, 32, 64], "stem_width": 8}, "input": {"size": 32}}
    with pytest.raises(UserError, match=r"image_encoder normalises over the batch"):
        found(method("clip", image=resnet).train(), batch(), 4)
    with pytest.raises(ValidationError, match="grad_cache does not go with"):
        TrainConfig(grad_cache=4, accumulate=2, batch_size=64)


def test_towers_whose_codes_follow_the_batch_are_refused_while_they_do() -> None:
    small = {"dim": 16, "spatial_depth": 1, "temporal_depth": 1, "heads": 2, "head_dim": 8, "codes": 8}
    tower = {"kind": "volume", "family": "ctvit", "patch": [8, 8, 8], "args": small, "input": {"size": [16, 16, 16]}}
    model, given = method("clip", image=tower).train(), batch(volumes=True)
    with pytest.raises(UserError, match="image_encoder has a quantiser"):
        found(model, given, 4)
    plain = method("clip", image={**tower, "args": {**small, "codes": None}}).train()
    check_equal(found(plain, given, 4)[1], found(plain, given, None)[1], 1e-5)
    still = method("clip", image={**tower, "freeze": True}).train()
    check_equal(found(still, given, 4)[1], found(still, given, None)[1], 1e-5)


@pytest.mark.slow
def test_ranks_find_the_gradients_of_one_process(tmp_path: Path) -> None:
    _, wanted = found(method("clip").train(), batch(), None)
    mp.get_context("forkserver").set_forkserver_preload(["torch", "medvlp.train.grad_cache"])
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    for rank in range(2):
        check_equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), wanted)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    whole, rows = batch(), slice(6 * rank, 6 + 6 * rank)
    text = TextBatch(whole.text.ids[rows], whole.text.mask[rows], whole.text.labels[rows], whole.text.texts[rows])
    part = Batch(whole.index[rows], whole.pixels[rows], whole.labels[rows], text)
    torch.save(found(method("clip").train(), part, 4)[1], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_training_with_a_cache_is_the_training_without(tmp_path: Path) -> None:
    store = tiny_store.make_store(tmp_path, patients=24)
    weights = []
    for size in (None, 3):
        train = {"steps": 3, "grad_cache": size}
        folder = pretrain(
            tiny_store.config(store, tmp_path / str(size), "clip", train=train, method={"text": {"dropout": 0.0}})
        )
        weights.append(folder)
    from safetensors.torch import load_file

    one, two = (load_file(folder / "model" / "model.safetensors") for folder in weights)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-4)
