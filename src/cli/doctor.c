/* `outwork doctor`: what this kernel and this user can enforce, layer by layer, found by doing it. */
#include <stdio.h>
#include <unistd.h>

#include "base/str.h"
#include "cli/cmd.h"
#include "conf/conf.h"
#include "worker/sandbox/sandbox.h"

struct settings { bool json; int network; };

static const struct conf_key keys[] = {
    { .name = "json", .type = CONF_BOOL, .field = offsetof(struct settings, json), .dflt = "false", .help = "Print the report as JSON." },
    { .name = "sandbox.network", .type = CONF_ENUM, .field = offsetof(struct settings, network), .dflt = "none", .choices = "none|host", .arg = "none|host",
      .help = "The policy to test, as of `outwork worker`." },
};
static const struct conf_program program = {
    .command = "outwork doctor", .summary = "Say what this kernel and this user can enforce for the sandbox, and what would be refused.", .usage = "[options]",
    .epilog = "Exit status: 0 the worker's default policy can be enforced here, 4 it cannot (each missing feature is named, with what to do).\n",
    .keys = keys, .n_keys = COUNT_OF(keys),
};

static void print_table(json_t *report)
{
    size_t i;
    json_t *l;
    json_array_foreach(js_at(report, "layers"), i, l) {
        bool ok = js_bool(l, "ok", false);
        const char *how = js_str(l, "how"), *detail = js_str(l, "detail");
        printf("%-8s %-18s %-24s %s\n", ok ? "ok" : "REFUSED", js_str(l, "name"), how ? how : "", detail ? detail : "");
    }
}

int cmd_doctor(int argc, char **argv)
{
    struct settings s = { 0 };
    struct conf_list pos = { 0 };
    struct err e = { 0 };
    bool help = false;
    int rc = conf_load(&program, argc, argv, &s, &pos, &help, &e);
    if (rc == RC_OK && !help && pos.n)
        rc = err_set(&e, RC_INVALID, "unexpected argument '%s'", pos.item[0]);
    free(pos.item);
    if (rc < 0 || help) {
        if (rc < 0)
            fprintf(stderr, "outwork doctor: %s\n", e.msg);
        conf_free(&program, &s);
        return rc < 0 ? 2 : 0;
    }
    char dir[] = "/tmp/outwork-doctor-XXXXXX";
    struct sbx_policy p = { .net = s.network ? SBX_NET_HOST : SBX_NET_NONE, .limits = sbx_limits_default, .state_dir = mkdtemp(dir), .uid_base = 1879048192u, .uid_count = 65536 };
    AUTO_JS report = NULL;
    rc = sbx_probe(&p, &report, &e);
    (void)rmdir(dir);
    if (s.json && report) {
        AUTO_FREE char *text = js_text(report);
        printf("%s\n", text);
    } else if (report) {
        print_table(report);
        printf("\n%s\n", rc == RC_OK ? "The sandbox can be enforced here." : e.msg);
    }
    if (!report)
        fprintf(stderr, "outwork doctor: %s\n", e.msg);
    conf_free(&program, &s);
    return rc == RC_OK ? 0 : 4;
}
