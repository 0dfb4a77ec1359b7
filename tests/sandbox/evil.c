/* PID 1 of a sandbox that breaks the protocol: what the worker does about it is the test. Speaks HELLO properly; the text of a BASH request picks the sin. */
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "inside/proto.h"

static char body[1 << 16];

static void all(const void *p, size_t n)
{
    for (size_t o = 0; o < n;) {
        ssize_t w = write(3, (const char *)p + o, n - o);
        if (w <= 0)
            _exit(1);
        o += (size_t)w;
    }
}

int main(void)
{
    for (;;) {
        struct inside_req q;
        for (size_t o = 0; o < sizeof q;) {
            ssize_t r = read(3, (char *)&q + o, sizeof q - o);
            if (r <= 0)
                _exit(0);
            o += (size_t)r;
        }
        for (uint64_t o = 0; o < q.body_bytes;) {
            uint64_t left = q.body_bytes - o;
            ssize_t r = read(3, body, left < sizeof body ? left : sizeof body);
            if (r <= 0)
                _exit(0);
            o += (uint64_t)r;
        }
        struct inside_res a = { .magic = INSIDE_MAGIC, .op = q.op, .id = q.id };
        if (q.op == INSIDE_BASH) {
            body[sizeof body - 1] = 0;
            if (strcmp(body, "huge") == 0)
                a.body_bytes = UINT64_MAX;
            else if (strcmp(body, "large") == 0)
                a.body_bytes = 31u << 20;
            else if (strcmp(body, "magic") == 0)
                a.magic = 1;
            else if (strcmp(body, "id") == 0)
                a.id++;
            else if (strcmp(body, "op") == 0)
                a.op = INSIDE_READ;
            else if (strcmp(body, "flags") == 0)
                a.flags = 0x80000000u;
            else if (strcmp(body, "kind") == 0)
                a.kind = 77;
            else if (strcmp(body, "twice") == 0)
                all(&a, sizeof a);
            else if (strcmp(body, "exit") == 0)
                _exit(7);
            else if (strcmp(body, "mute") == 0)
                for (;;)
                    pause();
            else if (strcmp(body, "half") == 0) {
                all(&a, 10);
                _exit(0);
            } else if (strcmp(body, "slow") == 0) {
                for (size_t i = 0; i < sizeof a; i++) {
                    all((char *)&a + i, 1);
                    usleep(1000);
                }
                continue;
            }
        }
        all(&a, sizeof a);
    }
}
