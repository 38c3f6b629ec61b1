"""DKIM signatures, verified by dkimpy with a DNS of the test's own."""

from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dkim
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import ValidationError

from channels.dkim_signature import THREAD_FROM, DkimOptions, DkimSigner
from channels.fetch import File
from channels.mail import Mail, compose, parse_sender
from channels.registry import make_provider
from domain.message import Message
from domain.vocabulary import Channel
from tests.contract.peers import scripted_smtp

AT = datetime(2026, 11, 22, 17, 0, tzinfo=UTC)
RSA = rsa.generate_private_key(65537, 2048)
Key = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
ED25519 = ed25519.Ed25519PrivateKey.generate()


def pem(key: Any) -> str:
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def record(key: Key) -> bytes:
    """As it stands in DNS: RFC 6376 §3.6.1, RFC 8463 §4."""
    if isinstance(key, rsa.RSAPrivateKey):
        return b"v=DKIM1; k=rsa; p=" + b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1))
    return b"v=DKIM1; k=ed25519; p=" + b64encode(key.public_key().public_bytes_raw())


def message(**content: str) -> Message:
    fields = {"subject": "Grüße", "text": "Hi\n\n\n", **content}
    return Message("d1", "d1/1", Channel.EMAIL, {"email": "ana@example.org", "name": "Ána"}, fields, AT)


def mail(files: tuple[File, ...] = (), **content: str) -> Mail:
    return compose(message(**content), parse_sender("Shop <no-reply@shop.example>"), files)


def signer(key: Key, **options: Any) -> DkimSigner:
    return DkimSigner(DkimOptions(domain="shop.example", selector="s1", **(options or {"key": pem(key)})))


def dns(key: Key) -> Callable[..., bytes]:
    def txt(name: bytes, timeout: int = 5) -> bytes:
        assert name == b"s1._domainkey.shop.example."
        return record(key)

    return txt


def verified(body: bytes, key: Key) -> bool:
    return bool(dkim.verify(body if body.endswith(b"\r\n") else body + b"\r\n", dnsfunc=dns(key)))


class _VerifyKey:
    """PyNaCl's, by cryptography: dkimpy asks for it where a key is Ed25519."""

    def __init__(self, key: bytes, encoder: Any) -> None:
        self._key = ed25519.Ed25519PublicKey.from_public_bytes(encoder(key))

    def verify(self, message: bytes, signature: bytes) -> bytes:
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            raise _BadSignatureError from None
        return message


class _BadSignatureError(Exception):
    pass


@pytest.fixture(autouse=True)
def _nacl(monkeypatch: pytest.MonkeyPatch) -> None:
    from base64 import b64decode

    signing = SimpleNamespace(VerifyKey=_VerifyKey)
    errors = SimpleNamespace(BadSignatureError=_BadSignatureError, ValueError=ValueError)
    encoding = SimpleNamespace(Base64Encoder=b64decode)
    monkeypatch.setattr(
        dkim, "nacl", SimpleNamespace(signing=signing, encoding=encoding, exceptions=errors), raising=False
    )


@pytest.mark.parametrize("key", [RSA, ED25519], ids=["rsa", "ed25519"])
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"text": ""},
        {"text": "no line end"},
        {
            "html": "<p>ü",
            "cc": "bo@example.org",
            "unsubscribe": f"https://shop.example/{'x' * 200}",
            "priority": "high",
        },
    ],
    ids=["short", "empty", "line", "full"],
)
async def test_a_signature_verifies_and_a_change_breaks_it(key: Key, content: dict[str, str]) -> None:
    plain = mail((File("ü.pdf", "application/pdf", b"%PDF"),), **content)
    signed = await signer(key).signed(plain, AT)
    assert (signed.recipient, signed.sender, signed.copies) == (plain.recipient, plain.sender, plain.copies)
    assert signed.body.endswith(plain.body)
    assert all(len(line) <= 80 for line in signed.body.removesuffix(plain.body).split(b"\r\n"))
    assert verified(signed.body, key)
    for old, new in ((b"From: Shop", b"From: Shup"), (b"Subject: =", b"Subject: a="), (b"JVBERg", b"JVBERh")):
        assert old in signed.body
        assert not verified(signed.body.replace(old, new), key)


@pytest.mark.parametrize(
    "added", [b"From: x@y.example", b"Subject: x", b"To: x@y.example", b"Reply-To: x@y.example", b"Cc: x@y.example"]
)
def test_nothing_can_be_added_that_a_reader_sees(added: bytes) -> None:
    signed = signer(RSA).sign(mail(), AT)
    assert not verified(added + b"\r\n" + signed.body, RSA)
    assert verified(b"Received: by x\r\n" + signed.body, RSA)


async def test_every_attempt_has_the_same_signature() -> None:
    large = mail((File("a", "text/plain", b"x" * THREAD_FROM),))
    for each in (mail(), large):
        assert await signer(RSA).signed(each, AT) == signer(RSA).sign(each, AT)
    assert verified(signer(RSA).sign(large, AT).body, RSA)


async def test_what_the_provider_sends_is_signed(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text(pem(RSA))
    settings = {"from": "no-reply@shop.example", "dkim": {"domain": "shop.example", "selector": "s1", "key_file": file}}
    async with scripted_smtp(pipelining=True) as server:
        provider = make_provider(Channel.EMAIL, "p", "smtp", {"url": f"smtp://127.0.0.1:{server.port}", **settings})
        await provider.send(message(text=".dots\n..\n", html="<p>x"))
        await provider.close()
    (sent,) = server.mails
    assert verified(sent.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n."), RSA)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs either key or key_file"),
        ({"key": "x", "key_file": "/none"}, "needs either key or key_file"),
        ({"key_file": "/none"}, "key_file should be a readable file"),
        ({"key": "hidden"}, "should be a private key in PEM form"),
        ({"key": pem(ec.generate_private_key(ec.SECP256R1()))}, "should be one for RSA"),
        ({"key": pem(RSA), "selector": "a b"}, "selector: should match"),
        ({"key": pem(RSA), "domain": "shop"}, "domain: should match"),
    ],
)
def test_settings_that_cannot_be_used(options: dict[str, Any], words: str) -> None:
    chosen = {"domain": "shop.example", "selector": "s1", **options}
    with pytest.raises(ValueError) as caught:
        make_provider(Channel.EMAIL, "p", "smtp", {"url": "smtp://h", "from": "a@b.example", "dkim": chosen})
    assert words in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_the_key_is_not_shown() -> None:
    options = DkimOptions(domain="shop.example", selector="s1", key=pem(RSA))
    secret = pem(RSA).splitlines()[1]
    assert secret not in repr(options) + str(options) + str(options.model_dump())
    with pytest.raises(ValidationError) as caught:
        DkimOptions(domain="shop", selector="s1", key=pem(RSA))
    assert secret not in str(caught.value)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dkim", None)
    with pytest.raises(ValueError, match=r"pip install 'notipy\[dkim\]'"):
        signer(RSA)
