"""A provider fails everybody for seconds, then recovers: in the end everything must have been sent."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tests.chaos.run import Fault, Run
from tests.chaos.sinks import PASSWORD, USER, Certificates, Mood

_SECONDS = 5.0


def _moody(moods: Sequence[Mood], seconds: float = _SECONDS) -> Callable[[Run], Awaitable[None]]:
    async def inject(run: Run) -> None:
        run.mail.mood = run.rng.choice(moods)
        run.note(run.mail.mood)
        await asyncio.sleep(seconds)
        run.mail.mood = Mood.GOOD

    return inject


async def _with_login(run: Run) -> None:
    run.mail.authenticates = True
    provider = run.settings["channels"]["email"]["providers"][0]
    provider["url"] = provider["url"].replace("smtp://", f"smtp://{USER}:{PASSWORD}@")


async def _wrong_credentials(run: Run) -> None:
    """The server's password is another, and later the one that NotiPy knows again."""
    run.mail.password = "another"
    run.mail.hang_up()
    await asyncio.sleep(_SECONDS)
    run.expect(run.mail.refused_logins, "no login was refused")
    run.mail.password = PASSWORD


async def _with_tls(run: Run) -> None:
    run.certificates = Certificates.make(run.directory)
    run.mail.certificate = run.certificates.valid
    provider = run.settings["channels"]["email"]["providers"][0]
    provider["url"] = provider["url"].replace("tls=none", "tls=starttls")
    provider["ca_file"] = str(run.certificates.ca_file)


async def _certificate_expired(run: Run) -> None:
    assert run.certificates is not None
    run.mail.certificate = run.certificates.expired
    run.mail.hang_up()
    await asyncio.sleep(_SECONDS)
    run.mail.certificate = run.certificates.valid
    run.mail.hang_up()


async def _hooks_hang(run: Run) -> None:
    """They take the call and say nothing."""
    run.hooks.hangs = True
    await asyncio.sleep(_SECONDS)
    run.hooks.hangs = False


async def _hooks_refuse(run: Run) -> None:
    run.hooks.refuses = True
    await asyncio.sleep(_SECONDS)
    run.hooks.refuses = False


FAULTS = (
    Fault("smtp-hangs", "the mail server hangs", _moody((Mood.HANGS_AT_MAIL, Mood.HANGS_AFTER_DATA))),
    Fault(
        "smtp-closes-after-data",
        "the mail server takes mails and hangs up instead of an answer",
        _moody((Mood.CLOSES_AFTER_DATA,), 3.0),
    ),
    Fault("smtp-4xx", "the mail server answers 4xx to all", _moody((Mood.REFUSES_MAIL, Mood.REFUSES_DATA))),
    Fault("smtp-wrong-credentials", "the mail server's password changes", _wrong_credentials, prepare=_with_login),
    Fault(
        "smtp-certificate-expired",
        "the mail server's certificate expires and is replaced",
        _certificate_expired,
        prepare=_with_tls,
    ),
    Fault("webhook-hangs", "every webhook endpoint hangs", _hooks_hang),
    Fault("webhook-5xx", "every webhook endpoint answers 503", _hooks_refuse),
)
