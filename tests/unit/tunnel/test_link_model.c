/* Random runs of the model of two ends; the seed of a failing run is printed and can be given as the argument. */
#include <signal.h>

#include "tunnel/model.h"

#define RUNS 400
#define LENGTH 9000

static int64_t now;
static void on_abort(int sig)
{
    (void)sig;
    fprintf(stderr, "seed %d\n", (int)now);
}

int main(int argc, char **argv)
{
    int64_t only = -1;
    (void)signal(SIGABRT, on_abort);
    if (argc > 1 && str_to_i64(argv[1], 0, INT32_MAX, &only) != RC_OK)
        return 2;
    for (int64_t seed = only >= 0 ? only : 1; seed <= (only >= 0 ? only : RUNS); seed++) {
        static uint8_t b[LENGTH];
        uint64_t r = (uint64_t)seed * 0x9e3779b97f4a7c15u;
        for (size_t i = 0; i < sizeof b; i++) {
            r ^= r << 13, r ^= r >> 7, r ^= r << 17;
            b[i] = (uint8_t)(r >> 24);
        }
        now = seed;
        model_run(b, (size_t)(r % LENGTH));
    }
    model_done();
    return 0;
}
