#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "base/str.h"
#include "http/fetch_curl.h"

#define LIBRARY "libcurl.so.4"
#define VERSION_MIN 0x074b00        /* 7.75: what Debian 12, Ubuntu 22.04 and RHEL 9 have or exceed */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct fetch_curl table;
static struct err why;

static int find(void *lib, const char *name, void *into)
{
    void *f = dlsym(lib, name);
    if (!f)
        return err_set(&why, RC_UNSUPPORTED, "%s lacks %s", LIBRARY, name);
    memcpy(into, &f, sizeof f);     /* a pointer to data turned into one to a function: what POSIX asks of dlsym() */
    return RC_OK;
}

static void open_library(void)
{
    void *lib = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        const char *text = dlerror();
        err_set(&why, RC_UNSUPPORTED, "model requests need libcurl (package libcurl4): %s", text ? text : "cannot be opened");
        return;
    }
#define X(name, result, args)                                    \
    if (find(lib, "curl_" #name, &table.name) < 0)               \
        return;
    FETCH_CURL_LIST(X)
#undef X
    if (table.global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        err_set(&why, RC_UNSUPPORTED, "%s could not be initialised", LIBRARY);
        return;
    }
    const curl_version_info_data *v = table.version_info(CURLVERSION_NOW);
    if (v->version_num < VERSION_MIN)
        err_set(&why, RC_UNSUPPORTED, "libcurl %s is older than 7.75", v->version);
    else if (!(v->features & CURL_VERSION_SSL))
        err_set(&why, RC_UNSUPPORTED, "libcurl %s was built without TLS", v->version);
}

int fetch_curl_get(const struct fetch_curl **ret, struct err *e)
{
    (void)pthread_once(&once, open_library);
    if (why.rc < 0)
        return err_set(e, why.rc, "%s", why.msg);
    *ret = &table;
    return RC_OK;
}
