"""Causal 3D video VAE of the open OmniHuman stack."""

from omnihuman_vae.__about__ import __version__

__all__ = ["__version__"]
