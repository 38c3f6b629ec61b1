// What official and generated TypeScript types say of a request. A body is checked as TypeScript checks an object
// literal: fields that there are not, fields that are missing, and what a field may hold.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const ts = createRequire(import.meta.url)("typescript");
const FOLDER = fileURLToPath(new URL(".", import.meta.url));
const FILE = `${FOLDER}request.ts`;

/** Where providers' packages say of fields less than their documentation does, the latter's words are beside them. */
const DECLARATIONS = `
import { fcm_v1 as Fcm } from "./node_modules/@googleapis/fcm/build/v1";
import { ApiResponse } from "./node_modules/@grammyjs/types/api";
import { Message } from "./node_modules/@grammyjs/types/message";
import { ApiMethods } from "./node_modules/@grammyjs/types/methods";
import Client4 from "./node_modules/@mattermost/client/lib/client4";
import { Post } from "./node_modules/@mattermost/types/lib/posts";
import { IAdaptiveCard } from "./node_modules/@microsoft/teams.cards/dist/core";
import { Notification, NotificationPushType } from "./node_modules/@parse/node-apn";
import { MailJSON } from "./node_modules/@sendgrid/helpers/classes/mail";
import { ChatPostMessageArguments } from "./node_modules/@slack/web-api/dist/types/request/chat";
import { ChatPostMessageResponse } from "./node_modules/@slack/web-api/dist/types/response/ChatPostMessageResponse";
import { IncomingWebhookSendArguments } from "./node_modules/@slack/webhook/dist/IncomingWebhook";
import { SMSParams } from "./node_modules/@vonage/sms/dist/cjs/types/SMSParams";
import { TypeEnum } from "./node_modules/@vonage/sms/dist/cjs/enums/TypeEnum";
import { MailgunMessageData, MessagesSendAPIResponse } from "./node_modules/mailgun.js/Types/Types/Messages/Messages";

type Named<T> = { [K in keyof T as string extends K ? never : K]: T[K] };
type Some<T> = T extends object ? { [K in keyof T]?: Some<T[K]> } : T;
type Aps = Notification["aps"];
type Target = { token: string } | { topic: string } | { condition: string };

/** The union "target" and the enumeration AndroidMessagePriority are in the reference only. */
type FcmMessage = Omit<Fcm.Schema$Message, "android" | "apns" | "token" | "topic" | "condition"> & Target & {
  android?: Fcm.Schema$AndroidConfig & { priority?: "NORMAL" | "HIGH"; ttl?: \`\${number}s\` };
  apns?: Fcm.Schema$ApnsConfig & { payload?: { aps?: Aps; [own: string]: unknown } };
};

/** What a workflow takes, by the page of Teams' webhooks. */
type CardAttachment = {
  contentType: "application/vnd.microsoft.card.adaptive";
  contentUrl?: null;
  content: IAdaptiveCard;
};

interface Kinds {
  apns: { "apns-push-type": NotificationPushType; "apns-topic": string; aps: Aps & Required<Pick<Aps, "alert">> };
  fcm: { message: FcmMessage; validateOnly?: boolean };
  mailgun: Named<MailgunMessageData> & { to: string[]; message: string; [variable: \`v:\${string}\`]: string };
  mattermost: Parameters<Client4["createPost"]>[0];
  sendgrid: MailJSON;
  slack: ChatPostMessageArguments;
  /** "mrkdwn" is in Slack's reference of message payloads. */
  "slack webhook": Omit<IncomingWebhookSendArguments, "channel" | "fetch" | "timeout" | "retryConfig"> &
    { text: string; mrkdwn?: boolean };
  teams: { type: "message"; attachments: CardAttachment[] };
  telegram: Parameters<ApiMethods<never>["sendMessage"]>[0];
  vonage: Omit<SMSParams, "type"> & { text: string; type?: \`\${TypeEnum}\` };

  "fcm answer": Some<Fcm.Schema$Message>;
  "mailgun answer": MessagesSendAPIResponse["body"];
  "mattermost answer": Some<Post>;
  "slack answer": ChatPostMessageResponse;
  "telegram answer": ApiResponse<Some<Message.TextMessage>>;
}
`;

const OPTIONS = {
  strict: true,
  noEmit: true,
  lib: ["lib.es2020.d.ts"],
  types: [],
  skipLibCheck: true,
  target: ts.ScriptTarget.ES2020,
  module: ts.ModuleKind.CommonJS,
  moduleResolution: ts.ModuleResolutionKind.Node10,
};

let text = "";
let version = 0;
const read = (file) => (file === FILE ? text : ts.sys.readFile(file));
const service = ts.createLanguageService({
  getScriptFileNames: () => [FILE],
  getScriptVersion: (file) => (file === FILE ? String(version) : "0"),
  getScriptSnapshot: (file) => (read(file) === undefined ? undefined : ts.ScriptSnapshot.fromString(read(file))),
  getCurrentDirectory: () => FOLDER,
  getCompilationSettings: () => OPTIONS,
  getDefaultLibFileName: ts.getDefaultLibFilePath,
  fileExists: (file) => file === FILE || ts.sys.fileExists(file),
  readFile: read,
  directoryExists: ts.sys.directoryExists,
  getDirectories: ts.sys.getDirectories,
});

/** What is wrong with a body of this kind, in the compiler's words. */
export function typed(kind, body) {
  text = `${DECLARATIONS}const body: Kinds[${JSON.stringify(kind)}] = ${JSON.stringify(body)};`;
  version += 1;
  const found = [...service.getSyntacticDiagnostics(FILE), ...service.getSemanticDiagnostics(FILE)];
  return found.map((each) => ts.flattenDiagnosticMessageText(each.messageText, " "));
}
