/* gateway/mcp.c - see mcp.h. A pushdown automaton over bytes; the stack is one bit a level, since only its kind matters. */
#include "gateway/mcp.h"

#include <string.h>
#include <strings.h>

#include "base/base64.h"
#include "base/str.h"
#include "base/utf8.h"

enum { VALUE, FIRST_KEY, NEXT_KEY, COLON, AFTER, FIRST_ITEM, STRING, ESCAPE, UNICODE, LITERAL, NUM_MINUS, NUM_ZERO, NUM_INT, NUM_DOT, NUM_FRAC, NUM_E, NUM_SIGN,
       NUM_EXP, END, STOP };
/* What the value belongs to. */
enum { NONE, METHOD, PARAMS, ID, NAME, META, VERSION, N_SLOTS };

static const struct { const char *key; uint8_t parent, slot; } keys[] = {
    { "method", NONE, METHOD }, { "params", NONE, PARAMS }, { "id", NONE, ID }, { "name", PARAMS, NAME }, { "_meta", PARAMS, META },
    { "protocolVersion", PARAMS, VERSION }, { "io.modelcontextprotocol/protocolVersion", META, VERSION },
};

void mcp_init(struct mcp_scan *s, void (*on_call)(void *ctx, const struct mcp_call *c), void *ctx)
{
    *s = (struct mcp_scan){ .on_call = on_call, .ctx = ctx, .state = VALUE };
}

static void stop(struct mcp_scan *s, const char *why)
{
    s->why = why;
    s->state = STOP;
}

static unsigned base(const struct mcp_scan *s) { return s->batch ? 1 : 0; }       /* depth at which messages begin */
static bool in_object(const struct mcp_scan *s) { return s->depth && (s->objects >> (s->depth - 1) & 1); }

static void message_begin(struct mcp_scan *s)
{
    struct mcp_call *c = &s->call;
    c->method[0] = c->name[0] = c->version[0] = c->id[0] = '\0';
    c->is_call = c->unclear = false;
    s->got = 0;
}

static void message_end(struct mcp_scan *s)
{
    if (++s->n_calls > MCP_BATCH_MAX) {
        stop(s, "too many messages in a batch");
        return;
    }
    s->on_call(s->ctx, &s->call);
}

/* ---- values ---- */

static void capture(struct mcp_scan *s, char *into, size_t max)
{
    s->into = into;
    s->into_max = max;
    s->into_n = 0;
}

static void push(struct mcp_scan *s, bool object)
{
    if (s->depth == MCP_DEPTH_MAX) {
        stop(s, "nested too deep");
        return;
    }
    if (s->depth == 0 && !object)
        s->batch = true;
    s->objects = (s->objects & ~(1ull << s->depth)) | (uint64_t)object << s->depth;
    s->depth++;
    s->state = object ? FIRST_KEY : FIRST_ITEM;
    s->slot = NONE;
    if (s->depth == base(s) + 1u) {
        message_begin(s);
        s->call.unclear = !object;       /* a list inside a batch: nobody agrees what that is */
    }
}

static void value_done(struct mcp_scan *s)
{
    s->into = NULL;
    s->slot = NONE;
    s->state = s->depth ? AFTER : END;
}

static void pop(struct mcp_scan *s)
{
    bool message = s->depth == base(s) + 1u;
    s->depth--;
    value_done(s);
    if (message)
        message_end(s);
}

static void string_begin(struct mcp_scan *s, bool is_key)
{
    struct mcp_call *c = &s->call;
    s->state = STRING;
    s->after_string = is_key ? COLON : AFTER;
    s->u_high = 0;
    s->into = NULL;
    if (is_key)
        capture(s, s->key, sizeof s->key);
    else if (s->slot == METHOD)
        capture(s, c->method, sizeof c->method);
    else if (s->slot == NAME)
        capture(s, c->name, sizeof c->name);
    else if (s->slot == VERSION)
        capture(s, c->version, sizeof c->version);
    else if (s->slot == ID) {
        capture(s, c->id, sizeof c->id);
        c->id[s->into_n++] = '"';
    }
}

static void number_begin(struct mcp_scan *s, uint8_t state, char ch)
{
    s->state = state;
    if (s->slot == ID) {
        capture(s, s->call.id, sizeof s->call.id);
        s->call.id[s->into_n++] = ch;
    }
}

static void literal_begin(struct mcp_scan *s, const char *word)
{
    s->literal = word;
    s->literal_at = 1;
    s->state = LITERAL;
}

static void value_begin(struct mcp_scan *s, char ch)
{
    bool wrong_kind = (s->slot == METHOD || s->slot == NAME || s->slot == VERSION) && ch != '"';
    if (wrong_kind || (s->slot == PARAMS && ch != '{' && ch != '[' && ch != 'n'))
        s->call.unclear = true;
    if (s->batch && s->depth == 1 && ch != '{' && ch != '[') {      /* [1, "x"]: an element that is no message */
        message_begin(s);
        s->call.unclear = true;
        message_end(s);
        if (s->state == STOP)
            return;
    }
    switch (ch) {
    case '{': push(s, true); break;
    case '[': push(s, false); break;
    case '"': string_begin(s, false); break;
    case 't': literal_begin(s, "true"); break;
    case 'f': literal_begin(s, "false"); break;
    case 'n': literal_begin(s, "null"); break;
    case '-': number_begin(s, NUM_MINUS, ch); break;
    case '0': number_begin(s, NUM_ZERO, ch); break;
    default:
        if (ch >= '1' && ch <= '9')
            number_begin(s, NUM_INT, ch);
        else
            stop(s, "not JSON");
    }
}

/* ---- strings ---- */

/* Text of the current string. A captured value that does not fit makes the message unclear; a long key is simply none of ours. */
static void put(struct mcp_scan *s, char ch)
{
    if (!s->into)
        return;
    if (s->into_n + 1 < s->into_max)
        s->into[s->into_n++] = ch;
    else
        s->into_n = s->into_max;
}

static void put_code(struct mcp_scan *s, unsigned c)
{
    if (c < 0x80) {
        put(s, (char)c);
    } else if (c < 0x800) {
        put(s, (char)(0xc0 | c >> 6));
        put(s, (char)(0x80 | (c & 0x3f)));
    } else if (c < 0x10000) {
        put(s, (char)(0xe0 | c >> 12));
        put(s, (char)(0x80 | (c >> 6 & 0x3f)));
        put(s, (char)(0x80 | (c & 0x3f)));
    } else {
        put(s, (char)(0xf0 | c >> 18));
        put(s, (char)(0x80 | (c >> 12 & 0x3f)));
        put(s, (char)(0x80 | (c >> 6 & 0x3f)));
        put(s, (char)(0x80 | (c & 0x3f)));
    }
}

static bool raw(const struct mcp_scan *s) { return s->into == s->call.id; }       /* kept as written */

/* The four digits of \uXXXX are read. Halves of a pair that do not fit together, and NUL, make the text unclear where it matters. */
static void unicode_done(struct mcp_scan *s)
{
    unsigned c = s->u_value;
    bool low = c >= 0xdc00 && c < 0xe000, high = c >= 0xd800 && c < 0xdc00;
    s->state = STRING;
    if (s->u_high && low) {
        if (!raw(s))
            put_code(s, 0x10000u + ((unsigned)(s->u_high & 0x3ff) << 10) + (c & 0x3ff));
        s->u_high = 0;
        return;
    }
    if ((s->u_high || low || c == 0) && s->into && !raw(s))
        s->call.unclear = true;
    s->u_high = high ? (uint16_t)c : 0;
    if (!high && !raw(s))
        put_code(s, low || c == 0 ? '?' : c);
}

static void escape(struct mcp_scan *s, char ch)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (raw(s))
        put(s, ch);
    if (ch == 'u') {
        s->u_left = 4;
        s->u_value = 0;
        s->state = UNICODE;
        return;
    }
    const char *at = ch ? strchr(from, ch) : NULL;
    if (!at) {
        stop(s, "not JSON");
        return;
    }
    if (s->u_high && s->into && !raw(s))
        s->call.unclear = true;
    s->u_high = 0;
    if (!raw(s))
        put(s, to[at - from]);
    s->state = STRING;
}

static void unicode(struct mcp_scan *s, char ch)
{
    int d = ch >= '0' && ch <= '9' ? ch - '0' : ch >= 'a' && ch <= 'f' ? ch - 'a' + 10 : ch >= 'A' && ch <= 'F' ? ch - 'A' + 10 : -1;
    if (d < 0) {
        stop(s, "not JSON");
        return;
    }
    if (raw(s))
        put(s, ch);
    s->u_value = (uint16_t)(s->u_value << 4 | (unsigned)d);
    if (--s->u_left == 0)
        unicode_done(s);
}

/* Which of our keys was that? The parent is known by depth: NONE directly in a message, then PARAMS, then META, as the slots were entered. */
static uint8_t parent_slot(const struct mcp_scan *s)
{
    unsigned d = s->depth - base(s);
    return d == 1 ? NONE : d == 2 && (s->got & 1u << (16 + PARAMS)) ? PARAMS : d == 3 && (s->got & 1u << (16 + META)) ? META : N_SLOTS;
}

/* Some readers compare names without case, by Unicode's rules: the long s and the Kelvin sign are an s and a k to them. */
static void fold(char *key)
{
    char *out = key;
    for (const char *p = key; *p;) {
        bool long_s = strncmp(p, "\xc5\xbf", 2) == 0, kelvin = strncmp(p, "\xe2\x84\xaa", 3) == 0;
        *out++ = long_s ? 's' : kelvin ? 'k' : *p;
        p += long_s ? 2 : kelvin ? 3 : 1;
    }
    *out = '\0';
}

static void key_done(struct mcp_scan *s)
{
    uint8_t parent = parent_slot(s);
    s->slot = NONE;
    if (parent == N_SLOTS || s->into_n >= s->into_max)
        return;
    s->key[s->into_n] = '\0';
    bool folded = memchr(s->key, '\xc5', s->into_n) || memchr(s->key, '\xe2', s->into_n);
    fold(s->key);
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        if (keys[i].parent != parent || strcasecmp(keys[i].key, s->key) != 0)
            continue;
        uint32_t bit = 1u << keys[i].slot;
        bool optional = keys[i].slot == VERSION;
        if (folded || strcmp(keys[i].key, s->key) != 0 || (!optional && (s->got & bit)))
            s->call.unclear = true;
        s->got |= bit;
        s->slot = keys[i].slot;
        return;
    }
}

static void string_done(struct mcp_scan *s)
{
    if (s->u_high && s->into && !raw(s))
        s->call.unclear = true;
    if (s->after_string == COLON) {
        key_done(s);
        s->into = NULL;
        s->state = COLON;
        return;
    }
    if (raw(s)) {
        put(s, '"');
        s->into[s->into_n < s->into_max ? s->into_n : 0] = '\0';
    } else if (s->into) {
        bool whole = s->into_n < s->into_max && utf8_valid_prefix(s->into, s->into_n) == s->into_n;
        s->call.unclear |= !whole;
        s->into[s->into_n < s->into_max ? s->into_n : s->into_max - 1] = '\0';
    }
    if (s->slot == METHOD)
        s->call.is_call = true;
    value_done(s);
}

/* A run of ordinary characters of a string; returns how many were taken. */
static size_t string_run(struct mcp_scan *s, const char *p, size_t n)
{
    size_t i = 0;
    while (i < n && p[i] != '"' && p[i] != '\\' && (unsigned char)p[i] >= 0x20)
        i++;
    if (i && s->u_high) {
        if (s->into && !raw(s))
            s->call.unclear = true;
        s->u_high = 0;
    }
    for (size_t k = 0; s->into && k < i && s->into_n < s->into_max; k++)
        put(s, p[k]);
    return i;
}

/* ---- numbers, literals, structure ---- */

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* The next state of a number; AFTER when it ended before `ch`; STOP when it is none. */
static uint8_t number_next(uint8_t state, char ch)
{
    bool digit = is_digit(ch), e = ch == 'e' || ch == 'E';
    switch (state) {
    case NUM_MINUS: return ch == '0' ? NUM_ZERO : digit ? NUM_INT : STOP;
    case NUM_ZERO:  return ch == '.' ? NUM_DOT : e ? NUM_E : AFTER;
    case NUM_INT:   return digit ? NUM_INT : ch == '.' ? NUM_DOT : e ? NUM_E : AFTER;
    case NUM_DOT:   return digit ? NUM_FRAC : STOP;
    case NUM_FRAC:  return digit ? NUM_FRAC : e ? NUM_E : AFTER;
    case NUM_E:     return digit ? NUM_EXP : ch == '+' || ch == '-' ? NUM_SIGN : STOP;
    case NUM_SIGN:  return digit ? NUM_EXP : STOP;
    default:        return digit ? NUM_EXP : AFTER;
    }
}

static void number_done(struct mcp_scan *s)
{
    if (raw(s))
        s->into[s->into_n < s->into_max ? s->into_n : 0] = '\0';
    value_done(s);
}

/* True when `ch` was a part of the number. */
static bool number(struct mcp_scan *s, char ch)
{
    uint8_t next = number_next(s->state, ch);
    if (next == STOP) {
        stop(s, "not JSON");
        return true;
    }
    if (next == AFTER) {
        number_done(s);
        return false;
    }
    put(s, ch);
    s->state = next;
    return true;
}

static void literal(struct mcp_scan *s, char ch)
{
    if (s->literal[s->literal_at] != ch) {
        stop(s, "not JSON");
        return;
    }
    if (s->literal[++s->literal_at] == '\0')
        value_done(s);
}

/* Remembers that the value that begins now is `params` or `_meta`, for parent_slot(). */
static void mark_parents(struct mcp_scan *s)
{
    unsigned d = s->depth - base(s);
    if (d == 1)
        s->got &= ~(1u << (16 + PARAMS) | 1u << (16 + META));
    if (d == 2)
        s->got &= ~(1u << (16 + META));
    if ((d == 1 && s->slot == PARAMS) || (d == 2 && s->slot == META))
        s->got |= 1u << (16 + s->slot);
}

static void structure(struct mcp_scan *s, char ch)
{
    switch (s->state) {
    case VALUE:
        mark_parents(s);
        value_begin(s, ch);
        return;
    case FIRST_ITEM:
        if (ch == ']') {
            if (s->batch && s->depth == 1) {
                s->depth = 0;
                value_done(s);           /* []: a batch of nothing */
            } else {
                pop(s);
            }
            return;
        }
        value_begin(s, ch);
        return;
    case FIRST_KEY:
    case NEXT_KEY:
        if (ch == '"')
            string_begin(s, true);
        else if (ch == '}' && s->state == FIRST_KEY)
            pop(s);
        else
            stop(s, "not JSON");
        return;
    case COLON:
        if (ch == ':')
            s->state = VALUE;
        else
            stop(s, "not JSON");
        return;
    case AFTER:
        if (ch == ',')
            s->state = in_object(s) ? NEXT_KEY : VALUE;
        else if (ch == (in_object(s) ? '}' : ']')) {
            if (s->batch && s->depth == 1) {
                s->depth = 0;
                value_done(s);
            } else {
                pop(s);
            }
        } else {
            stop(s, "not JSON");
        }
        return;
    default:
        stop(s, "text after the message");
    }
}

/* The first byte that is no white space decides whether this can be JSON-RPC at all. A byte that some reader could take for another encoding of JSON
 * (UTF-16, UTF-32, a byte order mark, compression) cannot be passed over as harmless. */
static bool first_byte(struct mcp_scan *s, char ch)
{
    s->started = true;
    if (ch == '{' || ch == '[')
        return true;
    if ((unsigned char)ch > 0x20 && (unsigned char)ch < 0x7f) {
        s->other = true;
        s->state = STOP;
    } else {
        stop(s, "not UTF-8 text");
    }
    return false;
}

void mcp_feed(struct mcp_scan *s, const char *p, size_t n)
{
    s->seen += n;
    if (s->seen > MCP_SCAN_MAX && s->state != STOP)
        stop(s, "too large");
    for (size_t i = 0; i < n && s->state != STOP;) {
        char ch = p[i];
        if (s->state == STRING) {
            i += string_run(s, p + i, n - i);
            if (i == n)
                return;
            ch = p[i++];
            if (ch == '"')
                string_done(s);
            else if (ch == '\\') {
                if (raw(s))
                    put(s, ch);
                s->state = ESCAPE;
            } else {
                stop(s, "not JSON");
            }
            continue;
        }
        if (s->state >= NUM_MINUS && s->state <= NUM_EXP) {
            i += number(s, ch);
            continue;
        }
        i++;
        if (s->state == ESCAPE)
            escape(s, ch);
        else if (s->state == UNICODE)
            unicode(s, ch);
        else if (s->state == LITERAL)
            literal(s, ch);
        else if (!is_space(ch) && (s->started || first_byte(s, ch)))
            structure(s, ch);
    }
}

enum mcp_result mcp_finish(struct mcp_scan *s)
{
    if (s->other || (!s->started && !s->why))
        return MCP_OTHER;
    if (s->state != END && !s->why)
        s->why = "cut short";
    return s->why ? MCP_UNPARSED : MCP_RPC;
}

bool mcp_mirrors(const char *version)
{
    return strlen(version) == 10 && strcmp(version, "2026-07-28") >= 0;
}

bool mcp_header_agrees(const char *header, size_t n, const char *text)
{
    static const char head[] = "=?base64?", tail[] = "?=";
    size_t h = sizeof head - 1, t = sizeof tail - 1;
    if (n < h + t || memcmp(header, head, h) != 0 || memcmp(header + n - t, tail, t) != 0)
        return slice_eq((struct slice){ header, n }, text);
    struct buf b;
    buf_init(&b, 2 * MCP_NAME_MAX);
    bool same = base64_decode(&b, header + h, n - h - t) == RC_OK && slice_eq((struct slice){ buf_data(&b), buf_len(&b) }, text);
    buf_done(&b);
    return same;
}
