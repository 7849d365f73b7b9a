"""The rules of the contract as tests, by subject; `kvi.conformance` has their names."""

from kvi.conformance.suite.concurrency import TestConcurrency as TestConcurrency
from kvi.conformance.suite.handles import (
    TestHandles as TestHandles,
)
from kvi.conformance.suite.handles import (
    TestNamespaces as TestNamespaces,
)
from kvi.conformance.suite.handles import (
    TestOptions as TestOptions,
)
from kvi.conformance.suite.histories import TestHistories as TestHistories
from kvi.conformance.suite.interrupts import TestInterrupts as TestInterrupts
from kvi.conformance.suite.keys import (
    TestKeys as TestKeys,
)
from kvi.conformance.suite.keys import (
    TestRevisions as TestRevisions,
)
from kvi.conformance.suite.keys import (
    TestValues as TestValues,
)
from kvi.conformance.suite.leases import TestLeases as TestLeases
from kvi.conformance.suite.leases import TestTempKeys as TestTempKeys
from kvi.conformance.suite.locks import TestLocks as TestLocks
from kvi.conformance.suite.machine import TestModel as TestModel
from kvi.conformance.suite.past import TestPast as TestPast
from kvi.conformance.suite.ranges import TestRange as TestRange
from kvi.conformance.suite.read_only import TestReadOnly as TestReadOnly
from kvi.conformance.suite.recipes import TestRecipes as TestRecipes
from kvi.conformance.suite.tasks import TestAsyncio as TestAsyncio
from kvi.conformance.suite.txns import (
    TestCompares as TestCompares,
)
from kvi.conformance.suite.txns import (
    TestTransactions as TestTransactions,
)
from kvi.conformance.suite.updates import TestAtomically as TestAtomically
from kvi.conformance.suite.updates import TestUpdates as TestUpdates
from kvi.conformance.suite.watches import (
    TestConsumers as TestConsumers,
)
from kvi.conformance.suite.watches import (
    TestHistory as TestHistory,
)
from kvi.conformance.suite.watches import (
    TestWatches as TestWatches,
)
from kvi.conformance.suite.work import (
    TestMeetings as TestMeetings,
)
from kvi.conformance.suite.work import (
    TestNumbers as TestNumbers,
)
from kvi.conformance.suite.work import (
    TestWork as TestWork,
)
from kvi.conformance.suite.writes import (
    TestCas as TestCas,
)
from kvi.conformance.suite.writes import (
    TestDelete as TestDelete,
)
from kvi.conformance.suite.writes import (
    TestStore as TestStore,
)
from kvi.conformance.suite.writes import (
    TestTas as TestTas,
)
