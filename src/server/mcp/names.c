/* server/mcp/names.c - see names.h. */
#include "server/mcp/names.h"

#include <string.h>

#include "base/str.h"
#include "crypto/crypto.h"

#define PREFIX "mcp__"
#define SERVER_MAX 48            /* of a long server name, so that the tool's name is what remains readable */
#define HASH_DIGITS 10
#define LEGAL "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

/* Letters, digits, '-' and '_' stay; everything else becomes '_'. At most `max` characters. */
static void put(char *out, size_t *n, const char *s, size_t max)
{
    for (size_t i = 0; s[i] && i < max; i++)
        out[(*n)++] = strchr(LEGAL, s[i]) ? s[i] : '_';
    out[*n] = '\0';
}

static bool legal(const char *s)
{
    return s[0] && s[strspn(s, LEGAL)] == '\0';
}

/* Ends as a hashed name does. */
static bool like_hashed(const char *tool, size_t n)
{
    const char *tail = tool + n - HASH_DIGITS;
    return n > HASH_DIGITS && tail[-1] == '_' && strspn(tail, "0123456789abcdef") == HASH_DIGITS;
}

void mcp_tool_name(const char *server, const char *tool, char out[MCP_NAME_MAX])
{
    size_t n = 0, servers = strlen(server), tools = strlen(tool);
    /* The first "__" after the prefix must be the one between the two names: none in the server's, and no '_' at its end or at the tool's start. */
    bool plain = legal(server) && legal(tool) && !strstr(server, "__") && server[servers - 1] != '_' && tool[0] != '_' &&
                 strlen(PREFIX) + servers + 2 + tools < MCP_NAME_MAX && !like_hashed(tool, tools);
    put(out, &n, PREFIX, strlen(PREFIX));
    put(out, &n, server, plain ? servers : SERVER_MAX);
    put(out, &n, "__", 2);
    if (plain) {
        put(out, &n, tool, tools);
        return;
    }
    uint8_t hash[SHA256_BYTES];
    char hex[SHA256_HEX];
    struct sha256 *h = sha256_new();
    sha256_add(h, server, servers + 1);      /* with the NUL: where one name ends counts */
    sha256_add(h, tool, tools);
    sha256_end(h, hash);
    hex_encode(hash, sizeof hash, hex);
    put(out, &n, tool, MCP_NAME_MAX - 1 - n - 1 - HASH_DIGITS);
    put(out, &n, "_", 1);
    put(out, &n, hex, HASH_DIGITS);
}

bool mcp_tool_name_is(const char *name)
{
    return str_prefix(name, PREFIX) && strstr(name + strlen(PREFIX), "__") != NULL;
}
