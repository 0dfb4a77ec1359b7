/* The pure parts of what runs inside the sandbox: patterns, terminal output, ranges of lines, the search in a text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attr.h"
#include "inside/clean.h"
#include "inside/glob.h"
#include "inside/grep.h"
#include "inside/view.h"

static void test_glob_matches(void **st)
{
    (void)st;
    static struct glob g;
    const struct { const char *pattern, *path; bool want; } t[] = {
        { "*.c", "a.c", true },           { "*.c", "a.h", false },          { "*.c", "d/a.c", false },      { "**/*.c", "a.c", true },
        { "**/*.c", "x/y/a.c", true },    { "src/**", "src/a/b", true },    { "src/**", "srcs/a", false },  { "a/**/z", "a/z", true },
        { "a/**/z", "a/b/c/z", true },    { "a/**/z", "a/b/c", false },     { "?.c", "ab.c", false },       { "?.c", "\xc3\xa9.c", true },
        { "[a-c]x", "bx", true },         { "[!a-c]x", "bx", false },       { "[^a-c]x", "dx", true },      { "[]]x", "]x", true },
        { "[a-]x", "-x", true },          { "[\xc3\xa0-\xc3\xbf]", "\xc3\xa9", true },                      { "{a,b}.c", "b.c", true },
        { "{a,b}.c", "c.c", false },      { "{a,{b,c}d}e", "cde", true },   { "x{,y}z", "xz", true },       { "x{,y}z", "xyz", true },
        { "\\*", "*", true },             { "\\*", "a", false },            { "a\\{b", "a{b", true },       { "*a*b*c", "xaxbxc", true },
        { "*a*b*c", "xaxbx", false },     { "./a//b", "a/b", true },        { "**", "any/thing", true },    { "*", ".hidden", true },
        { "**/**/**/x", "x", true },      { "[[]", "[", true },             { "a]", "a]", true },           { "a}", "a}", true },
        /* one star between two texts, which must not share a byte of the name */
        { "ab*ba", "aba", false },        { "ab*ba", "abba", true },        { "a*", "a", true },            { "*a", "a", true },
        { "a*b", "ab", true },            { "a*b", "a", false },            { "*.t", ".t", true },          { "*\xa9", "\xc3\xa9", false },
        { "*\xc3\xa9", "x\xc3\xa9", true }, { "abc", "ab", false },         { "ab", "abc", false },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        const char *why = glob_compile(&g, t[i].pattern);
        if (why || glob_match(&g, t[i].path) != t[i].want)
            fail_msg("'%s' on '%s': %s", t[i].pattern, t[i].path, why ? why : t[i].want ? "should match" : "should not match");
    }
}

static void test_glob_refusals(void **st)
{
    (void)st;
    static struct glob g;
    static char longest[GLOB_PATTERN_MAX + 1], deep[3 * (GLOB_PARTS_MAX + 1) + 1], many[200];
    memset(longest, 'a', GLOB_PATTERN_MAX);
    for (int i = 0; i <= GLOB_PARTS_MAX; i++)
        memcpy(deep + 2 * i, "a/", 2);
    for (int i = 0; i < 7; i++)
        strcat(many, "{a,b}");          /* 2^7 alternatives */
    const struct { const char *pattern, *say; } t[] = {
        { "", "empty" }, { "./.", "empty" }, { "/etc/*", "absolute" }, { "a/../b", ".." }, { "{a,../b}", ".." }, { "[a", "not closed" }, { "{a,b", "not closed" },
        { "{a,/etc}", "absolute" }, { longest, "too long" }, { deep, "components" }, { many, "alternatives" }, { "{{{{{{{{{{{{{{{{{a}}}}}}}}}}}}}}}}}", "too many {}" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        const char *why = glob_compile(&g, t[i].pattern);
        if (!why || !strstr(why, t[i].say))
            fail_msg("row %zu '%.40s': %s", i, t[i].pattern, why ? why : "accepted");
    }
    longest[GLOB_PATTERN_MAX - 1] = 0;      /* one less is taken */
    assert_null(glob_compile(&g, longest));
    deep[2 * GLOB_PARTS_MAX] = 0;
    assert_null(glob_compile(&g, deep));
}

/* What no walk may take long for: each name costs at most pattern x name. */
static void test_glob_is_never_exponential(void **st)
{
    (void)st;
    static struct glob g;
    char name[3000];
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = 0;
    assert_null(glob_compile(&g, "*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b"));
    assert_false(glob_match(&g, name));
    for (size_t i = 1; i + 1 < sizeof name; i += 2)
        name[i] = '/';
    name[sizeof name - 2] = 'a';
    assert_null(glob_compile(&g, "**/a/**/a/**/a/**/a/**/a/**/a/**/b"));
    assert_false(glob_match(&g, name));
}

static void test_clean(void **st)
{
    (void)st;
    const struct { const char *in, *out; } t[] = {
        { "plain\n", "plain\n" },                   { "\x1b[31mred\x1b[0m", "red" },            { "a\r\nb\r\n", "a\nb\n" },
        { "10%\r20%\n", "20%\n" },                  { "long line\rab", "ab" },                  { "keep\nover\rnew\n", "keep\nnew\n" },
        { "\x1b]0;title\atext", "text" },           { "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link" },
        { "\x1b", "" },                             { "\x1b[", "[" },                           { "\x1b[12", "[12" },
        { "\x1b]never ended\nnext", "]never ended\nnext" },                                     { "\x1b\x1b[1mx", "x" },
        { "end\r", "end" },                         { "\r\r\nx", "\nx" },                       { "", "" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        char *p = strdup(t[i].in);
        size_t n = clean_output(p, strlen(p)), again;
        if (n != strlen(t[i].out) || memcmp(p, t[i].out, n) != 0)
            fail_msg("row %zu: '%.*s'", i, (int)n, p);
        again = clean_output(p, n);
        assert_int_equal(again, n);
        free(p);
    }
    assert_int_equal(clean_trimmed("a\n\n", 3), 1);
    assert_int_equal(clean_trimmed("\n", 1), 0);
    assert_int_equal(clean_tail("abc", 3, 3), 0);
    assert_int_equal(clean_tail("one\ntwo\nthree", 13, 8), 8);          /* the next line begins near */
    assert_int_equal(clean_tail("one\ntwo", 7, 3), 4);                  /* right at a line's start */
    assert_int_equal(clean_tail("a\xc3\xa9" "b", 4, 2), 3);             /* not inside a character */
    assert_int_equal(clean_tail("abc", 3, 0), 3);
}

static void test_view(void **st)
{
    (void)st;
    const char text[] = "one\ntwo\nthree\n";
    const struct { int64_t first, last; int rc; const char *want; } t[] = {
        { 1, 1, 0, "one" }, { 2, 3, 0, "two\nthree" }, { 1, -1, 0, "one\ntwo\nthree" }, { 0, 0, 0, "one\ntwo\nthree" }, { 3, 99, 0, "three" },
        { 4, 9, 0, "" }, { 99, -1, 0, "" }, { 3, 2, -1, "" }, { -5, 1, 0, "one" }, { INT64_MAX, -1, 0, "" },
    };
    for (size_t i = 0; i < COUNT_OF(t); i++) {
        size_t off = 0, n = 0;
        int rc = view_lines(text, sizeof text - 1, t[i].first, t[i].last, &off, &n);
        if (rc != t[i].rc || (rc == 0 && (n != strlen(t[i].want) || memcmp(text + off, t[i].want, n) != 0)))
            fail_msg("row %zu: rc %d, %zu bytes at %zu", i, rc, n, off);
    }
    size_t off, n;
    assert_int_equal(view_lines("", 0, 1, -1, &off, &n), 0);
    assert_int_equal(n, 0);
    assert_int_equal(view_lines("no end", 6, 1, 1, &off, &n), 0);
    assert_int_equal(n, 6);
}

static void search(const char *pattern, const char *text, size_t n, const char *want)
{
    char why[256], out[4096];
    struct grep g = { .out = out, .out_max = sizeof out };
    assert_true(grep_compile(&g, pattern, why, sizeof why));
    g.whole = grep_pattern_is_plain(pattern, strlen(pattern));
    grep_text(&g, "f", text, n);
    if (g.out_n != strlen(want) || memcmp(out, want, g.out_n) != 0)
        fail_msg("'%s': '%.*s' is not '%s'", pattern, (int)g.out_n, out, want);
    grep_done(&g);
}

static void test_grep(void **st)
{
    (void)st;
    const char text[] = "alpha\nbeta gamma\nAlpha\n\nlast alpha";
    search("alpha", text, sizeof text - 1, "f:1:alpha\nf:5:last alpha");
    search("^alpha$", text, sizeof text - 1, "f:1:alpha");
    search("(?i)ALPHA", text, sizeof text - 1, "f:1:alpha\nf:3:Alpha\nf:5:last alpha");
    search("^$", text, sizeof text - 1, "f:4:");
    search("a\nb", text, sizeof text - 1, "");                          /* a line never holds a line feed */
    search("b[^x]*A", text, sizeof text - 1, "");                       /* nor does a class reach into the next one */
    search("gamma\\s", text, sizeof text - 1, "");
    search("x", "", 0, "");
    char why[256];
    struct grep g = { 0 };
    assert_false(grep_compile(&g, "(unclosed", why, sizeof why));
    assert_true(strlen(why) > 0);
    static char wide[GREP_LINE_MAX + 20];
    memset(wide, 'w', sizeof wide);
    search("w", wide, sizeof wide, "");                                 /* passed over */
}

int main(void)
{
    const struct CMUnitTest t[] = {
        cmocka_unit_test(test_glob_matches), cmocka_unit_test(test_glob_refusals), cmocka_unit_test(test_glob_is_never_exponential),
        cmocka_unit_test(test_clean), cmocka_unit_test(test_view), cmocka_unit_test(test_grep),
    };
    return cmocka_run_group_tests(t, NULL, NULL);
}
