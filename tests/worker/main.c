/* The worker alone, for the tests of this folder: `outwork-worker-test worker [options]`, as the one binary is called. */
#include "worker/worker.h"

int main(int argc, char **argv)
{
    return argc > 1 ? worker_main(argc - 1, argv + 1) : 2;
}
