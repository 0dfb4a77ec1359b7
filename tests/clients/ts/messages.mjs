// The official TypeScript SDK against the Messages gateway: prints what it got as JSON.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ maxRetries: 0 });
const ask = { model: "claude-opus-4-6", max_tokens: 100, messages: [{ role: "user", content: process.argv[2] }] };
const out = {};
out.create = (await client.messages.create(ask)).content;
out.stream = (await client.messages.stream(ask).finalMessage()).content;
out.tokens = (await client.messages.countTokens({ model: ask.model, messages: ask.messages })).input_tokens;
const step = { status: 429, error: "rate_limit_error", headers: { "retry-after": "3" }, times: 9 };
try {
    await client.messages.create({ ...ask, messages: [{ role: "user", content: "PLAN " + JSON.stringify([step]) }] });
} catch (e) {
    out.error = { status: e.status, type: e.error.error.type, retry: e.headers.get("retry-after") };
}
console.log(JSON.stringify(out));
