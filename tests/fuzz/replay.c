/* Replays every file of the corpus folders given, then a few thousand deterministic mutations of each, through one fuzz target. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len);

static uint32_t rng = 0x9e3779b9u;
static uint32_t next_random(void)
{
    rng ^= rng << 13; rng ^= rng >> 17; rng ^= rng << 5;
    return rng;
}

static void run_exact(const uint8_t *p, size_t n)   /* in a block of exactly n bytes, so that ASan sees one byte of over-read */
{
    uint8_t *copy = malloc(n ? n : 1);
    if (n) memcpy(copy, p, n);
    (void)LLVMFuzzerTestOneInput(copy, n);
    free(copy);
}

int main(int argc, char **argv)
{
    size_t files = 0, runs = 0;
    run_exact((const uint8_t *)"", 0);
    for (int i = 1; i < argc; i++) {
        DIR *d = opendir(argv[i]);
        if (!d) { fprintf(stderr, "no corpus folder %s\n", argv[i]); return 1; }
        for (struct dirent *de; (de = readdir(d));) {
            char path[4096];
            if (de->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "%s/%s", argv[i], de->d_name);
            FILE *f = fopen(path, "rb");
            if (!f) return 1;
            static uint8_t data[1 << 16];
            size_t n = fread(data, 1, sizeof data, f);
            fclose(f);
            files++;
            run_exact(data, n); runs++;
            for (int k = 0; k < 2000 && n; k++) {
                static uint8_t mut[1 << 16];
                memcpy(mut, data, n);
                size_t len = n;
                for (uint32_t m = next_random() % 4 + 1; m; m--) mut[next_random() % n] = (uint8_t)next_random();
                if (next_random() % 4 == 0) len = next_random() % (n + 1);
                run_exact(mut, len); runs++;
            }
        }
        closedir(d);
    }
    if (!files) { fprintf(stderr, "the corpus is empty\n"); return 1; }
    printf("%zu files, %zu runs\n", files, runs);
    return 0;
}
