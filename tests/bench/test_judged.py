"""Specs of encoders are shown without the folders of a machine."""

from __future__ import annotations

import pytest

from medvlp.bench.judged import shown_spec


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("zoo:mgca_vit:/home/anna/vit.ckpt", "zoo:mgca_vit:vit.ckpt"),
        ("zoo:mgca_r50:/home/anna/r50.ckpt?view=native&tokenizer=/home/anna/bert", "zoo:mgca_r50:r50.ckpt"),
        ("timm:/home/anna/vit", "timm:vit"),
        ("random:resnet18@128", "random:resnet18@128"),
        ("/home/anna/runs/trial", "trial"),
    ],
)
def test_no_folder_is_shown(spec, shown):
    assert shown_spec(spec) == shown
