"""`notipy run` with a fault of its own: whatever holds the word KILLER ends the process that reads it."""

import os
import signal
from typing import Any

from cli.main import main
from consumers import codec
from domain import accept


def _killing(read: Any) -> Any:
    def reading(subject: Any, *more: Any, **named: Any) -> Any:
        body = subject if isinstance(subject, bytes) else subject.body
        if b"KILLER" in body:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(subject, *more, **named)

    return reading


if __name__ == "__main__":
    for module, name in ((accept, "parse_event"), (accept, "read_event"), (codec, "read_dispatch")):
        setattr(module, name, _killing(getattr(module, name)))
    main()
