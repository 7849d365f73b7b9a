"""`make demo`: three small programs on SQLite, then on real etcd and Consul servers.

`python -m tests.servers -- python -m docs.examples.demo` starts the servers.
"""

from __future__ import annotations

import sys

from docs.examples.device_agent import demo as device_agent
from docs.examples.shared_settings import demo as shared_settings
from docs.examples.shared_work import demo as shared_work


def main() -> int:
    """Run them; 1 if a total was wrong or a promise broken."""
    print("Processes share settings: reads, test-and-set, transactions\n", flush=True)
    first = shared_settings.main([])
    print("\n\nProcesses share work, some by asyncio: temporary keys, locks, watches\n", flush=True)
    second = shared_work.main([])
    print("\n\nAgents share typed entities: loaders, commits, pack and unpack\n", flush=True)
    return max(first, second, device_agent.main([]))


if __name__ == "__main__":
    sys.exit(main())
