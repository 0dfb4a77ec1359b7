/* server/mcp/content.h - what a tool gave, as content blocks of the Messages API. Pure. */
#pragma once

#include "json/js.h"

#define CONTENT_CHARS_MAX 100000         /* of text in one result (service.md 3.4 B); the rest is cut, in words */
#define CONTENT_IMAGE_MAX (5 * MIB)      /* base64 text of one image, as the Messages API takes it */
#define CONTENT_BINARY_MAX (20 * MIB)    /* base64 text of all images and documents of one result */
#define CONTENT_BLOCKS_MAX 200

/* `result`: the result of tools/call. A new array of text, image and document blocks; never empty texts. */
json_t *content_map(const json_t *result);
/* New array with one text block. */
json_t *content_text(const char *text);
