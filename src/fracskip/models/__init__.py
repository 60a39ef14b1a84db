"""Backbones: residual networks that a dynamic network can be built on."""

from fracskip.models.export import register_adapter
from fracskip.models.registry import create_backbone, create_model, list_models
from fracskip.models.resnet import BasicBlock, CifarResNet, fused

__all__ = [
    "BasicBlock",
    "CifarResNet",
    "create_backbone",
    "create_model",
    "fused",
    "list_models",
    "register_adapter",
]
