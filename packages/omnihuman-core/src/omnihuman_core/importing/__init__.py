"""Published checkpoints to model directories: finds the importers, streams the weights, writes whole components."""

from omnihuman_core.importing.components import read_model_dir, read_public, write_components
from omnihuman_core.importing.files import PICKLES, PublicCheckpointError, read_json, settings, weight_files
from omnihuman_core.importing.streaming import adapted, stored, write_stream

__all__ = [
    "PICKLES",
    "PublicCheckpointError",
    "adapted",
    "read_json",
    "read_model_dir",
    "read_public",
    "settings",
    "stored",
    "weight_files",
    "write_components",
    "write_stream",
]
