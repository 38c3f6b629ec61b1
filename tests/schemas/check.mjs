// Reads lines {"kind", "body"} and writes for each a line with the list of what is wrong with the request.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { IncomingWebhookRequestPartialSchema } from "discord-api-spec/zod";

const { AdaptiveCard, SerializationContext, Versions } = createRequire(import.meta.url)(
  "adaptivecards/dist/adaptivecards.js",
);

function discord(body) {
  const read = IncomingWebhookRequestPartialSchema.safeParse(body);
  const unknown = Object.keys(body).filter((name) => !(name in IncomingWebhookRequestPartialSchema.shape));
  const issues = read.success ? [] : read.error.issues.map((issue) => `${issue.path.join(".")}: ${issue.message}`);
  return [...issues, ...unknown.map((name) => `${name}: is no field of Discord's`)];
}

function teams(body) {
  return body.attachments.flatMap(({ content }) => {
    const context = new SerializationContext(Versions.v1_5);
    const card = new AdaptiveCard();
    card.parse(content, context);
    const events = Array.from({ length: context.eventCount }, (_, at) => context.getEventAt(at).message);
    return [...events, ...card.validateProperties().validationEvents.map((event) => event.message)];
  });
}

const readers = { discord, teams };
for await (const line of createInterface({ input: process.stdin })) {
  const { kind, body } = JSON.parse(line);
  process.stdout.write(`${JSON.stringify(readers[kind](body))}\n`);
}
