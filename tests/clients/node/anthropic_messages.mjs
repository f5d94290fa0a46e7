// @anthropic-ai/sdk against the gateway. Run by `make test-clients`, which sets ANTHROPIC_BASE_URL and ANTHROPIC_AUTH_TOKEN.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic();
const model = process.env.MODEL;
const max_tokens = 100;
const messages = [{ role: "user", content: "Salve, Hortator 🐝" }];
const said = "You said: Salve, Hortator 🐝";
const tool = (name) => ({ name, input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] } });

test("a message and its usage", async () => {
  const answer = await client.messages.create({ model, max_tokens, messages });
  assert.deepEqual(answer.content.map((block) => block.text), [said]);
  assert.ok(answer.usage.input_tokens > 0 && answer.usage.output_tokens > 0);
});

test("a stream", async () => {
  assert.equal(await client.messages.stream({ model, max_tokens, messages }).finalText(), said);
});

test("parallel tools in a stream and the answer after them", async () => {
  const asked = { model, max_tokens, tools: [tool("weather"), tool("local_time")] };
  const history = [{ role: "user", content: "Call weather and local_time" }];
  const first = await client.messages.stream({ ...asked, messages: history }).finalMessage();
  const calls = first.content.filter((block) => block.type === "tool_use");
  assert.deepEqual(calls.map((call) => [call.name, call.input]), [["weather", { city: "a text" }], ["local_time", { city: "a text" }]]);
  history.push({ role: "assistant", content: first.content });
  history.push({ role: "user", content: calls.map((call) => ({ type: "tool_result", tool_use_id: call.id, content: "rain" })) });
  const after = await client.messages.create({ ...asked, messages: history });
  assert.equal(after.content[0].text, "The result is rain.");
});

test("counting tokens", async () => {
  assert.ok((await client.messages.countTokens({ model, messages })).input_tokens > 0);
});

test("errors have their class", async () => {
  await assert.rejects(client.messages.create({ model: "no/such", max_tokens, messages }), Anthropic.NotFoundError);
  await assert.rejects(new Anthropic({ authToken: "hrt_wrong" }).messages.create({ model, max_tokens, messages }), Anthropic.AuthenticationError);
});
