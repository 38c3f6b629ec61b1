// Browsers, as far as RabbitMQ can tell: each a client of the published package @stomp/stompjs over its own WebSocket.
// Takes one JSON object a line, and says in lines what became of it. Usage: node browser.mjs URL VHOST
//   {"person": ID, "passcode": ...}      listens with what docs/providers/inbox.md has, told.mjs beside this file
//   {"name": ..., "login": ..., "passcode": ..., "subscribe" or "publish": DESTINATION, "headers": ...}  tries that once
import { createInterface } from "node:readline";
import { Client } from "@stomp/stompjs";
import { inboxKey, listen } from "./told.mjs";

const [, , url, vhost] = process.argv;
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

// RabbitMQ closes the connection of one who is refused; what it has to say of it comes before that, or not at all.
function attempt({ name, login, passcode, subscribe, publish, headers = {} }) {
  let connected = false;
  let allowed = false;
  const client = new Client({ brokerURL: url, connectHeaders: { login, passcode, host: vhost }, reconnectDelay: 0 });
  client.onWebSocketClose = () => say({ name, connected, allowed });
  client.onConnect = () => {
    connected = true;
    client.watchForReceipt("done", () => {
      allowed = true;
      client.deactivate();
    });
    const all = { receipt: "done", ...headers };
    if (subscribe) client.subscribe(subscribe, () => {}, all);
    else client.publish({ destination: publish, body: "{}", headers: all });
  };
  client.activate();
}

createInterface({ input: process.stdin })
  .on("line", (line) => {
    const asked = JSON.parse(line);
    if ("person" in asked) {
      const { person, passcode } = asked;
      const client = listen(url, vhost, person, passcode, (told) => say({ person, told }));
      client.onStompError = ({ headers, body }) => say({ person, refused: `${headers.message}: ${body}` });
      say({ person, key: inboxKey(person) });
    } else {
      attempt(asked);
    }
  })
  .on("close", () => process.exit(0));
