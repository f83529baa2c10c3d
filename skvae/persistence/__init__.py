"""Estimators in files that hold numbers and text alone: no pickle, and no code that is run from a file."""

from .files import TRUSTED_TYPES, load, save
from .onnx import to_onnx

__all__ = ["TRUSTED_TYPES", "load", "save", "to_onnx"]
