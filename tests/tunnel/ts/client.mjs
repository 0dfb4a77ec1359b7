// A client of the TypeScript SDK. Usage: client.mjs URL v1|v2|sse; prints what it saw as JSON.
// v1: @modelcontextprotocol/sdk with sessions; sse: the same over the transport with two endpoints; v2: @modelcontextprotocol/client with revision 2026-07-28.
import { Client as Client1 } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { StreamableHTTPClientTransport as Http1 } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { CallToolResultSchema, CreateMessageRequestSchema, ElicitRequestSchema } from '@modelcontextprotocol/sdk/types.js';
import { Client as Client2, StreamableHTTPClientTransport as Http2 } from '@modelcontextprotocol/client';

const [, , address, kind] = process.argv;
const url = new URL(address);
const info = { name: 'typescript', version: '1.0' };
const capabilities = { sampling: {}, elicitation: {} };
const v2 = kind === 'v2';
const transport = () => (kind === 'sse' ? new SSEClientTransport(url) : v2 ? new Http2(url) : new Http1(url));
const make = () => (v2 ? new Client2(info, { capabilities, versionNegotiation: { mode: 'auto' } }) : new Client1(info, { capabilities }));
const sampled = async (r) => ({ model: 'm', role: 'assistant', content: { type: 'text', text: `to "${r.params.messages[0].content.text}": hello` } });
const elicited = async () => ({ action: 'accept', content: { response: 'blue', name: 'Ada' } });
const call = (c, name, args = {}, options) => (v2 ? c.callTool({ name, arguments: args }, options) : c.callTool({ name, arguments: args }, undefined, options));
const text = (r) => r.content[0].text;

const out = {}, client = make(), wire = transport();
client.setRequestHandler(v2 ? 'sampling/createMessage' : CreateMessageRequestSchema, sampled);
client.setRequestHandler(v2 ? 'elicitation/create' : ElicitRequestSchema, elicited);
await client.connect(wire);
out.session = wire.sessionId ?? null;
out.tools = (await client.listTools()).tools.length;
out.echo = text(await call(client, 'echo', { value: 'ü'.repeat(100000) })).length;
out.templates = (await client.listResourceTemplates()).resourceTemplates.map((t) => t.uriTemplate);
out.resource = (await client.readResource({ uri: 'test://template/7/data' })).contents[0].text;
out.binary = (await client.readResource({ uri: 'test://static-binary' })).contents[0].blob.length;
out.prompt = (await client.getPrompt({ name: 'test_prompt_with_arguments', arguments: { arg1: 'x', arg2: 'y' } })).messages[0].content.text;
out.completed = (await client.complete({ ref: { type: 'ref/prompt', name: 'test_prompt_with_arguments' }, argument: { name: 'arg1', value: 'ab' } })).completion.values;
out.progress = [];
out.steps = text(await call(client, 'steps', { n: 5 }, { onprogress: (p) => { out.progress.push(p.progress); call(client, 'step'); } }));
out.isError = (await call(client, 'test_error_handling')).isError;
if (v2) {
  out.asked = text(await call(client, 'test_input_required_result_multi_round').catch((e) => ({ content: [{ text: String(e) }] })));
  out.elicited = text(await call(client, 'test_input_required_result_elicitation'));
  out.sampled = text(await call(client, 'test_input_required_result_sampling'));
  out.header = text(await call(client, 'test_custom_headers', { region: ' Österreich ' }));
} else {
  out.sampled = text(await call(client, 'test_sampling', { prompt: 'hi' }));
  out.elicited = text(await call(client, 'test_elicitation', { message: 'Colour?' }));
}
if (kind === 'v1') {
  out.reconnected = text(await call(client, 'test_reconnection'));
  // A stream that is cut by its reader is taken up again by another connection of the same session at the last event seen.
  let token, first, seen = new Promise((resolve) => { first = resolve; });
  const cut = client.request({ method: 'tools/call', params: { name: 'steps', arguments: { n: 2 }, _meta: { progressToken: 'p' } } }, CallToolResultSchema,
    { onresumptiontoken: (t) => { token = t; first(); } }).catch(() => null);
  await seen;
  await client.close();
  await cut;
  const again = make(), rewire = new Http1(url, { sessionId: out.session });
  await again.connect(rewire);
  rewire.setProtocolVersion?.('2025-11-25');
  await call(again, 'step');
  await call(again, 'step');
  out.resumed = text(await again.request({ method: 'tools/call', params: { name: 'steps', arguments: { n: 2 } } }, CallToolResultSchema, { resumptionToken: token }));
  await rewire.terminateSession();
  await again.close();
  out.gone = (await fetch(url, { method: 'POST', headers: { 'content-type': 'application/json', accept: 'application/json, text/event-stream', 'mcp-session-id': out.session,
    'mcp-protocol-version': '2025-11-25' }, body: JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/list' }) })).status;
} else {
  await client.close();
}
console.log(JSON.stringify(out));
