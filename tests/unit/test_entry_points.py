"""Kinds of provider from other packages: one that is installed and used, and some that are faulty."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from channels.registry import kinds, make_provider
from channels.surroundings import NOWHERE
from config.settings import Settings, SettingsError
from consumers.app import providers_of
from domain.failures import PermanentFailure
from domain.message import Message
from domain.vocabulary import Channel
from tests.contract.peers import http_server
from tests.fakes import START

THIRD_PARTY = Path(__file__).parent.parent / "third_party"
MESSAGE = Message("d1", "d1/1", Channel.CHAT, {"chat": "pigeon:LOFT7"}, {"text": "Grüße"}, START)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What was found on the path is looked for anew."""
    kinds.cache_clear()
    yield
    kinds.cache_clear()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package, where its installer would have put it."""
    monkeypatch.syspath_prepend(str(THIRD_PARTY))
    yield
    sys.modules.pop("notipy_pigeon", None)


def settings(url: str, **options: object) -> Settings:
    pigeon = {"name": "loft", "kind": "pigeon", "base_url": url, "token": "s3cr3t", **options}
    return Settings.model_validate({"channels": {"chat": {"providers": [pigeon]}}})


@pytest.mark.usefixtures("installed")
async def test_a_kind_of_another_package_is_used_through_the_settings() -> None:
    got: list[tuple[str, str, object]] = []

    async def answer(request: web.Request) -> web.Response:
        headers = request.headers
        got.append((headers["Authorization"], headers["Idempotency-Key"], await request.json()))
        if len(got) > 1:
            return web.json_response({"code": "NO_LOFT"}, status=404)
        return web.json_response({"ring": "r-1"})

    async with http_server(answer) as url:
        (provider,) = providers_of(settings(url.rstrip("/")), NOWHERE)[Channel.CHAT]
        assert (await provider.send(MESSAGE)).reference == "r-1"
        with pytest.raises(PermanentFailure) as caught:
            await provider.send(MESSAGE)
        await provider.close()
    assert caught.value.suppress
    assert not provider.takes({"chat": "telegram:12345"})
    assert not provider.takes({"chat": "https://chat.example/hook"})
    assert got[0] == ("Bearer s3cr3t", "d1/1", {"to": "LOFT7", "text": "Grüße"})


@pytest.mark.usefixtures("installed")
def test_its_settings_are_checked_as_others_are() -> None:
    with pytest.raises(SettingsError, match=r"channels\.chat\.providers\.0 \(loft\): colour") as caught:
        providers_of(settings("https://pigeon.example", colour="chartreuse"))
    assert "chartreuse" not in str(caught.value)
    with pytest.raises(ValueError, match="no kind of provider for sms"):
        make_provider(Channel.SMS, "loft", "pigeon", {})


def test_a_kind_that_is_not_installed_is_told_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"'pigeon' is no kind of provider for chat; known: .*slack"):
        make_provider(Channel.CHAT, "loft", "pigeon", {})


@pytest.mark.parametrize(
    ("name", "module", "told"),
    [
        ("pigeon", "import nowhere_at_all\n", "cannot be loaded: ModuleNotFoundError"),
        ("pigeon", "", "cannot be loaded: AttributeError"),
        ("pigeon", "KIND = 42\n", "should be a ProviderKind, and is a int"),
        ("smtp", "KIND = 42\n", "there is a kind 'smtp' already"),
    ],
)
def test_a_faulty_package_is_named_and_stops_nobody_else(
    name: str, module: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[notipy.providers]\n{name} = broken_loft:KIND\n")
    (tmp_path / "broken_loft.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=f"of the package broken .*{told}"):
        make_provider(Channel.CHAT, "loft", "pigeon", {})
    assert make_provider(Channel.CHAT, "console", "console", {}).name == "console"
    sys.modules.pop("broken_loft", None)


@pytest.mark.usefixtures("installed")
def test_what_is_made_has_to_be_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("notipy_pigeon.PigeonProvider.check")
    with pytest.raises(SettingsError, match="makes a provider without check"):
        providers_of(settings("https://pigeon.example"))


def test_the_page_for_authors_has_the_package_as_it_is() -> None:
    page = (THIRD_PARTY.parent.parent / "docs" / "providers" / "own.md").read_text()
    assert (THIRD_PARTY / "notipy_pigeon" / "__init__.py").read_text() in page
