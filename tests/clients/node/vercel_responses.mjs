// The Vercel AI SDK's OpenAI provider as it is by default: it speaks responses. Run by `make test-clients`.
import { openai } from "@ai-sdk/openai";
import { chat } from "./vercel.mjs";

chat("@ai-sdk/openai, responses", openai(process.env.MODEL));
