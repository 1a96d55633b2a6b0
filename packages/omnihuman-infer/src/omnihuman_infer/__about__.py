"""Version of the ``omnihuman-infer`` distribution."""

__version__ = "0.1.0"
