"""Causal 3D video VAE of the open OmniHuman stack."""

from omnihuman_vae import presets
from omnihuman_vae.__about__ import __version__
from omnihuman_vae.config import CausalVAEConfig
from omnihuman_vae.distribution import DiagonalGaussian
from omnihuman_vae.model import CausalVideoVAE

__all__ = ["CausalVAEConfig", "CausalVideoVAE", "DiagonalGaussian", "__version__", "presets"]
