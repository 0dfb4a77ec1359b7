/* http/fetch_curl.h - the functions of libcurl that fetch.c uses, found by dlopen(): a program that fetches nothing never loads it. */
#pragma once

#include <curl/curl.h>

#include "base/err.h"

/* X(name without "curl_", result, arguments) */
#define FETCH_CURL_LIST(X)                                                              \
    X(global_init, CURLcode, (long flags))                                              \
    X(version_info, curl_version_info_data *, (CURLversion v))                          \
    X(getdate, time_t, (const char *text, const time_t *unused))                        \
    X(easy_init, CURL *, (void))                                                        \
    X(easy_cleanup, void, (CURL *))                                                     \
    X(easy_setopt, CURLcode, (CURL *, CURLoption, ...))                                 \
    X(easy_getinfo, CURLcode, (CURL *, CURLINFO, ...))                                  \
    X(easy_pause, CURLcode, (CURL *, int))                                              \
    X(easy_strerror, const char *, (CURLcode))                                          \
    X(multi_init, CURLM *, (void))                                                      \
    X(multi_cleanup, CURLMcode, (CURLM *))                                              \
    X(multi_setopt, CURLMcode, (CURLM *, CURLMoption, ...))                             \
    X(multi_add_handle, CURLMcode, (CURLM *, CURL *))                                   \
    X(multi_remove_handle, CURLMcode, (CURLM *, CURL *))                                \
    X(multi_socket_action, CURLMcode, (CURLM *, curl_socket_t, int, int *))             \
    X(multi_info_read, CURLMsg *, (CURLM *, int *))                                     \
    X(multi_assign, CURLMcode, (CURLM *, curl_socket_t, void *))                        \
    X(multi_strerror, const char *, (CURLMcode))                                        \
    X(slist_append, struct curl_slist *, (struct curl_slist *, const char *))           \
    X(slist_free_all, void, (struct curl_slist *))

struct fetch_curl {
#define X(name, result, args) result(*name) args;
    FETCH_CURL_LIST(X)
#undef X
};

/* Opens the library once per process (thread-safe); it stays. RC_UNSUPPORTED names what is missing and the package that has it. */
MUST_CHECK int fetch_curl_get(const struct fetch_curl **ret, struct err *e);
