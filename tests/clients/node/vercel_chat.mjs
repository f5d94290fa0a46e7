// The Vercel AI SDK's providers that speak chat completions. Run by `make test-clients`.
import { createOpenAI, openai } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { chat, embeddings } from "./vercel.mjs";

const compatible = createOpenAICompatible({
  name: "hortator",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});

chat("@ai-sdk/openai, chat", openai.chat(process.env.MODEL)); // address and key from the environment
chat("@ai-sdk/openai-compatible", compatible(process.env.MODEL));
embeddings("@ai-sdk/openai", createOpenAI({ baseURL: process.env.OPENAI_BASE_URL }).embedding(process.env.MODEL));
embeddings("@ai-sdk/openai-compatible", compatible.embeddingModel(process.env.MODEL));
