// LangChain JS against the gateway. Run by `make test-clients`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";

const configuration = { baseURL: process.env.OPENAI_BASE_URL };
const model = new ChatOpenAI({ model: process.env.MODEL, configuration });
const weather = tool(async ({ city }) => `rain in ${city}`, { name: "weather", description: "Weather.", schema: z.object({ city: z.string() }) });

test("invoke", async () => {
  const answer = await model.invoke("Salve");
  assert.equal(answer.content, "You said: Salve");
  assert.ok(answer.usage_metadata.total_tokens > 0);
});

test("stream", async () => {
  let text = "";
  let usage;
  for await (const chunk of await model.stream("Salve")) {
    text += chunk.content;
    usage = chunk.usage_metadata ?? usage;
  }
  assert.equal(text, "You said: Salve");
  assert.ok(usage.total_tokens > 0);
});

test("a tool and the answer after it", async () => {
  const bound = model.bindTools([weather]);
  const asked = new HumanMessage("What is the weather?");
  const first = await bound.invoke([asked]);
  assert.deepEqual(first.tool_calls.map((call) => [call.name, call.args]), [["weather", { city: "a text" }]]);
  const result = await weather.invoke(first.tool_calls[0]);
  assert.ok(result instanceof ToolMessage);
  assert.equal((await bound.invoke([asked, first, result])).content, "The result is rain in a text.");
});

test("structured output", async () => {
  const structured = model.withStructuredOutput(z.object({ name: z.string(), year: z.number() }));
  assert.deepEqual(await structured.invoke("Salve in 2026"), { name: "a text", year: 2026 });
});

test("embeddings", async () => {
  const vectors = await new OpenAIEmbeddings({ model: process.env.MODEL, configuration }).embedDocuments(["salve", "vale"]);
  assert.deepEqual(vectors.map((one) => one.length), [32, 32]);
});
