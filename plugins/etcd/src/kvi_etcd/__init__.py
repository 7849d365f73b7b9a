"""etcd v3 as a store of kvi: ``etcd://``, ``etcd+tls://``, ``http://`` and ``https://``."""
