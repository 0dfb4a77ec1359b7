// Tunnels by the official TypeScript SDK. Usage: node tunnels.mjs CA_FILE; prints what it saw as JSON.
import { readFileSync } from 'node:fs';
import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic({ maxRetries: 0 });
const ca_certificate_pem = readFileSync(process.argv[2], 'utf8');
const tunnel = await client.beta.tunnels.create({ display_name: 'ts' });
const token = await client.beta.tunnels.revealToken(tunnel.id);
const again = await client.beta.tunnels.revealToken(tunnel.id);
const rotated = await client.beta.tunnels.rotateToken(tunnel.id, { reason: 'test' });
const certificate = await client.beta.tunnels.certificates.create(tunnel.id, { ca_certificate_pem });
let duplicate = 0;
try {
  await client.beta.tunnels.certificates.create(tunnel.id, { ca_certificate_pem });
} catch (e) {
  duplicate = e.status;
}
const listed = [];
for await (const t of client.beta.tunnels.list({ limit: 1 })) listed.push(t.id);
const removed = await client.beta.tunnels.certificates.archive(certificate.id, { tunnel_id: tunnel.id });
const archived = await client.beta.tunnels.archive(tunnel.id);
console.log(JSON.stringify({
  stable: token.tunnel_token === again.tunnel_token && token.id === again.id,
  rotated: rotated.id !== token.id && rotated.tunnel_token !== token.tunnel_token,
  fingerprint: certificate.fingerprint, duplicate, listed: listed.includes(tunnel.id), removed: removed.archived_at !== null, archived: archived.archived_at !== null,
}));
