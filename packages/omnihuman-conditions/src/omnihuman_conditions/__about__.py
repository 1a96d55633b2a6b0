"""Version of the ``omnihuman-conditions`` distribution."""

__version__ = "0.1.0"
