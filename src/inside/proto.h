/* inside/proto.h - messages between the worker and PID 1 of a sandbox, over one SOCK_STREAM socket (descriptor 3 inside). Little-endian, packed.
 * A request is a header and `body_bytes` bytes: NUL-terminated strings in the order given, then raw data. One answer per request, in order.
 * The worker treats every byte that comes out as hostile: sizes are checked against limits before anything is read. */
#pragma once

#include <stdint.h>

#define INSIDE_MAGIC 0x6f776b31u
#define INSIDE_REQ_MAX (64u * 1024 * 1024)       /* body of a request (write) */
#define INSIDE_RES_MAX (32u * 1024 * 1024)       /* body of an answer (read of an image or PDF) */

enum inside_op {
    INSIDE_HELLO = 1,     /* strings: cwd, then NAME=value ... (environment of the shell); answer when ready */
    INSIDE_BASH,          /* strings: command; flags INSIDE_RESTART; timeout_ms (0 = 120 s); limit0 = output bytes kept (0 = 102400) */
    INSIDE_READ,          /* strings: path; arg0 start line, arg1 end line (INSIDE_VIEW set); limit0 = text file cap (0: none), limit1 = cap for images and PDFs; reserved, when not 0, is the cap for images alone (bytes) */
    INSIDE_WRITE,         /* strings: path; then data: the content */
    INSIDE_EDIT,          /* strings: path; arg0 = bytes of old_string; then data: old_string, new_string; flags INSIDE_ALL */
    INSIDE_GLOB,          /* strings: pattern, path ("" = cwd) */
    INSIDE_GREP,          /* strings: pattern, path; timeout_ms (0 = 30 s) */
    INSIDE_PUT,           /* strings: path; then data; arg0 = mode: trusted placement of skill files (parents made) */
    INSIDE_REMOVE,        /* strings: path: removes a tree (skills at the end) */
    INSIDE_PING,
};
#define INSIDE_RESTART 1u
#define INSIDE_VIEW 2u
#define INSIDE_ALL 4u

enum inside_kind { INSIDE_TEXT = 0, INSIDE_IMAGE_PNG, INSIDE_IMAGE_JPEG, INSIDE_IMAGE_GIF, INSIDE_IMAGE_WEBP, INSIDE_PDF };
#define INSIDE_ERROR 1u        /* is_error: the body is the message for the model */
#define INSIDE_TIMED_OUT 2u
#define INSIDE_TRUNCATED 4u
#define INSIDE_SHELL_DIED 8u
#define INSIDE_DENIED 16u      /* refused by confinement (path outside the workspace); also INSIDE_ERROR */

struct inside_req {
    uint32_t magic, op, id, flags;
    uint32_t timeout_ms, reserved;
    int64_t  arg0, arg1;
    uint64_t limit0, limit1;
    uint64_t body_bytes;
};
struct inside_res {
    uint32_t magic, op, id, flags;
    uint32_t kind; int32_t exit_status;      /* bash: exit status, 128+n when killed by a signal; -1 unknown */
    uint64_t body_bytes;
};
/* Out of band, worker -> inside, on the same socket between requests or during one: a request with op INSIDE_INTERRUPT and no body. No answer of its own. */
#define INSIDE_INTERRUPT 100u
