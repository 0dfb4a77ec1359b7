/* server/server.h - `outwork server`: the control plane as one process. */
#pragma once

/* argv[0] is skipped. Exit status: 0 drained, 1 failed, 2 wrong usage. */
int server_main(int argc, char **argv);
