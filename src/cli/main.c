/* The one binary: finds the role or command and hands over. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "cli/cmd.h"
#include "cli/commands.h"
#include "gateway/gateway.h"
#include "edge/edge.h"
#include "server/server.h"
#include "worker/worker.h"

#define HELP_ARGS_MAX 3          /* a command, its noun and a verb */

static int cmd_version(int argc, char **argv);
static int cmd_help(int argc, char **argv);

const struct command commands[] = {
    { "server", COMMAND_ROLE, server_main, "serve the HTTP API, the agent loop and the work queue", NULL, NULL, NULL },
    { "worker", COMMAND_ROLE, worker_main, "claim work and run its tool calls in kernel sandboxes", "run", NULL, NULL },
    { "gateway", COMMAND_ROLE, gateway_main, "reach MCP servers inside your network: links out to an edge, inner TLS, routes", "check init renew", NULL, NULL },
    { "edge", COMMAND_ROLE, edge_main, "take connections of gateways and relay ciphertext to them by host name", "init", NULL, NULL },
    { "dev", COMMAND_ROLE, cmd_dev, "run server and worker on this machine, print keys and URLs", NULL, NULL, NULL },
    { "key", COMMAND_OPERATE, cmd_key, "create, list and revoke API keys", "create list revoke", NULL, NULL },
    { "environment", COMMAND_OPERATE, cmd_environment, "list environments", "list", NULL, NULL },
    { "environment-key", COMMAND_OPERATE, cmd_environment_key, "create, list and revoke the keys that workers use", "create list revoke", NULL, NULL },
    { "edge-key", COMMAND_OPERATE, cmd_edge_key, "create, list and revoke the keys that edges use", "create list revoke", NULL, NULL },
    { "tunnel", COMMAND_OPERATE, cmd_tunnel, "create, list and end tunnels, their tokens and certificates", "create list get archive reveal-token rotate-token connectors certificate", "certificate", "add list archive" },
    { "vault", COMMAND_OPERATE, cmd_vault, "replace the key that seals the secrets of vaults and tunnels", "rewrap key", "key", "add list" },
    { "audit", COMMAND_OPERATE, cmd_audit, "verify a worker's hash-chained audit log", "verify head", NULL, NULL },
    { "doctor", COMMAND_OPERATE, cmd_doctor, "say what this kernel can enforce for the sandbox, and what not", NULL, NULL, NULL },
    { "completion", COMMAND_OPERATE, cmd_completion, "print the completion script for bash or zsh", "bash zsh", NULL, NULL },
    { "version", COMMAND_OPERATE, cmd_version, "print the version", NULL, NULL, NULL },
    { "help", COMMAND_OPERATE, cmd_help, "print this help, or that of a command", NULL, NULL, NULL },
};
const size_t n_commands = COUNT_OF(commands);

static const struct command *find(const char *name)
{
    for (size_t i = 0; i < n_commands; i++)
        if (str_eq(commands[i].name, name))
            return &commands[i];
    return NULL;
}

/* "outwork key create|list|revoke" */
static void print_verbs(FILE *out, const struct command *c)
{
    fprintf(out, "  %-16s outwork %s ", "", c->name);
    for (const char *p = c->verbs; *p; p++)
        fputc(*p == ' ' ? '|' : *p, out);
    fputc('\n', out);
}

static void print_group(FILE *out, enum command_group group)
{
    for (size_t i = 0; i < n_commands; i++)
        if (commands[i].group == group) {
            fprintf(out, "  %-16s %s\n", commands[i].name, commands[i].summary);
            if (commands[i].verbs)
                print_verbs(out, &commands[i]);
        }
}

static void print_usage(FILE *out)
{
    fprintf(out, "outwork %s: agents whose hands stay inside your network\n\n"
                 "Usage: outwork COMMAND [options]\n\nRoles:\n", OUTWORK_VERSION);
    print_group(out, COMMAND_ROLE);
    fprintf(out, "\nOperator's commands:\n");
    print_group(out, COMMAND_OPERATE);
    fprintf(out, "\n`outwork help COMMAND [VERB]`, or --help after either, explains it and every option. Exit status: 0 done, 1 failed,\n"
                 "2 wrong usage, 3 credential refused, 4 the sandbox cannot be enforced here.\n");
}

static int cmd_version(int argc, char **argv)
{
    (void)argc, (void)argv;
    printf("outwork %s\n", OUTWORK_VERSION);
    return 0;
}

static int cmd_help(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stdout);
        return 0;
    }
    const struct command *c = find(argv[1]);
    if (!c || c->run == cmd_help || c->run == cmd_version) {
        fprintf(stderr, "outwork: no command '%s'. `outwork help` lists them.\n", argv[1]);
        return 2;
    }
    char help[] = "--help", *args[HELP_ARGS_MAX + 2];
    int n = 0;
    for (int i = 1; i < argc && n < HELP_ARGS_MAX; i++)
        args[n++] = argv[i];
    args[n++] = help;
    args[n] = NULL;
    return c->run(n, args);
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        print_usage(stderr);
        return 2;
    }
    if (str_eq(argv[1], "--help") || str_eq(argv[1], "-h")) {
        print_usage(stdout);
        return 0;
    }
    if (str_eq(argv[1], "--version"))
        return cmd_version(argc - 1, argv + 1);
    const struct command *c = find(argv[1]);
    if (!c) {
        fprintf(stderr, "outwork: no command '%s'. `outwork help` lists them.\n", argv[1]);
        return 2;
    }
    return c->run(argc - 1, argv + 1);
}
