/* The key commands as an operator's script sees them: stdout, stderr, exit status. Each runs in a process of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "auth/auth.h"
#include "base/fd.h"
#include "cli/cmd.h"
#include "json/js.h"

#define ARGS_MAX 12
static char dir[64], data[96], out[65536], err_text[65536];

static void slurp(const char *name, char *into, size_t cap)
{
    char path[128], *text;
    size_t n;
    struct err e;
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(fd_read_file(AT_FDCWD, path, cap - 1, &text, &n, &e), RC_OK);
    memcpy(into, text, n + 1);
    free(text);
}

static int run(int (*cmd)(int, char **), ...)
{
    char *argv[ARGS_MAX + 1], path[128];
    int argc = 0, status;
    va_list ap;
    va_start(ap, cmd);
    while ((argv[argc] = va_arg(ap, char *)) && argc < ARGS_MAX)
        argc++;
    va_end(ap);
    (void)fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)snprintf(path, sizeof path, "%s/out", dir);
        (void)!freopen(path, "w", stdout);
        (void)snprintf(path, sizeof path, "%s/err", dir);
        (void)!freopen(path, "w", stderr);
        status = cmd(argc, argv);
        (void)fflush(NULL);
        _exit(status);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    slurp("out", out, sizeof out);
    slurp("err", err_text, sizeof err_text);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int setup(void **state)
{
    (void)state;
    (void)str_copy(dir, sizeof dir, "/tmp/ow-keys-XXXXXX");
    assert_non_null(mkdtemp(dir));
    (void)snprintf(data, sizeof data, "%s/data", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return fd_remove_tree(AT_FDCWD, dir, NULL) == RC_OK ? 0 : -1;
}

static struct store *open_store(bool create)
{
    char path[128];
    struct store *st;
    struct err e;
    (void)snprintf(path, sizeof path, "%s/outwork.db", data);
    assert_int_equal(store_open(path, create, &st, &e), RC_OK);
    return st;
}

static json_t *parsed(void)
{
    json_t *j;
    struct err e;
    size_t n = strlen(out);
    assert_true(n > 1 && out[n - 1] == '\n');
    assert_int_equal(js_parse(out, n - 1, MIB, &j, &e), RC_OK);
    return j;
}

#define D "--data", data
static void api_keys(void **state)
{
    (void)state;
    char key[128];
    struct stat sb;
    assert_int_equal(run(cmd_key, "key", "create", D, "--role", "admin", "--name", "lap\ttop", NULL), 0);
    assert_int_equal(strlen(out), strlen(AUTH_PREFIX_API) + 43 + 1);          /* the key, a newline, nothing else */
    assert_true(str_prefix(out, AUTH_PREFIX_API));
    assert_null(strstr(err_text, "ow-api-"));
    (void)str_copy(key, sizeof key, out);
    key[strlen(key) - 1] = 0;
    char path[128];
    (void)snprintf(path, sizeof path, "%s/outwork.db", data);
    assert_int_equal(stat(path, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0600);
    assert_int_equal(stat(data, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0700);

    struct store *st = open_store(false);                                     /* what a server would find */
    struct arena *a = arena_new(4096, MIB);
    struct principal who;
    struct err e;
    assert_int_equal(auth_check(st, a, (struct slice){ 0 }, slice_of(key), 1, &who, &e), RC_OK);
    assert_int_equal(who.role, ROLE_ADMIN);
    store_close(st);

    assert_int_equal(run(cmd_key, "key", "create", D, NULL), 0);
    assert_int_equal(run(cmd_key, "key", "list", D, NULL), 0);
    assert_null(strstr(out, key));
    assert_non_null(strstr(out, "admin"));
    assert_non_null(strstr(out, "developer"));
    assert_non_null(strstr(out, "lap?top"));
    assert_int_equal(run(cmd_key, "key", "list", D, "--json", NULL), 0);
    json_t *j = parsed();
    assert_int_equal(json_array_size(j), 2);
    json_t *mine = json_array_get(j, str_eq(js_str(json_array_get(j, 0), "role"), "admin") ? 0 : 1);
    assert_string_equal(js_str(mine, "name"), "lap\ttop");
    assert_true(js_is_null(mine, "revoked_at"));
    char id[64];
    (void)str_copy(id, sizeof id, js_str(mine, "id"));
    json_decref(j);
    assert_int_equal(run(cmd_key, "key", "revoke", D, id, NULL), 0);
    assert_string_equal(out, "");
    st = open_store(false);
    assert_int_equal(auth_check(st, a, (struct slice){ 0 }, slice_of(key), 1, &who, &e), RC_UNAUTHORIZED);
    store_close(st);
    arena_free(a);
    assert_int_equal(run(cmd_key, "key", "list", D, NULL), 0);
    assert_non_null(strstr(out, "revoked"));
}

static void environment_keys(void **state)
{
    (void)state;
    struct store *st = open_store(true);
    struct err e;
    char id[16];
    for (int i = 0; i < 3; i++) {
        (void)snprintf(id, sizeof id, "env_%d", i);
        struct store_environment n = { .id = id, .name = i == 2 ? "red\033[31m" : id, .body = "{}", .created_ms = 1000 + i };
        assert_int_equal(st->ops->environment_create(st, &n, &e), RC_OK);
    }
    assert_int_equal(st->ops->environment_archive(st, "env_1", 5, &e), RC_OK);
    store_close(st);
    assert_int_equal(run(cmd_environment_key, "environment-key", "create", D, "env_0", NULL), 0);
    assert_true(str_prefix(out, AUTH_PREFIX_ENVIRONMENT));
    assert_int_equal(run(cmd_environment_key, "environment-key", "create", D, "env_2", "--name", "w", NULL), 0);
    assert_int_equal(run(cmd_environment_key, "environment-key", "create", D, "env_none", NULL), 1);
    assert_string_equal(out, "");
    assert_non_null(strstr(err_text, "env_none"));
    assert_int_equal(run(cmd_environment_key, "environment-key", "list", D, "--json", NULL), 0);
    json_t *j = parsed();
    assert_int_equal(json_array_size(j), 2);
    json_decref(j);
    assert_int_equal(run(cmd_environment_key, "environment-key", "list", D, "env_0", "--json", NULL), 0);
    j = parsed();
    assert_int_equal(json_array_size(j), 1);
    assert_string_equal(js_str(j, "0.environment_id"), "env_0");
    char key_id[64];
    (void)str_copy(key_id, sizeof key_id, js_str(j, "0.id"));
    json_decref(j);
    assert_int_equal(run(cmd_environment_key, "environment-key", "revoke", D, key_id, NULL), 0);
    assert_int_equal(run(cmd_environment_key, "environment-key", "revoke", D, "ekey_none", NULL), 1);

    assert_int_equal(run(cmd_environment, "environment", "list", D, NULL), 0);
    assert_non_null(strstr(out, "env_0"));
    assert_null(strstr(out, "env_1"));
    assert_null(strchr(out, '\033'));
    assert_int_equal(run(cmd_environment, "environment", "list", D, "--archived", "--json", NULL), 0);
    j = parsed();
    assert_int_equal(json_array_size(j), 3);
    json_decref(j);
}

static void refusals(void **state)
{
    (void)state;
    static const struct { int (*cmd)(int, char **); const char *arg[4]; int status; } rows[] = {
        { cmd_key, { "key" }, 2 },
        { cmd_key, { "key", "make" }, 2 },
        { cmd_key, { "key", "create", "x" }, 2 },
        { cmd_key, { "key", "list", "x" }, 2 },
        { cmd_key, { "key", "revoke" }, 2 },
        { cmd_key, { "key", "revoke", "a", "b" }, 2 },
        { cmd_key, { "key", "create", "--role=king" }, 2 },
        { cmd_key, { "key", "create", "--rol=user" }, 2 },
        { cmd_key, { "key", "list" }, 1 },
        { cmd_key, { "key", "revoke", "apikey_1" }, 1 },
        { cmd_environment_key, { "environment-key" }, 2 },
        { cmd_environment_key, { "environment-key", "create" }, 2 },
        { cmd_environment_key, { "environment-key", "revoke" }, 2 },
        { cmd_environment_key, { "environment-key", "create", "--role=user" }, 2 },
        { cmd_environment_key, { "environment-key", "create", "env_1" }, 1 },
        { cmd_environment_key, { "environment-key", "list" }, 1 },
        { cmd_environment, { "environment" }, 2 },
        { cmd_environment, { "environment", "list", "x" }, 2 },
        { cmd_environment, { "environment", "list" }, 1 },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const char *const *a = rows[i].arg;
        size_t n = 0;
        while (n < 4 && a[n])
            n++;
        int status = n == 1 ? run(rows[i].cmd, a[0], D, NULL) : n == 2 ? run(rows[i].cmd, a[0], a[1], D, NULL) : n == 3 ? run(rows[i].cmd, a[0], a[1], a[2], D, NULL)
                                                                                                    : run(rows[i].cmd, a[0], a[1], a[2], a[3], D, NULL);
        if (status != rows[i].status)
            fail_msg("row %zu: status %d, not %d: %s", i, status, rows[i].status, err_text);
        assert_string_equal(out, "");
        assert_true(strlen(err_text) > 10);
        struct stat sb;
        assert_int_equal(stat(data, &sb), -1);                                /* nothing was made */
    }
    assert_int_equal(run(cmd_key, "key", "--help", NULL), 0);
    assert_non_null(strstr(out, "--role"));
}

int main(void)
{
#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
    const struct CMUnitTest tests[] = { T(api_keys), T(environment_keys), T(refusals) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
