/* What the files of the extension tell each other. */
#ifndef FEEDMONO_NATIVE_PARTS_H
#define FEEDMONO_NATIVE_PARTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

/* Each adds the functions of its file to the module; -1 and an exception if it can't. */
int feedmono_add_frames(PyObject *module);
int feedmono_add_trades(PyObject *module);
int feedmono_add_fast_path(PyObject *module);
int feedmono_add_kafka(PyObject *module);

/* Before the first feedmono_crc32. */
void feedmono_make_crc32(void);
/* As zlib.crc32(data, crc). */
uint32_t feedmono_crc32(uint32_t crc, const unsigned char *data, size_t size);

/* Little-endian numbers at any address; compilers make one instruction of each. */
static inline uint32_t
feedmono_get32(const unsigned char *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline uint64_t
feedmono_get64(const unsigned char *at)
{
    return feedmono_get32(at) | (uint64_t)feedmono_get32(at + 4) << 32;
}

static inline void
feedmono_put32(unsigned char *at, uint32_t value)
{
    for (int byte = 0; byte < 4; byte++)
        at[byte] = (unsigned char)(value >> 8 * byte);
}

static inline void
feedmono_put64(unsigned char *at, uint64_t value)
{
    feedmono_put32(at, (uint32_t)value);
    feedmono_put32(at + 4, (uint32_t)(value >> 32));
}

#endif
