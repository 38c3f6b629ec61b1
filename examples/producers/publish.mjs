#!/usr/bin/env node
// Publish the smallest event that NotiPy takes, with amqplib.
//
//     AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F node publish.mjs ana@example.org 1042
//
// It ends with 0 only when RabbitMQ has confirmed that the event is stored in NotiPy's queue.
import amqplib from "amqplib";

const [email = "ana@example.org", orderId = "1042"] = process.argv.slice(2);
const url = process.env.AMQP_URL ?? "amqp://guest:guest@127.0.0.1:5672/%2F";

const event = { recipients: [{ email }], data: { order_id: Number(orderId), carrier: "DHL" } };

const connection = await amqplib.connect(url).catch((error) => {
  const where = `RabbitMQ at ${new URL(url).hostname} (AMQP_URL)`;
  console.error(`Not published: ${where} cannot be reached: ${error.message || error.code}`);
  process.exit(1);
});
try {
  const channel = await connection.createConfirmChannel();
  let returned = false;
  channel.on("return", () => { returned = true; });
  channel.publish("notipy.events", "shop.order.shipped", Buffer.from(JSON.stringify(event)), {
    messageId: `ord-${orderId}`, // the event's id: publishing it again is harmless
    contentType: "application/json",
    persistent: true,
    mandatory: true, // an event that no queue takes is returned before it is confirmed
  });
  await channel.waitForConfirms(); // throws where the queue is full: publish again later
  if (returned) throw new Error("no queue took the event: is there a NotiPy behind this virtual host?");
  console.log(`Published shop ord-${orderId}`);
} finally {
  await connection.close();
}
