"""The official Python SDK's EnvironmentWorker, unmodified. Usage: worker.py WORKDIR"""
import asyncio
import os
import signal
import sys

from anthropic import AsyncAnthropic


async def main() -> None:
    key = os.environ["ANTHROPIC_ENVIRONMENT_KEY"]
    client = AsyncAnthropic(auth_token=key)
    worker = client.beta.environments.work.worker(
        environment_id=os.environ["ANTHROPIC_ENVIRONMENT_ID"], environment_key=key, workdir=sys.argv[1])
    task = asyncio.create_task(worker.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        pass


asyncio.run(main())
