"""Version of the ``omnihuman-core`` distribution."""

__version__ = "0.1.0"
