// node state.mjs ROUTER_URL: exits with 0 and prints "ok" if the client keeps responses and conversations on the router.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any", maxRetries: 0 });
const model = "m";
const tool = { type: "function", name: "look_up", parameters: { type: "object" }, strict: false };

const all = async (pages) => {
  const found = [];
  for await (const each of pages) found.push(each);
  return found;
};
const raises = (call, kind, code) => assert.rejects(call, (error) => error instanceof kind && error.code === code);

const first = await client.responses.create({ model, input: "one", instructions: "be brief" });
assert.equal(first.output_text, "to one");
assert.equal(first.status, "completed");
assert.equal((await client.responses.retrieve(first.id)).output_text, first.output_text);

const stream = client.responses.stream({ model, input: "two", previous_response_id: first.id });
const kinds = (await all(stream)).map((event) => event.type);
assert.equal(kinds[0], "response.created");
assert.equal(kinds.at(-1), "response.completed");
const final = await stream.finalResponse();
assert.equal(final.output_text, "to two");

const branches = await Promise.all(
  ["left", "right"].map((input) => client.responses.create({ model, input, previous_response_id: first.id })),
);
assert.deepEqual(branches.map((branch) => branch.output_text), ["to left", "to right"]);

const aside = await client.responses.create({ model, input: "aside", previous_response_id: first.id, store: false });
assert.equal(aside.output_text, "to aside");
await raises(client.responses.retrieve(aside.id), OpenAI.NotFoundError, "not_found");

const asked = await client.responses.create({ model, input: "look", tools: [tool] });
assert.equal(asked.output[0].type, "function_call");
const output = { type: "function_call_output", call_id: asked.output[0].call_id, output: "found" };
const told = await client.responses.create({ model, input: [output], tools: [tool], previous_response_id: asked.id });
assert.equal(told.output_text, "to found");

const given = await all(client.responses.inputItems.list(final.id));
assert.deepEqual(given.map((item) => item.content[0].text), ["two"]);
await client.responses.delete(final.id);
await raises(client.responses.retrieve(final.id), OpenAI.NotFoundError, "not_found");
await raises(client.responses.cancel(first.id), OpenAI.BadRequestError, "invalid_request_error");
await raises(
  client.responses.create({ model, input: "x", previous_response_id: "resp_none" }),
  OpenAI.BadRequestError,
  "previous_response_not_found",
);
await raises(client.responses.create({ model, input: "x", background: true }), OpenAI.BadRequestError, "invalid_request_error");

const talk = await client.conversations.create({
  items: [{ type: "message", role: "user", content: "seven" }],
  metadata: { a: "b" },
});
const within = await client.responses.create({ model, input: "what?", conversation: talk.id });
assert.equal(within.conversation.id, talk.id);
const { items } = client.conversations;
const added = await items.create(talk.id, { items: [{ type: "message", role: "user", content: "more" }] });
assert.deepEqual(
  (await all(items.list(talk.id, { order: "asc", limit: 2 }))).map((item) => item.content[0].text),
  ["seven", "what?", "to what?", "more"],
);
const last = added.data[0].id;
assert.equal((await items.retrieve(last, { conversation_id: talk.id })).content[0].text, "more");
assert.equal((await items.delete(last, { conversation_id: talk.id })).id, talk.id);
await raises(items.retrieve(last, { conversation_id: talk.id }), OpenAI.NotFoundError, "not_found");
assert.deepEqual((await client.conversations.update(talk.id, { metadata: { x: "y" } })).metadata, { x: "y" });
assert.equal((await client.conversations.delete(talk.id)).deleted, true);
await raises(client.conversations.retrieve(talk.id), OpenAI.NotFoundError, "not_found");
console.log("ok");
