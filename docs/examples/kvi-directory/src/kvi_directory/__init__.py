"""A directory of plain files as a store of kvi; `kvi.open("directory:PATH")` finds it."""
