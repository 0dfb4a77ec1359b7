/* inside/answer.c - the growing answer, and the strings of a request. */
#include "inside/init.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FRONT sizeof(struct inside_res)
#define KEEP_BYTES (256u * 1024)        /* memory kept from one answer to the next */

void answer_clear(struct answer *a)
{
    if (a->cap > KEEP_BYTES) {
        free(a->mem);
        a->mem = NULL;
        a->cap = 0;
    }
    a->n = 0;
    a->flags = a->kind = 0;
    a->exit_status = 0;
    a->over = false;
}

char *answer_body(struct answer *a) { return a->mem + FRONT; }

char *answer_room(struct answer *a, size_t n)
{
    if (n > INSIDE_RES_MAX || a->n > INSIDE_RES_MAX - n) {
        a->over = true;
        return NULL;
    }
    size_t need = FRONT + a->n + n + 1;
    if (!a->mem || need > a->cap) {
        size_t cap = need < 4096 ? 4096 : need + need / 4;
        char *mem = realloc(a->mem, cap);
        if (!mem) {
            a->over = true;
            return NULL;
        }
        a->mem = mem;
        a->cap = cap;
    }
    return a->mem + FRONT + a->n;
}

void answer_put(struct answer *a, const void *p, size_t n)
{
    char *to = answer_room(a, n);
    if (!to)
        return;
    memcpy(to, p, n);
    a->n += n;
}

void answer_puts(struct answer *a, const char *s) { answer_put(a, s, strlen(s)); }

__attribute__((format(printf, 2, 0))) static void put_formatted(struct answer *a, const char *fmt, va_list ap)
{
    char text[2 * PATH_MAX + 512];      /* the longest: a pattern or a path with a sentence around it */
    int n = vsnprintf(text, sizeof text, fmt, ap);
    if (n > 0)
        answer_put(a, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

void answer_printf(struct answer *a, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    put_formatted(a, fmt, ap);
    va_end(ap);
}

void answer_error(struct answer *a, uint32_t more_flags, const char *fmt, ...)
{
    va_list ap;
    answer_clear(a);
    a->flags = INSIDE_ERROR | more_flags;
    va_start(ap, fmt);
    put_formatted(a, fmt, ap);
    va_end(ap);
}

const char *request_string(struct request *r)
{
    if (r->next >= r->n)
        return NULL;
    const char *s = r->body + r->next;
    const char *end = memchr(s, 0, r->n - r->next);
    if (!end)
        return NULL;
    r->next += (size_t)(end - s) + 1;
    return s;
}
