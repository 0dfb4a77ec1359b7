// Vaults by the official TypeScript SDK. Usage: node vaults.mjs MCP_URL TOKEN_URL ACCESS REFRESH; prints what it saw as JSON.
import Anthropic from '@anthropic-ai/sdk';

const [mcp_server_url, token_endpoint, access_token, refresh_token] = process.argv.slice(2);
const client = new Anthropic({ maxRetries: 0 });
const vault = await client.beta.vaults.create({ display_name: 'ts' });
const auth = {
  type: 'mcp_oauth', mcp_server_url, access_token,
  refresh: { token_endpoint, client_id: 'client-1', refresh_token, token_endpoint_auth: { type: 'none' } },
};
const credential = await client.beta.vaults.credentials.create(vault.id, { auth, display_name: 'one' });
const updated = await client.beta.vaults.credentials.update(credential.id, { vault_id: vault.id, metadata: { k: 'v' } });
const validation = await client.beta.vaults.credentials.mcpOAuthValidate(credential.id, { vault_id: vault.id });
let duplicate = 0;
try {
  await client.beta.vaults.credentials.create(vault.id, { auth });
} catch (e) {
  duplicate = e.status;
}
const listed = [];
for await (const c of client.beta.vaults.credentials.list(vault.id, { limit: 1 })) listed.push(c.id);
const archived = (await client.beta.vaults.archive(vault.id)).archived_at !== null;
const deleted = (await client.beta.vaults.delete(vault.id)).type;
console.log(JSON.stringify({ status: validation.status, metadata: updated.metadata, duplicate, listed: listed.length, archived, deleted }));
