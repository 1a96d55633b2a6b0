"""Contracts, plugins, flow matching and the MMDiT of the open OmniHuman stack."""

from omnihuman_core.__about__ import __version__

__all__ = ["__version__"]
