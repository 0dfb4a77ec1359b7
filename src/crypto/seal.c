/* seal.c - authenticated encryption under the keys of a file.
 *
 * A blob: "OWS1" | key id (8) | nonce (24) | ciphertext and tag. The first 12 bytes and the context are the authenticated data. The key id is a keyed-hash
 * fingerprint, so that opening tries one key and a re-wrap can tell old blobs without opening them. */
#include "crypto/seal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/base64.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/random.h"
#include "base/str.h"
#include "crypto/crypto.h"

#define MAGIC "OWS1"
#define MAGIC_BYTES 4
#define KEY_BYTES crypto_aead_xchacha20poly1305_ietf_KEYBYTES
#define NONCE_BYTES crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
#define TAG_BYTES crypto_aead_xchacha20poly1305_ietf_ABYTES
#define ID_BYTES 8
#define HEAD_BYTES (MAGIC_BYTES + ID_BYTES + NONCE_BYTES)
_Static_assert(HEAD_BYTES + TAG_BYTES == SEAL_OVERHEAD, "the public figure");

struct seal_key { uint8_t key[KEY_BYTES], id[ID_BYTES]; };
struct keys { struct seal_key key[SEAL_KEYS_MAX]; size_t n; };
/* When one of these differs, the file is another one than was read. */
struct stamp { dev_t dev; ino_t ino; off_t size; struct timespec mtime, ctime; };

/* What changes when the file is read again, behind the constant handle that callers hold. */
struct state { pthread_rwlock_t lock; struct keys *keys; struct stamp stamp; };
struct seal_ring { char *path; struct state *state; };

static void keys_free(struct keys *k)
{
    if (k)
        wipe(k, sizeof *k);
    free(k);
}
DEFINE_AUTO(keys);

static void key_id(const uint8_t key[KEY_BYTES], uint8_t out[ID_BYTES])
{
    uint8_t mac[SHA256_BYTES];
    static const char label[] = "outwork seal key id";
    hmac_sha256(key, KEY_BYTES, label, sizeof label - 1, mac);
    memcpy(out, mac, ID_BYTES);
}

/* `nth` counts keys, not lines: the text of a bad line may be half a key and is not repeated. */
static int parse_key(const char *path, struct slice line, size_t nth, struct keys *k, struct err *e)
{
    struct buf raw;
    buf_init(&raw, 2 * KEY_BYTES);
    int rc = base64_decode(&raw, line.p, line.n);
    if (rc < 0 || buf_len(&raw) != KEY_BYTES)
        rc = err_set(e, RC_INVALID, "key file %s: key %zu is not the base64 text of %u bytes", path, nth, (unsigned)KEY_BYTES);
    else if (k->n == SEAL_KEYS_MAX)
        rc = err_set(e, RC_INVALID, "key file %s holds more than %d keys", path, SEAL_KEYS_MAX);
    for (size_t i = 0; rc == RC_OK && i < k->n; i++)
        if (crypto_equal(k->key[i].key, buf_data(&raw), KEY_BYTES))
            rc = err_set(e, RC_INVALID, "key file %s: key %zu is the same as key %zu", path, nth, i + 1);
    if (rc == RC_OK) {
        memcpy(k->key[k->n].key, buf_data(&raw), KEY_BYTES);
        key_id(k->key[k->n].key, k->key[k->n].id);
        k->n++;
    }
    buf_wipe(&raw);
    return rc;
}

static int parse(const char *path, const struct secret *text, struct keys **ret, struct err *e)
{
    AUTO_PTR(keys) k = xcalloc(1, sizeof *k);
    size_t nth = 0;
    for (const char *p = secret_text(text), *end = p + secret_len(text); p < end;) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        struct slice line = { p, (size_t)((nl ? nl : end) - p) };
        p = nl ? nl + 1 : end;
        if (line.n && line.p[line.n - 1] == '\r')
            line.n--;
        line = slice_trim(line);
        if (line.n && line.p[0] != '#')
            TRY(parse_key(path, line, ++nth, k, e));
    }
    if (!k->n)
        return err_set(e, RC_INVALID, "key file %s holds no key", path);
    *ret = TAKE(k);
    return RC_OK;
}

static bool stamp_of(const char *path, struct stamp *ret)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return false;
    *ret = (struct stamp){ st.st_dev, st.st_ino, st.st_size, st.st_mtim, st.st_ctim };
    return true;
}

static bool time_same(struct timespec a, struct timespec b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

static bool stamp_same(const struct stamp *a, const struct stamp *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->size == b->size && time_same(a->mtime, b->mtime) && time_same(a->ctime, b->ctime);
}

static void fresh_line(struct buf *out, char id_hex[SEAL_KEY_ID_MAX])
{
    uint8_t key[KEY_BYTES], id[ID_BYTES];
    char now[RFC3339_MAX];
    random_bytes(key, sizeof key);
    key_id(key, id);
    hex_encode(id, ID_BYTES, id_hex);
    rfc3339_format(clock_now_ms(), now);
    buf_printf(out, "# %s, made %s\n", id_hex, now);
    base64_encode(out, key, sizeof key);
    buf_putc(out, '\n');
    wipe(key, sizeof key);
}

/* Two processes may start at once on an empty directory: link() lets one of them win, and both then read the winner's key. */
static int create_file(const char *path, struct err *e)
{
    struct buf text;
    char id[SEAL_KEY_ID_MAX], suffix[SEAL_KEY_ID_MAX];
    uint8_t rnd[ID_BYTES];
    random_bytes(rnd, sizeof rnd);
    hex_encode(rnd, sizeof rnd, suffix);
    AUTO_FREE char *tmp = str_printf("%s.%s", path, suffix);
    buf_init(&text, 4 * KIB);
    buf_puts(&text, "# Seals the secrets of vaults and tunnels. The first key seals, all of them open. Lost key, lost secrets: keep a copy apart from the database's.\n");
    fresh_line(&text, id);
    int rc = buf_ok(&text) ? fd_write_file_atomic(tmp, buf_data(&text), buf_len(&text), 0600, e) : err_set(e, RC_NOMEM, "out of memory");
    buf_wipe(&text);
    TRY(rc);
    if (link(tmp, path) < 0 && errno != EEXIST)
        rc = err_sys(e, RC_IO, errno, "create key file %s", path);
    (void)unlink(tmp);
    if (rc < 0)
        return rc;
    const char *slash = strrchr(path, '/');
    AUTO_FREE char *dir = !slash ? str_dup(".") : str_ndup(path, slash == path ? 1 : (size_t)(slash - path));
    AUTO_CLOSE int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? err_sys(e, RC_IO, errno, "create key file %s: fsync of its directory", path) : RC_OK;
}

int seal_load(const char *path, bool create, struct seal_ring **ret, struct err *e)
{
    AUTO_PTR(secret) text = NULL;
    struct keys *keys = NULL;
    struct stamp stamp = { 0 };
    if (sodium_init() < 0)
        return err_set(e, RC_UNSUPPORTED, "libsodium does not start");
    (void)stamp_of(path, &stamp);
    int rc = secret_read_file(path, &text, e);
    if (rc == RC_NOT_FOUND && create) {
        TRY(create_file(path, e));
        (void)stamp_of(path, &stamp);
        rc = secret_read_file(path, &text, e);
    }
    if (rc < 0)
        return rc;
    TRY(parse(path, text, &keys, e));
    struct seal_ring *r = xcalloc(1, sizeof *r);
    r->path = str_dup(path);
    r->state = xcalloc(1, sizeof *r->state);
    r->state->keys = keys;
    r->state->stamp = stamp;
    (void)pthread_rwlock_init(&r->state->lock, NULL);     /* cannot fail on Linux with default attributes */
    *ret = r;
    return RC_OK;
}

void seal_free(struct seal_ring *r)
{
    if (!r)
        return;
    (void)pthread_rwlock_destroy(&r->state->lock);
    keys_free(r->state->keys);
    free(r->state);
    free(r->path);
    free(r);
}

/* Reads the file again when it is another one than was read. A file that is malformed or unreadable at this moment changes nothing. */
static void follow(const struct seal_ring *r)
{
    AUTO_PTR(secret) text = NULL;
    struct keys *keys = NULL, *old = NULL;
    struct stamp now;
    (void)pthread_rwlock_rdlock(&r->state->lock);
    bool same = !stamp_of(r->path, &now) || stamp_same(&now, &r->state->stamp);
    (void)pthread_rwlock_unlock(&r->state->lock);
    if (same || secret_read_file(r->path, &text, NULL) < 0 || parse(r->path, text, &keys, NULL) < 0)
        return;
    (void)pthread_rwlock_wrlock(&r->state->lock);
    old = r->state->keys;
    r->state->keys = keys;
    r->state->stamp = now;
    (void)pthread_rwlock_unlock(&r->state->lock);
    keys_free(old);
}

/* What is authenticated besides the plain text. */
static size_t make_ad(const uint8_t id[ID_BYTES], const char *context, char out[MAGIC_BYTES + ID_BYTES + SEAL_CONTEXT_MAX])
{
    size_t n = strlen(context);
    memcpy(out, MAGIC, MAGIC_BYTES);
    memcpy(out + MAGIC_BYTES, id, ID_BYTES);
    memcpy(out + MAGIC_BYTES + ID_BYTES, context, n);
    return MAGIC_BYTES + ID_BYTES + n;
}

int seal_put(const struct seal_ring *r, const char *context, const char *p, size_t n, struct buf *out, struct err *e)
{
    char ad[MAGIC_BYTES + ID_BYTES + SEAL_CONTEXT_MAX];
    if (n > SEAL_PLAIN_MAX || strlen(context) > SEAL_CONTEXT_MAX)
        return err_set(e, RC_TOO_LARGE, "a secret may have %zu bytes", SEAL_PLAIN_MAX);
    follow(r);
    uint8_t *blob = (uint8_t *)buf_reserve(out, n + SEAL_OVERHEAD);
    if (!blob)
        return err_set(e, RC_NOMEM, "no room for a sealed secret");
    (void)pthread_rwlock_rdlock(&r->state->lock);
    const struct seal_key *k = &r->state->keys->key[0];
    size_t ad_n = make_ad(k->id, context, ad);
    memcpy(blob, ad, MAGIC_BYTES + ID_BYTES);
    random_bytes(blob + MAGIC_BYTES + ID_BYTES, NONCE_BYTES);
    crypto_aead_xchacha20poly1305_ietf_encrypt(blob + HEAD_BYTES, NULL, (const uint8_t *)p, n, (const uint8_t *)ad, ad_n, NULL,
                                               blob + MAGIC_BYTES + ID_BYTES, k->key);
    (void)pthread_rwlock_unlock(&r->state->lock);
    buf_commit(out, n + SEAL_OVERHEAD);
    return RC_OK;
}

/* RC_NOT_FOUND: the ring lacks the key. */
static int open_now(const struct seal_ring *r, const char *context, const uint8_t *blob, size_t n, char *plain)
{
    char ad[MAGIC_BYTES + ID_BYTES + SEAL_CONTEXT_MAX];
    int rc = RC_NOT_FOUND;
    size_t ad_n = make_ad(blob + MAGIC_BYTES, context, ad);
    (void)pthread_rwlock_rdlock(&r->state->lock);
    const struct keys *k = r->state->keys;
    for (size_t i = 0; i < k->n && rc == RC_NOT_FOUND; i++)
        if (memcmp(k->key[i].id, blob + MAGIC_BYTES, ID_BYTES) == 0)
            rc = crypto_aead_xchacha20poly1305_ietf_decrypt((uint8_t *)plain, NULL, NULL, blob + HEAD_BYTES, n - HEAD_BYTES, (const uint8_t *)ad, ad_n,
                                                            blob + MAGIC_BYTES + ID_BYTES, k->key[i].key) == 0 ? RC_OK : RC_UNAUTHORIZED;
    (void)pthread_rwlock_unlock(&r->state->lock);
    return rc;
}

int seal_open(const struct seal_ring *r, const char *context, const void *p, size_t n, struct secret **ret, struct err *e)
{
    const uint8_t *blob = p;
    char id[SEAL_KEY_ID_MAX];
    if (n < SEAL_OVERHEAD || n > SEAL_PLAIN_MAX + SEAL_OVERHEAD || memcmp(blob, MAGIC, MAGIC_BYTES) != 0 || strlen(context) > SEAL_CONTEXT_MAX)
        return err_set(e, RC_UNAUTHORIZED, "this is no sealed secret");
    size_t plain_n = n - SEAL_OVERHEAD;
    AUTO_FREE char *plain = xcalloc(1, plain_n + 1);
    int rc = open_now(r, context, blob, n, plain);
    if (rc == RC_NOT_FOUND) {
        follow(r);
        rc = open_now(r, context, blob, n, plain);
    }
    if (rc == RC_OK)
        *ret = secret_new(plain, plain_n);
    wipe(plain, plain_n + 1);
    if (rc == RC_OK)
        return RC_OK;
    hex_encode(blob + MAGIC_BYTES, ID_BYTES, id);
    return rc == RC_NOT_FOUND ? err_set(e, RC_UNAUTHORIZED, "it is sealed with key %s, which %s does not hold", id, r->path)
                              : err_set(e, RC_UNAUTHORIZED, "it was altered or belongs to another record");
}

bool seal_is_current(const struct seal_ring *r, const void *p, size_t n)
{
    if (n < SEAL_OVERHEAD || memcmp(p, MAGIC, MAGIC_BYTES) != 0)
        return false;
    (void)pthread_rwlock_rdlock(&r->state->lock);
    bool same = memcmp((const char *)p + MAGIC_BYTES, r->state->keys->key[0].id, ID_BYTES) == 0;
    (void)pthread_rwlock_unlock(&r->state->lock);
    return same;
}

size_t seal_key_count(const struct seal_ring *r)
{
    (void)pthread_rwlock_rdlock(&r->state->lock);
    size_t n = r->state->keys->n;
    (void)pthread_rwlock_unlock(&r->state->lock);
    return n;
}

int seal_key_id(const struct seal_ring *r, size_t i, char ret_id[SEAL_KEY_ID_MAX])
{
    (void)pthread_rwlock_rdlock(&r->state->lock);
    bool there = i < r->state->keys->n;
    if (there)
        hex_encode(r->state->keys->key[i].id, ID_BYTES, ret_id);
    (void)pthread_rwlock_unlock(&r->state->lock);
    return there ? RC_OK : RC_NOT_FOUND;
}

/* The lock is on the file that is replaced: whoever waited for it must look whether it still is the file. */
static int lock_file(const char *path, int *ret_fd, struct stat *ret_st, struct err *e)
{
    for (;;) {
        AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        struct stat now;
        if (fd < 0)
            return err_sys(e, errno == ENOENT ? RC_NOT_FOUND : errno == EACCES ? RC_DENIED : RC_IO, errno, "open key file %s", path);
        while (flock(fd, LOCK_EX) < 0)
            if (errno != EINTR)
                return err_sys(e, RC_IO, errno, "lock key file %s", path);
        if (fstat(fd, ret_st) < 0)
            return err_sys(e, RC_IO, errno, "key file %s", path);
        if (stat(path, &now) == 0 && now.st_ino == ret_st->st_ino && now.st_dev == ret_st->st_dev) {
            *ret_fd = TAKE_FD(fd);
            return RC_OK;
        }
    }
}

/* The owner is set before the file takes its name, so that the server can read it at every moment. */
static int replace_file(const char *path, struct buf *text, const struct stat *like, struct err *e)
{
    AUTO_FREE char *tmp = str_printf("%s.new", path);
    int rc = fd_write_file_atomic(tmp, buf_data(text), buf_len(text), like->st_mode & 07777, e);
    struct stat st;
    if (rc == RC_OK && stat(tmp, &st) == 0 && (st.st_uid != like->st_uid || st.st_gid != like->st_gid) && chown(tmp, like->st_uid, like->st_gid) < 0)
        rc = err_sys(e, RC_DENIED, errno, "give %s to the owner of %s", tmp, path);
    if (rc == RC_OK && rename(tmp, path) < 0)
        rc = err_sys(e, RC_IO, errno, "replace key file %s", path);
    if (rc < 0)
        (void)unlink(tmp);
    return rc;
}

int seal_key_add(const char *path, char ret_id[SEAL_KEY_ID_MAX], struct err *e)
{
    AUTO_CLOSE int fd = -1;
    AUTO_PTR(secret) text = NULL;
    AUTO_PTR(keys) keys = NULL;
    struct stat st;
    struct buf out;
    char id[SEAL_KEY_ID_MAX];
    TRY(lock_file(path, &fd, &st, e));
    TRY(secret_read_file(path, &text, e));
    TRY(parse(path, text, &keys, e));
    if (keys->n == SEAL_KEYS_MAX)
        return err_set(e, RC_LIMIT, "key file %s holds %d keys already: re-wrap, then remove the old ones", path, SEAL_KEYS_MAX);
    buf_init(&out, secret_len(text) + 4 * KIB);
    fresh_line(&out, id);
    buf_put(&out, secret_text(text), secret_len(text));
    buf_putc(&out, '\n');
    int rc = buf_ok(&out) ? replace_file(path, &out, &st, e) : err_set(e, RC_NOMEM, "out of memory");
    buf_wipe(&out);
    if (rc == RC_OK)
        memcpy(ret_id, id, sizeof id);
    return rc;
}
