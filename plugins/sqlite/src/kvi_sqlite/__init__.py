"""The SQLite store of kvi: ``sqlite:PATH``, one file shared by the processes of a machine."""
