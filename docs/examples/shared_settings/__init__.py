"""Several processes share the settings of one service in one store, whichever the URI names.

    python -m docs.examples.shared_settings --uri etcd://127.0.0.1:2379

============  ====================================================================================
`settings`    what the service starts with (``settings.json``), and where it lies in the store
`worker`      one process: counts requests, moves quota between regions, re-reads its settings
`program`     starts the workers, then checks that nothing was lost, doubled or torn
`report`      tells it all
`demo`        runs the program on SQLite, etcd and Consul, one after the other
============  ====================================================================================
"""
