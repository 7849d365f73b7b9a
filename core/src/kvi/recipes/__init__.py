"""Leases, temporary keys, locks and watches, written on the primitives of `kvi.interface` alone."""
