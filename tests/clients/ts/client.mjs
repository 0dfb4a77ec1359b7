// The official TypeScript SDK as an API client. Usage: node client.mjs AGENT ENVIRONMENT TEXT; prints what it saw as JSON.
import Anthropic from '@anthropic-ai/sdk';

const [agent, environment_id, text] = process.argv.slice(2);
const client = new Anthropic({ maxRetries: 0 });
const session = await client.beta.sessions.create({ agent, environment_id, title: 'ts' });
const stream = await client.beta.sessions.events.stream(session.id);
await client.beta.sessions.events.send(session.id, { events: [{ type: 'user.message', content: [{ type: 'text', text }] }] });
let said = '';
for await (const ev of stream) {
  if (ev.type === 'agent.message') said += ev.content.map((b) => b.text).join('');
  if (ev.type === 'session.status_idle') break;
}
const listed = [];
for await (const ev of client.beta.sessions.events.list(session.id, { limit: 2 })) listed.push(ev.type);
if (!listed.includes('agent.message')) throw new Error(`list lacks the message: ${listed}`);
const sessions = [];
for await (const s of client.beta.sessions.list({ limit: 1, statuses: ['idle'] })) sessions.push(s.id);
if (!sessions.includes(session.id)) throw new Error('the session is not listed');
const status = (await client.beta.sessions.retrieve(session.id)).status;
let refused = 0;
try {
  await client.beta.agents.create({ model: 'claude-opus-4-6' });
} catch (e) {
  refused = e.status;
}
const deleted = (await client.beta.sessions.delete(session.id)).type;
console.log(JSON.stringify({ text: said, status, deleted, refused }));
