"""Properties that no decoder can read: a producer's mistake in one message must not close everybody's connection.

The client's decoder (pamqp) raises in the connection's reader for a short string that is not UTF-8 or a time
out of range. The connection then dies, the broker redelivers the message, and so on for ever; no handler ever
sees it. Read leniently, such a message is handled, and parked if need be, like any other.
"""

import struct
from datetime import datetime

from pamqp import common, decode


def read_leniently() -> None:
    """Replace what is unreadable instead of failing; for the whole process, from now on."""
    decode.METHODS |= {"shortstr": _short_text, "timestamp": _time, "table": _table}
    decode.TABLE_MAPPING |= {b"T": _time, b"F": _table}


def _short_text(value: bytes) -> tuple[int, str]:
    length = value[0]
    return length + 1, value[1 : length + 1].decode("utf-8", "replace")


def _time(value: bytes) -> tuple[int, datetime | None]:
    try:
        return decode.timestamp(value)
    except (OverflowError, OSError, ValueError):
        return 8, None


def _table(value: bytes) -> tuple[int, common.FieldTable]:
    try:
        return decode.field_table(value)
    except (OverflowError, OSError, ValueError):
        (length,) = struct.unpack(">I", value[:4])
        return int(length) + 4, {"x-notipy-unreadable-headers": True}
