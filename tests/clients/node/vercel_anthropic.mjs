// The Vercel AI SDK's Anthropic provider: it speaks messages. Run by `make test-clients`.
import { createAnthropic } from "@ai-sdk/anthropic";
import { chat } from "./vercel.mjs";

const anthropic = createAnthropic({ baseURL: `${process.env.ANTHROPIC_BASE_URL}/v1`, authToken: process.env.ANTHROPIC_AUTH_TOKEN });

chat("@ai-sdk/anthropic", anthropic(process.env.MODEL));
