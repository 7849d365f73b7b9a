"""Two crews of processes count under locks, while one process is killed and one is stopped.

    python -m docs.examples.shared_work --uri etcd://127.0.0.1:2379

============  ====================================================================================
`plan`        where things lie in the store, and what the processes tell each other
`worker`      one process: a member while it lives, counting under its crew's lock
`aio_worker`  the same as an asyncio program; crew b is of these
`watcher`     one process: notes every change that it sees
`program`     starts them all, and strikes two of those who hold a lock
`account`     what happened, and whether every promise was kept
`report`      tells it
`demo`        runs the program on SQLite, etcd and Consul, side by side
============  ====================================================================================
"""
