"""Patches against entities, by a loop over images and entities."""

from __future__ import annotations

import torch
from torch.nn import functional

from medvlp.objectives.entity_alignment import entity_patch_nce


def test_it_is_a_loop_over_present_entities() -> None:
    torch.manual_seed(0)
    patches, entities = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    present = torch.rand(3, 6) < 0.5
    present[1] = False
    terms = []
    for i in range(3):
        for e in range(6):
            if not present[i, e]:
                continue
            own = functional.normalize(patches[i], dim=1)
            words = functional.normalize(entities, dim=1)
            weights = (7.0 * (own @ words[e])).softmax(0)
            pooled = functional.normalize((weights[:, None] * own).sum(0), dim=0)
            rivals = [k for k in range(6) if k == e or not present[i, k]]
            logits = torch.stack([11.0 * (pooled @ words[k]) for k in rivals])
            terms.append(logits.logsumexp(0) - logits[rivals.index(e)])
    value, count = entity_patch_nce(patches, entities, present, torch.tensor(11.0, dtype=torch.float64), 7.0)
    torch.testing.assert_close(value, torch.stack(terms).mean())
    assert count == len(terms) > 3


def test_without_a_present_entity_it_is_zero_with_a_gradient_of_zero() -> None:
    patches, entities = torch.randn(2, 4, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    value, count = entity_patch_nce(patches, entities, torch.zeros(2, 3, dtype=torch.bool), torch.tensor(9.0))
    assert (value.item(), count.item()) == (0.0, 0.0)
    value.backward()
    for tensor in (patches, entities):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_where_all_entities_are_present_none_is_a_rival() -> None:
    value, count = entity_patch_nce(
        torch.randn(1, 4, 5), torch.randn(3, 5), torch.ones(1, 3, dtype=torch.bool), torch.tensor(9.0)
    )
    assert value == 0.0
    assert count == 3
