"""An MCP server of the official Python SDK with the features that the conformance suite asks a server for, by the names that it asks for. Prints `port N`.
Usage: everything.py [--sse] [--token FILE] [--listen ADDR:PORT]

--sse    the older transport with two endpoints, at /sse
--token  asks for the bearer token in FILE, which is read for each request; every request's Authorization is a line in FILE.seen
"""
from __future__ import annotations

import argparse
import asyncio
import base64
import json
import socket
from pathlib import Path
from typing import Annotated

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp_types import (AudioContent, Completion, CreateMessageRequest, CreateMessageRequestParams, ElicitRequest, ElicitRequestFormParams, EmbeddedResource, EmptyResult,
                       ImageContent, InputRequiredResult, ListRootsRequest, SamplingMessage, SetLevelRequestParams, SubscribeRequestParams, TextContent, TextResourceContents, UnsubscribeRequestParams)
from pydantic import BaseModel, Field

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
SILENCE = base64.b64encode(b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\0\0\0\0").decode()

p = argparse.ArgumentParser()
p.add_argument("--sse", action="store_true")
p.add_argument("--token", type=Path)
p.add_argument("--listen", default="127.0.0.1:0")
args = p.parse_args()
server = MCPServer("everything", version="1.0")
text = lambda s: TextContent(type="text", text=s)
image = ImageContent(type="image", data=PIXEL, mime_type="image/png")
resource = lambda uri, s, kind="text/plain": EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=kind, text=s))


class Events(EventStore):
    """Keeps what streams have sent, for Last-Event-ID."""

    def __init__(self):
        self.sent = []

    async def store_event(self, stream_id, message):
        self.sent.append((stream_id, message))
        return str(len(self.sent))

    async def replay_events_after(self, last_event_id, send_callback):
        n = int(last_event_id)
        if not 0 < n <= len(self.sent):
            return None
        stream = self.sent[n - 1][0]
        for i, (s, message) in enumerate(self.sent[n:], n + 1):
            if s == stream and message is not None:
                await send_callback(EventMessage(message, str(i)))
        return stream


# ---- tools ----

@server.tool()
def test_simple_text() -> str:
    """Some text."""
    return "This is a simple text response for testing."


@server.tool()
def test_image_content() -> list[ImageContent]:
    """A picture."""
    return [image]


@server.tool()
def test_audio_content() -> list[AudioContent]:
    """A sound."""
    return [AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")]


@server.tool()
def test_embedded_resource() -> list[EmbeddedResource]:
    """A resource inside a result."""
    return [resource("test://embedded-resource", "This is an embedded resource content.")]


@server.tool()
def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Three kinds in one result."""
    return [text("Multiple content types test:"), image, resource("test://mixed-content-resource", '{"test": "data"}', "application/json")]


@server.tool()
def test_error_handling() -> str:
    """Fails."""
    raise RuntimeError("This tool intentionally returns an error for testing")


@server.tool()
async def test_tool_with_logging(ctx: Context) -> str:
    """Logs while it runs."""
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(line)
    return "logged"


@server.tool()
async def test_tool_with_progress(ctx: Context) -> str:
    """Reports progress."""
    for n in (0, 50, 100):
        await ctx.report_progress(n, 100, f"{n} of 100")
    return "progressed"


@server.tool()
async def test_sampling(prompt: str, ctx: Context) -> str:
    """Lets the client's model say something."""
    r = await ctx.session.create_message(messages=[SamplingMessage(role="user", content=text(prompt))], max_tokens=100)
    return f"LLM response: {r.content.text}"


async def ask(ctx, message, schema):
    r = await ctx.elicit(message, schema)
    return f"action={r.action}, content={r.data.model_dump_json() if r.action == 'accept' else '{}'}"


class Answer(BaseModel):
    response: str = Field(description="the answer")


@server.tool()
async def test_elicitation(message: str, ctx: Context) -> str:
    """Asks the client's user."""
    return "User response: " + await ask(ctx, message, Answer)


class Defaults(BaseModel):
    name: str = Field("John Doe", description="name")
    age: int = Field(30, description="age")
    score: float = Field(95.5, description="score")
    status: str = Field("active", json_schema_extra={"enum": ["active", "inactive", "pending"]})
    verified: bool = Field(True, description="verified")


@server.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    """Asks with defaults of every kind."""
    return "Elicitation completed: " + await ask(ctx, "Please review", Defaults)


def choices(*names):
    return [{"const": n, "title": n.capitalize()} for n in names]


class Enums(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["option1", "option2"]})
    titledSingle: str = Field(json_schema_extra={"oneOf": choices("value1", "value2")})
    untitledMulti: list[str] = Field(json_schema_extra={"items": {"type": "string", "enum": ["option1", "option2"]}})
    titledMulti: list[str] = Field(json_schema_extra={"items": {"anyOf": choices("value1", "value2")}})
    legacyEnum: str = Field(json_schema_extra={"enum": ["opt1", "opt2"], "enumNames": ["One", "Two"]})


@server.tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    """Asks with enumerations of every kind."""
    return "Elicitation completed: " + await ask(ctx, "Please choose", Enums)


@server.tool()
async def test_reconnection(ctx: Context) -> str:
    """Ends its stream in the middle; the result is on the one that the client opens next."""
    await ctx.info("before")
    await ctx.close_sse_stream()
    await asyncio.sleep(0.2)
    await ctx.info("after")
    return "Reconnection test completed"


@server.tool()
async def test_missing_capability(ctx: Context) -> str:
    """Needs sampling."""
    if ctx.client_capabilities is None or ctx.client_capabilities.sampling is None:
        raise MCPError(-32021, "sampling is needed", {"requiredCapabilities": {"sampling": {}}})
    return "there"


def asked(**fields):
    return {k: ElicitRequest(params=ElicitRequestFormParams(message=m, requested_schema={"type": "object", "properties": {f: {"type": t}}, "required": [f]}))
            for k, (m, f, t) in fields.items()}


@server.tool()
async def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
    """Asks in the stateless way."""
    r = (ctx.input_responses or {}).get("user_name")
    if r is None:
        return InputRequiredResult(input_requests=asked(user_name=("What is your name?", "name", "string")))
    return f"Hello, {r.content['name']}!"


@server.tool()
async def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
    """Asks, and gives the client something to keep."""
    if ctx.request_state is None or not ctx.input_responses:
        return InputRequiredResult(input_requests=asked(confirm=("Please confirm", "ok", "boolean")), request_state="kept")
    return "state-ok" if ctx.request_state == "kept" else "another state"


@server.tool()
async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    """Asks twice."""
    given = ctx.input_responses or {}
    if "step2" in given:
        return "done in two steps"
    if "step1" in given:
        return InputRequiredResult(input_requests=asked(step2=("Step 2: What is your favorite color?", "color", "string")), request_state="second")
    return InputRequiredResult(input_requests=asked(step1=("Step 1: What is your name?", "name", "string")), request_state="first")


def from_model(prompt, most):
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[SamplingMessage(role="user", content=text(prompt))], max_tokens=most))


@server.tool()
async def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
    """Lets the client's model answer, in the stateless way."""
    if not ctx.input_responses:
        return InputRequiredResult(input_requests={"capital_question": from_model("What is the capital of France?", 100)})
    return ctx.input_responses["capital_question"].content.text


@server.tool()
async def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
    """Asks where the client works."""
    if not ctx.input_responses:
        return InputRequiredResult(input_requests={"client_roots": ListRootsRequest()})
    return " ".join(str(r.uri) for r in ctx.input_responses["client_roots"].roots)


@server.tool()
async def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
    """Asks for three things at once."""
    if not ctx.input_responses:
        return InputRequiredResult(request_state="three", input_requests={
            **asked(user_name=("What is your name?", "name", "string")), "greeting": from_model("Generate a greeting", 50), "client_roots": ListRootsRequest()})
    return "all three are here"


@server.tool()
async def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequiredResult:
    """Gives out a state that the SDK protects."""
    if ctx.request_state is None:
        return InputRequiredResult(input_requests=asked(confirm=("Please confirm", "ok", "boolean")), request_state="sealed")
    return "untouched"


@server.tool()
async def test_input_required_result_capabilities(ctx: Context) -> str | InputRequiredResult:
    """Asks only for what the client can do."""
    if ctx.input_responses:
        return "thanks"
    can = ctx.client_capabilities
    wanted = {**(asked(user_name=("What is your name?", "name", "string")) if can and can.elicitation else {}),
              **({"greeting": from_model("Generate a greeting", 50)} if can and can.sampling else {})}
    return InputRequiredResult(input_requests=wanted) if wanted else "nothing to ask with"


@server.tool()
def test_custom_headers(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
    """Its argument is mirrored in a header."""
    return region


# ---- more than the suite asks for ----

taken = 0


@server.tool()
async def steps(n: int, ctx: Context) -> str:
    """Reports each of n steps, and takes the next one when `step` has been called: a stream that is as long as its reader wants."""
    global taken
    taken = 0
    for i in range(1, n + 1):
        await ctx.report_progress(i, n)
        while taken < i:
            await asyncio.sleep(0.01)
    return f"{n} steps"


@server.tool()
def step() -> str:
    """Lets `steps` go on."""
    global taken
    taken += 1
    return "taken"


@server.tool()
def echo(value: str) -> str:
    """Gives back what it got."""
    return value


# ---- resources, prompts, completion ----

@server.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    return base64.b64decode(PIXEL)


@server.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@server.resource("test://watched-resource", mime_type="text/plain")
def watched() -> str:
    return "watched"


@server.prompt()
def test_simple_prompt() -> list[UserMessage]:
    """A prompt without arguments."""
    return [UserMessage(content=text("This is a simple prompt for testing."))]


@server.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> list[UserMessage]:
    """A prompt with two arguments."""
    return [UserMessage(content=text(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"))]


@server.prompt()
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    """A prompt that shows a resource."""
    return [UserMessage(content=resource(resourceUri, "Embedded resource content for testing.")), UserMessage(content=text("Please process it."))]


@server.prompt()
def test_prompt_with_image() -> list[UserMessage]:
    """A prompt that shows a picture."""
    return [UserMessage(content=image), UserMessage(content=text("Please analyze it."))]


@server.prompt()
async def test_input_required_result_prompt(ctx: Context) -> list[UserMessage] | InputRequiredResult:
    """A prompt that asks first."""
    if not ctx.input_responses:
        return InputRequiredResult(input_requests=asked(user_context=("What is it about?", "context", "string")))
    return [UserMessage(content=text(f"Use this: {ctx.input_responses['user_context'].content['context']}"))]


@server.completion()
async def complete(ref, argument, context):
    return Completion(values=[argument.value + "-completed"], total=1, has_more=False)


async def nothing(ctx, params):
    return EmptyResult()


for method, params in (("logging/setLevel", SetLevelRequestParams), ("resources/subscribe", SubscribeRequestParams), ("resources/unsubscribe", UnsubscribeRequestParams)):
    server._lowlevel_server.add_request_handler(method, params, nothing)


class Guard:
    """Host and Origin are checked here as the SDK does it for local servers; names below a tunnel's domain are known, too."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def refuse(status, *headers):
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0"), *headers]})
            await send({"type": "http.response.body", "body": b""})

        if scope["type"] == "http":
            h = dict(scope["headers"])
            local = lambda host: host.split(":")[0] in ("127.0.0.1", "localhost") or host.split(":")[0].endswith(".tunnel.example.com")
            if not local(h.get(b"host", b"").decode()) or not local(h.get(b"origin", b"//localhost").decode().split("//")[-1]):
                return await refuse(403)
            if args.token:
                with args.token.with_suffix(".seen").open("a") as f:
                    f.write(h.get(b"authorization", b"-").decode() + "\n")
                if h.get(b"authorization", b"").decode() != "Bearer " + args.token.read_text().strip():
                    return await refuse(401, (b"www-authenticate", b'Bearer error="invalid_token"'))
        await self.app(scope, receive, send)


any_host = TransportSecuritySettings(enable_dns_rebinding_protection=False)
app = server.sse_app(transport_security=any_host) if args.sse else server.streamable_http_app(event_store=Events(), retry_interval=100, transport_security=any_host)
host, _, at = args.listen.rpartition(":")
sock = socket.create_server((host, int(at)), backlog=128)
print("port", sock.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(Guard(app), log_level="warning", timeout_graceful_shutdown=0)).run([sock])
