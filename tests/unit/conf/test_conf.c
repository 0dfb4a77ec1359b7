#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/str.h"
#include "conf/conf.h"

struct settings {
    char *url, *key_file, *token, *plain, *hidden;
    int64_t jobs, offset, wait;
    uint64_t room;
    bool quiet, cache;
    int mode;
    struct conf_list hosts, weak;
};
#define F(f) offsetof(struct settings, f)
static const struct conf_key keys[] = {
    { .name = "model.url", .short_flag = 'u', .type = CONF_STR, .field = F(url), .dflt = "https://api.example", .env = "T_BASE_URL", .arg = "URL", .help = "Base URL." },
    { .name = "model.key-file", .type = CONF_STR, .field = F(key_file), .arg = "FILE", .help = "Key." },
    { .name = "model.token", .type = CONF_STR, .field = F(token), .env = "T_TOKEN", .secret = true, .help = "Token." },
    { .name = "jobs", .short_flag = 'j', .type = CONF_INT, .field = F(jobs), .dflt = "4", .min = "1", .max = "64", .help = "Threads." },
    { .name = "offset", .type = CONF_INT, .field = F(offset), .help = "Any number." },
    { .name = "wait", .type = CONF_DUR, .field = F(wait), .dflt = "30s", .min = "1s", .help = "Time." },
    { .name = "room", .type = CONF_SIZE, .field = F(room), .dflt = "1MiB", .max = "1GiB", .help = "Size." },
    { .name = "quiet", .short_flag = 'q', .type = CONF_BOOL, .field = F(quiet), .help = "Say less." },
    { .name = "cache", .short_flag = 'k', .type = CONF_BOOL, .field = F(cache), .dflt = "true", .help = "Keep answers." },
    { .name = "mode", .type = CONF_ENUM, .field = F(mode), .dflt = "none", .choices = "none|host|both", .arg = "MODE", .help = "Network." },
    { .name = "host", .type = CONF_LIST, .field = F(hosts), .dflt = "a,b", .help = "Hosts; may be repeated." },
    { .name = "weak", .type = CONF_LIST, .field = F(weak), .help = "Layers." },
    { .name = "no-plain", .type = CONF_STR, .field = F(plain), .help = "Not a boolean." },
    { .name = "hidden", .type = CONF_STR, .field = F(hidden), .hidden = true, .help = "Not shown." },
};
static const struct conf_program program = {
    .command = "outwork test", .summary = "A program for tests.", .usage = "[options] FILE", .epilog = "Examples:\n  outwork test x\n",
    .keys = keys, .n_keys = COUNT_OF(keys),
};

static char dir[64];

/* One run: arguments up to NULL, then variables are unset again. */
struct run { struct settings s; struct conf_list pos; struct err e; int rc; bool help; };

static void run(struct run *r, char **args)
{
    char *argv[32] = { (char *)(uintptr_t) "test" };
    int n = 1;
    for (; args && args[n - 1]; n++)
        argv[n] = args[n - 1];
    *r = (struct run){ .help = true };
    r->rc = conf_load(&program, n, argv, &r->s, &r->pos, &r->help, &r->e);
}
#define RUN(r, ...) run(r, (char *[]){ __VA_ARGS__ __VA_OPT__(,) NULL })

static void done(struct run *r)
{
    conf_free(&program, &r->s);
    free(r->pos.item);
}

static char *file(const char *name, const char *text, unsigned mode)
{
    struct err e;
    char *path = str_printf("%s/%s", dir, name);
    assert_int_equal(fd_write_file_atomic(path, text, strlen(text), mode, &e), RC_OK);
    return path;
}

static void defaults(void **st)
{
    (void)st;
    struct run r;
    RUN(&r, );
    assert_int_equal(r.rc, RC_OK);
    assert_false(r.help);
    assert_string_equal(r.s.url, "https://api.example");
    assert_null(r.s.key_file);
    assert_true(r.s.jobs == 4 && r.s.offset == 0 && r.s.wait == 30000 && r.s.room == MIB && !r.s.quiet && r.s.cache && r.s.mode == 0);
    assert_int_equal(r.s.hosts.n, 2);
    assert_string_equal(r.s.hosts.item[1], "b");
    assert_int_equal(r.s.weak.n, 0);
    assert_int_equal(r.pos.n, 0);
    done(&r);
    conf_free(&program, &r.s);      /* twice is fine */
}

static void flags(void **st)
{
    (void)st;
    struct run r;
    RUN(&r, "--model-url", "http://x", "--model-key-file=/k=1", "-j8", "one", "--offset=-5", "--wait", "2m", "--room", "64KiB", "-q", "--no-cache",
        "--mode", "both", "--host", "h1", "--host=h2,h3", "--host", "k=1\\,2", "--no-plain", "np", "--", "--two", "-");
    assert_int_equal(r.rc, RC_OK);
    assert_string_equal(r.s.url, "http://x");
    assert_string_equal(r.s.key_file, "/k=1");
    assert_string_equal(r.s.plain, "np");
    assert_true(r.s.jobs == 8 && r.s.offset == -5 && r.s.wait == 120000 && r.s.room == 65536 && r.s.quiet && !r.s.cache && r.s.mode == 2);
    assert_int_equal(r.s.hosts.n, 4);
    assert_string_equal(r.s.hosts.item[0], "h1");
    assert_string_equal(r.s.hosts.item[2], "h3");
    assert_string_equal(r.s.hosts.item[3], "k=1,2");
    assert_int_equal(r.pos.n, 3);
    assert_string_equal(r.pos.item[0], "one");
    assert_string_equal(r.pos.item[1], "--two");
    assert_string_equal(r.pos.item[2], "-");
    done(&r);
    RUN(&r, "-j", "2", "-j=3", "-qk", "--cache=false", "--quiet=off", "--model-url=", "--no-plain=--x");
    assert_int_equal(r.rc, RC_OK);
    assert_true(r.s.jobs == 3 && !r.s.quiet && !r.s.cache);
    assert_string_equal(r.s.url, "");
    assert_string_equal(r.s.plain, "--x");
    done(&r);
}

static void flag_errors(void **st)
{
    (void)st;
    static const struct { const char *a, *b, *want; } row[] = {
        { "--modle-url", "x", "unknown option --modle-url (did you mean --model-url?); `outwork test --help` lists them" },
        { "--model-k", NULL, "did you mean --model-key-file?" },
        { "--completely-different", NULL, "unknown option --completely-different; " }, { "-jobs", NULL, "flag -j: 'obs' is not a whole number, from 1 to 64" },
        { "-x", NULL, "unknown option -x;" }, { "-wait", NULL, "unknown option -wait (did you mean --wait?)" }, { "--hiden", NULL, "unknown option --hiden;" },
        { "--jobs", NULL, "--jobs needs a value: VALUE" }, { "--model-url", NULL, "--model-url needs a value: URL" },
        { "--no-plain", "--x", "write --no-plain=VALUE if it begins with dashes" },
        { "--jobs", "0", "flag --jobs: '0' is not a whole number, from 1 to 64" }, { "--jobs", "65", "'65' is not" }, { "--jobs", "", "'' is not" },
        { "--jobs", "1.5", "'1.5' is not" }, { "--offset", "99999999999999999999", "flag --offset: '99999999999999999999' is not a whole number" },
        { "--wait", "5", "flag --wait: '5' is not a time with a unit such as 250ms, 30s, 5m, 1h or 7d, at least 1s" }, { "--wait", "999ms", "at least 1s" },
        { "--room", "2GiB", "flag --room: '2GiB' is not a size with a unit such as 64KiB or 2GiB, at most 1GiB" }, { "--room", "5", "is not a size" },
        { "--mode", "hosts", "flag --mode: 'hosts' is not one of none host both" }, { "--mode", "", "is not one of" }, { "--mode", "none|host", "is not one of" },
        { "--quiet=maybe", NULL, "flag --quiet: 'maybe' is not true or false" }, { "--no-quiet=1", NULL, "--no-quiet takes no value" }, { "--no-jobs", NULL, "unknown option --no-jobs" },
        { "--model-token", "sk", "model.token is a secret and not taken from the command line, where other users can see it: set the variable T_TOKEN" },
        { "--model-token=sk-123", NULL, "set the variable T_TOKEN" }, { "--print-config=1", NULL, "unknown option --print-config=1" },
        { "--config", NULL, "--config needs a value: FILE" }, { "--config", "/nonexistent.yaml", "settings file: open /nonexistent.yaml: No such file or directory" },
        { "--config", "/etc", "settings file: read /etc: Is a directory" }, { "--=x", NULL, "unknown option --=x;" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct run r;
        RUN(&r, (char *)(uintptr_t)row[i].a, (char *)(uintptr_t)row[i].b);
        if (r.rc != RC_INVALID || (!strstr(r.e.msg, row[i].want)))
            fail_msg("row %zu %s: rc %d: %s", i, row[i].a, r.rc, r.e.msg);
        assert_null(strstr(r.e.msg, "sk-123"));
        done(&r);
    }
    char *argv[] = { (char *)(uintptr_t) "t", (char *)(uintptr_t) "extra", NULL };
    struct settings s = { 0 };
    struct err e;
    bool help;
    assert_int_equal(conf_load(&program, 2, argv, &s, NULL, &help, &e), RC_INVALID);
    assert_non_null(strstr(e.msg, "unexpected argument 'extra'"));
    conf_free(&program, &s);
    char *many[3000] = { (char *)(uintptr_t) "t" };
    for (int i = 1; i < 2 * CONF_ITEMS_MAX + 3; i += 2) {
        many[i] = (char *)(uintptr_t) "--weak";
        many[i + 1] = (char *)(uintptr_t) "x";
    }
    assert_int_equal(conf_load(&program, 2 * CONF_ITEMS_MAX + 1, many, &s, NULL, &help, &e), RC_OK);
    assert_int_equal(s.weak.n, CONF_ITEMS_MAX);
    conf_free(&program, &s);
    assert_int_equal(conf_load(&program, 2 * CONF_ITEMS_MAX + 3, many, &s, NULL, &help, &e), RC_INVALID);
    conf_free(&program, &s);
}

static void precedence(void **st)
{
    (void)st;
    struct run r;
    AUTO_FREE char *path = file("prec.yaml", "model:\n  url: file\njobs: 5\nhost: [f1, f2, f3]\n", 0644);
    RUN(&r, "--config", path);
    assert_int_equal(r.rc, RC_OK);
    assert_string_equal(r.s.url, "file");
    assert_int_equal(r.s.hosts.n, 3);
    done(&r);
    setenv("T_BASE_URL", "own", 1);
    setenv("OUTWORK_HOST", "e1, e2", 1);
    setenv("OUTWORK_CONFIG", path, 1);
    RUN(&r, );
    assert_int_equal(r.rc, RC_OK);
    assert_string_equal(r.s.url, "own");
    assert_int_equal(r.s.jobs, 5);
    assert_int_equal(r.s.hosts.n, 2);
    assert_string_equal(r.s.hosts.item[1], "e2");
    done(&r);
    setenv("OUTWORK_MODEL_URL", "variable", 1);
    setenv("OUTWORK_JOBS", "", 1);      /* empty: as if unset */
    RUN(&r, "--host", "x");
    assert_string_equal(r.s.url, "variable");
    assert_int_equal(r.s.jobs, 5);
    assert_int_equal(r.s.hosts.n, 1);
    done(&r);
    RUN(&r, "--model-url", "flag", "--config=");
    assert_string_equal(r.s.url, "flag");
    assert_int_equal(r.s.jobs, 4);
    done(&r);
    setenv("OUTWORK_JOBS", "many", 1);
    RUN(&r, );
    assert_int_equal(r.rc, RC_INVALID);
    assert_string_equal(r.e.msg, "variable OUTWORK_JOBS: 'many' is not a whole number, from 1 to 64");
    done(&r);
    unsetenv("T_BASE_URL"); unsetenv("OUTWORK_HOST"); unsetenv("OUTWORK_CONFIG"); unsetenv("OUTWORK_MODEL_URL"); unsetenv("OUTWORK_JOBS");
}

static void secrets(void **st)
{
    (void)st;
    struct run r;
    static char entry[] = "T_TOKEN=sk-own";
    putenv(entry);
    RUN(&r, );
    assert_string_equal(r.s.token, "sk-own");
    assert_null(getenv("T_TOKEN"));
    assert_int_equal(entry[8], 0);
    struct buf b;
    buf_init(&b, 100000);
    assert_int_equal(conf_write_effective(&program, &r.s, &b), RC_OK);
    assert_null(strstr(buf_data(&b), "sk-own"));
    assert_non_null(strstr(buf_data(&b), "  # token: (set, not shown)\n"));
    buf_done(&b);
    done(&r);
    AUTO_FREE char *open_file = file("open.yaml", "model:\n  token: sk-file\n", 0644), *closed = file("closed.yaml", "model:\n  token: sk-file\n", 0640);
    RUN(&r, "--config", open_file);
    assert_int_equal(r.rc, RC_DENIED);
    assert_non_null(strstr(r.e.msg, "open.yaml:2: 'model.token' is a secret, but other users can read this file; run: chmod o-rwx"));
    done(&r);
    setenv("OUTWORK_MODEL_TOKEN", "sk-a", 1);
    setenv("T_TOKEN", "sk-b", 1);
    RUN(&r, "--config", closed);
    assert_int_equal(r.rc, RC_OK);
    assert_string_equal(r.s.token, "sk-a");
    assert_null(getenv("OUTWORK_MODEL_TOKEN"));
    assert_null(getenv("T_TOKEN"));     /* the weaker one does not stay behind */
    done(&r);
    RUN(&r, "--config", closed);
    assert_string_equal(r.s.token, "sk-file");
    done(&r);
}

static void yaml(void **st)
{
    (void)st;
    static const struct { const char *text, *want; } row[] = {      /* want NULL: accepted */
        { "", NULL }, { "# nothing\n", NULL }, { "---\n", NULL }, { "{}", NULL }, { "jobs: 5\n", NULL }, { "model.url: x\n", NULL }, { "model: {url: x}\n", NULL },
        { "model:\n", NULL }, { "model:\n  # url: x\n", NULL }, { "jobs:\n", NULL }, { "jobs: ~\n", NULL }, { "model:\n  key_file: x\n", NULL }, { "host: []\n", NULL },
        { "host: 'a, b'\n", NULL }, { "host:\n- a\n- 'b, c'\n", NULL }, { "quiet: yes\n", NULL }, { "no_plain: \"tab\\t\"\n", NULL }, { "offset: -7\n", NULL },
        { "jobs: five\n", "settings:1: jobs: 'five' is not a whole number, from 1 to 64" }, { "\n\njobs: 99\n", "settings:3: jobs: '99'" },
        { "modle:\n  url: x\n", "settings:1: unknown setting 'modle' (did you mean model?)" }, { "model:\n  ulr: x\n", "settings:2: unknown setting 'model.ulr' (did you mean model.url?)" },
        { "url: x\n", "settings:1: unknown setting 'url'" }, { "model: x\n", "'model' is a section and needs settings below it" }, { "model: [x]\n", "is a section" },
        { "jobs: {a: 1}\n", "settings:1: jobs: a value is expected, not a section" }, { "jobs: [1]\n", "settings:1: jobs: one value is expected, not a list" },
        { "host: [[a]]\n", "host: the entries of this list are texts" }, { "host: {a: b}\n", "a value is expected" }, { "? [a]\n: b\n", "names of settings are texts" },
        { "jobs: 1\njobs: 2\n", "settings:2: 'jobs' was already set in line 1" }, { "model.url: x\nmodel:\n  url: y\n", "settings:3: 'model.url' was already set in line 1" },
        { "jobs: &a 1\noffset: *a\n", "aliases (*name) are not allowed here" }, { "jobs: !!int 5\n", "tags (!name) are not allowed here" }, { "<<: {jobs: 1}\n", "unknown setting '<<'" },
        { "jobs: 1\n---\njobs: 2\n", "a second document" }, { "- jobs\n", "settings of the form 'name: value'" }, { "jobs\n", "settings of the form" }, { "host: [1\n", "invalid YAML" },
        { "jobs: 1\n\tquiet: 1\n", "invalid YAML" }, { "\xff\xfe\x01", "settings" }, { "a: \"\xff\"\n", "not readable as text" }, { "no-plain: \"a\\0b\"\n", "NUL is not allowed" },
        { "\"\": x\n", "an empty name" }, { "model: {url: {deep: 1}}\n", "model.url: a value is expected" }, { "host: ~\n", NULL }, { "model: {token: x}\n", NULL },
        { "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: 1\n", "unknown setting 'aaa" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        struct settings s = { 0 };
        struct err e = { 0 };
        int rc = conf_load_text(&program, row[i].text, strlen(row[i].text), &s, &e);
        if ((rc == RC_OK) != !row[i].want || (rc < 0 && !strstr(e.msg, row[i].want)))
            fail_msg("row %zu <%s>: rc %d: %s", i, row[i].text, rc, e.msg);
        conf_free(&program, &s);
    }
    struct settings s = { 0 };
    struct err e = { 0 };
    const char *text = "host:\n- a\n- 'b, c'\nmodel:\n  url: null\nno-plain: 'null'\nweak: x,y\n";
    assert_int_equal(conf_load_text(&program, text, strlen(text), &s, &e), RC_OK);
    assert_int_equal(s.hosts.n, 2);
    assert_string_equal(s.hosts.item[1], "b, c");
    assert_string_equal(s.url, "https://api.example");
    assert_string_equal(s.plain, "null");
    assert_int_equal(s.weak.n, 2);
    conf_free(&program, &s);
    AUTO_FREE char *big = xcalloc(1, CONF_FILE_MAX + 2);
    memset(big, '#', CONF_FILE_MAX + 1);
    assert_int_equal(conf_load_text(&program, big, CONF_FILE_MAX + 1, &s, &e), RC_TOO_LARGE);
    assert_int_equal(conf_load_text(&program, big, CONF_FILE_MAX, &s, &e), RC_OK);
    conf_free(&program, &s);
    memset(big, '[', 100000);
    assert_int_equal(conf_load_text(&program, big, 100000, &s, &e), RC_INVALID);
}

static void effective(void **st)
{
    (void)st;
    struct run r;
    struct buf b, c;
    struct err e;
    RUN(&r, "--no-plain", "yes", "--model-url", "a: b #", "--host", "x\\,y", "--host", "\"q\"", "--wait", "90s", "--room", "1000B", "--mode", "host", "--hidden", "\x7f\xc2\x85\xe2\x80\xa8\xef\xbb\xbf\xef\xbf\xbf\xc2\xa0\xf0\x9f\x98\x80");
    assert_int_equal(r.rc, RC_OK);
    buf_init(&b, 100000);
    buf_init(&c, 100000);
    assert_int_equal(conf_write_effective(&program, &r.s, &b), RC_OK);
    assert_string_equal(buf_data(&b), "jobs: 4\noffset: 0\nwait: 90s\nroom: 1KB\nquiet: false\ncache: true\nmode: host\nhost: [\"x,y\", \"\\\"q\\\"\"]\nweak: []\n"
                                      "no-plain: \"yes\"\nhidden: \"\\u007f\\u0085\\u2028\\ufeff\\uffff\xc2\xa0\xf0\x9f\x98\x80\"\nmodel:\n  url: \"a: b #\"\n  # key-file: (not set)\n  # token: (not set)\n");
    struct settings s = { 0 };
    assert_int_equal(conf_load_text(&program, buf_data(&b), buf_len(&b), &s, &e), RC_OK);
    assert_int_equal(conf_write_effective(&program, &s, &c), RC_OK);
    assert_string_equal(buf_data(&b), buf_data(&c));
    conf_free(&program, &s);
    buf_done(&c);
    buf_init(&c, 50);
    assert_int_equal(conf_write_effective(&program, &r.s, &c), RC_LIMIT);
    buf_done(&b);
    buf_done(&c);
    done(&r);
}

static void help(void **st)
{
    (void)st;
    struct buf b;
    buf_init(&b, 100000);
    assert_int_equal(conf_write_help(&program, &b), RC_OK);
    static const char *const want[] = {
        "A program for tests.\n\nUsage: outwork test [options] FILE\n\nOptions:\n  -j, --jobs N                  Threads. [default 4, from 1 to 64]\n",
        "\nModel:\n  -u, --model-url URL           Base URL. [default https://api.example; variable T_BASE_URL]\n",
        "  T_TOKEN                       Token. A secret: only as a variable or in a settings file that no\n                                other user can read.\n", "  --mode MODE                   Network. [none|host|both, default none]\n",
        "  -q, --quiet                   Say less.\n", "  -k, --cache                   Keep answers. [default on]\n", "\nGeneral:\n  --config FILE ", "  -h, --help                    Print", "\n\nExamples:\n  outwork test x\n",
        "  --wait TIME                   Time. [default 30s, at least 1s]\n",
    };
    for (size_t i = 0; i < COUNT_OF(want); i++)
        if (!strstr(buf_data(&b), want[i]))
            fail_msg("help lacks: %s\n%s", want[i], buf_data(&b));
    assert_null(strstr(buf_data(&b), "hidden"));
    for (char *p = buf_data(&b), *nl; (nl = strchr(p, '\n')); p = nl + 1) {
        assert_true(nl - p <= 100);
        assert_true(nl == p || nl[-1] != ' ');
    }
    buf_clear(&b);
    assert_int_equal(conf_complete(&program, &b), RC_OK);
    assert_non_null(strstr(buf_data(&b), "--mode\tnone|host|both\tNetwork.\n"));
    assert_non_null(strstr(buf_data(&b), "--quiet\t\tSay less.\n--no-quiet\t\t"));
    assert_non_null(strstr(buf_data(&b), "--model-key-file\tFILE\tKey.\n"));
    assert_null(strstr(buf_data(&b), "token"));
    buf_clear(&b);
    assert_int_equal(conf_write_markdown(&program, &b), RC_OK);
    assert_non_null(strstr(buf_data(&b), "| `model.url` | `--model-url` | `OUTWORK_MODEL_URL`, `T_BASE_URL` | https://api.example |  | Base URL. |\n"));
    assert_non_null(strstr(buf_data(&b), "| `mode` | `--mode` | `OUTWORK_MODE` | none | none\\|host\\|both | Network. |\n"));
    buf_done(&b);
    buf_init(&b, 10);
    assert_int_equal(conf_write_help(&program, &b), RC_LIMIT);
    buf_done(&b);
}

static void printing(void **st)
{
    (void)st;
    int keep = dup(STDOUT_FILENO);
    AUTO_FREE char *path = str_printf("%s/out", dir);
    (void)fflush(stdout);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    dup2(fd, STDOUT_FILENO);
    struct run a, b, c;
    RUN(&a, "--print-config", "--jobs", "7");
    RUN(&b, "-h", "--unknown");
    RUN(&c, "--help");
    dup2(keep, STDOUT_FILENO);
    close(keep);
    close(fd);
    assert_int_equal(a.rc, RC_OK);
    assert_true(a.help && b.help && c.help && b.rc == RC_OK && c.rc == RC_OK);
    struct err e;
    AUTO_FREE char *text = NULL;
    assert_int_equal(fd_read_file(AT_FDCWD, path, 100000, &text, NULL, &e), RC_OK);
    assert_true(str_prefix(text, "jobs: 7\n"));
    assert_non_null(strstr(text, "Usage: outwork test"));
    done(&a);
    done(&b);
    done(&c);
}

struct own { bool print; char *config; };
static void own_rows(void **st)
{
    (void)st;
    static const struct conf_key rows[] = {
        { .name = "print-config", .type = CONF_BOOL, .field = offsetof(struct own, print) }, { .name = "config", .short_flag = 'c', .type = CONF_STR, .field = offsetof(struct own, config) },
    };
    static const struct conf_program p = { .command = "x", .keys = rows, .n_keys = 2 };
    AUTO_FREE char *path = file("own.yaml", "jobs: 1\n", 0644);
    char *argv[] = { (char *)(uintptr_t) "x", (char *)(uintptr_t) "--print-config", (char *)(uintptr_t) "-c", path, NULL };
    struct own s = { 0 };
    struct err e;
    bool shown;
    assert_int_equal(conf_load(&p, 2, argv, &s, NULL, &shown, &e), RC_OK);
    assert_true(s.print && !shown);
    conf_free(&p, &s);
    assert_int_equal(conf_load(&p, 4, argv, &s, NULL, &shown, &e), RC_INVALID);
    assert_non_null(strstr(e.msg, "own.yaml:1: unknown setting 'jobs'"));
    conf_free(&p, &s);
    struct buf b;
    buf_init(&b, 10000);
    assert_int_equal(conf_write_effective(&p, &s, &b), RC_OK);
    assert_int_equal(buf_len(&b), 0);
    assert_int_equal(conf_write_help(&p, &b), RC_OK);
    buf_done(&b);
}

/* ---- sub-trees ---- */

struct with_tree { char *name; struct conf_tree *routes; };
static const struct conf_key tree_keys[] = {
    { .name = "name", .type = CONF_STR, .field = offsetof(struct with_tree, name), .help = "A name." },
    { .name = "part.routes", .type = CONF_TREE, .field = offsetof(struct with_tree, routes), .help = "Routes." },
};
static const struct conf_program tree_program = { .command = "outwork tree", .keys = tree_keys, .n_keys = COUNT_OF(tree_keys) };

static void trees(void **st)
{
    (void)st;
    struct with_tree s = { 0 }, t = { 0 };
    struct err e = { 0 };
    static const char text[] = "name: x\npart:\n  routes:\n    Docs_A: http://10.0.0.1:80\n    b:\n      tools: [a, \"1\", ~]\n      empty: {}\n";
    assert_int_equal(conf_load_text(&tree_program, text, sizeof text - 1, &s, &e), RC_OK);
    assert_non_null(s.routes);
    const struct conf_node *r = &s.routes->root, *b = conf_node_get(r, "b"), *tools = conf_node_get(b, "tools");
    assert_int_equal(r->kind, CONF_NODE_MAP);
    assert_int_equal(r->n, 2);
    assert_string_equal(conf_node_get(r, "Docs_A")->text, "http://10.0.0.1:80");
    assert_int_equal(b->line, 6);
    assert_int_equal(tools->kind, CONF_NODE_LIST);
    assert_int_equal(tools->n, 3);
    assert_true(tools->child[1].quoted);
    assert_null(tools->child[2].text);
    assert_int_equal(conf_node_get(b, "empty")->n, 0);
    assert_null(conf_node_get(r, "c"));
    assert_int_equal(conf_node_err(s.routes, tools, "part.routes.b", &e, "wrong %d", 1), RC_INVALID);
    assert_string_equal(e.msg, "settings:6: part.routes.b: wrong 1");
    struct buf out, again;
    buf_init(&out, SIZE_MAX);
    buf_init(&again, SIZE_MAX);
    assert_int_equal(conf_write_effective(&tree_program, &s, &out), RC_OK);
    assert_int_equal(conf_load_text(&tree_program, buf_data(&out), buf_len(&out), &t, &e), RC_OK);
    assert_int_equal(conf_write_effective(&tree_program, &t, &again), RC_OK);
    assert_string_equal(buf_data(&out), buf_data(&again));
    conf_free(&tree_program, &s);
    conf_free(&tree_program, &t);
    buf_done(&out);
    buf_done(&again);
}

static void tree_errors(void **st)
{
    (void)st;
    static const struct { const char *text, *want; } rows[] = {
        { "part:\n  routes:\n    a: 1\n    b: 2\n    a: 3\n", "settings:5: part.routes: 'a' was already given in line 3" },
        { "part:\n  routes: {a: &x 1, b: *x}\n", "settings:2: part.routes: aliases (*name) are not allowed here" },
        { "part:\n  routes: {a: !t 1}\n", "settings:2: part.routes: tags (!name) are not allowed here" },
        { "part:\n  routes: {[a]: 1}\n", "settings:2: part.routes: names are texts" },
        { "part:\n  routes: {a: [[[[[[[[[[1]]]]]]]]]]}\n", "settings:2: part.routes: nested too deep" },
        { "part:\n  routes: {}\n  routes: {}\n", "settings:3: 'part.routes' was already set in line 2" },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct with_tree s = { 0 };
        struct err e = { 0 };
        assert_int_equal(conf_load_text(&tree_program, rows[i].text, strlen(rows[i].text), &s, &e), RC_INVALID);
        assert_string_equal(e.msg, rows[i].want);
        conf_free(&tree_program, &s);
    }
    char cmd[] = "x", flag[] = "--part-routes=1", *argv[] = { cmd, flag, NULL };
    struct with_tree s = { 0 };
    struct err e = { 0 };
    bool help = false;
    assert_int_equal(conf_load(&tree_program, 2, argv, &s, NULL, &help, &e), RC_INVALID);
    assert_non_null(strstr(e.msg, "unknown option --part-routes"));
    conf_free(&tree_program, &s);
}

static int setup(void **st)
{
    (void)st;
    for (char **p = environ; *p;) {
        AUTO_FREE char *name = str_ndup(*p, strcspn(*p, "="));
        if (str_prefix(name, "OUTWORK_"))
            unsetenv(name);
        else
            p++;
    }
    (void)snprintf(dir, sizeof dir, "/tmp/ow-conf-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **st)
{
    (void)st;
    struct err e;
    return fd_remove_tree(AT_FDCWD, dir, &e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults), cmocka_unit_test(flags), cmocka_unit_test(flag_errors), cmocka_unit_test(precedence), cmocka_unit_test(secrets),
        cmocka_unit_test(yaml), cmocka_unit_test(effective), cmocka_unit_test(help), cmocka_unit_test(printing), cmocka_unit_test(own_rows),
        cmocka_unit_test(trees), cmocka_unit_test(tree_errors),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
