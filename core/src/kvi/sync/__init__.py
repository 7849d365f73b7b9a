"""The face for threads: check the arguments, run the flow, give errors their place."""
