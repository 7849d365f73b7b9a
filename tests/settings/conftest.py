"""Stores for the tests of settings."""

from tests.support.uris import uri

__all__ = ["uri"]
