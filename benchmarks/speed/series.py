"""A series of 300 uncompressed 512 x 512 DICOM slices: our reading against SimpleITK's.

SimpleITK's `ImageSeriesReader` gets the file names in order, or finds them first; ours gets the folder, reads and
checks all headers, orders the slices, converts to HU and turns the volume to RAS (`series_to_store.py` goes on to a
store). All read the same files from a warm page cache, one after
the other in one run on one machine; rounds alternate and the medians count. Memory is the growth of a fresh process
over one that has made the imports, in volumes of int16. Writes `benchmarks/results/series.json`.

    python benchmarks/speed/series.py [--slices 300] [--size 512] [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

MODES = ("simpleitk_read", "simpleitk_find_and_read", "ours_read")


def write_series(folder: Path, slices: int, size: int) -> None:
    """Write noisy slices with headers of a usual length, named out of order."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    rng = np.random.default_rng(0)
    folder.mkdir()
    for k in range(slices):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"1.2.3.4.{k + 1}"
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = "1.2.3.5", "1.2.3.6", "1.2.3.7"
        ds.PatientName, ds.PatientID, ds.Modality, ds.ImageType = "", "p", "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.StudyDate, ds.StudyTime, ds.Manufacturer, ds.KVP = "20200101", "120000", "made", 120
        ds.SliceThickness, ds.ConvolutionKernel, ds.InstanceNumber = 1.25, "soft", slices - k
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [-180, -180, -200 + 1.25 * k], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.Rows, ds.Columns, ds.SamplesPerPixel = [0.7, 0.7], size, size, 1
        ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = "MONOCHROME2", 16, 16, 15
        ds.PixelRepresentation, ds.RescaleSlope, ds.RescaleIntercept, ds.PixelPaddingValue = 1, 1, -1024, -2000
        ds.PixelData = rng.integers(0, 3000, (size, size), dtype=np.int16).tobytes()
        ds["PixelData"].VR = "OW"
        ds.save_as(folder / f"{(k * 7) % slices:04d}.dcm", enforce_file_format=True)


def reader(mode: str, folder: Path) -> Callable[[], object]:
    """Return what is timed."""
    if mode == "ours_read":
        from medvlp import read_volume

        return lambda: read_volume(folder)
    import SimpleITK as sitk

    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))

    def read() -> object:
        series = sitk.ImageSeriesReader()
        found = names if mode == "simpleitk_read" else sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
        series.SetFileNames(found)
        return series.Execute()

    return read


def resident(field: str) -> int:
    """Return VmRSS (now) or VmHWM (its peak since it was reset) of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory_of(mode: str, folder: Path, volume_bytes: int) -> float:
    """Return the peak memory of one read in a fresh process, above that of its imports, in volumes."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import series\n"
        "small, large, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]\n"
        "series.reader(mode, small)()\n"
        "before = series.resident('VmRSS')\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"
        "series.reader(mode, large)()\n"
        "print(series.resident('VmHWM') - before)\n"
    )
    small = folder.with_name("small")
    done = subprocess.run([sys.executable, "-c", code, small, folder, mode], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / volume_bytes


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/series.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "series"
        write_series(folder, arguments.slices, arguments.size)
        write_series(folder.with_name("small"), 3, 64)
        readers = {mode: reader(mode, folder) for mode in MODES}
        seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
        for number in range(arguments.rounds + 1):
            for mode, read in readers.items():
                started = time.perf_counter()
                read()
                if number:
                    seconds[mode].append(time.perf_counter() - started)
        volume_bytes = 2 * arguments.slices * arguments.size**2
        memory = {mode: round(memory_of(mode, folder, volume_bytes), 2) for mode in MODES}
    medians = {mode: statistics.median(times) for mode, times in seconds.items()}
    result = {
        "seconds": {mode: round(value, 3) for mode, value in medians.items()},
        "best_seconds": {mode: round(min(times), 3) for mode, times in seconds.items()},
        "ours_over_simpleitk_read": round(medians["ours_read"] / medians["simpleitk_read"], 2),
        "peak_volumes": memory,
        "slices": arguments.slices,
        "size": arguments.size,
        "rounds": arguments.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "simpleitk": version("simpleitk"),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
