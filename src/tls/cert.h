/* tls/cert.h - X.509 certificates of tunnels: the rules for a registered authority and a leaf (tunnels.md 3.2), and making both. Any thread. */
#pragma once

#include "base/attr.h"
#include "base/buf.h"
#include "base/err.h"

#define CERT_PEM_MAX (8 * KIB)               /* tunnels.md 2.4 */

struct cert_info {
    char fingerprint[65];                    /* lower-case hex SHA-256 of the DER form */
    int64_t not_before_ms, not_after_ms;
};
/* Checks one PEM certificate as a tunnel's authority at `now_ms`; RC_INVALID says which rule it breaks and what to do. One certificate, no key material, no
 * trailing rubbish; RSA >= 2048 or ECDSA >= P-256 with SHA-256 or better; BasicConstraints critical CA:TRUE; SubjectKeyIdentifier; KeyUsage keyCertSign. */
MUST_CHECK int cert_check_ca(const char *pem, size_t n, int64_t now_ms, struct cert_info *ret, struct err *e);
/* Checks a leaf for hosts one label below `domain`, signed directly by one of the authorities in `ca_pem` (one or more PEM certificates). The first
 * certificate of `pem` counts, what else is in the file does not. */
MUST_CHECK int cert_check_leaf(const char *pem, size_t n, const char *ca_pem, size_t ca_n, const char *domain, int64_t now_ms, struct cert_info *ret, struct err *e);

/* What of these rules a leaf can be asked for alone: key, digest of the signature, time, extensions. Not: who signed it, and for which names. */
struct x509_st;
MUST_CHECK int cert_check_leaf_alone(struct x509_st *leaf, int64_t now_ms, struct err *e);

/* Making. PEM texts go to the buffers; the keys must be wiped by the caller (buf_wipe). */
struct cert_spec {
    const char *common_name;
    const char *const *dns; size_t n_dns;    /* subject alternative names */
    const char *const *ip; size_t n_ip;      /* numeric addresses */
    int64_t now_ms, valid_ms;
    bool client;                             /* extended key usage clientAuth instead of serverAuth */
    bool both;                               /* serverAuth and clientAuth: edges among themselves */
};
MUST_CHECK int cert_make_ca(const struct cert_spec *s, struct buf *ret_cert, struct buf *ret_key, struct err *e);      /* ECDSA P-256 */
MUST_CHECK int cert_make_leaf(const struct cert_spec *s, const char *ca_pem, const char *ca_key_pem, struct buf *ret_cert, struct buf *ret_key, struct err *e);   /* ECDSA P-256 */
