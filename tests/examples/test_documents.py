"""What the documents and the files for deployment say is so: settings, metrics, examples, links."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
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
from tests.conftest import WEBHOOK_SECRET

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "README.md",
    ROOT / "deploy" / "kubernetes" / "README.md",
]
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


def test_the_readme_has_every_provider_kind_and_its_settings() -> None:
    for name, kind in KINDS.items():
        (row,) = re.findall(rf"^\| `{name}` \| .*$", README, re.M)
        for field, info in kind.options.model_fields.items():
            assert f"`{info.alias or field}" in row, (name, field)


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


@pytest.mark.parametrize("document", ["README.md", "docs/catalog.md"])
def test_the_definitions_in_the_documents_are_definitions(document: str) -> None:
    for block in blocks(document, "yaml"):
        raw: dict[Any, Any] = yaml.safe_load(block.replace("\non:", "\n'on':"))
        for content in raw["channels"].values():
            content |= {name: "…" for name, value in content.items() if isinstance(value, dict)}
        Definition.model_validate(raw)
