// Reads mails, each a file, with a parser that has nothing of Python's: prints one JSON list.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import PostalMime from "postal-mime";

const mailbox = ({ name, address }) => [name, address];

async function read(path) {
  const mail = await PostalMime.parse(await readFile(path), { attachmentEncoding: "arraybuffer" });
  return {
    from: mailbox(mail.from),
    to: (mail.to ?? []).map(mailbox),
    cc: (mail.cc ?? []).map(mailbox),
    replyTo: (mail.replyTo ?? []).map(mailbox),
    subject: mail.subject,
    messageId: mail.messageId,
    date: mail.date,
    text: mail.text ?? null,
    html: mail.html ?? null,
    headers: Object.fromEntries(mail.headers.map(({ key, value }) => [key, value])),
    attachments: mail.attachments.map((file) => ({
      filename: file.filename,
      type: file.mimeType,
      disposition: file.disposition,
      related: file.related ?? false,
      contentId: file.contentId ?? null,
      sha256: createHash("sha256").update(Buffer.from(file.content)).digest("hex"),
    })),
  };
}

console.log(JSON.stringify(await Promise.all(process.argv.slice(2).map(read))));
