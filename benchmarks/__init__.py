"""How fast kvi is beside the least work that could do the job: `python -m benchmarks --help`."""
