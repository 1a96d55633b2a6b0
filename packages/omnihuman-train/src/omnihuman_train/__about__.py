"""Version of the ``omnihuman-train`` distribution."""

__version__ = "0.1.0"
