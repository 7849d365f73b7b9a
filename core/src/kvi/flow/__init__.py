"""What goes on between a program and its store, written once as ``async def`` over `kvi.port`."""
