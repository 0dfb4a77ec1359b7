/* tunnel/hello.h - reads the server name of a TLS ClientHello without ending TLS. Pure; fuzzed. The hello may come in any number of TCP segments and TLS
 * records (hybrid key shares make it larger than one packet). */
#pragma once

#include "base/attr.h"

#define HELLO_MAX (16 * KIB)
#define HELLO_NAME_MAX 256
/* RC_OK: `name` (lower case; "" when there is none). RC_AGAIN: more bytes are needed. RC_INVALID: no ClientHello. RC_TOO_LARGE: over HELLO_MAX. */
MUST_CHECK int hello_name(const uint8_t *p, size_t n, char name[HELLO_NAME_MAX]);
