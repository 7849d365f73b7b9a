"""Consul KV as a store of kvi: ``consul://host:8500`` and ``consul+tls://host:8501``."""
