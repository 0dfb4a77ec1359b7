/* server/mcp/names.h - under which name the model sees a tool of an MCP server. Shared by the agent loop and POST /v1/messages. Pure. */
#pragma once

#include "base/attr.h"

#define MCP_NAME_MAX 129         /* text with NUL: the Messages API takes [a-zA-Z0-9_-]{1,128} */

/* "mcp__<server>__<tool>" when that is a legal name that can be read only one way; else what is not legal is replaced, what is too long is cut, and
 * ten hexadecimal digits of a hash over both names are put at the end. A function of the two names alone: a history of last week is translated to the
 * same names, whatever the servers offer today. Two different pairs never get the same name (up to the hash). */
void mcp_tool_name(const char *server, const char *tool, char out[MCP_NAME_MAX]);
/* Whether `name` has the form of a name made above (it may still be no tool that anybody offers). */
bool mcp_tool_name_is(const char *name);
