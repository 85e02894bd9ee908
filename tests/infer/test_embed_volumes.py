"""Features of files of volumes and of series: those of the encoder, with a reason for each that has none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import volume_source

import medvlp
from medvlp.errors import UserError
from medvlp.infer.embed import embed
from medvlp.infer.volumes import list_volumes

SPEC = "random:vit_tiny_patch16_224@16/8"


def test_volumes_of_a_folder_are_embedded_as_the_encoder_does(tmp_path: Path) -> None:
    raw = volume_source.write(tmp_path / "raw")
    (raw / "broken.nii.gz").write_bytes(b"no volume")
    found = embed(SPEC, [raw / "0.nii.gz", raw], tmp_path / "f.parquet", batch_size=2)
    table = pq.read_table(tmp_path / "f.parquet").to_pydict()
    bad = [json.loads(line) for line in (tmp_path / "f.parquet.quarantine.jsonl").read_text().splitlines()]
    # The first is named once; label maps hold no air and are no HU.
    assert [Path(path).name for path in table["path"]] == ["0.nii.gz", "1.nii.gz", "2.nii.gz", "3.nii.gz"]
    assert {Path(row["path"]).name for row in bad} == {"broken.nii.gz", *(f"{n}_labels.nii.gz" for n in range(3))}
    assert (found.embedded, found.quarantined, found.unit) == (4, 4, "volumes")
    encoder = medvlp.load_encoder(SPEC)
    wanted = torch.cat([encoder.encode_image(path).pooled for path in table["path"]])  # type: ignore[arg-type]
    np.testing.assert_allclose(np.array(table["embedding"]), wanted.numpy(), rtol=1e-4, atol=1e-5)
    embed(SPEC, [raw / "0_labels.nii.gz"], tmp_path / "g.parquet", intensity="hu")
    assert not (tmp_path / "g.parquet.quarantine.jsonl").exists()


def test_series_are_named_by_folder_and_number(test_data: Path) -> None:
    found, bad = list_volumes([test_data / "ct_series_abdomen_3slice"])
    assert not bad
    assert [str(one) for one in found] == [str(test_data / "ct_series_abdomen_3slice")]
    assert len(found[0].files) == 3


def test_what_is_no_volume_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no volume")
    found, bad = list_volumes([tmp_path / "empty", tmp_path / "text.txt", tmp_path / "none.nii.gz"])
    assert not found
    assert [one.reason.rstrip(".") for one in bad] == [
        "The folder holds no volume",
        "The file holds no volume",
        "The file cannot be opened: No such file or directory",
    ]
    with pytest.raises(UserError, match="has no effect on images"):
        embed("random:resnet10t@32", [tmp_path / "text.txt"], tmp_path / "f.parquet", intensity="hu")
