// Reads lines {"kind", "body"} and writes for each a line with the list of what is wrong, or {"error"} if it cannot tell.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { isDeepStrictEqual } from "node:util";
import * as Discord from "discord-api-spec/zod";
import { importSPKI, jwtVerify } from "jose";
import { typed } from "./types.mjs";

const require = createRequire(import.meta.url);
const AppleNotification = require("@parse/node-apn/lib/notification");

const told = ({ path, message }) => `${path.join(".")}: ${message}`;
const unknown = ({ shape }, body) =>
  Object.keys(body).flatMap((name) => (name in shape ? [] : [`${name}: is no field of Discord's`]));

/** Of unknown fields only the body's own are found: zod leaves out those of objects in it. */
function discord(schema, body) {
  return [...(schema.safeParse(body).error?.issues ?? []).map(told), ...(schema.shape ? unknown(schema, body) : [])];
}

/** The same for a body that does not have every field. */
function partOfDiscord(schema, body) {
  const known = Object.entries(body).filter(([name]) => name in schema.shape);
  const issues = known.flatMap(([name, value]) => schema.shape[name].safeParse(value).error?.issues ?? []);
  return [...issues.map(told), ...unknown(schema, body)];
}

/** Google's APIs take a field by its own name or in camel case (ProtoJSON); their types have the latter. */
function fcm(body) {
  const free = /(^|\.)(data|headers|payload|webpush\.notification)$/;
  const camel = (value, path) => {
    if (Array.isArray(value)) return value.map((each) => camel(each, path));
    if (value === null || typeof value !== "object" || free.test(path)) return value;
    const renamed = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
    const entries = Object.entries(value).map(([name, each]) => [renamed(name), `${path}.${renamed(name)}`, each]);
    return Object.fromEntries(entries.map(([name, inside, each]) => [name, camel(each, inside)]));
  };
  return typed("fcm", camel(body, ""));
}

/** Apple publishes no schema: the types of another client, and what that client makes of the same content. */
function apns({ headers, payload: { aps, ...payload } }) {
  const { "apns-push-type": pushType, "apns-topic": topic } = headers;
  const faults = typed("apns", { "apns-push-type": pushType, "apns-topic": topic, aps });
  const number = (name) => (name in headers ? Number(headers[name]) : undefined);
  const said = new AppleNotification({
    id: headers["apns-id"],
    collapseId: headers["apns-collapse-id"],
    expiry: number("apns-expiration"),
    priority: number("apns-priority"),
    topic,
    pushType,
    payload,
  });
  const { alert = {}, badge, sound, "mutable-content": mutable } = aps ?? {};
  Object.assign(said, alert.title ? { title: alert.title, body: alert.body } : { alert });
  Object.assign(said, { badge, sound, mutableContent: mutable === 1 });
  const made = Object.fromEntries(Object.entries(said.headers()).map(([name, value]) => [name, String(value)]));
  if (!isDeepStrictEqual(made, headers)) faults.push(`another client's headers are ${JSON.stringify(made)}`);
  const compiled = JSON.parse(said.compile());
  if (!isDeepStrictEqual(compiled, { ...payload, aps })) faults.push(`another client says ${JSON.stringify(compiled)}`);
  return faults;
}

/** Vonage's own library turns its fields, in camel case, into these with hyphens. */
function vonage(form) {
  const camel = (name) => name.replace(/-([a-z])/g, (_, letter) => letter.toUpperCase());
  return typed("vonage", Object.fromEntries(Object.entries(form).map(([name, value]) => [camel(name), value])));
}

/** A token's signature and its claims; `within`: the seconds from now in which it must end. */
async function jwt({ token, key, algorithm, claims, kid, within }) {
  try {
    const public_ = await importSPKI(key, algorithm);
    const { payload, protectedHeader } = await jwtVerify(token, public_, { algorithms: [algorithm], ...claims });
    const late = within !== undefined && !(payload.exp <= Date.now() / 1000 + within);
    return [...(protectedHeader.kid === kid ? [] : ["kid is another"]), ...(late ? ["exp is too late"] : [])];
  } catch (error) {
    return [error.message];
  }
}

const readers = {
  apns,
  fcm,
  jwt,
  vonage,
  discord: (body) => discord(Discord.IncomingWebhookRequestPartialSchema, body),
  "discord answer": (body) => partOfDiscord(Discord.MessageResponseSchema, body),
  "discord refusal": (body) => discord(Discord.ErrorResponseSchema, body),
};
const read = async ({ kind, body }) => (await readers[kind]?.(body)) ?? typed(kind, body);
for await (const line of createInterface({ input: process.stdin })) {
  const found = await read(JSON.parse(line)).catch((error) => ({ error: error.stack }));
  process.stdout.write(`${JSON.stringify(found)}\n`);
}
