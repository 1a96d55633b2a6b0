"""Picture and voice in, talking video out: inference of the open OmniHuman stack."""

from omnihuman_infer.__about__ import __version__

__all__ = ["__version__"]
