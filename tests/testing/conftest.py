"""Stores for the tests of what programs test with."""

from tests.support.uris import uri

__all__ = ["uri"]
