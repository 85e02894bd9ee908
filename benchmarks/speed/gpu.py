"""Pre-training at paper scale on a GPU: samples a second, wait for data, and memory beside what was planned.

    python benchmarks/speed/gpu.py [--cases clip ct_clip ...] [--folder FOLDER] [--out benchmarks/results/gpu.json]

Each case is `medvlp.train.pretrain` on a prepared store, by a recipe of `configs/pretrain`, in a process of its own:
radiographs are those of the phantom, CTs are 300×512×512 with the noise of a scanner. The first window of steps warms
up; the median of the others counts. `data_wait` is the share of the time in which the loop had no batch. Besides, the
same loop runs on one batch that is there already: `slowed` is by how much reading, decoding and transfer lengthen a
step. Plans are made in processes beside the first case, before it counts. Works without a GPU, with other sizes by
`--override`, and means nothing there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS, OF_CT_STEPS, WINDOWS = 32, 12, 4
CASES: dict[str, tuple[str, list[str]]] = {
    "clip": ("clip", ["train.batch_size=512"]),
    "medslip": ("medslip", ["train.batch_size=64"]),
    "mgca": ("mgca", ["train.batch_size=64"]),
    "m3ae": ("m3ae", ["train.batch_size=64"]),
    "ct_clip": ("ct_clip", []),
    "ct_clip kept": ("ct_clip", ["train.batch_size=4", "train.gradient_checkpointing=false"]),
    "voco": ("voco", ["train.batch_size=2"]),
    "velvet_med": ("velvet_med", ["train.batch_size=8"]),
    "m3d_clip": ("m3d_clip", ["train.batch_size=8"]),
    "merlin": ("merlin", ["train.batch_size=4"]),
}
"""Recipe and changes of it."""
OF_CT = ("ct_clip", "voco", "velvet_med", "m3d_clip", "merlin")


def write_stores(folder: Path, studies: int, volumes: int) -> None:
    """Prepare a store of radiographs and one of CTs, unless they are there."""
    from made_ct import ct_volume

    from medvlp.config.prepare import PrepareConfig
    from medvlp.sources.phantom.write import write_phantom
    from medvlp.store import prepare as preparing

    cores = os.cpu_count() or 1
    if not (folder / "xr" / "store.json").exists():
        write_phantom(folder / "xr-raw", studies=studies, seed=0, num_workers=cores)
        preparing.prepare(PrepareConfig(source="phantom", root=folder / "xr-raw", out=folder / "xr"))
    if not (folder / "ct" / "store.json").exists():
        (folder / "ct-raw").mkdir(exist_ok=True)
        body = folder / "body.npy"
        import numpy as np

        np.save(body, ct_volume())
        with ProcessPoolExecutor(min(cores, volumes)) as pool:
            list(pool.map(_write_ct, [body] * volumes, range(volumes)))
        preparing.SOURCES = SimpleNamespace(get=lambda _: _cts())
        preparing.prepare(PrepareConfig(source="phantom", root=folder / "ct-raw", out=folder / "ct"))


def _write_ct(body: Path, number: int) -> None:
    import made_ct
    import nibabel
    import numpy as np

    voxels = np.roll(np.load(body), 3 * number, axis=1)
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0), made_ct.AFFINE[:, [2, 1, 0, 3]])
    image.header.set_data_dtype(np.int16)
    nibabel.save(image, body.parent / "ct-raw" / f"{number:03d}.nii")


def _cts() -> Any:
    from medvlp.sources.base import Source
    from medvlp.sources.phantom import generate_study
    from medvlp.types import ImageRef, Intensity, Study, VolumeFacts

    class Volumes(Source):
        """The files of a folder, each a study with a report."""

        name, kind = "phantom", "volume"

        def studies(self) -> Iterator[Study]:
            """Yield a study for each file."""
            for number, file in enumerate(sorted(self.root.glob("*.nii"))):
                image = ImageRef(file.name, file.name, "CT", facts=VolumeFacts(Intensity.HU))
                report = generate_study(0, number, size=32).report.text
                yield Study(file.name, file.name, (image,), report=report, split="train")

    return Volumes


def config_of(case: str, folder: Path, overrides: list[str]) -> Any:
    """Return the configuration of a case."""
    from medvlp.config.load import load_config
    from medvlp.config.train import PretrainConfig

    recipe, changes = CASES[case]
    store = folder / ("ct" if recipe in OF_CT else "xr")
    steps = OF_CT_STEPS if recipe in OF_CT else STEPS
    own = [f"train.steps={steps}", f"train.log_every={steps // WINDOWS}", "track.mlflow=false"]
    places = [f"data.store={store}", f"run.dir={_runs_of(folder) / case.replace(' ', '_')}"]
    return load_config(
        ROOT / "configs" / "pretrain" / f"{recipe}.yaml", [*own, *changes, *places, *overrides], PretrainConfig
    )


def _runs_of(folder: Path) -> Path:
    """Return where runs write their checkpoints: in memory where that is a folder, for no disk is measured here."""
    memory = Path("/dev/shm")
    return (memory if memory.is_dir() else folder) / f"medvlp-gpu-{folder.name}"


def plan(case: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Return GiB that are planned, and the seconds that the planning took."""
    from medvlp.train.memory_plan import plan_memory

    began = time.perf_counter()
    planned = plan_memory(config_of(case, folder, overrides))
    took = round(time.perf_counter() - began, 1)
    return {"planned_gib": planned.peak / 2**30, "by_shapes": planned.by_shapes, "planning_seconds": took}


def train(case: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Train from the store, then on one batch; return the figures."""
    import torch

    from medvlp.data.pretraining import PretrainData
    from medvlp.train import pretrain

    config = config_of(case, folder, overrides)
    cuda = torch.cuda.is_available()
    again = config.model_copy(update={"run": config.run.model_copy(update={"dir": Path(f"{config.run.dir}_still")})})
    for of in (config, again):
        shutil.rmtree(of.run.dir, ignore_errors=True)
    pretrain(config)
    figures: dict[str, Any] = {"batch": config.train.batch_size, "precision": config.train.precision}
    if cuda:
        figures |= {
            "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }
    rows = _windows(config.run.dir)
    for name in ("samples_per_second", "data_wait"):
        figures[name] = statistics.median(row[f"train/{name}"] for row in rows)
    print(json.dumps(figures), flush=True)
    loader_of = PretrainData.loader

    def still(self: PretrainData, *args: Any, **kwargs: Any) -> Any:
        loader = loader_of(self, *args, **kwargs)
        epoch = loader.epoch(0)
        batch = next(epoch)
        epoch.close()
        loader.stream = lambda _=0: (batch for _ in iter(int, 1))
        return loader

    PretrainData.loader = still  # type: ignore[method-assign]
    pretrain(again)
    speed = statistics.median(row["train/samples_per_second"] for row in _windows(again.run.dir))
    for of in (config, again):
        shutil.rmtree(of.run.dir)
    return figures | {"still_samples_per_second": speed, "slowed": speed / figures["samples_per_second"] - 1}


def _windows(run: Path) -> list[dict[str, Any]]:
    """Return the windows of a run but the first, which warms up."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if "train/samples_per_second" in row][1:]


def _call(kind: str, case: str, folder: Path, overrides: list[str]) -> subprocess.Popen[str]:
    own = [sys.executable, __file__, "--one", kind, "--cases", case, "--folder", str(folder)]
    words = [word for change in overrides for word in ("--override", change)]
    return subprocess.Popen([*own, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _answer(process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """Return what a process has printed last, and why it did not come to its end."""
    error: dict[str, Any] = {}
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        error = {"error": f"not done in {seconds:.0f} seconds"}
    if not error and process.returncode:
        error = {"error": err.strip()[-600:]}
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return (json.loads(lines[-1]) if lines else {}) | error


def main() -> None:
    """Prepare, plan, measure, print and write JSON after every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--folder", type=Path, help="where stores and runs are kept; a temporary one otherwise")
    parser.add_argument("--studies", type=int, default=600)
    parser.add_argument("--volumes", type=int, default=16)
    parser.add_argument("--override", action="append", default=[], help="a change of every configuration")
    parser.add_argument("--seconds", type=float, default=120, help="the most that a case may take")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    parser.add_argument("--one", choices=["plan", "train"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        figures = (plan if given.one == "plan" else train)(given.cases[0], given.folder, given.override)
        print(json.dumps(figures))
        return
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        write_stores(folder, given.studies, given.volumes)
        print(f"stores: {time.perf_counter() - began:.0f} s", flush=True)
        plans = {case: _call("plan", case, folder, given.override) for case in given.cases}
        planned = {case: _answer(process, given.seconds) for case, process in plans.items()}
        result: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "cases": {},
        }
        for case in given.cases:
            about = planned[case] | _answer(_call("train", case, folder, given.override), given.seconds)
            if "allocated_gib" in about and "planned_gib" in about:
                about["planned_to_allocated"] = about["planned_gib"] / about["allocated_gib"]
            result["cases"][case] = {
                key: round(value, 4) if isinstance(value, float) else value for key, value in about.items()
            }
            print(case, json.dumps(result["cases"][case]), f"{time.perf_counter() - began:.0f} s", flush=True)
            given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(_runs_of(folder), ignore_errors=True)


if __name__ == "__main__":
    main()
