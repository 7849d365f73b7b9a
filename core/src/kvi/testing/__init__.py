"""For the tests of programs that use kvi: faults on order, on any store, for both faces.

The fixtures of pytest are in `kvi_pytest`, which pytest loads by itself; `Faults` needs no pytest.
"""

from kvi.testing.faults import Fault, Faults

__all__ = ["Fault", "Faults"]
