"""Encoders from anywhere under one interface: runs of medvlp, timm and Hugging Face folders, random ones.

Guarantee: nothing is fetched from a network; a load that leaves a key unexplained fails and names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvlp.config.preprocessing import AnyStored
    from medvlp.zoo.encoder import Encoder

__all__ = ["Encoder", "load_encoder"]


def load_encoder(
    spec: str,
    *,
    stored: AnyStored | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Encoder:
    """Return the encoder that `spec` names, in evaluation mode.

    Args:
        spec: A run folder or its `model/`; `zoo:NAME:FILE`, or `NAME:FILE` for short (a released checkpoint of another
            project, see `medvlp zoo list`; options follow as `?tokenizer=FOLDER&view=VIEW&size=PIXELS`, for MedKLIP and
            MeDSLIP `?text=FOLDER` of Bio_ClinicalBERT and perhaps `&book=FILE`); `timm:FOLDER` (config.json and
            model.safetensors as timm's `save_for_hf` writes them); `hf:FOLDER` (a transformers vision model with
            preprocessor_config.json); `random:NAME` or `random:NAME@SIZE` (an untrained timm backbone),
            `random:NAME@SIZE/PATCH` or `random:swin3d@SIZE` (one of volumes, sides in voxels), `random:RUN` (the tower
            of a run, untrained).
        stored: How files become what a store holds, for encoders that say nothing about it: pass a store's `config` so
            that files and store give the same pixels. It has no effect on encoders of another kind; a run keeps its
            own.
        device: Where the encoder computes: a torch device, or `auto` for the GPU where there is one.
        seed: Weights of a random encoder.

    Raises:
        UserError: The spec is of no known form, what it names cannot be loaded, or there is no such device.
    """
    from medvlp.zoo.load import load

    return load(spec, stored=stored, device=device, seed=seed)


def __getattr__(name: str) -> Any:
    # The class needs torch, this package must stay light.
    if name == "Encoder":
        from medvlp.zoo.encoder import Encoder

        return Encoder
    raise AttributeError(f"module 'medvlp.zoo' has no attribute '{name}'")
