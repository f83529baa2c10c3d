"""Fixtures of tests of copies and files."""

import pytest


@pytest.fixture
def blobs(few_blobs):
    """Few samples, because fits of networks take the time."""
    return few_blobs
