/* worker/worker.h - the worker role. */
#pragma once

/* argv[0] is the command's name. Sub-commands: none (poll and serve), `run` (one claimed item), `unpack-skill` (internal, worker/unpack.h).
 * Returns the exit status that --help documents. */
int worker_main(int argc, char **argv);
