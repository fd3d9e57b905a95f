// node anthropic.mjs ROUTER_URL: exits with 0 and prints "ok" if the client reads whole replies, streams and errors.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "the fleet keeps what it has seen ".repeat(30) }];

const whole = await client.messages.create({ model: "sim", max_tokens: 20, messages });
const stream = client.messages.stream({ model: "sim", max_tokens: 20, messages });
let text = "";
stream.on("text", (part) => (text += part));
const final = await stream.finalMessage();
assert.equal(text, whole.content[0].text);
assert.equal(final.stop_reason, "max_tokens");

await assert.rejects(
  client.messages.create({ model: "other", max_tokens: 3, messages }),
  (error) => error instanceof Anthropic.NotFoundError && error.error.error.type === "not_found_error",
);
console.log("ok");
