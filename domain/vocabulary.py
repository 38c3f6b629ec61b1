"""The closed words of the contract: channels, lanes, states and reasons.

The same words stand in MongoDB, in message headers, in metric labels and in the CLI.
"""

from enum import StrEnum


class Channel(StrEnum):
    """A way of reaching a person; each has queues and a consumer of its own."""

    EMAIL = "email"
    SMS = "sms"
    PUSH = "push"
    CHAT = "chat"
    WEBHOOK = "webhook"
    INBOX = "inbox"


class Lane(StrEnum):
    """Which of a channel's queues a delivery takes: urgent ones never wait behind a broadcast."""

    HIGH = "high"
    NORMAL = "normal"
    BULK = "bulk"


class Semantics(StrEnum):
    """What a channel does when an attempt's outcome cannot be known."""

    AT_LEAST_ONCE = "at_least_once"
    """Send again and mark the delivery `possible_duplicate`."""
    AT_MOST_ONCE = "at_most_once"
    """Stop at `unknown`."""


class State(StrEnum):
    """Where a delivery stands."""

    QUEUED = "queued"
    HELD = "held"
    SENDING = "sending"
    RETRYING = "retrying"
    SENT = "sent"
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    FAILED = "failed"
    SUPPRESSED = "suppressed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @property
    def final(self) -> bool:
        """Whether nothing more happens without a receipt or an operator's replay."""
        return self not in _IN_FLIGHT


_IN_FLIGHT = frozenset({State.QUEUED, State.HELD, State.SENDING, State.RETRYING})
IN_FLIGHT: tuple[State, ...] = (State.QUEUED, State.HELD, State.RETRYING)
"""The non-final states that are stored on a delivery (`sending` is a live claim, not a stored state)."""
REPLAYABLE: tuple[State, ...] = (State.FAILED, State.UNKNOWN)
"""The final states from which `notipy dead replay` starts a new epoch."""


class EventState(StrEnum):
    """Where an event stands."""

    ACCEPTED = "accepted"
    """Stored; its deliveries are being planned."""
    PLANNED = "planned"
    """Every delivery is stored and dispatched."""
    UNMATCHED = "unmatched"
    """No notification is on it and it carries no content: nobody is told."""
    FAILED = "failed"
    """Planning it ended its process again and again; parked in `notipy.dead.events` as `poison`."""


class Reason(StrEnum):
    """Why a delivery or an event is in its state. Closed: it is a metric label."""

    # queued, held, sending
    PLANNED = "planned"
    REPLAYED = "replayed"
    RELEASED = "released"
    REDRIVEN = "redriven"
    SCHEDULED = "scheduled"
    BACKOFF = "backoff"
    CLAIMED = "claimed"
    PROVIDER_PAUSED = "provider_paused"
    # final, good
    ACCEPTED = "accepted"
    # what a receipt said
    DELIVERED = "delivered"
    COMPLAINED = "complained"
    UNSUBSCRIBED = "unsubscribed"
    HARD_BOUNCE = "hard_bounce"
    SOFT_BOUNCE = "soft_bounce"
    NOT_DELIVERED = "not_delivered"
    # the provider or the way to it: worth another attempt
    TIMEOUT = "timeout"
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_LOST = "connection_lost"
    NAME_RESOLUTION = "name_resolution"
    TLS = "tls"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    RATE_LIMITED = "rate_limited"
    MAILBOX_UNAVAILABLE = "mailbox_unavailable"
    ATTACHMENT_UNAVAILABLE = "attachment_unavailable"
    INTERNAL_ERROR = "internal_error"
    OUTCOME_UNKNOWN = "outcome_unknown"
    # permanent: another attempt would end the same way
    AUTHENTICATION = "authentication"
    NOT_CONFIGURED = "not_configured"
    BAD_ADDRESS = "bad_address"
    RECIPIENT_REJECTED = "recipient_rejected"
    SENDER_REJECTED = "sender_rejected"
    MESSAGE_REJECTED = "message_rejected"
    MESSAGE_TOO_LARGE = "message_too_large"
    POLICY_REJECTED = "policy_rejected"
    ENDPOINT_REJECTED = "endpoint_rejected"
    ENDPOINT_GONE = "endpoint_gone"
    REDIRECT_REFUSED = "redirect_refused"
    ADDRESS_REFUSED = "address_refused"
    ATTACHMENT_REJECTED = "attachment_rejected"
    TEMPLATE_ERROR = "template_error"
    DATA_INVALID = "data_invalid"
    # final by decision
    NO_ADDRESS = "no_address"
    SUPPRESSED_ADDRESS = "suppressed_address"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    DROPPED = "dropped"
    # receipts that are about nothing that is stored, or not yet
    UNKNOWN_DELIVERY = "unknown_delivery"
    NOT_SENT = "not_sent"
    # events, commands and receipts that cannot be used
    NOT_JSON = "not_json"
    TOO_LARGE = "too_large"
    TOO_DEEP = "too_deep"
    INVALID = "invalid"
    BAD_COMMAND = "bad_command"
    POISON = "poison"
    # a newer version's word, read by this one
    UNRECOGNISED = "unrecognised"

    @classmethod
    def _missing_(cls, value: object) -> "Reason | None":
        """Old and new versions run side by side: a word of the newer one must not stop the older one's sweeper."""
        return cls.UNRECOGNISED if isinstance(value, str) else None


class SuppressionReason(StrEnum):
    """Why nothing more is sent to an address. Closed: it is a metric label."""

    HARD_BOUNCE = "hard_bounce"
    """A receipt said that the address does not exist, or never takes mail."""
    SOFT_BOUNCES = "soft_bounces"
    """Five deliveries in a row bounced for a reason that might have passed."""
    COMPLAINT = "complaint"
    """The recipient called a message spam."""
    UNSUBSCRIBED = "unsubscribed"
    """The recipient wants no more."""
    DEAD_TOKEN = "dead_token"  # noqa: S105 - a reason, no secret
    """The push service no longer knows the app's installation."""
    ENDPOINT_GONE = "endpoint_gone"
    """A webhook's endpoint answered that it is gone."""
    REJECTED = "rejected"
    """A provider refused the address itself when something was sent to it."""
    MANUAL = "manual"
    """An operator's decision."""

    @classmethod
    def _missing_(cls, value: object) -> "SuppressionReason | None":
        """Old and new versions run side by side: an address that the newer one suppressed stays so for the older."""
        return cls.MANUAL if isinstance(value, str) else None
