#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "crypto/crypto.h"

static void digests(void **st)
{
    (void)st;
    static const struct { const char *in, *hex; } row[] = {     /* FIPS 180-4 examples */
        { "", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
        { "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
        { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        char hex[SHA256_HEX], step_hex[SHA256_HEX];
        uint8_t raw[SHA256_BYTES];
        sha256_hex(row[i].in, strlen(row[i].in), hex);
        assert_string_equal(hex, row[i].hex);
        struct sha256 *h = sha256_new();
        for (const char *p = row[i].in; *p; p++)
            sha256_add(h, p, 1);
        sha256_end(h, raw);
        hex_encode(raw, sizeof raw, step_hex);
        assert_string_equal(step_hex, row[i].hex);
    }
}

static void macs(void **st)
{
    (void)st;
    static const struct { const char *key, *in, *hex; } row[] = {       /* RFC 4231, cases 1 and 2, and an empty key */
        { "\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b\x0b", "Hi There",
          "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7" },
        { "Jefe", "what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843" },
        { "", "", "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad" },
    };
    for (size_t i = 0; i < COUNT_OF(row); i++) {
        uint8_t raw[SHA256_BYTES];
        char hex[SHA256_HEX];
        hmac_sha256(row[i].key, strlen(row[i].key), row[i].in, strlen(row[i].in), raw);
        hex_encode(raw, sizeof raw, hex);
        assert_string_equal(hex, row[i].hex);
    }
    assert_true(crypto_equal("abc", "abc", 3));
    assert_true(crypto_equal("abc", "abd", 2));
    assert_false(crypto_equal("abc", "abd", 3));
    assert_true(crypto_equal("", "", 0));
    char none[1] = "x";
    hex_encode("", 0, none);
    assert_string_equal(none, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(digests), cmocka_unit_test(macs) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
