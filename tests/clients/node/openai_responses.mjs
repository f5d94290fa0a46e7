// openai-node's responses against the gateway, two major versions alike. Run by `make test-clients`.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { OpenAI } from "openai";
import { OpenAI as OlderOpenAI } from "openai-6";

const model = process.env.MODEL;
const tools = [
  { type: "function", name: "weather", strict: true, parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false } },
];

for (const [version, Client] of [["7", OpenAI], ["6", OlderOpenAI]]) {
  describe(`openai-node ${version}`, () => {
    const client = new Client();

    test("a response and its usage", async () => {
      const answer = await client.responses.create({ model, input: "Salve 🐝" });
      assert.equal(answer.output_text, "You said: Salve 🐝");
      assert.ok(answer.usage.total_tokens > 0);
    });

    test("a stream", async () => {
      const answer = await client.responses.stream({ model, input: "Salve 🐝" }).finalResponse();
      assert.equal(answer.output_text, "You said: Salve 🐝");
    });

    test("a tool in a stream and the answer after it", async () => {
      const input = [{ role: "user", content: "What is the weather?" }];
      const first = await client.responses.stream({ model, tools, input }).finalResponse();
      const call = first.output.find((item) => item.type === "function_call");
      assert.deepEqual([call.name, JSON.parse(call.arguments)], ["weather", { city: "a text" }]);
      input.push(...first.output, { type: "function_call_output", call_id: call.call_id, output: "rain" });
      assert.equal((await client.responses.create({ model, tools, input })).output_text, "The result is rain.");
    });
  });
}
