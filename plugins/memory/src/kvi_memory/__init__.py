"""The in-process memory store of kvi: ``mem:`` and ``mem:NAME``."""
