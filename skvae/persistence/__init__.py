"""Estimators in files that hold numbers and text alone: no pickle, and no code that is run from a file."""

from .files import TRUSTED_TYPES, load, save

__all__ = ["TRUSTED_TYPES", "load", "save"]
