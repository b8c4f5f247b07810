/* The ring as feedmono/ring_layout.py draws it, for the files that read it. */
#ifndef FEEDMONO_NATIVE_RING_H
#define FEEDMONO_NATIVE_RING_H

#include "parts.h"

#define HEADER_BYTES 4096
#define RECORD_BYTES 32
#define ALIGNMENT 8
#define CRC_AT 4
#define CRC_FROM 8
#define SEQUENCE_AT 8
#define RECEIVED_AT 16
#define CONNECTION_AT 24
#define KIND_AT 26
#define FLAGS_AT 27
#define MAX_POSITION (1LL << 48)
#define PAD 0
#define FRAME 1
#define LAST_KIND 3

/* The part of the mapping that holds records, lap after lap. */
typedef struct {
    unsigned char *records;
    long long capacity;
} Lap;

/* Where a loop over records stands. */
typedef struct {
    long long position;
    long long committed;
    uint64_t last; /* sequence */
} Reading;

/* What is at a position. */
enum found {
    ODD,     /* damage, or something else that is not usual: nothing was moved */
    LAP_END, /* what fills it, and the reading has moved over it */
    RECORD,  /* one that is whole if its crc is right */
};

/* What a record with that payload takes; no overflow below 2^62. */
static inline long long
record_bytes(long long size)
{
    return (RECORD_BYTES + size + ALIGNMENT - 1) & -(long long)ALIGNMENT;
}

/* For PyArg_ParseTuple: a whole number from 0 to 2^64 - 1. */
int feedmono_as_uint64(PyObject *number, void *place);
/* Whether positions from *position* on can be looked up in the view without leaving it: 0, or -1
 * and an exception. */
int feedmono_find_lap(const Py_buffer *view, long long capacity, long long position, Lap *lap);
/* Looks at what is at the position: its header, a copy, and its payload, which another process
 * may still write to: copy it before it is checked. */
enum found feedmono_look(const Lap *lap, Reading *reading, unsigned char *header,
                         const unsigned char **payload);
/* Whether header and payload fit the crc. */
int feedmono_is_intact(const unsigned char *header, const void *payload, size_t size);
/* Moves over the record of that header. */
void feedmono_move_on(Reading *reading, const unsigned char *header);

#endif
