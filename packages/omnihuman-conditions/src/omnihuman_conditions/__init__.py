"""Text, audio and pose conditions of the open OmniHuman stack."""

from omnihuman_conditions.__about__ import __version__

__all__ = ["__version__"]
