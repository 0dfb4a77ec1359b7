/* Replays every file of the corpus folders given, then a few thousand deterministic mutations of each, through one fuzz target. What is run depends on nothing
 * but the files: they are taken by name, and each one's name and content choose its mutations. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t len);

static uint32_t rng;
static uint32_t next_random(void)
{
    rng ^= rng << 13; rng ^= rng >> 17; rng ^= rng << 5;
    return rng;
}

static void seed_from(const void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        rng = (rng ^ ((const uint8_t *)p)[i]) * 16777619u;
    if (!rng)
        rng = 1;
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
    const char *extra = getenv("FUZZ_SEED");   /* other mutations, by hand */
    run_exact((const uint8_t *)"", 0);
    for (int i = 1; i < argc; i++) {
        struct dirent **entry;
        int n_entries = scandir(argv[i], &entry, NULL, alphasort);
        if (n_entries < 0) { fprintf(stderr, "no corpus folder %s\n", argv[i]); return 1; }
        for (int j = 0; j < n_entries; j++) {
            char path[4096];
            struct dirent *de = entry[j];
            if (de->d_name[0] == '.') { free(de); continue; }
            snprintf(path, sizeof path, "%s/%s", argv[i], de->d_name);
            rng = 2166136261u;
            seed_from(de->d_name, strlen(de->d_name));
            free(de);
            FILE *f = fopen(path, "rb");
            if (!f) return 1;
            static uint8_t data[1 << 16];
            size_t n = fread(data, 1, sizeof data, f);
            fclose(f);
            seed_from(data, n);
            if (extra) seed_from(extra, strlen(extra));
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
        free(entry);
    }
    if (!files) { fprintf(stderr, "the corpus is empty\n"); return 1; }
    printf("%zu files, %zu runs\n", files, runs);
    return 0;
}
