// The official TypeScript SDK against the Messages gateway with an MCP server: prints the content that it got as JSON.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ maxRetries: 0 });
const ask = {
    model: "claude-opus-4-6", max_tokens: 100, messages: [{ role: "user", content: process.argv[2] }], betas: ["mcp-client-2025-11-20"],
    mcp_servers: [{ type: "url", name: "demo", url: process.argv[3] }], tools: [{ type: "mcp_toolset", mcp_server_name: "demo" }],
};
const out = {};
out.create = (await client.beta.messages.create(ask)).content;
out.stream = (await client.beta.messages.stream(ask).finalMessage()).content;
console.log(JSON.stringify(out));
