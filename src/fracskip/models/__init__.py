"""Backbones: residual networks that a dynamic network can be built on."""

from fracskip.models.export import register_adapter
from fracskip.models.registry import create_backbone, create_model, list_models

__all__ = [
    "create_backbone",
    "create_model",
    "list_models",
    "register_adapter",
]
