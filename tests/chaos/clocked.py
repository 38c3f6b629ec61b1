"""`notipy` under libfaketime: the operating system's clock of one process, made to jump by `faults/operations.py`.

Python's `time.sleep` asks for an absolute monotonic time, to which libfaketime 0.9.10 answers EINVAL as soon as the
clock has jumped; it would end the threads of the MongoDB client. Sleeping by `select` goes past it. Nothing else
differs.
"""

import select
import time
from typing import SupportsFloat, SupportsIndex


def _sleep(seconds: SupportsFloat | SupportsIndex) -> None:
    select.select([], [], [], float(seconds))


if __name__ == "__main__":
    time.sleep = _sleep
    from cli.main import main

    main()
