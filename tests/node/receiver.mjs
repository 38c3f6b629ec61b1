// A receiver of webhooks that verifies them with the published `standardwebhooks` package. It says on standard output
// where it listens, then in one line for each request what it made of it. Usage: node receiver.mjs SECRET
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.argv[2]);
const tell = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString("utf8");
  try {
    const verified = webhook.verify(body, request.headers);
    tell({ id: request.headers["webhook-id"], verified });
    response.writeHead(204).end();
  } catch (error) {
    tell({ refused: error.message });
    response.writeHead(401).end();
  }
});
server.listen(0, "127.0.0.1", () => tell({ port: server.address().port }));
process.stdin.on("end", () => process.exit(0)).resume();
