"""What the documents and the files for deployment say is so: settings, metrics, examples, links."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prometheus_client.metrics_core import Metric
from pydantic import BaseModel

from channels.registry import KINDS
from cli.main import app
from config.settings import ChannelSettings, Settings, load_settings
from consumers.app import providers_of
from consumers.metrics import Metrics
from domain.event import Incoming, parse_event
from domain.notification import Definition
from domain.vocabulary import Reason, State
from tests.conformance.subjects import apns, fcm, webpush
from tests.conftest import WEBHOOK_SECRET

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "README.md",
    ROOT / "deploy" / "kubernetes" / "README.md",
]
PROVIDERS = ROOT / "docs" / "providers"
USABLE = {
    "WEBHOOK_SECRET": WEBHOOK_SECRET,
    "SLACK_WEBHOOK_URL": "https://hooks.slack.com/services/T0/B0/x",
    "TEAMS_WEBHOOK_URL": "https://prod-1.westeurope.logic.azure.com:443/workflows/1/triggers/manual/paths/invoke?sig=x",
    "DISCORD_WEBHOOK_URL": "https://discord.com/api/webhooks/1/x",
    "MATTERMOST_WEBHOOK_URL": "https://chat.example/hooks/x",
    "TELEGRAM_TOKEN": "123456:ABC-DEF1234ghIkl-zyx57W2v1u123ew11",
    "FCM_CREDENTIALS": fcm.account("https://oauth2.googleapis.com"),
    "APNS_PRIVATE_KEY": apns.PEM,
    "VAPID_PRIVATE_KEY": webpush.PEM,
    "DKIM_KEY": Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
}
"""What stands in for the variables of the examples, where not just any word will do."""
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.S | re.M)


def names_in_code(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_.]+)`", text))


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    headings = {anchor_of(line) for line in re.findall(r"^#+ (.+)$", text, re.M)}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        assert (path.parent / name).exists() if name else anchor in headings, target


def test_the_readme_has_every_setting_and_its_default() -> None:
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        section = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        for setting in [f"{name}.{inner}" for inner in section.model_fields] if section else [name]:
            assert re.search(rf"`{setting}[`.]", README), setting
    for name in ChannelSettings.model_fields:
        assert f"`….{name}`" in README
    defaults = Settings().model_dump(mode="json")
    for name in ("lease", "grace", "catalog_refresh"):
        assert re.search(rf"^\| `{name}` \| `{defaults[name]}` \|", README, re.M), name
    assert f"`[{', '.join(defaults['retry_tiers'])}]`" in README


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_provider_kind_has_its_page(kind: str) -> None:
    assert f"(docs/providers/{kind}.md)" in README
    page = (PROVIDERS / f"{kind}.md").read_text(encoding="utf-8")
    told = "\n".join(re.findall(r"^\| .*$", page, re.M))
    for field, info in KINDS[kind].options.model_fields.items():
        assert re.search(rf"`{info.alias or field}\b", told), field


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_settings_of_every_provider_page_can_be_used(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blocks(f"docs/providers/{kind}.md", "yaml")
    assert found
    for block in found:
        for variable in re.findall(r"(?<!\$)\$\{(\w+)\}", block):
            monkeypatch.setenv(variable, USABLE.get(variable, "0a" * 16))
        file = tmp_path / "notipy.yaml"
        file.write_text(block, encoding="utf-8")
        settings = load_settings(file)
        used = {provider.kind for channel in settings.channels.values() for provider in channel.providers}
        assert kind in used
        assert set(providers_of(settings)) == set(settings.channels)


def metrics() -> list[Metric]:
    return list(Metrics().registry.collect())


def series() -> set[str]:
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    return {metric.name + suffix for metric in metrics() for suffix in suffixes[metric.type]}


def test_the_readme_has_every_metric() -> None:
    told = set(re.findall(r"^\| `(notipy_\w+)`", README, re.M))
    assert told == {metric.name + ("_total" if metric.type == "counter" else "") for metric in metrics()}


def test_the_alert_rules_use_metrics_that_there_are() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    used = {name for expression in expressions for name in re.findall(r"notipy_\w+", expression)}
    assert used
    assert used <= series()


def test_the_readme_has_every_command_and_every_state() -> None:
    told = names_in_code(README)
    assert {str(state) for state in State} <= told
    commands = [command.name or "" for command in app.registered_commands]
    groups = [group.name or "" for group in app.registered_groups]
    for name in (*commands, *groups):
        assert re.search(rf"^\| `notipy {name}\b", README, re.M), name


def test_the_documents_have_every_reason() -> None:
    told = names_in_code((ROOT / "docs" / "events.md").read_text(encoding="utf-8"))
    assert {str(reason) for reason in Reason} <= told


def test_the_example_settings_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_PASSWORD", "secret")
    monkeypatch.setenv("WEBHOOK_SECRET", WEBHOOK_SECRET)
    settings = load_settings(ROOT / "deploy" / "notipy.example.yaml")
    assert set(providers_of(settings)) == set(settings.channels)


def test_the_events_in_the_documents_are_events() -> None:
    found = [*blocks("docs/events.md", "json"), *blocks("README.md", "json")]
    documents = [json.loads(block) for block in found if '"command"' not in block and '"state"' not in block]
    assert len(documents) == 4
    for document in documents:
        received = Incoming(json.dumps(document).encode(), "shop.order.shipped", "ord-1")
        assert parse_event(received, datetime.now(UTC), 10**6).source == "shop"


@pytest.mark.parametrize("document", ["README.md", "docs/catalog.md", "docs/templates.md"])
def test_the_definitions_in_the_documents_are_definitions(document: str) -> None:
    found = blocks(document, "yaml")
    assert found
    for block in found:
        raw: dict[Any, Any] = yaml.safe_load(block.replace("\non:", "\n'on':"))
        for content in raw["channels"].values():
            files = [name for name, value in content.items() if isinstance(value, dict) and value.keys() == {"file"}]
            content |= dict.fromkeys(files, "…")
        Definition.model_validate(raw)
