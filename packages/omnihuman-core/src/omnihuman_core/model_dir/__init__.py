"""A model directory: one folder per component and an index that names plugin and version.

::

    DIR/model.toml                      index
    DIR/<component>/config.toml         strict config of the component
    DIR/<component>/model.safetensors   absent for components without weights

A text in ``config.toml`` that begins with ``./`` is a path inside the component's folder, so that a directory which
holds a public model can be moved.
"""

from omnihuman_core.model_dir.index import (
    COMPONENTS,
    CONFIG,
    FORMAT,
    INDEX,
    REQUIRED,
    WEIGHTS,
    ComponentEntry,
    GenerationSettings,
    ModelDirError,
    ModelIndex,
    component_entry,
    read_index,
)
from omnihuman_core.model_dir.load import ModelComponents, load_component, load_model
from omnihuman_core.model_dir.save import replacing, save_model

__all__ = [
    "COMPONENTS",
    "CONFIG",
    "FORMAT",
    "INDEX",
    "REQUIRED",
    "WEIGHTS",
    "ComponentEntry",
    "GenerationSettings",
    "ModelComponents",
    "ModelDirError",
    "ModelIndex",
    "component_entry",
    "load_component",
    "load_model",
    "read_index",
    "replacing",
    "save_model",
]
