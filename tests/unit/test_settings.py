import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from config.settings import RETENTION_LEAST, Settings, SettingsError, load_settings, strange_variables
from consumers.app import check_provider, providers_of
from domain.dispatch import STALE_AFTER
from domain.rate import Rate
from domain.vocabulary import Channel, Semantics

FILE = """
amqp_url: "amqp://user:${BROKER_PASSWORD}@broker.example/vhost"
mongo_url: "mongodb://user:literal-pw@db.example/notipy?tlsCertificateKeyFilePassword=cert-pw"
channels:
  email:
    semantics: at_most_once
    retry: [5s, 1m]
    providers:
      - name: primary
        kind: smtp
        url: "smtp://user:${SMTP_PASSWORD}@mail.example:587?tls=starttls"
        from: "Shop <no-reply@shop.example>"
  webhook:
    providers:
      - {name: hooks, kind: webhook, secret: whsec-literal, headers: {Authorization: "Bearer literal-token"}}
status: {publish: all}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMTP_PASSWORD", "hunter2")
    monkeypatch.setenv("BROKER_PASSWORD", "sesame")
    path = tmp_path / "notipy.yaml"
    path.write_text(FILE)
    return path


def test_the_file_is_read_and_secrets_come_from_the_environment(file: Path) -> None:
    settings = load_settings(file)
    email = settings.channels[Channel.EMAIL]
    assert (email.semantics, email.retry) == (Semantics.AT_MOST_ONCE, (timedelta(seconds=5), timedelta(minutes=1)))
    assert "hunter2" in str(email.providers[0].options["url"])
    assert settings.policy(Channel.EMAIL).attempts == 3


def pool(*more: str) -> str:
    providers = ", ".join(f"{{name: p{number}, kind: file, directory: /tmp{text}}}" for number, text in enumerate(more))
    return f"channels: {{sms: {{providers: [{providers}]}}}}"


def test_a_channel_may_have_several_providers_with_weights_and_rates(tmp_path: Path) -> None:
    path = tmp_path / "notipy.yaml"
    path.write_text(pool(", weight: 9, rate: 600/m", ", weight: 1"))
    settings = load_settings(path)
    first, second = settings.channels[Channel.SMS].providers
    assert (first.weight, first.rate, second.weight, second.rate) == (9, Rate(600, "m"), 1, None)
    assert dict(first.options) == {"directory": "/tmp"}, "what is the pool's is not the kind's"
    assert settings.masked()["channels"]["sms"]["providers"][0]["rate"] == "600/m"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (pool(", weight: 9", ""), "channels.sms.providers: should all have a weight, or none; p1 has none"),
        (pool(", weight: 0"), "channels.sms.providers.0.weight: "),
        (pool(", rate: often"), "channels.sms.providers.0.rate: should be a rate such as 100/s"),
        (pool("", "").replace("p1", "p0"), "should have names of their own; several are called p0"),
    ],
)
def test_a_pool_that_cannot_be_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "notipy.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        load_settings(path)
    assert told in str(error.value)


def test_the_environment_wins_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIPY_CHANNELS__EMAIL__CONCURRENCY", "7")
    monkeypatch.setenv("NOTIPY_SWEEPER__INTERVAL", "1s")
    monkeypatch.setenv("NOTIPY_MONGO_URL", "mongodb://other.example/x")
    settings = load_settings(file)
    assert settings.channels[Channel.EMAIL].concurrency == 7
    assert settings.channels[Channel.EMAIL].retry == (timedelta(seconds=5), timedelta(minutes=1))
    assert settings.sweeper.interval == timedelta(seconds=1)
    assert settings.mongo_url.get_secret_value() == "mongodb://other.example/x"


def test_the_file_is_named_by_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIPY_CONFIG", str(file))
    assert load_settings().file == file


def test_no_secret_is_shown(file: Path) -> None:
    settings = load_settings(file)
    shown = f"{settings!r} {settings} {settings.masked()} {settings.channels!r}"
    for secret in ("hunter2", "sesame", "literal-pw", "cert-pw", "whsec-literal", "literal-token"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "channels: {email: {retry: [soon], providers: [{name: a, kind: smtp}]}}",
            "channels.email.retry.0: should be a dur",
        ),
        ("channels: {email: {providers: []}}", "channels.email.providers"),
        ("channels: {pigeon: {providers: [{name: a, kind: smtp}]}}", "channels.pigeon"),
        ("chanels: {}", "chanels: is not a field that NotiPy knows"),
        ("amqp_url: http://broker", "amqp_url: should be a URL such as amqp://"),
        ("retry_tiers: [5s, 5s]", "retry_tiers: should be durations that ascend"),
        ("sweeper: {overdue: 0s}", "sweeper.overdue: should be longer than nothing"),
        ("lease: 9999999999999999999999d", "lease: is longer than any duration can be"),
        ("amqp_url: ${NOT_SET}", "amqp_url: the environment variable NOT_SET is not set"),
        ("a: [", "is not YAML: line 1"),
        ("- a", "should be a mapping"),
        ("metrics: {port: 99999}", "metrics.port"),
        ("retention: {attempts: 23h}", "retention.attempts: should be a duration from 1d to 36500d, or null"),
        ("retention: {events: 9999999d}", "retention.events: should be a duration from 1d to 36500d, or null"),
        ("retention: {dead: soon}", "retention.dead: should be a duration such as"),
        ("{lease: 1d, retention: {dead: 8d}}", "retention.attempts, .deliveries and .dead should be at least 10d"),
    ],
)
def test_a_wrong_setting_names_itself_and_what_it_should_be(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "notipy.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


MANY = """
amqp_url: "amqp://user:${NO_PASSWORD}@broker.example/vhost"
chanels: {}
lease: 3h
retention: {attempts: 1d}
sweeper: {interval: 0s, overdue: 0s}
7: seven
channels:
  email:
    retry: [soon]
    providers:
      - {name: one, kind: smtp, url: "${NO_URL}", weight: 1}
      - {name: one, kind: nonsense, rate: often}
  webhook:
    providers: [{name: hooks, kind: webhook, secret: "${NO_SECRET}", allow_private: perhaps}]
  sms: {providers: none}
"""
TOLD = """
7: is not a field that NotiPy knows
amqp_url: the environment variable NO_PASSWORD is not set
chanels: is not a field that NotiPy knows
channels.email.providers: should have names of their own; several are called one; \
should all have a weight, or none; one has none
channels.email.providers.0 (one): from: Field required
channels.email.providers.0.url: the environment variable NO_URL is not set
channels.email.providers.1 (one): kind: 'nonsense' is no kind of provider for email; known: …
channels.email.providers.1.rate: should be a rate such as 100/s, 600/m, 10000/h or 200/d
channels.email.retry.0: should be a duration such as 500ms, 5s, 2m, 1h30m or 2d
channels.sms.providers: should be a list
channels.webhook.providers.0 (hooks): allow_private: Input should be a valid boolean, unable to interpret input
channels.webhook.providers.0.secret: the environment variable NO_SECRET is not set
dispatch: should be a mapping of fields (set by NOTIPY_DISPATCH)
events.concurrency: Input should be less than or equal to 10000 (set by NOTIPY_EVENTS__CONCURRENCY)
lease: retention.attempts, .deliveries and .dead should be at least 30h: ten times lease
retry_tiers: should be a list (set by NOTIPY_RETRY_TIERS)
sweeper.interval: should be longer than nothing
sweeper.overdue: should be longer than nothing
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"DISPATCH": "x", "EVENTS__CONCURRENCY": "20000", "RETRY_TIERS": "5s, 15s"}.items():
        monkeypatch.setenv(f"NOTIPY_{name}", value)
    path = tmp_path / "notipy.yaml"
    path.write_text(MANY)
    return path


def told_of(path: Path, **how: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(path, check=check_provider, **how)
    first, *lines = str(caught.value).splitlines()
    assert str(path) in first
    assert len(lines) == len(caught.value.faults)
    return [re.sub("(known: ).*", r"\1…", line.strip()) for line in lines]


def test_all_that_is_wrong_is_told_at_once(faulty: Path) -> None:
    assert told_of(faulty) == TOLD.strip().splitlines()


def test_who_only_looks_is_told_of_no_secret_of_a_provider(faulty: Path) -> None:
    secrets = ("NO_URL", "NO_SECRET")
    expected = [line for line in TOLD.strip().splitlines() if not any(name in line for name in secrets)]
    assert told_of(faulty, sending=False) == expected


def test_what_is_put_right_is_told_no_more(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a variable is set, what it holds is checked; one fault that is left is told alone."""
    monkeypatch.setenv("NO_URL", "nonsense")
    assert any(line.startswith("channels.email.providers.0 (one): url: ") for line in told_of(faulty))
    for name in ("DISPATCH", "EVENTS__CONCURRENCY", "RETRY_TIERS"):
        monkeypatch.delenv(f"NOTIPY_{name}")
    faulty.write_text("channels: {webhook: {providers: [{name: hooks, kind: webhook, secret: '${NO_SECRET}'}]}}")
    only = "channels.webhook.providers.0.secret: the environment variable NO_SECRET is not set"
    assert told_of(faulty) == [only]


def test_the_environment_says_which_providers_there_are(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = '[{"name": "one", "kind": "smtp", "url": "smtp://x?tls=none", "from": "a@example.org", "portt": 1}]'
    monkeypatch.setenv("NOTIPY_CHANNELS__EMAIL__PROVIDERS", given)
    about = [line for line in told_of(faulty) if line.startswith("channels.email.providers.0 (one)")]
    assert len(about) == 1
    assert about[0].startswith("channels.email.providers.0 (one): portt: is not a field")
    assert about[0].endswith("(set by NOTIPY_CHANNELS__EMAIL__PROVIDERS)")


def test_every_provider_is_told_of_whose_own_settings_are_wrong() -> None:
    smtp = {"name": "one", "kind": "smtp", "url": "smtp://mail.example?tls=none"}
    channels = {"email": {"providers": [smtp, {**smtp, "name": "two", "from": "a@example.org"}]}}
    wrong = {"sms": {"providers": [{"name": "three", "kind": "smtp"}]}}
    with pytest.raises(SettingsError) as caught:
        providers_of(Settings.model_validate({"channels": channels | wrong}))
    assert [each.field for each in caught.value.faults] == [
        "channels.email.providers.0 (one)",
        "channels.sms.providers.0 (three)",
    ]


def test_a_wrong_value_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "notipy.yaml"
    path.write_text('amqp_url: "s3cr3t"\nmongo_url: ["s3cr3t"]\na: "s3cr3t: x')
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert "s3cr3t" not in str(caught.value)
    path.write_text('amqp_url: "s3cr3t"\nmongo_url: ["s3cr3t"]\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert "s3cr3t" not in str(caught.value)


def test_a_literal_dollar_brace_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "notipy.yaml"
    path.write_text('channels: {sms: {providers: [{name: f, kind: file, directory: "$${x}"}]}}')
    assert load_settings(path).channels[Channel.SMS].providers[0].options["directory"] == "${x}"


def test_what_is_kept_for_ever_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notipy.yaml"
    path.write_text("retention: {events: null, attempts: 1d}")
    monkeypatch.setenv("NOTIPY_RETENTION__DELIVERIES", "null")
    monkeypatch.setenv("NOTIPY_RETENTION__DEAD", "30d")
    kept = load_settings(path).retention
    assert (kept.events, kept.deliveries) == (None, None)
    assert (kept.attempts, kept.dead) == (timedelta(days=1), timedelta(days=30))
    assert load_settings(path).masked()["retention"]["events"] is None


def test_claims_are_kept_for_longer_than_an_order_is_believed() -> None:
    assert RETENTION_LEAST >= 2 * STALE_AFTER


def test_without_a_file_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.file is None
    assert settings == Settings()


def test_who_only_looks_needs_no_secret_of_a_provider(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMTP_PASSWORD")
    with pytest.raises(SettingsError, match="SMTP_PASSWORD"):
        load_settings(file)
    assert set(load_settings(file, sending=False).channels) == {Channel.EMAIL, Channel.WEBHOOK}
    monkeypatch.delenv("BROKER_PASSWORD")
    with pytest.raises(SettingsError, match="BROKER_PASSWORD"):
        load_settings(file, sending=False)


def test_variables_that_are_misspelt_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = strange_variables()
    for name in ("NOTIPY_AMQP_URL", "NOTIPY_SWEEPER__INTERVAL", "NOTIPY_CONFIG"):
        monkeypatch.setenv(name, "x")
    for name in ("NOTIPY_PORT", "NOTIPY_PORT_9464_TCP_ADDR", "NOTIPY_SERVICE_HOST", "NOTIPY_EVENTS_SERVICE_PORT_HTTP"):
        monkeypatch.setenv(name, "x")
    assert strange_variables() == before
    monkeypatch.setenv("NOTIPY_MONGODB_URL", "x")
    monkeypatch.setenv("NOTIPY_SWEPER__INTERVAL", "x")
    assert strange_variables() == [*before, "NOTIPY_MONGODB_URL", "NOTIPY_SWEPER__INTERVAL"]
