// openai-node against the gateway, two major versions alike: chat, tools, structured output, embeddings, completions, errors and retries.
// Run by `make test-clients`, which sets OPENAI_BASE_URL and OPENAI_API_KEY.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { describe, test } from "node:test";
import { z } from "zod";
import * as newer from "openai";
import { zodResponseFormat as newerFormat } from "openai/helpers/zod";
import * as older from "openai-6";
import { zodResponseFormat as olderFormat } from "openai-6/helpers/zod";

const model = process.env.MODEL;
const messages = [{ role: "user", content: "Salve, Hortator 🐝" }];
const tool = (name) => ({
  type: "function",
  function: { name, parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] } },
});
const both = { messages: [{ role: "user", content: "Call weather and local_time" }], tools: [tool("weather"), tool("local_time")] };
const Event = z.object({ name: z.string(), attendees: z.array(z.string()), year: z.number() });

for (const [version, { OpenAI, ...errors }, format] of [["7", newer, newerFormat], ["6", older, olderFormat]]) {
  describe(`openai-node ${version}`, () => {
    const client = new OpenAI();

    test("a chat and its usage", async () => {
      const answer = await client.chat.completions.create({ model, messages });
      assert.equal(answer.choices[0].message.content, "You said: Salve, Hortator 🐝");
      assert.ok(answer.usage.total_tokens > 0);
      assert.ok(answer._request_id);
    });

    test("a stream and its usage", async () => {
      let text = "";
      let usage;
      for await (const chunk of await client.chat.completions.create({ model, messages, stream: true, stream_options: { include_usage: true } })) {
        text += chunk.choices[0]?.delta.content ?? "";
        usage = chunk.usage ?? usage;
      }
      assert.equal(text, "You said: Salve, Hortator 🐝");
      assert.ok(usage.total_tokens > 0);
    });

    test("parallel tools in a stream", async () => {
      const { choices: [choice] } = await client.chat.completions.stream({ model, ...both }).finalChatCompletion();
      assert.deepEqual(choice.message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]), [
        ["weather", { city: "a text" }],
        ["local_time", { city: "a text" }],
      ]);
      assert.equal(choice.finish_reason, "tool_calls");
    });

    test("tools that run by themselves", async () => {
      const weather = { ...tool("weather"), function: { ...tool("weather").function, function: () => "rain", parse: JSON.parse } };
      const runner = client.chat.completions.runTools({ model, messages: [{ role: "user", content: "The weather?" }], tools: [weather] });
      assert.equal(await runner.finalContent(), "The result is rain.");
    });

    test("structured output", async () => {
      const answer = await client.chat.completions.parse({ model, messages, response_format: format(Event, "event") });
      assert.deepEqual(answer.choices[0].message.parsed, { name: "🐝", attendees: ["🐝"], year: 1.5 });
    });

    test("embeddings as base64 and as floats", async () => {
      const packed = await client.embeddings.create({ model, input: ["salve", "vale"] }); // it asks for base64 by itself
      const plain = await client.embeddings.create({ model, input: ["salve", "vale"], encoding_format: "float" });
      assert.deepEqual(packed.data.map((one) => one.embedding.length), [32, 32]);
      packed.data[1].embedding.forEach((number, at) => assert.ok(Math.abs(number - plain.data[1].embedding[at]) < 1e-6));
    });

    test("completions", async () => {
      const answer = await client.completions.create({ model, prompt: "def add(a, b):" });
      assert.ok(answer.choices[0].text);
    });

    test("models", async () => {
      const ids = [];
      for await (const one of client.models.list()) ids.push(one.id);
      assert.ok(ids.includes(model));
    });

    test("errors have their class and code", async () => {
      await assert.rejects(client.chat.completions.create({ model: "no/such", messages, stream: true }), (error) => {
        assert.ok(error instanceof errors.NotFoundError);
        assert.equal(error.code, "model_not_found");
        return true;
      });
      await assert.rejects(new OpenAI({ apiKey: "hrt_wrong" }).models.list(), errors.AuthenticationError);
    });

    test("a busy provider is tried again by the client", async () => {
      const busy = () => [{ role: "user", content: `Be busy once: ${randomUUID().replaceAll("-", "")}` }];
      const answer = await client.chat.completions.create({ model, messages: busy() });
      assert.match(answer.choices[0].message.content, /^You said: Be busy/);
      await assert.rejects(client.chat.completions.create({ model, messages: busy() }, { maxRetries: 0 }), errors.RateLimitError);
    });
  });
}
