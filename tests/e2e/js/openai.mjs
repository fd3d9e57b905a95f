// node openai.mjs ROUTER_URL: exits with 0 and prints "ok" if the client reads whole replies, streams and errors.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "the fleet keeps what it has seen ".repeat(30) }];

const models = await client.models.list();
assert.deepEqual(models.data.map((model) => model.id), ["sim"]);

const whole = await client.chat.completions.create({ model: "sim", messages, max_tokens: 20 });
const stream = await client.chat.completions.create({ model: "sim", messages, max_tokens: 20, stream: true });
let text = "";
let reason = null;
for await (const chunk of stream) {
  text += chunk.choices[0].delta.content ?? "";
  reason = chunk.choices[0].finish_reason ?? reason;
  assert.equal(chunk.usage ?? null, null);
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(reason, "length");

const left = await client.chat.completions.create({ model: "sim", messages, max_tokens: 2000, stream: true });
for await (const _ of left) break;

await assert.rejects(
  client.chat.completions.create({ model: "other", messages }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
);
await assert.rejects(
  client.chat.completions.create({ model: "sim", messages: "none" }),
  (error) => error instanceof OpenAI.BadRequestError,
);
console.log("ok");
