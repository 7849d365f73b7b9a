"""A command that works on until the file `stop` is there: `python beats.py [SIGNAL-TO-IGNORE]`.

Unlike a shell it starts nothing: who is stopped while it starts something waits in the system,
where nobody sees that it is stopped.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
Path("kvi").write_text(f"{os.getppid()}\n")
Path("cmd").write_text(f"{os.getpid()}\n")
while not Path("stop").exists():
    with Path("beats").open("a") as file:
        file.write("\n")
    time.sleep(0.05)
sys.exit(7)
