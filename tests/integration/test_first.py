from config.settings import Settings
from consumers.app import running
from deploy.smtp_sink import SmtpSink
from domain.vocabulary import State
from tests.running import ORDER_SHIPPED, Stack, order


async def test_the_smallest_event_becomes_a_mail(settings: Settings, stack: Stack, smtp: SmtpSink) -> None:
    await stack.apply(ORDER_SHIPPED)
    async with running(settings):
        event = await stack.publish(order())
        (delivery,) = await stack.final(event)
    assert delivery.state is State.SENT
    (mail,) = smtp.mails
    assert mail.message["Subject"] == "Order 1042 shipped"
