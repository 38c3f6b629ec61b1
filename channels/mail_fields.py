"""What a mail's content may say beside subject and bodies, as it came out of the templates: read and checked.

`reply_to`, `cc`, `bcc` (addresses divided by commas or lines), `priority`, `unsubscribe` (URLs and mailto: addresses
divided by spaces or lines) and `headers.<Name>`. Nothing in here can add a header or a recipient that the template did
not ask for: what is no address, or has a line break where there is one header, is never written.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from channels.mailbox import CONTROL, Address, address
from domain.failures import PermanentFailure
from domain.notification import HEADERS, PRIORITIES, extra_header
from domain.vocabulary import Reason

MAX_COPIES: Final = 49
"""Of one mail: most providers and servers take 50 recipients a message (RFC 5321 §4.5.3.1.8 asks for 100)."""
MAX_ADDRESSES: Final = 16 * 1024
"""Characters of `reply_to`, `cc` or `bcc`."""
LONGEST_TARGET: Final = 900
"""Characters of a URL, which is not broken: a line holds 998 (RFC 5322 §2.1.1)."""

# What may be long is not given back (`++`, `*+`), else an address field takes time by the square of its length.
_ONE = re.compile(r'(?:"(?:[^"\\]|\\.){0,1000}+"|[^",\n])++|"(?P<open>(?:[^"\\]|\\.)*+\\?+)')
"""What stands between commas or lines; or all that follows a quote that is never closed, or too late: read once, for
each quote in it would be looked for the end of anew."""
_NAMED = re.compile(r'(?P<name>"(?:[^"\\]|\\.)*+"\s*+|[^<>"@]*+)<(?P<email>[^\s<>",;@]+@[^\s<>",;@]+)>')
_SEPARATOR = re.compile(r'[",\n]')
_BARE = re.compile(r'[^\s<>",;@]+@[^\s<>",;@]+')
_X_PRIORITY: Final[Mapping[str, str]] = {"high": "1 (Highest)", "low": "5 (Lowest)"}


@dataclass(frozen=True, slots=True)
class Fields:
    """The rest of a mail's header and envelope.

    Attributes:
        left_out: copies whose address is none; the mail goes to the others.
        headers: names and values, ready but for their folding.
    """

    reply_to: tuple[Address, ...] = field(default=(), repr=False)
    cc: tuple[Address, ...] = field(default=(), repr=False)
    bcc: tuple[Address, ...] = field(default=(), repr=False)
    left_out: int = 0
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def copies(self) -> tuple[Address, ...]:
        """Who gets the mail beside its recipient, each once."""
        return (*self.cc, *self.bcc)


NONE: Final = Fields()


def read_fields(content: Mapping[str, str], recipient: Address) -> Fields:
    """Read them.

    Raises:
        PermanentFailure: an answer would go astray (`reply_to`), there are too many copies, or a header cannot be
            written.
    """
    if content.keys() <= _PLAIN:
        return NONE
    reply_to, wrong = _addresses(content, "reply_to")
    if wrong:
        raise _rejected("reply_to holds what is no e-mail address")
    cc, bad_cc = _addresses(content, "cc")
    bcc, bad_bcc = _addresses(content, "bcc")
    cc, bcc = _each_once(recipient, cc, bcc)
    if len(cc) + len(bcc) > MAX_COPIES:
        raise _rejected(f"{len(cc) + len(bcc)} copies (cc and bcc); at most {MAX_COPIES} are sent")
    headers = (*_priority(content), *_unsubscribe(content), *_extra(content))
    return Fields(tuple(reply_to), tuple(cc), tuple(bcc), bad_cc + bad_bcc, headers)


_PLAIN: Final = frozenset({"subject", "text", "html"})


def copies(content: Mapping[str, str]) -> Sequence[str]:
    """The addresses in `cc` and `bcc`, each once; none of a field that is too long: `read_fields` refuses that one."""
    found = (_mailbox(item) for field in ("cc", "bcc") for item in _items(content.get(field, "")))
    return list(dict.fromkeys(mailbox.email for mailbox in found if mailbox is not None))


def without_copies(content: Mapping[str, str], addresses: Collection[str]) -> dict[str, str]:
    """The same content, with none of these addresses in `cc` and `bcc`."""

    def kept(item: str) -> bool:
        mailbox = _mailbox(item)
        return mailbox is None or mailbox.email not in addresses

    fewer = {field: ", ".join(filter(kept, _items(content[field]))) for field in ("cc", "bcc") if field in content}
    return {**content, **fewer}


def _addresses(content: Mapping[str, str], field: str) -> tuple[list[Address], int]:
    """The addresses, and how many entries are none."""
    text = content.get(field, "")
    if len(text) > MAX_ADDRESSES:
        raise _rejected(f"{field} is longer than {MAX_ADDRESSES} characters")
    found = [_mailbox(item) for item in _items(text)]
    usable = [mailbox for mailbox in found if mailbox is not None]
    return usable, len(found) - len(usable)


def _items(text: str) -> list[str]:
    """What stands between commas or lines; nothing of a text that is too long."""
    if len(text) > MAX_ADDRESSES:
        return []
    return [item for found in _ONE.finditer(text) for part in _parts(found) if (item := part.strip())]


def _parts(found: re.Match[str]) -> Sequence[str]:
    """Behind a quote that is never closed, quotes mean nothing."""
    return [found[0]] if found["open"] is None else _SEPARATOR.split(found["open"])


def _mailbox(text: str) -> Address | None:
    """`ana@example.org` or `Ana <ana@example.org>`."""
    named = _NAMED.fullmatch(text)
    if named is None and not _BARE.fullmatch(text):
        return None
    name, email = (named["name"].rstrip(), named["email"]) if named else ("", text)
    if name.startswith('"'):
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    try:
        return address(email, name)
    except ValueError:
        return None


def _each_once(recipient: Address, cc: list[Address], bcc: list[Address]) -> tuple[list[Address], list[Address]]:
    seen = {recipient.email.lower()}

    def new(mailbox: Address) -> bool:
        known = mailbox.email.lower() in seen
        seen.add(mailbox.email.lower())
        return not known

    return [mailbox for mailbox in cc if new(mailbox)], [mailbox for mailbox in bcc if new(mailbox)]


def _priority(content: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Importance (RFC 2156 §5.3.4), and X-Priority for the programs that read that one."""
    priority = content.get("priority", "").strip().lower()
    if priority and priority not in PRIORITIES:
        raise _rejected(f"priority is none of {', '.join(PRIORITIES)}")
    if priority in _X_PRIORITY:
        yield "Importance", priority
        yield "X-Priority", _X_PRIORITY[priority]


def _unsubscribe(content: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """List-Unsubscribe (RFC 2369), with one click where there is an https URL (RFC 8058)."""
    targets = content.get("unsubscribe", "").split()
    if not targets:
        return
    for target in targets:
        _check_target(target)
    yield "List-Unsubscribe", ", ".join(f"<{target}>" for target in targets)
    if any(target.lower().startswith("https://") for target in targets):
        yield "List-Unsubscribe-Post", "List-Unsubscribe=One-Click"


def _check_target(target: str) -> None:
    try:
        parts = urlsplit(target)
    except ValueError:
        parts = urlsplit("")
    reachable = parts.netloc if parts.scheme in {"http", "https"} else parts.scheme == "mailto" and "@" in parts.path
    if len(target) > LONGEST_TARGET:
        raise _rejected(f"unsubscribe has a URL of more than {LONGEST_TARGET} characters")
    if not reachable or not target.isascii() or re.search(r"[<>,\"]", target) or CONTROL.search(target):
        raise _rejected("unsubscribe should be http(s):// URLs or mailto: addresses, other characters as %XX")


def _extra(content: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if not key.startswith(HEADERS):
            continue
        name = key.removeprefix(HEADERS)
        text = value.strip()
        if not extra_header(name):
            raise _rejected(f"the header {name!r} is not one that a notification may set")
        if CONTROL.search(text):
            raise _rejected(f"the header {name} contains a line break or a control character")
        if text:
            yield name, text


def _rejected(detail: str) -> PermanentFailure:
    return PermanentFailure(Reason.MESSAGE_REJECTED, detail)
