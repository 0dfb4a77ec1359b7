// A stdio server of the TypeScript SDK: the same tools as stdio_server.py.
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StdioServerTransport } from '@modelcontextprotocol/sdk/server/stdio.js';
import { z } from 'zod';

const server = new McpServer({ name: 'ts-stdio', version: '1.0.0' });
const text = (v) => ({ content: [{ type: 'text', text: String(v) }] });
server.registerTool('add', { description: 'adds', inputSchema: { a: z.number(), b: z.number() } }, async ({ a, b }) => text(a + b));
server.registerTool('pid', { description: 'process id' }, async () => text(process.pid));
server.registerTool('env', { description: 'names of variables' }, async () => text(Object.keys(process.env).sort().join(' ')));
server.registerTool('die', { description: 'ends the process' }, async () => process.exit(3));
server.registerTool('count', { description: 'reports progress', inputSchema: { n: z.number() } }, async ({ n }, extra) => {
  const progressToken = extra._meta?.progressToken;
  for (let i = 1; i <= n; i++)
    await extra.sendNotification({ method: 'notifications/progress', params: { progressToken, progress: i, total: n } });
  return text('counted');
});
server.registerTool('ask', { description: 'asks the client for something' }, async () => {
  const r = await server.server.elicitInput({ message: 'Which colour?', requestedSchema: { type: 'object', properties: { colour: { type: 'string' } } } });
  return text(r.content?.colour);
});
console.error('ts server is up');
await server.connect(new StdioServerTransport());
