"""A host of the settings that there is not is named, for it is mistyped; a recipient's never is."""

from dataclasses import replace
from pathlib import Path

import pytest

from channels.registry import make_provider
from domain.failures import DeliveryFailure
from domain.message import Message
from domain.vocabulary import Channel, Reason
from tests.conformance.over_http import HttpSubject
from tests.conformance.subjects import subjects
from tests.contract.test_channels import failure_of, hook, webhooks

HOST = "no-such-api.invalid"
SUBJECTS = [
    each for each in subjects() if isinstance(each, HttpSubject) and each.shared and isinstance(each.message, Message)
]
"""Those whose message goes where the settings say."""
HOOKED = [each for each in SUBJECTS if each.channel is Channel.CHAT]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.kind)
async def test_who_asks_an_api_names_its_host_if_there_is_none(subject: HttpSubject, tmp_path: Path) -> None:
    options = subject.options(f"http://{HOST}", tmp_path)
    provider = make_provider(subject.channel, "primary", subject.kind, options)
    with pytest.raises(DeliveryFailure) as sending:
        await provider.send(subject.message_over(f"http://{HOST}"))
    await provider.close()
    assert (sending.value.reason, sending.value.provider_fault) == (Reason.NAME_RESOLUTION, True)
    assert f"the host {HOST} was not found" in sending.value.detail


async def test_a_host_that_a_recipient_brought_is_not_named() -> None:
    hooks = webhooks()
    failure = await failure_of(hooks, hook(f"http://{HOST}/"))
    await hooks.close()
    assert failure.reason is Reason.NAME_RESOLUTION
    assert HOST not in failure.detail


@pytest.mark.parametrize("subject", HOOKED, ids=lambda subject: subject.kind)
async def test_nor_is_that_of_a_chat_address(subject: HttpSubject, tmp_path: Path) -> None:
    provider = make_provider(subject.channel, "chat", subject.kind, subject.options("http://127.0.0.1:9", tmp_path))
    message = replace(subject.message_over(""), recipient={"chat": f"https://{HOST}/hooks/x"})
    with pytest.raises(DeliveryFailure) as sending:
        await provider.send(message)
    await provider.close()
    assert HOST not in sending.value.detail
