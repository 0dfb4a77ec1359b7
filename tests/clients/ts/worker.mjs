// The official TypeScript SDK's EnvironmentWorker, unmodified. Usage: node worker.mjs WORKDIR
import Anthropic from '@anthropic-ai/sdk';
import { EnvironmentWorker } from '@anthropic-ai/sdk/helpers/beta/environments';

const stop = new AbortController();
for (const sig of ['SIGTERM', 'SIGINT']) process.on(sig, () => stop.abort());
const client = new Anthropic({ apiKey: null, authToken: process.env.ANTHROPIC_ENVIRONMENT_KEY });
await new EnvironmentWorker({
  client,
  environmentId: process.env.ANTHROPIC_ENVIRONMENT_ID,
  environmentKey: process.env.ANTHROPIC_ENVIRONMENT_KEY,
  workdir: process.argv[2],
  signal: stop.signal,
}).run();
