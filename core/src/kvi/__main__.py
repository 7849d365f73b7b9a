"""`python -m kvi`: the command, where its script is not on the path."""

import sys

from kvi.cli import main

sys.exit(main())
