/* log/log.h - one JSON line (or one text line) per event on stderr. Thread-safe; a line is one write().
 * Library code logs at debug only; owners of connections and main programs log once. Secrets have a type that does not fit. */
#pragma once

#include "base/attr.h"
#include "base/err.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_LEVEL_MAX_ };
enum log_format { LOG_TEXT, LOG_JSON };

void log_setup(enum log_level min, enum log_format format, const char *role);   /* call once, before threads */
bool log_on(enum log_level level);
/* `event` is a dotted name, area first ("work.claimed"). `fmt` is a list of key=value pairs in the form "key=%s other=%d":
 * each space-separated token of `fmt` is one pair; values are taken whole, whatever they contain, and quoted as needed.
 * Conversions allowed: %s %d %u %ld %lu %lld %llu %zu %x %.Nf; NULL strings print as empty. */
void log_event(enum log_level level, const char *event, const char *fmt, ...) PRINTF_LIKE(3, 4);
void log_err(enum log_level level, const char *event, const struct err *e);     /* rc and message of `e` */

#define log_debug(...) do { if (log_on(LOG_DEBUG)) log_event(LOG_DEBUG, __VA_ARGS__); } while (0)
#define log_info(...)  do { if (log_on(LOG_INFO)) log_event(LOG_INFO, __VA_ARGS__); } while (0)
#define log_warn(...)  log_event(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_event(LOG_ERROR, __VA_ARGS__)
int log_level_parse(const char *s, enum log_level *ret);     /* "debug" "info" "warn" "error"; RC_INVALID */
int log_format_parse(const char *s, enum log_format *ret);   /* "text" "json"; RC_INVALID */
