"""Recipes and networks as typed, frozen values. The only home of defaults."""

from fracskip.config.network import (
    Fraction,
    GateConfig,
    ImageConfig,
    ModelConfig,
    ModelSpec,
    QuantConfig,
    check_ascending,
)
from fracskip.config.recipe import (
    BackboneStage,
    DataConfig,
    GateStage,
    JointStage,
    OptimConfig,
    Recipe,
    RuntimeConfig,
    SupernetStage,
    TeacherConfig,
    explain,
    load_recipe,
    recipe_from_dict,
)

__all__ = [
    "BackboneStage",
    "DataConfig",
    "Fraction",
    "GateConfig",
    "GateStage",
    "ImageConfig",
    "JointStage",
    "ModelConfig",
    "ModelSpec",
    "OptimConfig",
    "QuantConfig",
    "Recipe",
    "RuntimeConfig",
    "SupernetStage",
    "TeacherConfig",
    "check_ascending",
    "explain",
    "load_recipe",
    "recipe_from_dict",
]
