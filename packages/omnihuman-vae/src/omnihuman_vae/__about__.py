"""Version of the ``omnihuman-vae`` distribution."""

__version__ = "0.1.0"
