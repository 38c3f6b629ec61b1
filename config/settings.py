"""NotiPy's settings: one `notipy.yaml`, overridable by the environment. The only reader of the environment."""

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from domain.duration import Duration, format_duration
from domain.rate import RateSetting
from domain.retry import DEFAULT_SCHEDULE, DEFAULT_TIERS, RetryPolicy
from domain.text import faults_of
from domain.vocabulary import Channel, Lane, Semantics

DEFAULT_FILE = Path("notipy.yaml")
RETENTION_LEAST, RETENTION_MOST = timedelta(days=1), timedelta(days=36_500)
"""Bounds of what `retention` may say. At least twice `domain.dispatch.STALE_AFTER`: an order that is younger than that
is carried out if its attempt can be claimed, so the claims of whatever became final since must be there."""
RETENTION_LEASES = 10
"""A claim is kept for so many leases at least: until long after whoever holds it has stopped sending."""
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_OF_PROVIDER = re.compile(r"channels\.\w+\.providers\.")
_INJECTED = re.compile(r"NOTIPY(?:_\w+)?_(?:SERVICE_(?:HOST|PORT)|PORT)(?:_.*)?$")
"""What Kubernetes and Docker links set for a service whose name begins with `notipy`."""
_SECRET_NAME = re.compile(
    r"secret|password|token|webhook_url|api_?key|private_?key|credential|authorization|cookie|^urls$", re.IGNORECASE
)
_QUERY_SECRET = re.compile(r"(?<=[?&;])([^=&;]*(?:password|secret|token|properties)[^=&;]*)=([^&;]*)", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):([^/@\s]*)(?=@)")
MASK = "***"


class SettingsError(Exception):
    """The settings cannot be used; the message names each setting and what it should be."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ProviderSettings(BaseModel):
    """One provider of a channel; what its kind needs beyond these is validated by the kind itself.

    Attributes:
        weight: how often it is drawn beside the channel's others, each of which has one then; without, order counts.
        rate: how fast it is used by all processes together.
    """

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,49}$")]
    kind: str
    weight: Annotated[int, Field(ge=1)] | None = None
    rate: RateSetting | None = None

    @property
    def options(self) -> Mapping[str, Any]:
        """The kind's own settings."""
        return self.model_extra or {}

    def __repr__(self) -> str:
        return f"ProviderSettings(name={self.name!r}, kind={self.kind!r})"

    __str__ = __repr__


class ChannelSettings(_Section):
    """One channel.

    Attributes:
        retry: the wait after each failed attempt; attempts = 1 + its length.
        concurrency: attempts in flight for each lane of this channel in one process.
        providers: in order of preference, unless they have weights.
    """

    semantics: Semantics = Semantics.AT_LEAST_ONCE
    retry: Annotated[tuple[Duration, ...], Field(max_length=50)] = DEFAULT_SCHEDULE
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 100
    providers: Annotated[tuple[ProviderSettings, ...], Field(min_length=1, max_length=20)]

    @field_validator("providers")
    @classmethod
    def _a_pool(cls, value: tuple[ProviderSettings, ...]) -> tuple[ProviderSettings, ...]:
        names = [provider.name for provider in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"should have names of their own; several are called {', '.join(twice)}")
        unweighted = [provider.name for provider in value if provider.weight is None]
        if 0 < len(unweighted) < len(value):
            raise ValueError(f"should all have a weight, or none; {', '.join(unweighted)} has none")
        return value


class EventsSettings(_Section):
    """The events queue.

    Attributes:
        max_bytes: larger messages are parked.
        concurrency: events in progress in one process.
        delivery_limit: a message that was handed out this often, ending its process each time, is parked as `poison`;
            of any queue, not of events alone. Below 20, which is RabbitMQ 4's own limit.
    """

    max_bytes: Annotated[int, Field(ge=1024, le=15 * 1024 * 1024)] = 4 * 1024 * 1024
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 200
    delivery_limit: Annotated[int, Field(ge=3, le=19)] = 8


class DispatchSettings(_Section):
    """How many deliveries of a channel's lane may travel in one message; of the lane `high` always one.

    One where nothing else is under way; more under load, or for an event with many recipients.
    """

    normal: Annotated[int, Field(ge=1, le=500)] = 100
    bulk: Annotated[int, Field(ge=1, le=500)] = 100

    @property
    def together(self) -> Mapping[Lane, int]:
        """By lane."""
        return {Lane.HIGH: 1, Lane.NORMAL: self.normal, Lane.BULK: self.bulk}


class StatusSettings(_Section):
    """Which changes of state are published to `notipy.status`."""

    publish: Literal["final", "all", "none"] = "final"


class SweeperSettings(_Section):
    """The sweeper.

    Attributes:
        interval: between two rounds.
        overdue: how long after it should have happened a queued or retrying delivery is looked after.
    """

    interval: Duration = timedelta(seconds=5)
    overdue: Duration = timedelta(minutes=5)


class RetentionSettings(_Section):
    """How long what is over is kept; `null` for ever. What is not final is kept whatever its age.

    Attributes:
        events: after they were received, and until the last of their deliveries is deleted.
        deliveries: after they became final, but for those that can be replayed.
        attempts: the claims on a delivery's attempts, after it became final; at most as long as the delivery.
        dead: deliveries that can be replayed, and the messages of the dead-letter queues.
    """

    events: Duration | None = timedelta(days=90)
    deliveries: Duration | None = timedelta(days=90)
    attempts: Duration | None = timedelta(days=7)
    dead: Duration | None = None

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and not RETENTION_LEAST <= value <= RETENTION_MOST:
            raise ValueError("should be a duration from 1d to 36500d, or null to keep them for ever")
        return value

    def shortest(self) -> timedelta | None:
        """After how long claims may be deleted at the earliest; a delivery takes its claims along."""
        return min((kept for kept in (self.deliveries, self.attempts, self.dead) if kept is not None), default=None)


class MetricsSettings(_Section):
    """Where `/metrics`, `/healthz` and `/readyz` are served; port 0 takes a free one, `null` serves nothing."""

    host: str = "0.0.0.0"  # noqa: S104 - a scraper comes from another machine; it shows no secrets
    port: Annotated[int, Field(ge=0, le=65535)] | None = 9464


class LoggingSettings(_Section):
    """`auto` is pretty on a terminal, else JSON."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "pretty"] = "auto"


class Settings(BaseSettings):
    """Everything that can be set.

    Attributes:
        lease: how long a claim on an attempt holds; a send may take four fifths of it.
        retry_tiers: the lengths of the retry queues, ascending; part of the topology.
        grace: how long a stopping process waits for what is in flight.
        catalog_refresh: how often a consumer looks whether the catalog has changed.
        failpoints: where a process kills or stops itself, for tests of failures; see `consumers/failpoints.py`.
    """

    model_config = SettingsConfigDict(
        env_prefix="NOTIPY_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        env_parse_none_str="null",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        nested_model_default_partial_update=True,
    )

    amqp_url: SecretStr = SecretStr("amqp://guest:guest@127.0.0.1:5672/")
    mongo_url: SecretStr = SecretStr("mongodb://127.0.0.1:27017/notipy")
    channels: dict[Channel, ChannelSettings] = Field(default_factory=dict)
    events: EventsSettings = EventsSettings()
    dispatch: DispatchSettings = DispatchSettings()
    status: StatusSettings = StatusSettings()
    sweeper: SweeperSettings = SweeperSettings()
    retention: RetentionSettings = RetentionSettings()
    metrics: MetricsSettings = MetricsSettings()
    logging: LoggingSettings = LoggingSettings()
    retry_tiers: Annotated[tuple[Duration, ...], Field(min_length=1, max_length=20)] = DEFAULT_TIERS
    lease: Duration = timedelta(minutes=2)
    grace: Duration = timedelta(seconds=25)
    catalog_refresh: Duration = timedelta(seconds=2)
    failpoints: str = ""

    _file: Path | None = PrivateAttr(default=None)
    _interpolated: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment over the file (which `load_settings` hands in as initial values)."""
        return (env_settings, init_settings)

    @field_validator("amqp_url")
    @classmethod
    def _amqp(cls, value: SecretStr) -> SecretStr:
        return _with_scheme(value, {"amqp", "amqps"}, "amqp://user:password@host:5672/vhost")

    @field_validator("mongo_url")
    @classmethod
    def _mongo(cls, value: SecretStr) -> SecretStr:
        return _with_scheme(value, {"mongodb", "mongodb+srv"}, "mongodb://user:password@host:27017/notipy")

    @field_validator("retry_tiers")
    @classmethod
    def _ascending(cls, value: tuple[timedelta, ...]) -> tuple[timedelta, ...]:
        if value[0] <= timedelta(0) or any(a >= b for a, b in pairwise(value)):
            raise ValueError("should be durations that ascend, such as [5s, 15s, 45s]")
        return value

    @model_validator(mode="after")
    def _positive(self) -> Self:
        positive = {
            "lease": self.lease,
            "catalog_refresh": self.catalog_refresh,
            "sweeper.interval": self.sweeper.interval,
            "sweeper.overdue": self.sweeper.overdue,
        }
        if wrong := [name for name, value in positive.items() if value <= timedelta(0)]:
            raise ValueError(f"{', '.join(wrong)} should be longer than nothing")
        return self

    @model_validator(mode="after")
    def _claims_outlive_their_leases(self) -> Self:
        shortest = self.retention.shortest()
        if shortest is not None and shortest < RETENTION_LEASES * self.lease:
            least = format_duration(RETENTION_LEASES * self.lease)
            raise ValueError(f"retention.attempts, .deliveries and .dead should be at least {least}: ten times lease")
        return self

    def policy(self, channel: Channel) -> RetryPolicy:
        """The retry policy of a configured channel."""
        chosen = self.channels[channel]
        return RetryPolicy(chosen.retry, self.retry_tiers, chosen.semantics)

    def provider_names(self, given: str) -> frozenset[str]:
        """The names of the providers that a kind or a name means; of one that is not set any more, the word itself."""
        providers = [provider for chosen in self.channels.values() for provider in chosen.providers]
        return frozenset(each.name for each in providers if given in {each.name, each.kind}) or frozenset({given})

    def masked(self) -> dict[str, Any]:
        """The settings in force as JSON values, every secret replaced."""
        document = self.model_dump(mode="json")
        document["amqp_url"] = self.amqp_url.get_secret_value()
        document["mongo_url"] = self.mongo_url.get_secret_value()
        masked: dict[str, Any] = _mask(document, self._interpolated)
        return masked

    @property
    def file(self) -> Path | None:
        """The file that was read; None if there was none."""
        return self._file


def load_settings(file: Path | None = None, *, sending: bool = True, **overrides: Any) -> Settings:
    """Read `notipy.yaml` (`file`, else `NOTIPY_CONFIG`, else the one in the current folder), then the environment.

    Without `sending`, what providers need of the environment may be missing: who only looks needs no secret of theirs.

    Raises:
        SettingsError: something is missing or wrong; it says which setting, where, and what it should be.
    """
    named = file or (Path(os.environ["NOTIPY_CONFIG"]) if os.environ.get("NOTIPY_CONFIG") else None)
    path = named or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    interpolated: dict[str, str] = {}
    document = _read(path, interpolated, sending) if path else {}
    try:
        settings = Settings(**(document | overrides))
    except ValidationError as error:
        raise SettingsError(_told(error, path)) from None
    except ValueError as error:  # an environment variable that should hold JSON and does not
        raise SettingsError(f"in the environment: {error}") from None
    settings._file, settings._interpolated = path, interpolated
    return settings


def strange_variables() -> list[str]:
    """Variables of the environment that look like settings and are none: misspelt, most likely."""
    known = {f"NOTIPY_{name}".upper() for name in Settings.model_fields} | {"NOTIPY_CONFIG"}
    names = (name.upper() for name in os.environ if name.upper().startswith("NOTIPY_"))
    return sorted(name for name in names if name.split("__")[0] not in known and not _INJECTED.match(name))


def _read(path: Path, interpolated: dict[str, str], sending: bool) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not YAML: {_yaml_fault(error)}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8") from None
    if not isinstance(document, dict | None):
        raise SettingsError(f"{path}: should be a mapping of settings")
    result: dict[str, Any] = _interpolate(document or {}, path, "", interpolated, sending)
    return result


def _yaml_fault(error: yaml.YAMLError) -> str:
    """What is wrong and where; not the line itself, which may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return type(error).__name__


def _interpolate(value: Any, path: Path, place: str, used: dict[str, str], sending: bool) -> Any:
    """Replace `${NAME}` in every string; `$${` stands for a literal `${`."""
    if isinstance(value, dict):
        return {
            key: _interpolate(item, path, f"{place}.{key}".lstrip("."), used, sending) for key, item in value.items()
        }
    if isinstance(value, list):
        return [_interpolate(item, path, f"{place}.{index}", used, sending) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "${"
        if name not in os.environ:
            if not sending and _OF_PROVIDER.match(place):
                return match.group(0)
            raise SettingsError(f"{path}: {place}: the environment variable {name} is not set")
        used[name] = os.environ[name]
        return used[name]

    return _VARIABLE.sub(replace, value)


def _with_scheme(value: SecretStr, schemes: set[str], example: str) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in schemes or not parts.netloc:
        raise ValueError(f"should be a URL such as {example}")
    return value


def _told(error: ValidationError, path: Path | None) -> str:
    place = f"{path} or the environment" if path else "the environment (no notipy.yaml was found)"
    lines = [f"  {fault.field or 'settings'}: {fault.fault}" for fault in faults_of(error)]
    return f"wrong settings, from {place}:\n" + "\n".join(lines)


def _mask(value: Any, interpolated: Mapping[str, str], name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _mask(item, interpolated, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(item, interpolated, name) for item in value]
    if isinstance(value, str):
        return MASK if _SECRET_NAME.search(name) else _mask_text(value, interpolated)
    return value


def _mask_text(text: str, interpolated: Mapping[str, str]) -> str:
    if "PRIVATE KEY-----" in text:  # PEM, whatever the setting is called
        return MASK
    for variable, secret in interpolated.items():
        if len(secret) > 2:
            text = text.replace(secret, f"${{{variable}}}")
    text = _QUERY_SECRET.sub(lambda match: f"{match.group(1)}={MASK}", text)
    return _URL_PASSWORD.sub(lambda match: f"{match.group(1)}:{MASK}", text)
