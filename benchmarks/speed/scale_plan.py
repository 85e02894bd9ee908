"""How long, how large and how many files: MIMIC-CXR and CT-RATE as stores, from rates measured on this machine.

    python benchmarks/speed/scale_plan.py [--rounds 5] [--out benchmarks/results/scale_plan.json]

Measured: processor seconds and bytes of one image (JPEG and uncompressed DICOM of 3056×2544 pixels) and of one CT
(.nii.gz and 300 DICOM slices of 512²) on one core, by the function that every job calls; seconds until a new process
has written its first shard; seconds of the part that one process does alone (plan and tables). Processor seconds are
taken, as other programs change them little. Everything else follows from these by the arithmetic in `plan`, with the
assumptions that the result names. The pictures are made: the phantom, enlarged, with noise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import made_ct
import numpy as np

from medvlp.cluster.jobs import JOBS_EACH
from medvlp.config.prepare import PrepareConfig
from medvlp.config.preprocessing import StoredImageConfig, StoredVolumeConfig
from medvlp.sources.base import Source
from medvlp.sources.phantom import generate_study
from medvlp.store.finish import finish
from medvlp.store.plan import make_plan
from medvlp.store.shards import PROGRESS, ShardTask, write_shard
from medvlp.types import ImageRef, Intensity, Study, VolumeFacts

IMAGES_EACH = 12
RADIOGRAPH = (3056, 2544)
NOISE = 2.0
SHARD_IMAGES = 512
TABLE_STUDIES = 20_000
SIZES = {
    "mimic_cxr_jpg": {"items": 377_110, "studies": 227_835, "kind": "image", "from": "jpeg"},
    "mimic_cxr": {"items": 377_110, "studies": 227_835, "kind": "image", "from": "dicom"},
    "ct_rate": {"items": 50_188, "studies": 25_692, "kind": "volume", "from": "nifti"},
}
CT_SLICES = 285
CROP = 96
CLUSTERS = {"one core": (1, 0), "one node of 16 cores": (16, 0), "100 jobs of one core": (100, 100)}
"""Name -> cores, and jobs at a time; without jobs the command starts a process for each core."""
EFFICIENCY = 0.8
STORAGE = {"as fast as needed": math.inf, "1 GB/s": 1e9, "200 MB/s": 2e8}
LINKS = {"1 Gbit/s": 1e9 / 8, "10 Gbit/s": 1e10 / 8}
ASSUMPTIONS = [
    "a core is as fast as one of this machine",
    f"{EFFICIENCY:.0%} of the cores' time is work; the rest waits in the queue, for the disk, and at the ends of jobs",
    "the hours are the longer of the cores' and of the storage's, which reads the raw data and writes the store once",
    f"a CT of CT-RATE has {CT_SLICES} slices of 512² on average (14.3 million slices in 50,188 volumes)",
    "bytes and seconds of a CT are those of a made one with a noise of 20 HU; stored images have one size",
    "a copy to an object store sends and then reads every byte once, over a link that carries 70 % of its name",
]


def processor_seconds(function: Callable[[], Any], rounds: int) -> float:
    """Return the median of the processor seconds of some calls, after one that is not counted."""
    function()
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def radiographs(folder: Path) -> dict[str, list[ImageRef]]:
    """Write radiographs of the size of MIMIC-CXR's as JPEG and as uncompressed 12-bit DICOM."""
    import pydicom
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    refs: dict[str, list[ImageRef]] = {"jpeg": [], "dicom": []}
    rng = np.random.default_rng(0)
    small = generate_study(0, 0, size=96, image_size=512).images[0].pixels
    for number in range(IMAGES_EACH):
        turned = np.roll(small, 8 * number, axis=1).astype(np.float32)
        large = cv2.resize(turned, RADIOGRAPH[::-1], interpolation=cv2.INTER_CUBIC)
        grey = np.clip(large + rng.normal(0, NOISE, large.shape), 0, 255)
        cv2.imwrite(str(folder / f"{number}.jpg"), grey.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.Modality, image.PatientID, image.PhotometricInterpretation = "DX", "phantom", "MONOCHROME2"
        image.Rows, image.Columns = RADIOGRAPH
        image.SamplesPerPixel, image.BitsAllocated, image.BitsStored, image.HighBit = 1, 16, 12, 11
        image.PixelRepresentation, image.WindowCenter, image.WindowWidth = 0, 2048, 4096
        image.PixelSpacing = [0.139, 0.139]
        image.PixelData = (grey * 16).astype("<u2").tobytes()
        image.save_as(folder / f"{number}.dcm", enforce_file_format=True)
        refs["jpeg"].append(ImageRef(f"jpeg_{number}", f"{number}.jpg"))
        refs["dicom"].append(ImageRef(f"dicom_{number}", f"{number}.dcm", "DX"))
    return refs


def ct(folder: Path) -> dict[str, list[ImageRef]]:
    """Write one CT as .nii.gz, like CT-RATE, and as a DICOM series."""
    import nibabel

    volume = made_ct.ct_volume()
    affine = made_ct.AFFINE[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine), folder / "ct.nii.gz")
    made_ct.write_series(volume, folder / "series")
    files = tuple(f"series/{file.name}" for file in sorted((folder / "series").iterdir()))
    facts = VolumeFacts(Intensity.HU)
    return {
        "nifti": [ImageRef("nifti", "ct.nii.gz", "CT", facts=facts)],
        "dicom_series": [ImageRef("series", "series", "CT", files=files)],
    }


def measured(folder: Path, refs: list[ImageRef], kind: str, rounds: int) -> dict[str, float]:
    """Measure what one image or volume costs."""
    task = ShardTask(
        out=folder / "store" / refs[0].image_id,
        root=folder,
        kind=kind,  # type: ignore[arg-type]
        number=0,
        shard_images=len(refs),
        images=tuple(refs),
        masks=((),) * len(refs),
        shard_masks=0,
        config=StoredImageConfig() if kind == "image" else StoredVolumeConfig(),
    )
    record = write_shard(task)
    if record["problems"]:
        raise SystemExit(record["problems"])
    raw = sum((folder / name).stat().st_size for ref in refs for name in ref.files or (ref.path,))
    stored = sum(file.stat().st_size for file in task.files if file.exists())
    return {
        "core_seconds": round(processor_seconds(lambda: write_shard(task), rounds) / len(refs), 4),
        "raw_bytes": round(raw / len(refs)),
        "stored_bytes": round(stored / len(refs)),
        "record_bytes": round(task.record.stat().st_size / len(refs)),
    }


def start_seconds(folder: Path, ref: ImageRef, rounds: int) -> float:
    """Measure the processor seconds of a new process that writes a shard of one image, less those of the image."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom medvlp.config.preprocessing import StoredImageConfig\n"
        "from medvlp.store.shards import ShardTask, write_shard\nfrom medvlp.types import ImageRef\n"
        "root = Path(sys.argv[1])\nimage = ImageRef('a', sys.argv[2])\n"
        "write_shard(ShardTask(root / 'start', root, 'image', 0, 1, (image,), ((),), 0, StoredImageConfig()))\n"
        "print(time.process_time())"
    )
    command = [sys.executable, "-c", script, str(folder), ref.path]
    return statistics.median(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(rounds)
    )


class _Made(Source):
    """Studies of one image each, without files."""

    name = "mimic_cxr_jpg"

    def studies(self) -> Iterator[Study]:
        for number in range(TABLE_STUDIES):
            image = ImageRef(f"image_{number}", f"files/p10/p{number}/s{number}/{number}.jpg", view="PA")
            labels = dict.fromkeys(self.card.labels, 0.0)
            yield Study(f"s{number}", f"p{number // 3}", (image,), report="No change. " * 60, labels=labels)


def table_seconds(folder: Path) -> float:
    """Measure the processor seconds of plan and tables, for one study."""
    config = PrepareConfig(source="mimic_cxr_jpg", root=folder, out=folder / "tables", shard_images=SHARD_IMAGES)
    source = _Made(folder)
    facts = {"height": 2, "width": 2, "spacing_row_mm": 0.1, "spacing_col_mm": 0.1, "mean": 0.5, "phash": "0" * 16}
    facts |= {"sha256": "0" * 64, "pixels_sha256": "0" * 64}
    started = time.process_time()
    plan = make_plan(source, config)
    json.dumps(plan.state)
    rows = [{"index": index, **facts} for index in range(len(plan.images))]
    (config.out / PROGRESS).mkdir(parents=True)
    finish(plan, [{"rows": rows, "masks": [], "problems": [], "bytes": {}}], source, config)
    return (time.process_time() - started) / len(plan.studies)


def plan(data_set: str, rates: dict[str, Any]) -> dict[str, Any]:
    """Return hours, bytes, files and jobs of a data set."""
    facts = SIZES[data_set]
    items, volume = int(facts["items"]), facts["kind"] == "volume"
    rate = rates[facts["from"]]
    scale = CT_SLICES / made_ct.SHAPE[0] if volume else 1.0
    shards = items if volume else math.ceil(items / SHARD_IMAGES)
    core_seconds = items * rate["core_seconds"] * scale
    alone = rates["table_core_seconds_per_study"] * int(facts["studies"])
    stored = items * rate["stored_bytes"] * scale
    result: dict[str, Any] = {
        "items": items,
        "core_hours": round(core_seconds / 3600, 1),
        "raw_tb": round(items * rate["raw_bytes"] * scale / 1e12, 2),
        "stored_tb": round(stored / 1e12, 3),
        "files": (2 * items if volume else shards + 1) + 6,
        "shards": shards,
        "minutes_alone": round(alone / 60, 1),
        "clusters": {},
        "copy_hours": {link: round(2 * stored / (0.7 * speed) / 3600, 1) for link, speed in LINKS.items()},
    }
    moved = items * scale * (rate["raw_bytes"] + rate["stored_bytes"])
    for name, (cores, at_a_time) in CLUSTERS.items():
        size = math.ceil(shards / (JOBS_EACH * at_a_time)) if at_a_time else 0
        jobs = math.ceil(shards / size) if size else 0
        working = core_seconds / (cores * EFFICIENCY) + (jobs or cores) / cores * rates["start_core_seconds"]
        result["clusters"][name] = {
            "jobs": jobs,
            "hours": {
                storage: round((max(working, moved / speed) + alone) / 3600, 1) for storage, speed in STORAGE.items()
            },
            "gb_per_second_needed": round(moved / working / 1e9, 2),
        }
    return result


def reading(rates: dict[str, Any]) -> dict[str, Any]:
    """Return what training asks of the link to an object store."""
    chunk = StoredVolumeConfig().chunk
    chunks = ((CROP - 1) / chunk + 1) ** 3  # met on average by a crop at a random place
    voxels = math.prod(made_ct.SHAPE)
    crop = chunks * chunk**3 / voxels * rates["nifti"]["stored_bytes"]
    image = rates["jpeg"]["stored_bytes"]
    return {
        "crop_side": CROP,
        "bytes": {"image": round(image), "crop": round(crop)},
        "a_second": {
            link: {"images": round(0.7 * speed / image), "crops": round(0.7 * speed / crop)}
            for link, speed in LINKS.items()
        },
    }


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "scale_plan.json")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, volumes = radiographs(folder), ct(folder)
        rates: dict[str, Any] = {
            kind: measured(folder, refs, "image", arguments.rounds) for kind, refs in images.items()
        }
        rates |= {kind: measured(folder, refs, "volume", arguments.rounds) for kind, refs in volumes.items()}
        start = start_seconds(folder, images["jpeg"][0], arguments.rounds) - rates["jpeg"]["core_seconds"]
        rates["start_core_seconds"] = round(start, 2)
        rates["table_core_seconds_per_study"] = round(table_seconds(folder), 6)
    result = {
        "measured": rates,
        "plan": {data_set: plan(data_set, rates) for data_set in SIZES},
        "reading_over_a_link": reading(rates),
        "assumptions": ASSUMPTIONS,
        "made": {"radiograph": list(RADIOGRAPH), "ct": list(made_ct.SHAPE)},
        "stored": {"image": StoredImageConfig().resolved(), "volume": StoredVolumeConfig().resolved()},
        "rounds": arguments.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    arguments.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
