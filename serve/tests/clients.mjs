// OpenAI's client for Node: node clients.mjs URL (see clients.py).
import assert from "node:assert";
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Name three colours." }];
const ask = { model: "m", messages, max_tokens: 24, seed: 7, temperature: 0.7 };
const first = (await client.chat.completions.create(ask)).choices[0].message.content;
assert(first);
let said = "";
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) said += chunk.choices[0]?.delta.content ?? "";
assert.equal(said, first);
assert.equal((await client.chat.completions.stream(ask).finalContent()), first);

const again = { model: "m", input: messages, max_output_tokens: 24, temperature: 0.7, seed: 7 };
assert.equal((await client.responses.create(again)).output_text, first);
said = "";
for await (const event of await client.responses.create({ ...again, stream: true })) {
  if (event.type === "response.output_text.delta") said += event.delta;
}
assert.equal(said, first);
assert.equal((await client.responses.stream(again).finalResponse()).output_text, first);

const wrong = client.chat.completions.create({ ...ask, temperature: -1 });
await assert.rejects(wrong, (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
const listed = [];
for await (const model of client.models.list()) listed.push(model.id);
assert.deepEqual(listed, ["m"]);
console.log(JSON.parse(readFileSync(new URL("node_modules/openai/package.json", import.meta.url))).version);
