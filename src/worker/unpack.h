/* worker/unpack.h - archives of skills are unpacked by a process of their own: `outwork worker unpack-skill` reads one on descriptor 0 and writes
 * its regular files as records to descriptor 1. Only that process loads libarchive; it has no privileges, no network use and small limits. The
 * worker trusts nothing it says: unpack_name_ok() is asked again, and sizes are counted again. */
#pragma once

#include <stdint.h>

#include "base/attr.h"
#include "base/err.h"

#define UNPACK_MAGIC 0x6f77756eu
#define UNPACK_MEMBERS_MAX 10000
#define UNPACK_TOTAL_MAX (1 * GIB)
#define UNPACK_FILE_MAX (48 * MIB)       /* one file; fits a request to the sandbox */
#define UNPACK_NAME_MAX 1024
#define UNPACK_SECONDS 60

enum unpack_kind { UNPACK_FILE = 1, UNPACK_END, UNPACK_ERROR };     /* ERROR: the "name" is the message */
struct unpack_record { uint32_t magic, kind, mode, name_n; uint64_t size; };

/* A relative path of plain components: no "..", no ".", no empty one, no control characters, at most UNPACK_NAME_MAX bytes. */
bool unpack_name_ok(const char *name, size_t n);
/* Drops "./" in front and repeated slashes, in place; false when what is left is absolute or has "..". */
bool unpack_clean_name(char *name);
/* 0755 when anybody may execute it, else 0644. */
uint32_t unpack_mode(uint32_t mode);

int unpack_main(void);                   /* the sub-command; returns the exit status */
