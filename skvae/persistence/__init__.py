"""Estimators in files that hold numbers and text alone: no pickle, and no code that is run from a file."""

from .files import load, save
from .onnx import to_onnx
from .skops_files import TRUSTED_TYPES

__all__ = ["TRUSTED_TYPES", "load", "save", "to_onnx"]
