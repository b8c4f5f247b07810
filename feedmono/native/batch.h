/* What batch.c makes and kafka.c hands over: the bytes of usual records, outside of Python.

   A batch's bytes live in an arena that no object of Python's owns: messages that are under way in
   librdkafka's threads keep it, too. So nothing in it may be an object. Each message has one tag: a
   record is handed over to one producer, and again only message by message. */

#ifndef FEEDMONO_NATIVE_BATCH_H
#define FEEDMONO_NATIVE_BATCH_H

#include "trades.h"

#include <stdatomic.h>

/* What stands before each message's bytes. */
typedef struct {
    void *part;       /* what it was handed over with; of kafka.c */
    atomic_int error; /* why it was not stored; 0 if that is not known */
    uint32_t mark;    /* TAG_MARK */
} Tag;

#define TAG_MARK 0x6d6f6e6fu

#define TAG_BYTES 16
_Static_assert(sizeof(Tag) <= TAG_BYTES, "a tag fits before its message");

/* Room before a trade's record, for what Kafka wants there. */
#define PREFIX_BYTES 5

/* A record of the ring, with its trades. */
typedef struct {
    int64_t end;
    uint64_t sequence;
    uint64_t received_ns;
    size_t payload; /* where it begins in the arena's bytes; its tag stands before it */
    uint32_t payload_size;
    uint32_t first; /* trade */
    uint32_t trades;
    uint16_t connection;
} Held;

/* One trade. */
typedef struct {
    int64_t id;
    int64_t time_us;
    size_t value; /* where PREFIX_BYTES and the record begin; the tag stands before */
    uint32_t value_size;
    uint32_t symbol; /* number of its key */
} Deal;

/* A symbol, and the last of its trades. */
typedef struct {
    size_t text; /* where it begins in the arena's bytes, followed by a NUL */
    uint32_t size;
    uint32_t record;
    uint32_t deal;
} Key;

typedef struct {
    atomic_size_t owners;
    unsigned char *bytes;
    size_t size, room;
    Held *records;
    size_t count, records_room;
    Deal *deals;
    size_t deal_count, deals_room;
    Key *keys;
    size_t key_count, keys_room;
} Arena;

/* Lets go of it, from any thread. */
void feedmono_release(Arena *arena);

static inline Tag *tag_before(void *message)
{
    return (Tag *)((unsigned char *)message - TAG_BYTES);
}

/* The arena of a Batch, and which of its records are the batch's; -1 and TypeError if it is none. */
int feedmono_batch(PyObject *object, Arena **arena, size_t *begin, size_t *end);

#endif
