"""Decisions without I/O, clocks or threads: the parts that an asyncio twin can share unchanged."""
