"""Recipes and networks as typed, frozen values. The only home of defaults."""

from fracskip.config.network import (
    Fraction,
    GateConfig,
    ImageConfig,
    ModelConfig,
    ModelSpec,
    Probability,
    QuantConfig,
    check_ascending,
    check_cascade,
)
from fracskip.config.recipe import (
    DataConfig,
    Recipe,
    RuntimeConfig,
    explain,
    load_recipe,
    recipe_from_dict,
)
from fracskip.config.stages import (
    BackboneStage,
    GateStage,
    JointStage,
    OptimConfig,
    SupernetStage,
    TeacherConfig,
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
    "Probability",
    "QuantConfig",
    "Recipe",
    "RuntimeConfig",
    "SupernetStage",
    "TeacherConfig",
    "check_ascending",
    "check_cascade",
    "explain",
    "load_recipe",
    "recipe_from_dict",
]
