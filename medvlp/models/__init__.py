"""Towers: an image or a text in, tokens and a pooled vector out. Backbones come from timm and transformers."""
