"""A backbone factorised over space and time."""

from factorised_backbone.model import FactorisedBackbone, FactorisedBackboneConfig

__all__ = ["FactorisedBackbone", "FactorisedBackboneConfig"]
