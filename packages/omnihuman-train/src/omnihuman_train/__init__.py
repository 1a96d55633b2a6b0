"""Omni-conditions training of the open OmniHuman stack."""

from omnihuman_train.__about__ import __version__

__all__ = ["__version__"]
