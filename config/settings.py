"""NotiPy's settings: one `notipy.yaml`, overridable by the environment. The only reader of the environment."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from domain.duration import Duration, format_duration
from domain.rate import RateSetting
from domain.retry import DEFAULT_SCHEDULE, DEFAULT_TIERS, RetryPolicy
from domain.text import Fault, faults_of
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


Check = Callable[[Channel, str, str, Mapping[str, Any]], Sequence[Fault]]
"""What is wrong with a provider's own settings, given its channel, name, kind and options."""


class SettingsError(Exception):
    """The settings cannot be used; the message names each setting and what it should be.

    `faults`: one by one, where settings are what is wrong, and not the file itself.
    """

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)

    @classmethod
    def of(cls, faults: Iterable[Fault], path: Path | None) -> Self:
        """Each fault in a line of its own, by their places."""
        told = sorted(dict.fromkeys(faults), key=lambda fault: fault.field)
        place = f"{path} or the environment" if path else "the environment (no notipy.yaml was found)"
        lines = [f"  {fault.field or 'settings'}: {fault.fault}{_set_by(fault.field)}" for fault in told]
        return cls("\n".join([f"wrong settings, from {place}:", *lines]), told)


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("should be longer than nothing")
    return value


PositiveDuration = Annotated[Duration, AfterValidator(_positive)]


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
        if fault := _fault_of_pool([provider.name for provider in value], [provider.weight for provider in value]):
            raise ValueError(fault)
        return value


def _fault_of_pool(names: Sequence[str], weights: Sequence[object]) -> str:
    """What is wrong with a channel's providers taken together; nothing, if nothing is."""
    faults = []
    if twice := sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"should have names of their own; several are called {', '.join(twice)}")
    unweighted = [name for name, weight in zip(names, weights, strict=True) if weight is None]
    if 0 < len(unweighted) < len(names):
        faults.append(f"should all have a weight, or none; {', '.join(unweighted)} has none")
    return "; ".join(faults)


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

    interval: PositiveDuration = timedelta(seconds=5)
    overdue: PositiveDuration = timedelta(minutes=5)


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


class _Environment(EnvSettingsSource):
    """The variables that begin with `NOTIPY_`. One that should hold JSON and does not is told as any wrong value is."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """The value of JSON; what is none stays as it is, and is not what the setting should be."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class _Sources(BaseSettings):
    """Where settings come from: the environment over the file, which is handed in as initial values."""

    model_config = SettingsConfigDict(
        env_prefix="NOTIPY_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        env_parse_none_str="null",
        frozen=True,
        hide_input_in_errors=True,
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The first that has a setting says what it is."""
        return (_Environment(settings_cls), init_settings)


class _AsGiven(_Sources):
    """The channels as they were written, whatever is wrong with them."""

    model_config = SettingsConfigDict(extra="ignore")

    channels: dict[str, Any] = Field(default_factory=dict)


class Settings(_Sources):
    """Everything that can be set.

    Attributes:
        lease: how long a claim on an attempt holds; a send may take four fifths of it.
        retry_tiers: the lengths of the retry queues, ascending; part of the topology.
        grace: how long a stopping process waits for what is in flight.
        catalog_refresh: how often a consumer looks whether the catalog has changed.
        failpoints: where a process kills or stops itself, for tests of failures; see `consumers/failpoints.py`.
    """

    model_config = SettingsConfigDict(extra="forbid")

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
    lease: PositiveDuration = timedelta(minutes=2)
    grace: Duration = timedelta(seconds=25)
    catalog_refresh: PositiveDuration = timedelta(seconds=2)
    failpoints: str = ""

    _file: Path | None = PrivateAttr(default=None)
    _interpolated: dict[str, str] = PrivateAttr(default_factory=dict)

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

    @field_validator("lease")
    @classmethod
    def _claims_outlive_their_leases(cls, lease: timedelta, info: ValidationInfo) -> timedelta:
        """With the lease that is set by default they do, whatever `retention` may say."""
        retention = info.data.get("retention")  # none: it is wrong itself
        shortest = retention.shortest() if retention else None
        if shortest is not None and shortest < RETENTION_LEASES * lease:
            least = format_duration(RETENTION_LEASES * lease)
            raise ValueError(f"retention.attempts, .deliveries and .dead should be at least {least}: ten times lease")
        return lease

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


def load_settings(
    file: Path | None = None, *, sending: bool = True, check: Check | None = None, **overrides: Any
) -> Settings:
    """Read `notipy.yaml` (`file`, else `NOTIPY_CONFIG`, else the one in the current folder), then the environment.

    Args:
        file: in place of the one that is found.
        sending: without, what providers need of the environment may be missing: who only looks needs no secret of
            theirs.
        check: asked of each provider where the settings cannot be used, so that all of their faults are told at once.
        overrides: settings in place of the file's.

    Raises:
        SettingsError: something is missing or wrong; it says of each such setting where it is and what it should be.
    """
    named = file or (Path(os.environ["NOTIPY_CONFIG"]) if os.environ.get("NOTIPY_CONFIG") else None)
    path = named or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    variables = _Variables(sending)
    document = (_read(path, variables) if path else {}) | overrides
    settings, faults = _validated(document)
    if settings is None or variables.missing:
        found = [*faults, *_faults_of_channels(document, variables, check or _unchecked)]
        raise SettingsError.of([*variables.missing, *filter(variables.resolved, found)], path)
    settings._file, settings._interpolated = path, variables.used
    return settings


def _validated(document: Mapping[str, Any]) -> tuple[Settings | None, Sequence[Fault]]:
    try:
        return Settings(**document), ()
    except ValidationError as error:
        return None, faults_of(error)


def strange_variables() -> list[str]:
    """Variables of the environment that look like settings and are none: misspelt, most likely."""
    known = {f"NOTIPY_{name}".upper() for name in Settings.model_fields} | {"NOTIPY_CONFIG"}
    names = (name.upper() for name in os.environ if name.upper().startswith("NOTIPY_"))
    return sorted(name for name in names if name.split("__")[0] not in known and not _INJECTED.match(name))


def _read(path: Path, variables: "_Variables") -> dict[str, Any]:
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
    return {str(name): variables.interpolated(value, str(name)) for name, value in (document or {}).items()}


def _yaml_fault(error: yaml.YAMLError) -> str:
    """What is wrong and where; not the line itself, which may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return type(error).__name__


@dataclass(slots=True)
class _Variables:
    """The variables of the environment that a file names.

    Attributes:
        sending: whether those of providers are needed.
        used: those that there are, with their values.
        missing: where one is needed that there is not.
        unresolved: the settings that still have its name in them.
    """

    sending: bool
    used: dict[str, str] = field(default_factory=dict)
    missing: list[Fault] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)

    def interpolated(self, value: Any, place: str) -> Any:
        """The value with `${NAME}` replaced in every string; `$${` stands for a literal `${`."""
        if isinstance(value, dict):
            return {key: self.interpolated(item, f"{place}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self.interpolated(item, f"{place}.{index}") for index, item in enumerate(value)]
        return _VARIABLE.sub(lambda match: self._value(match, place), value) if isinstance(value, str) else value

    def resolved(self, fault: Fault) -> bool:
        """Whether the fault is one of its own, and does not come of a variable that is missing."""
        return not any(f"{fault.field}.".startswith(f"{place}.") for place in self.unresolved)

    def _value(self, match: re.Match[str], place: str) -> str:
        name = match.group(1)
        if name is None:
            return "${"
        if name in os.environ:
            self.used[name] = os.environ[name]
            return self.used[name]
        self.unresolved.append(place)
        if self.sending or not _OF_PROVIDER.match(place):
            self.missing.append(Fault(place, f"the environment variable {name} is not set"))
        return match.group(0)


def _unchecked(_channel: Channel, _name: str, _kind: str, _options: Mapping[str, Any]) -> Sequence[Fault]:
    return ()


def _faults_of_channels(document: Mapping[str, Any], variables: _Variables, check: Check) -> Iterator[Fault]:
    """What is wrong with each channel's providers, together and one by one, whatever else is wrong with the channel."""
    try:
        given = _AsGiven(**document).channels
    except ValidationError:
        return
    for name, chosen in given.items():
        providers = chosen.get("providers") if isinstance(chosen, dict) else None
        if name not in set(Channel) or not isinstance(providers, list):
            continue
        place = f"channels.{name}.providers"
        named = [each for each in providers if isinstance(each, dict) and isinstance(each.get("name"), str)]
        if fault := _fault_of_pool([each["name"] for each in named], [each.get("weight") for each in named]):
            yield Fault(place, fault)
        for index, provider in enumerate(providers):
            if isinstance(provider, dict) and isinstance(provider.get("kind"), str):
                yield from _faults_of_provider(Channel(name), f"{place}.{index}", provider, variables, check)


def _faults_of_provider(
    channel: Channel, place: str, provider: Mapping[str, Any], variables: _Variables, check: Check
) -> Iterator[Fault]:
    name = str(provider.get("name", ""))
    options = {key: value for key, value in provider.items() if key not in ProviderSettings.model_fields}
    doubtful = any(unresolved.startswith(f"{place}.") for unresolved in variables.unresolved)
    for fault in check(channel, name, provider["kind"], options):
        if variables.resolved(Fault(f"{place}.{fault.field}", "")) and (fault.field or not doubtful):
            yield of_provider(place, name, fault)


def of_provider(place: str, name: str, fault: Fault) -> Fault:
    """A fault of a provider's own settings, with the place and the name of the provider."""
    return Fault(f"{place} ({name})" if name else place, str(fault))


def _set_by(place: str) -> str:
    """Which variable of the environment has set what stands at this place, if one has."""
    parts = place.split(" ")[0].split(".")
    names = {"NOTIPY_" + "__".join(parts[:length]).upper() for length in range(1, len(parts) + 1)}
    found = sorted(name for name in os.environ if name.upper() in names and os.environ[name])
    return f" (set by {', '.join(found)})" if found else ""


def _with_scheme(value: SecretStr, schemes: set[str], example: str) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in schemes or not parts.netloc:
        raise ValueError(f"should be a URL such as {example}")
    return value


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
