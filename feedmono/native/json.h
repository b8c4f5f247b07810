/* Scanning JSON text and the numbers in it; knows no shape and no exchange.

   Each function but skip_space returns what follows the value that begins at p, NULL if there is
   none or it is not a usual one. The text ends with a NUL, which none passes. */
#ifndef FEEDMONO_NATIVE_JSON_H
#define FEEDMONO_NATIVE_JSON_H

#include <stdint.h>
#include <string.h>

#define MAX_DIGITS 18

/* Printable ASCII without quotation mark and backslash: 32 characters a word. */
static inline int is_plain(char c)
{
    static const uint32_t plain[8] = {0, 0xfffffffb, 0xefffffff, 0x7fffffff, 0, 0, 0, 0};
    return plain[(unsigned char)c >> 5] >> ((unsigned char)c & 31) & 1;
}

static inline const char *skip_space(const char *p)
{
    while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')
        p++;
    return p;
}

static inline const char *skip_text(const char *p)
{
    if (*p++ != '"')
        return NULL;
    while (is_plain(*p))
        p++;
    return *p == '"' ? p + 1 : NULL;
}

static inline int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Behind the decimal number without sign and exponent that begins at p; NULL if none does. What
   may not follow a number (a second digit behind a leading zero, a second point) is the
   caller's to see. The text ends with a byte that is neither digit nor point. */
static inline const char *skip_decimal(const char *p)
{
    if (*p == '0')
        p++;
    else if (is_digit(*p))
        while (is_digit(*p))
            p++;
    else
        return NULL;
    if (*p != '.')
        return p;
    if (!is_digit(*++p))
        return NULL;
    while (is_digit(*p))
        p++;
    return p;
}

/* Numbers with an exponent or of more digits than 64 bits take are left to the careful way. */
static inline const char *skip_number(const char *p)
{
    const char *begin = p;
    if (*p == '-')
        p++;
    p = skip_decimal(p);
    return p != NULL && p - begin <= MAX_DIGITS ? p : NULL;
}

static inline const char *skip_word(const char *p, const char *word)
{
    size_t size = strlen(word);
    return strncmp(p, word, size) == 0 ? p + size : NULL;
}

static inline const char *skip_value(const char *p, int depth);

/* An object or a list, of whatever. */
static inline const char *skip_group(const char *p, int depth)
{
    char end = *p == '{' ? '}' : ']';
    if (depth == 0)
        return NULL;
    p = skip_space(p + 1);
    if (*p == end)
        return p + 1;
    for (;;) {
        if (end == '}') {
            if ((p = skip_text(p)) == NULL)
                return NULL;
            p = skip_space(p);
            if (*p++ != ':')
                return NULL;
            p = skip_space(p);
        }
        if ((p = skip_value(p, depth - 1)) == NULL)
            return NULL;
        p = skip_space(p);
        if (*p == end)
            return p + 1;
        if (*p++ != ',')
            return NULL;
        p = skip_space(p);
    }
}

static inline const char *skip_value(const char *p, int depth)
{
    switch (*p) {
    case '"':
        return skip_text(p);
    case '{':
    case '[':
        return skip_group(p, depth);
    case 't':
        return skip_word(p, "true");
    case 'f':
        return skip_word(p, "false");
    case 'n':
        return skip_word(p, "null");
    default:
        return skip_number(p);
    }
}

/* A number without sign, point and exponent that 63 bits can hold. */
static inline const char *scan_integer(const char *p, int64_t *value)
{
    const char *begin = p;
    uint64_t read = 0;
    if (p[0] == '0' && is_digit(p[1]))
        return NULL;
    while (is_digit(*p) && p - begin <= 19)
        read = read * 10 + (uint64_t)(*p++ - '0');
    if (p == begin || p - begin > 19 || read > INT64_MAX)
        return NULL;
    *value = (int64_t)read;
    return p;
}

#endif
