"""Version of the ``omnihuman-kernels`` distribution."""

__version__ = "0.1.0"
