/* base/attr.h - compiler attributes and small macros used everywhere. Includes only libc. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, first) __attribute__((format(printf, fmt, first)))
#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member) \
    __extension__({ __typeof__(((type *)0)->member) *m_ = (ptr); (type *)(void *)((char *)m_ - offsetof(type, member)); })

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

/* Returns from the enclosing function when `call` fails; `call` has filled the caller's `struct err`. */
#define TRY(call) do { int rc_ = (call); if (rc_ < 0) return rc_; } while (0)

/* Scope cleanup: AUTO_FREE frees, AUTO_CLOSE closes (once: on Linux a failed close() has closed), AUTO_PTR(x) calls
 * x_free(), for which DEFINE_AUTO(x) made the glue. TAKE hands ownership out of such a variable. */
static inline void auto_free_(void *p) { free(*(void **)p); }
static inline void auto_close_(int *fd) { if (*fd >= 0) (void)close(*fd); }
#define AUTO_FREE __attribute__((cleanup(auto_free_)))
#define AUTO_CLOSE __attribute__((cleanup(auto_close_)))
#define DEFINE_AUTO(type) \
    static inline void type##_freep_(struct type **p) { if (*p) type##_free(*p); } \
    struct type
#define AUTO_PTR(type) __attribute__((cleanup(type##_freep_))) struct type *
#define TAKE(p) __extension__({ __typeof__(p) t_ = (p); (p) = NULL; t_; })
#define TAKE_FD(fd) __extension__({ int t_ = (fd); (fd) = -1; t_; })
