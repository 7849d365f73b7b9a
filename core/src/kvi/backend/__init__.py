"""Wrappers: stores over another store, one file each."""
