/* File name patterns: the first line is the pattern, the rest a path. Properties: a refusal is a sentence's fragment; a path that matches has no dead step on its way; a pattern
 * without special characters matches itself only. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "inside/glob.h"

#define REQUIRE(c) do { if (!(c)) { fprintf(stderr, "property broken: %s (line %d)\n", #c, __LINE__); abort(); } } while (0)

/* Walks as the tool does. */
static bool walk(const struct glob *g, const char *path)
{
    static struct glob_state a, b;
    bool match = false, alive = true;
    glob_start(g, &a);
    while (*path) {
        size_t n = strcspn(path, "/");
        if (n) {
            if (!alive)
                return false;           /* a walk does not go below here */
            match = glob_step(g, &a, path, n, &b, &alive);
            a = b;
        }
        path += n + (path[n] == '/');
    }
    return match;
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len)
{
    static struct glob g;
    if (len > GLOB_PATTERN_MAX + 1024)
        return 0;
    char *text = malloc(len + 1);
    memcpy(text, in, len);
    text[len] = 0;
    char *path = memchr(text, '\n', len);
    if (path)
        *path++ = 0;
    else
        path = text + len;
    path += strspn(path, "/");          /* relative, as a walk makes them */
    const char *why = glob_compile(&g, text);
    if (why) {
        REQUIRE(strlen(why) > 4);
    } else {
        REQUIRE(g.n_alts >= 1 && g.n_alts <= GLOB_ALTS_MAX && g.text_n <= GLOB_TEXT_MAX);
        REQUIRE(walk(&g, path) == glob_match(&g, path));
        if (!strpbrk(text, "*?[{\\/"))
            REQUIRE(glob_match(&g, text) && (strchr(path, '/') || (strcmp(text, path) == 0) == glob_match(&g, path)));
    }
    free(text);
    return 0;
}
