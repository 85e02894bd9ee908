"""Features of many files in Parquet: right values, nothing lost, nothing private, all or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from typer.testing import CliRunner

from medvlp.cli import app
from medvlp.config.preprocessing import Preprocessing
from medvlp.errors import UserError
from medvlp.infer.embed import embed
from medvlp.zoo import load_encoder

SPEC = "random:resnet18@32"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    root = tmp_path / "scans"
    (root / "deep").mkdir(parents=True)
    for name in ("b.png", "a.png", "deep/c.png", "deep/d.jpg", "deep/.hidden.png"):
        Image.fromarray(rng.integers(0, 256, (40, 50)).astype(np.uint8)).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def test_rows_are_the_encoders_features_in_order(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "new" / "features.parquet"
    summary = embed(SPEC, [folder / "deep" / "c.png", folder], out, batch_size=2)
    table = pq.read_table(out)
    expected = [folder / name for name in ("deep/c.png", "a.png", "b.png", "deep/d.jpg")]
    assert table["path"].to_pylist() == [str(path) for path in expected]
    encoder = load_encoder(SPEC)
    vectors = np.stack(table["embedding"].to_pylist())
    np.testing.assert_allclose(vectors, encoder.encode_image(expected).pooled.numpy(), rtol=1e-5, atol=1e-6)
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[512]"
    facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert facts["medvlp.encoder_hash"] == encoder.hash == summary.encoder_hash
    assert Preprocessing.model_validate_json(facts["medvlp.preprocessing"]) == encoder.preprocessing
    assert (summary.embedded, summary.quarantined, summary.quarantine, summary.dim) == (4, 0, None, 512)


def test_the_command_runs_with_its_defaults(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "features.parquet"
    result = CliRunner().invoke(app, ["embed", SPEC, str(folder / "a.png"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert pq.read_table(out).num_rows == 1
    with pytest.raises(UserError, match="no device 'gpu'"):
        embed(SPEC, [folder / "a.png"], out, device="gpu")


def test_bad_files_are_set_aside_and_the_rest_goes_on(tmp_path: Path, folder: Path) -> None:
    (folder / "empty.dcm").touch()
    whole = (folder / "a.png").read_bytes()
    (folder / "deep" / "cut.png").write_bytes(whole[: len(whole) // 2])
    missing, empty = tmp_path / "missing.png", tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "features.parquet"
    summary = embed(SPEC, [missing, folder, empty], out, batch_size=2)
    assert (summary.embedded, summary.quarantined) == (4, 4)
    assert summary.quarantined_share == 0.5
    rows = [json.loads(line) for line in summary.quarantine.read_text().splitlines()]
    assert {row["path"] for row in rows} == {str(missing), str(empty), *map(str, folder.glob("**/[ec][mu]*.*"))}
    assert all(row["reason"] and row["fix"] for row in rows)
    embed(SPEC, [folder / "a.png"], out)
    assert not summary.quarantine.exists()


def test_nothing_readable_keeps_an_older_table(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "features.parquet"
    embed(SPEC, [folder], out)
    before = out.read_bytes()
    with pytest.raises(UserError, match="None of the 1 files"):
        embed(SPEC, [folder / "notes.txt"], out)
    assert out.read_bytes() == before
    with pytest.raises(UserError, match="nothing to embed"):
        embed(SPEC, [], out)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "features.parquet",
        "features.parquet.quarantine.jsonl",
        "scans",
    ]


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        embed(SPEC, [folder], tmp_path / "file" / "features.parquet")


@pytest.mark.data
def test_identifiers_of_a_header_stay_out(tmp_path: Path, test_data: Path) -> None:
    dataset = pydicom.dcmread(test_data / "dicom" / "RG3_J2KI.dcm")
    dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "Geheim^Person", "ID4711", "ACC0815"
    dataset.save_as(tmp_path / "scan.dcm")
    out = tmp_path / "features.parquet"
    summary = embed(SPEC, [tmp_path / "scan.dcm"], out)
    assert summary.embedded == 1
    content = out.read_bytes()
    assert not any(secret in content for secret in (b"Geheim", b"ID4711", b"ACC0815"))
