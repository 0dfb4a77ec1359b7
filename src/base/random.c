#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/random.h"

void random_bytes(void *p, size_t n)
{
    char *at = p;
    while (n) {
        ssize_t got = getrandom(at, n, 0);
        if (got < 0) {
            if (errno == EINTR)
                continue;
            abort();
        }
        at += got;
        n -= (size_t)got;
    }
}

uint32_t random_u32_below(uint32_t n)
{
    uint32_t floor = (uint32_t)-n % n, v;      /* 2^32 mod n: values under it would be drawn once too often */
    do
        random_bytes(&v, sizeof v);
    while (v < floor);
    return v % n;
}

double random_unit(void)
{
    uint64_t v;
    random_bytes(&v, sizeof v);
    return (double)(v >> 11) * 0x1p-53;
}

#define ID_BODY 22      /* 58^22 > 2^128: 48 bits of time and 80 of randomness fit exactly */

void id_new(const char *prefix, char out[ID_MAX])
{
    static const char alphabet[] = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    __extension__ typedef unsigned __int128 u128;
    size_t n = strlen(prefix);
    if (n + 3 + ID_BODY >= ID_MAX)
        abort();
    int64_t now = clock_now_ms();
    uint8_t rnd[10];
    random_bytes(rnd, sizeof rnd);
    u128 v = (uint64_t)(now < 0 ? 0 : now) & 0xffffffffffffu;
    for (size_t i = 0; i < sizeof rnd; i++)
        v = v << 8 | rnd[i];
    memcpy(out, prefix, n);
    memcpy(out + n, "_01", 3);
    char *body = out + n + 3;
    for (int i = ID_BODY - 1; i >= 0; i--, v /= 58)
        body[i] = alphabet[(unsigned)(v % 58)];
    body[ID_BODY] = '\0';
}

#define TOKEN_BODY 43   /* 32 bytes in URL-safe base64 without padding */

void token_new(const char *prefix, char out[TOKEN_MAX])
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    size_t n = strlen(prefix);
    if (n + TOKEN_BODY >= TOKEN_MAX)
        abort();
    uint8_t raw[33];
    random_bytes(raw, 32);
    raw[32] = 0;
    memcpy(out, prefix, n);
    char *p = out + n;
    for (size_t bit = 0; bit < 256; bit += 6) {
        unsigned two = (unsigned)raw[bit / 8] << 8 | raw[bit / 8 + 1];
        *p++ = alphabet[two >> (10 - bit % 8) & 63];
    }
    *p = '\0';
    explicit_bzero(raw, sizeof raw);
}
