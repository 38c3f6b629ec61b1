"""The command beside running consumers."""

import pytest

from tests.forking import Notipy


@pytest.fixture
def cli(notipy: Notipy) -> Notipy:
    """`notipy` as a process of its own; its exit code, and what it wrote to either stream."""
    return notipy
