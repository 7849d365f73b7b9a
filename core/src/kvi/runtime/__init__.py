"""The one layer with threads and clocks: what keeps leases, locks and watches of a handle going."""
