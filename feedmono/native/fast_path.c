/* The usual way of a trade, from the ring to a batch: the native twin of
   feedmono/delivery/fast_path.py, without an object a trade.

   `take` reads frames out of the ring whose trades all are the next ones of their symbols, and
   writes their records. Whatever is not exactly so is left in the ring, with nothing changed: the
   caller reads it there. */

#include "fast_path.h"
#include "ring.h"

#define MAX_KEYS 256
#define KEY_SLOTS 1024
#define MAX_KEY_TEXT 512
#define LEAST_BYTES 4096
#define LEAST_RECORDS 16

static PyTypeObject *fast_path_type;

/* --- The arena */

/* Makes room for `wanted` items in all; -1 and MemoryError if there is none. */
static int grow(void **items, size_t *room, size_t wanted, size_t item, size_t least)
{
    if (wanted <= *room)
        return 0;
    size_t more = *room ? *room : least;
    while (more < wanted)
        more *= 2;
    void *grown = PyMem_RawRealloc(*items, more * item);
    if (grown == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    *items = grown;
    *room = more;
    return 0;
}

static int grow_bytes(Arena *arena, size_t more)
{
    return grow((void **)&arena->bytes, &arena->room, arena->size + more, 1, LEAST_BYTES);
}

/* What a message of that size takes with its tag, a NUL and what aligns the next one. */
static size_t message_room(size_t size)
{
    return TAG_BYTES + size + 1 + sizeof(Tag);
}

/* Where the bytes of a message of that size are to be written; there is room. */
static size_t add_message(Arena *arena, size_t size)
{
    size_t at = ((arena->size + 7) & ~(size_t)7) + TAG_BYTES;
    *tag_before(arena->bytes + at) = (Tag){.mark = TAG_MARK};
    arena->bytes[at + size] = 0;
    arena->size = at + size + 1;
    return at;
}

/* --- From the ring to a batch */

/* What `take` works with: kept from one call to the next, and emptied between them. */
typedef struct Take {
    const FastPath *path;
    Arena *arena;
    PyObject *names;
    PyObject *symbols;
    PyObject *list;  /* of the symbols, by key */
    PyObject *heads; /* what their records begin with, by key */
    int64_t base;
    int64_t now_ms;
    int64_t least_latency_us;
    Known known[MAX_KEYS];
    int16_t slot_of[MAX_KEYS];
    int16_t slots[KEY_SLOTS]; /* 1 + the number of a key, by its text; 0: none */
} Take;

/* The number of a symbol's key, made if there was none: -1 if there is no room for it or it has no
   head, perhaps with an exception. */
static int key_of(Take *take, const char *text, Py_ssize_t size)
{
    Arena *arena = take->arena;
    const FastPath *self = take->path;
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (Py_ssize_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)text[i]) * 16777619u;
    size_t slot = (hash ^ hash >> 15) % KEY_SLOTS;
    for (; take->slots[slot]; slot = (slot + 1) % KEY_SLOTS) {
        const Key *key = &arena->keys[take->slots[slot] - 1];
        if (key->size == (size_t)size && memcmp(arena->bytes + key->text, text, (size_t)size) == 0)
            return take->slots[slot] - 1;
    }
    if (arena->key_count == MAX_KEYS || size > MAX_KEY_TEXT
        || grow((void **)&arena->keys, &arena->keys_room, arena->key_count + 1, sizeof(Key), 8) < 0)
        return -1;
    PyObject *symbol = feedmono_symbol_text(self->reader, text, size);
    if (symbol == NULL)
        return -1;
    PyObject *name = PyDict_GetItemWithError(take->names, symbol);
    PyObject *head = name == NULL ? NULL : feedmono_head_for(self->encoder, symbol, name);
    int number = (int)arena->key_count;
    if (head == NULL || feedmono_know(self, take->symbols, symbol, &take->known[number]) < 0
        || PyList_Append(take->list, symbol) < 0 || PyList_Append(take->heads, head) < 0) {
        if (head != NULL)
            feedmono_forget(&take->known[number], 1);
        number = -1;
    } else {
        Key *key = &arena->keys[arena->key_count++];
        key->size = (uint32_t)size;
        /* The caller has made room. */
        key->text = arena->size;
        memcpy(arena->bytes + key->text, text, (size_t)size);
        arena->bytes[key->text + (size_t)size] = 0;
        arena->size += (size_t)size + 1;
        take->slot_of[number] = (int16_t)slot;
        take->slots[slot] = (int16_t)(number + 1);
    }
    Py_XDECREF(head);
    Py_DECREF(symbol);
    return number;
}

/* Adds one trade of a record: 1, or 0 if it is not usual, -1 and an exception. */
static int take_row(Take *take, const Held *held, const Cell *cells, Known *before)
{
    Arena *arena = take->arena;
    const FastPath *self = take->path;
    const Cell *symbol = &cells[self->symbol];
    Body body;
    if (symbol->kind != TEXT || cells[self->trade_id].kind != NUMBER
        || cells[self->time].kind != NUMBER)
        return 0;
    int key = key_of(take, symbol->is.text, symbol->size);
    if (key < 0)
        return PyErr_Occurred() ? -1 : 0;
    Known *known = &take->known[key];
    Deal deal = {.id = cells[self->trade_id].is.number, .time_us = cells[self->time].is.number,
                 .symbol = (uint32_t)key};
    int next = feedmono_is_next(known, deal.id, deal.time_us);
    if (next <= 0)
        return next;
    int64_t shared[] = {0, (int64_t)held->received_ns, (int64_t)held->sequence, take->now_ms};
    if (!integer_of(self->stream, &shared[0])
        || !feedmono_encode(self->encoder, cells,
                            PyList_GET_ITEM(take->heads, key), shared, &body))
        return PyErr_Occurred() ? -1 : 0;
    if (grow((void **)&arena->deals, &arena->deals_room, arena->deal_count + 1, sizeof(Deal),
             LEAST_RECORDS) < 0)
        return -1;
    deal.value_size = PREFIX_BYTES + (uint32_t)body.size;
    deal.value = add_message(arena, deal.value_size);
    memcpy(arena->bytes + deal.value + PREFIX_BYTES, body.bytes, (size_t)body.size);
    feedmono_enter(known, &deal, arena->count, arena->deal_count, before);
    arena->deals[arena->deal_count++] = deal;
    return 1;
}

/* What a frame's trades take in the arena at most, with a new key each. */
static size_t rows_room(int count)
{
    return (size_t)count * (message_room(PREFIX_BYTES + MAX_RECORD_BYTES) + MAX_KEY_TEXT + 1);
}

/* Reads the frame in the arena and makes room for what its trades take: NULL if it is not usual,
   perhaps with an exception. */
static const Rows *rows_of(Take *take, const Held *held)
{
    Arena *arena = take->arena;
    int64_t origin, stream;
    const Rows *rows = feedmono_read_rows(
        take->path->reader, (const char *)arena->bytes + held->payload, held->payload_size);
    if (rows == NULL || rows->count == 0 || !integer_of(rows->origin, &origin)
        || !integer_of(take->path->stream, &stream) || origin != stream)
        return NULL;
    size_t more = rows_room(rows->count);
    if (arena->size + more <= arena->room)
        return rows;
    if (grow_bytes(arena, more) < 0)
        return NULL;
    /* The bytes have moved, and what was read points to where they were. */
    return feedmono_read_rows(
        take->path->reader, (const char *)arena->bytes + held->payload, held->payload_size);
}

/* Takes all trades of a record whose frame is in the arena: 1, or 0 if it is not usual and nothing
   has changed, -1 and an exception. */
static int take_trades(Take *take, Held *held)
{
    Arena *arena = take->arena;
    static Known before[MAX_ROWS]; /* the interpreter's lock is held */
    const Rows *rows = rows_of(take, held);
    if (rows == NULL)
        return PyErr_Occurred() ? -1 : 0;
    int count = rows->count, taken = 1;
    held->first = (uint32_t)arena->deal_count;
    held->trades = (uint32_t)count;
    for (int i = 0; i < count && taken == 1; i++)
        taken = take_row(take, held, rows->cells[i], &before[i]);
    if (taken == 1)
        return 1;
    feedmono_take_back(take->known, arena, held->first, arena->deal_count, before);
    arena->deal_count = held->first;
    return taken;
}

/* Takes the record at the reading's position: 1, or 0 if it is not usual, -1 and an exception. */
static int take_record(Take *take, const Lap *lap, Reading *reading)
{
    Arena *arena = take->arena;
    unsigned char header[RECORD_BYTES];
    const unsigned char *payload;
    enum found found = feedmono_look(lap, reading, header, &payload);
    if (found != RECORD)
        return found == LAP_END;
    if (header[KIND_AT] != FRAME || header[FLAGS_AT] != 0)
        return 0;
    size_t size = feedmono_get32(header), size_before = arena->size, keys = arena->key_count;
    if (size > INT32_MAX || grow_bytes(arena, message_room(size) + rows_room(1)) < 0
        || grow((void **)&arena->records, &arena->records_room, arena->count + 1, sizeof(Held),
                LEAST_RECORDS) < 0)
        return PyErr_Occurred() ? -1 : 0;
    Held held = {
        .sequence = feedmono_get64(header + SEQUENCE_AT),
        .received_ns = feedmono_get64(header + RECEIVED_AT),
        .payload = add_message(arena, size),
        .payload_size = (uint32_t)size,
        .connection = (uint16_t)(header[CONNECTION_AT] | header[CONNECTION_AT + 1] << 8),
    };
    memcpy(arena->bytes + held.payload, payload, size);
    int taken = 0;
    if (held.sequence <= INT64_MAX && held.received_ns <= INT64_MAX
        && feedmono_is_intact(header, arena->bytes + held.payload, size))
        taken = take_trades(take, &held);
    if (taken != 1) {
        /* A key that was made stays, with its text. */
        if (arena->key_count == keys)
            arena->size = size_before;
        return taken;
    }
    feedmono_move_on(reading, header);
    held.end = take->base + reading->position;
    arena->records[arena->count++] = held;
    for (size_t at = held.first; at < arena->deal_count; at++) {
        int64_t us = (int64_t)(held.received_ns / 1000) - arena->deals[at].time_us;
        feedmono_observe(take->path, &take->path->receive, us);
        if (us < take->least_latency_us)
            take->least_latency_us = us;
    }
    return 1;
}

static PyObject *new_batch(const Take *take)
{
    Arena *arena = take->arena;
    for (size_t i = 0; i < arena->key_count; i++) {
        arena->keys[i].record = (uint32_t)take->known[i].record;
        arena->keys[i].deal = (uint32_t)take->known[i].deal;
    }
    PyObject *lasts = PyList_New((Py_ssize_t)arena->key_count);
    if (lasts == NULL)
        return NULL;
    for (size_t i = 0; i < arena->key_count; i++) {
        PyObject *last = take->known[i].entered
            ? feedmono_trade_at(take->path, arena, take->known[i].record, take->known[i].deal)
            : Py_NewRef(Py_None);
        if (last == NULL) {
            Py_DECREF(lasts);
            return NULL;
        }
        PyList_SET_ITEM(lasts, (Py_ssize_t)i, last);
    }
    Batch *batch = feedmono_new_batch();
    if (batch == NULL || feedmono_write_back(take->path, arena, take->known, lasts) < 0) {
        Py_DECREF(lasts);
        Py_XDECREF(batch);
        return NULL;
    }
    batch->path = (FastPath *)Py_NewRef(take->path);
    batch->arena = arena;
    atomic_fetch_add(&arena->owners, 1);
    ((FastPath *)take->path)->usual_bytes = arena->size;
    batch->symbols = Py_NewRef(take->list);
    batch->lasts = lasts;
    batch->end = arena->count;
    batch->least_latency_us = take->least_latency_us;
    return (PyObject *)batch;
}

/* Takes as much as is usual: a batch, None if nothing was, NULL and an exception. */
static PyObject *take_all(Take *take, const Lap *lap, Reading *reading, int64_t limit, size_t most)
{
    int taken = 1;
    while (taken == 1 && reading->position < reading->committed && take->arena->count < most
           && (reading->position < limit || take->arena->count == 0))
        taken = take_record(take, lap, reading);
    if (taken < 0)
        return NULL;
    return take->arena->count > 0 ? new_batch(take) : Py_NewRef(Py_None);
}

static Arena *new_arena(size_t usual_bytes)
{
    Arena *arena = PyMem_RawCalloc(1, sizeof *arena);
    if (arena == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    atomic_init(&arena->owners, 1);
    if (grow_bytes(arena, usual_bytes) < 0) {
        feedmono_release(arena);
        return NULL;
    }
    return arena;
}

static int begin_take(Take *take, const FastPath *path, Arena *arena)
{
    take->path = path;
    take->arena = arena;
    take->least_latency_us = INT64_MAX;
    take->list = PyList_New(0);
    take->heads = PyList_New(0);
    return take->list == NULL || take->heads == NULL ? -1 : 0;
}

static void end_take(Take *take)
{
    for (size_t i = 0; i < take->arena->key_count; i++)
        take->slots[take->slot_of[i]] = 0;
    feedmono_forget(take->known, take->arena->key_count);
    Py_CLEAR(take->list);
    Py_CLEAR(take->heads);
}

PyDoc_STRVAR(take_doc,
             "take(view, capacity_bytes, position, committed, limit, last_sequence, max_records,\n"
             "     base, names, symbols, now_ms) -> (position, last_sequence, batch)\n\n"
             "Takes the usual records from position on; None for a batch if the first is not.");

static PyObject *fast_path_take(FastPath *self, PyObject *args)
{
    Py_buffer view;
    long long capacity, limit, base, now_ms;
    Reading reading;
    Py_ssize_t most;
    Lap lap;
    PyObject *names, *symbols, *result = NULL;
    if (!PyArg_ParseTuple(args, "y*LLLLO&nLO!O!L:take", &view, &capacity, &reading.position,
                          &reading.committed, &limit, feedmono_as_uint64, &reading.last, &most,
                          &base, &PyDict_Type, &names, &PyDict_Type, &symbols, &now_ms))
        return NULL;
    Take *take = self->scratch;
    Arena *arena = new_arena(self->usual_bytes);
    if (arena != NULL && begin_take(take, self, arena) == 0
        && feedmono_find_lap(&view, capacity, reading.position, &lap) == 0) {
        take->names = names;
        take->symbols = symbols;
        take->base = base;
        take->now_ms = now_ms;
        /* The records that belong to a cursor are there once it was seen. */
        atomic_thread_fence(memory_order_acquire);
        PyObject *batch = take_all(take, &lap, &reading, limit, most < 0 ? 0 : (size_t)most);
        if (batch != NULL)
            result = Py_BuildValue("LKN", reading.position, (unsigned long long)reading.last,
                                   batch);
    }
    if (arena != NULL) {
        end_take(take);
        feedmono_release(arena);
    }
    PyBuffer_Release(&view);
    return result;
}

/* --- The type */

/* The names that are looked up; -1 and an exception if there is no memory. */
static int make_names(FastPath *self)
{
    struct {
        PyObject **name;
        const char *text;
    } names[] = {
        {&self->epoch_us, "epoch_us"}, {&self->islands, "islands"}, {&self->last, "last"},
        {&self->last_id, "last_id"}, {&self->newest_us, "newest_us"},
        {&self->sequence, "sequence"}, {&self->strays, "_strays"}, {&self->no_cause, ""},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++)
        if ((*names[i].name = PyUnicode_InternFromString(names[i].text)) == NULL)
            return -1;
    return (self->nothing = PyTuple_New(0)) == NULL ? -1 : 0;
}

/* The words of a histogram: a bucket for each bound, one for what is above, and the sum. */
static int take_words(FastPath *self, PyObject *words, Durations *durations)
{
    if (PyObject_GetBuffer(words, &durations->view, PyBUF_WRITABLE | PyBUF_SIMPLE) < 0)
        return -1;
    durations->buckets = self->bounds + 1;
    if (durations->view.len == (durations->buckets + 1) * (Py_ssize_t)sizeof(int64_t)
        && (uintptr_t)durations->view.buf % sizeof(int64_t) == 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "a histogram has a word for each bucket and one for the sum");
    return -1;
}

static int take_bounds(FastPath *self, PyObject *bounds)
{
    self->bounds = (int)PyTuple_GET_SIZE(bounds);
    if (PyTuple_GET_SIZE(bounds) >= MAX_BUCKETS) {
        PyErr_SetString(PyExc_ValueError, "too many bounds");
        return -1;
    }
    for (int i = 0; i < self->bounds; i++)
        if (!integer_of(PyTuple_GET_ITEM(bounds, i), &self->bound_us[i])) {
            PyErr_SetString(PyExc_TypeError, "bounds are whole numbers");
            return -1;
        }
    return 0;
}

static int is_field(int field)
{
    return field >= 0 && field < MAX_TRADE_FIELDS;
}

static PyObject *fast_path_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *names[] = {"reader", "encoder", "frame", "entry", "encoded", "taken", "stream",
                            "symbol", "trade_id", "time", "bounds_us", "receive", "delivery", NULL};
    PyObject *reader, *encoder, *frame, *entry, *encoded, *taken, *stream, *bounds;
    PyObject *receive, *delivery;
    int symbol, trade_id, time;
    if (!PyArg_ParseTupleAndKeywords(
            args, named, "OOO!O!O!O!O!iiiO!OO", names, &reader, &encoder, &PyType_Type, &frame,
            &PyType_Type, &entry, &PyType_Type, &encoded, &PyType_Type, &taken, &PyLong_Type,
            &stream, &symbol, &trade_id, &time, &PyTuple_Type, &bounds, &receive, &delivery))
        return NULL;
    if (!feedmono_is_reader(reader) || !feedmono_is_encoder(encoder) || !is_tuple_type(frame)
        || !is_tuple_type(entry) || !is_tuple_type(encoded) || !is_tuple_type(taken)
        || !is_field(symbol) || !is_field(trade_id) || !is_field(time)) {
        PyErr_SetString(PyExc_TypeError, "a native reader and a native encoder, named tuples, and "
                                         "fields of a trade");
        return NULL;
    }
    FastPath *self = (FastPath *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->reader = Py_NewRef(reader);
    self->encoder = Py_NewRef(encoder);
    self->frame = (PyTypeObject *)Py_NewRef(frame);
    self->entry = (PyTypeObject *)Py_NewRef(entry);
    self->encoded = (PyTypeObject *)Py_NewRef(encoded);
    self->taken = (PyTypeObject *)Py_NewRef(taken);
    self->stream = Py_NewRef(stream);
    self->symbol = symbol;
    self->trade_id = trade_id;
    self->time = time;
    if ((self->scratch = PyMem_RawCalloc(1, sizeof *self->scratch)) == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    if (make_names(self) < 0 || take_bounds(self, bounds) < 0
        || take_words(self, receive, &self->receive) < 0
        || take_words(self, delivery, &self->delivery) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void fast_path_dealloc(FastPath *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject **owned[] = {
        &self->reader, &self->encoder, (PyObject **)&self->frame, (PyObject **)&self->entry,
        (PyObject **)&self->encoded, (PyObject **)&self->taken, &self->stream, &self->no_cause,
        &self->nothing, &self->epoch_us, &self->islands, &self->last, &self->last_id,
        &self->newest_us, &self->sequence, &self->strays,
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(owned); i++)
        Py_CLEAR(*owned[i]);
    if (self->receive.view.obj != NULL)
        PyBuffer_Release(&self->receive.view);
    if (self->delivery.view.obj != NULL)
        PyBuffer_Release(&self->delivery.view);
    PyMem_RawFree(self->scratch);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef fast_path_methods[] = {
    {"take", (PyCFunction)fast_path_take, METH_VARARGS, take_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot fast_path_slots[] = {
    {Py_tp_doc, "FastPath(reader, encoder, frame, entry, encoded, taken, stream, symbol, trade_id, "
                "time, bounds_us, receive, delivery): the usual way of a trade."},
    {Py_tp_new, fast_path_new},
    {Py_tp_dealloc, fast_path_dealloc},
    {Py_tp_methods, fast_path_methods},
    {0, NULL},
};

static PyType_Spec fast_path_spec = {
    .name = "feedmono.native._native.FastPath",
    .basicsize = sizeof(FastPath),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = fast_path_slots,
};

int feedmono_add_fast_path(PyObject *module)
{
    if (feedmono_add_batches(module) < 0)
        return -1;
    return add_type(module, &fast_path_spec, "FastPath", &fast_path_type);
}
