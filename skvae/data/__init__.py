"""Samples at the border: arrays, data frames, sparse matrices, files and tensors, checked and in one vocabulary."""
