"""A Haar wavelet as a video VAE."""

from haar_vae.model import HaarVAE, HaarVAEConfig

__all__ = ["HaarVAE", "HaarVAEConfig"]
