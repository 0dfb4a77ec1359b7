/* inside/blob.h - the program that runs in a sandbox, as bytes (and inside that program: the searching program). */
#pragma once

#include <stddef.h>

extern const unsigned char inside_blob[];
extern const size_t inside_blob_size;
extern const unsigned char inside_grep_blob[];
extern const size_t inside_grep_blob_size;
