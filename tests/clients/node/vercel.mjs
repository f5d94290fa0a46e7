// What each of the Vercel AI SDK's providers must be able to do against the gateway. Imported by the test files beside it.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { embedMany, generateObject, generateText, isStepCount, Output, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const prompt = "Salve, Hortator 🐝";
const said = "You said: Salve, Hortator 🐝";
const schema = z.object({ name: z.string(), attendees: z.array(z.string()) });
const tools = {
  weather: tool({ inputSchema: z.object({ city: z.string() }), execute: async ({ city }) => `rain in ${city}` }),
  local_time: tool({ inputSchema: z.object({ city: z.string() }), execute: async () => "noon" }),
};

export function chat(name, model) {
  describe(name, () => {
    test("generateText", async () => {
      const { text, usage, finishReason } = await generateText({ model, prompt });
      assert.equal(text, said);
      assert.equal(finishReason, "stop");
      assert.ok(usage.inputTokens > 0 && usage.outputTokens > 0);
    });

    test("streamText", async () => {
      const result = streamText({ model, prompt, onError: ({ error }) => { throw error; } });
      let text = "";
      for await (const piece of result.textStream) text += piece;
      assert.equal(text, said);
      assert.equal(await result.finishReason, "stop");
      assert.ok((await result.usage).outputTokens > 0);
    });

    test("tools over several steps", async () => {
      const { text, steps } = await generateText({ model, tools, stopWhen: isStepCount(3), prompt: "Call weather and local_time" });
      assert.equal(steps.length, 2);
      assert.deepEqual(steps[0].toolCalls.map((call) => call.toolName), ["weather", "local_time"]);
      assert.equal(text, "The result is noon.");
    });

    test("tools over several steps of a stream", async () => {
      const result = streamText({ model, tools, stopWhen: isStepCount(3), prompt: "Call weather and local_time" });
      assert.equal(await result.text, "The result is noon.");
      const [first] = await result.steps;
      assert.deepEqual(first.toolResults.map((one) => one.output), ["rain in a text", "noon"]);
    });

    test("generateObject", async () => {
      const { object } = await generateObject({ model, schema, prompt });
      assert.deepEqual(object, { name: "🐝", attendees: ["🐝"] });
      const { output } = await generateText({ model, output: Output.object({ schema }), prompt });
      assert.deepEqual(output, object);
    });

    test("streamObject", async () => {
      const result = streamObject({ model, schema, prompt });
      let last;
      for await (const partial of result.partialObjectStream) last = partial;
      assert.deepEqual(last, { name: "🐝", attendees: ["🐝"] });
      assert.deepEqual(await result.object, last);
    });
  });
}

export function embeddings(name, model) {
  test(`embedMany of ${name}`, async () => {
    const { embeddings } = await embedMany({ model, values: ["salve", "vale"] });
    assert.deepEqual(embeddings.map((one) => one.length), [32, 32]);
  });
}
