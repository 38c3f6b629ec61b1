// The push service of the package web-push-testing: it gives out subscriptions, verifies VAPID, decrypts what comes and
// keeps it. It says on standard output where it listens, and ends with its standard input.
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const { PushApiModel } = require("web-push-testing/src/PushApiModel.js");
const Service = require("web-push-testing/src/server.js");

const model = new PushApiModel();
const service = new Service(model, 0);
service.setRequestHandlers();
const listener = service._app.listen(0, "127.0.0.1", () => {
  const { port } = listener.address();
  model.notifyUrl = `http://127.0.0.1:${port}/notify/`;
  process.stdout.write(JSON.stringify({ port }) + "\n");
});
process.stdin.on("end", () => process.exit(0)).resume();
