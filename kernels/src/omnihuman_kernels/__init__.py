"""Triton kernels for the ops of the open OmniHuman stack."""

from omnihuman_kernels.__about__ import __version__

__all__ = ["__version__"]
