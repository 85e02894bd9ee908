"""From the configuration of an image tower to the tower."""

from __future__ import annotations

from importlib import import_module

from medvlp.config.towers import ClipTowerConfig, ImageTowerConfig, VolumeTowerConfig
from medvlp.models.tower import Tower

FAMILIES = {
    "vit": "vision3d:ViT3d",
    "swin": "swin3d:Swin3d",
    "resnet": "inflate:ResNet3d",
    "ctvit": "ctvit:CTViTTower",
    "slices": "slices:SliceTower",
    "mvit": "vision_clip:MViTTower",
    "frames": "vision_clip:FramesTower",
}
"""Module of `medvlp.models` and class of each family of volume and clip towers."""


def build_tower(config: ImageTowerConfig | VolumeTowerConfig | ClipTowerConfig) -> Tower:
    """Return the tower that `config` describes; see the towers for errors."""
    if isinstance(config, ImageTowerConfig):
        from medvlp.models.vision2d import ImageTower

        return ImageTower(config)
    module, _, name = FAMILIES[config.family].partition(":")
    tower: Tower = getattr(import_module(f"medvlp.models.{module}"), name)(config)
    return tower
