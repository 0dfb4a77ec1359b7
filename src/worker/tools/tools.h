/* worker/tools/tools.h - the six tools of agent_toolset_20260401: from the API's input JSON to a request for the sandbox, and from its answer to
 * content blocks (worker.md 5). Pure: no I/O. */
#pragma once

#include "base/arena.h"
#include "base/attr.h"
#include "base/buf.h"
#include "base/err.h"
#include "inside/proto.h"
#include "json/js.h"

struct tool_limits { uint64_t text_file_bytes, image_bytes, pdf_bytes; int64_t bash_default_ms, bash_max_ms; };
extern const struct tool_limits tool_limits_default;     /* 256 KiB, 5 MiB (encoded), 20 MiB, 120 s, 10 min */

bool tool_known(const char *name);                       /* "bash" "read" "write" "edit" "glob" "grep" */
/* RC_OK: *ret_req and its body are ready for sbx_call(). RC_INVALID: `e` is the error text for the model ("bash: command is required"). */
MUST_CHECK int tool_request(const char *name, const json_t *input, const struct tool_limits *l, struct inside_req *ret_req, struct buf *body, struct err *e);
/* Appends the JSON array text of content blocks (never empty: "(no output)") and sets *ret_is_error. */
MUST_CHECK int tool_result(const char *name, const struct inside_req *req, const struct inside_res *res, const char *body, size_t n, struct buf *content, bool *ret_is_error);
/* Content for a failure on our side ("bash: the sandbox was killed: memory limit of 2GiB reached"). */
int tool_error_content(struct buf *content, const char *text, size_t n);
/* For the audit line: what was asked, without file contents: {"path":…} or {"command_sha256":…,"command":first 512 bytes}. */
json_t *tool_audit(const char *name, const json_t *input);
