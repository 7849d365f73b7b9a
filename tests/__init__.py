"""The tests of kvi, and the set-up that runs real servers for them."""
