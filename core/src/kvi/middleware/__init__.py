"""What stands between a handle and its store: each one method, ``execute(op, call)``."""
