/* tls/bio.h - private to tls: OpenSSL's view of a struct tls_io. */
#pragma once

#include <openssl/bio.h>

#include "tls/tls.h"

/* One end of a pipe, kept in struct tls. `rc`: the first failure that a callback reported, for the message of the call that met it. */
struct tls_pipe { struct tls_io io; int rc; bool eof; };

BIO *tls_bio_new(struct tls_pipe *p);       /* borrows `p`; NULL without memory */
