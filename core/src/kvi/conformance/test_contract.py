"""The whole suite, for `pytest -p kvi.conformance.plugin --pyargs kvi.conformance --kvi-uri …`."""

from kvi.conformance import *  # noqa: F403
