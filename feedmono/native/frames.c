/* Frames on their way from the socket through the ring: the inner loops of feedmono/network/framing.py
 * and feedmono/ring.py, and nothing of what is unusual there.
 *
 * Each function stops in front of whatever it does not know and says where; its twin in Python
 * goes on from there. None lets go of the interpreter's lock, and none runs Python code between
 * looking at a list and using what it saw.
 */

#include "ring.h"

#include <stdatomic.h>
#include <string.h>

/* As in feedmono/network/framing.py. */
#define FINAL_TEXT 0x81

static const unsigned char zeroes[ALIGNMENT];

/* The fields of a record's header, but for size and crc. */
typedef struct {
    uint64_t sequence;
    uint64_t received_ns;
    unsigned int connection;
    unsigned char kind;
    unsigned char flags;
} Fields;

int
feedmono_as_uint64(PyObject *number, void *place)
{
    unsigned long long value = PyLong_AsUnsignedLongLong(number);
    if (value == (unsigned long long)-1 && PyErr_Occurred())
        return 0;
    *(uint64_t *)place = value;
    return 1;
}

int
feedmono_find_lap(const Py_buffer *view, long long capacity, long long position, Lap *lap)
{
    if (capacity < RECORD_BYTES || capacity % ALIGNMENT || capacity > view->len - HEADER_BYTES ||
        position < 0 || position > MAX_POSITION) {
        PyErr_SetString(PyExc_ValueError, "capacity or position do not fit the ring");
        return -1;
    }
    lap->records = (unsigned char *)view->buf + HEADER_BYTES;
    lap->capacity = capacity;
    return 0;
}

PyDoc_STRVAR(cut_doc, "cut(chunk, position, limit_bytes, messages) -> position\n\n"
                      "Appends the text frames in one piece from there on to messages.");

static PyObject *
cut_frames(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *chunk, *messages;
    Py_ssize_t position, limit;
    if (!PyArg_ParseTuple(args, "SnnO!:cut", &chunk, &position, &limit, &PyList_Type, &messages))
        return NULL;
    if (position < 0) {
        PyErr_SetString(PyExc_ValueError, "a position below 0");
        return NULL;
    }
    const unsigned char *data = (const unsigned char *)PyBytes_AS_STRING(chunk);
    Py_ssize_t size = PyBytes_GET_SIZE(chunk);
    /* Where the shortest two headers still fit. */
    while (position <= size - 4 && data[position] == FINAL_TEXT) {
        Py_ssize_t length = data[position + 1], start = position + 2;
        if (length > 125) {
            if (length != 126)
                break;
            length = data[start] << 8 | data[start + 1];
            start += 2;
        }
        if (length > size - start || length > limit)
            break;
        PyObject *message = PyBytes_FromStringAndSize((const char *)data + start, length);
        if (message == NULL || PyList_Append(messages, message) < 0) {
            Py_XDECREF(message);
            return NULL;
        }
        Py_DECREF(message);
        position = start + length;
    }
    return PyLong_FromSsize_t(position);
}

/* Writes a header, and the crc over it and the payload, which need not stand behind it yet. */
static void
put_header(unsigned char *at, const Fields *fields, const char *payload, size_t size)
{
    feedmono_put32(at, (uint32_t)size);
    feedmono_put64(at + 8, fields->sequence);
    feedmono_put64(at + 16, fields->received_ns);
    at[24] = (unsigned char)fields->connection;
    at[25] = (unsigned char)(fields->connection >> 8);
    at[26] = fields->kind;
    at[27] = fields->flags;
    feedmono_put32(at + 28, 0);
    uint32_t crc = feedmono_crc32(0, at + CRC_FROM, RECORD_BYTES - CRC_FROM);
    if (fields->kind != PAD)
        crc = feedmono_crc32(crc, (const unsigned char *)payload, size);
    feedmono_put32(at + 4, crc);
}

/* Fills the end of a lap with a record of its own, if its header fits. */
static void
put_pad(unsigned char *at, size_t left, uint64_t sequence)
{
    if (left < RECORD_BYTES)
        return;
    const Fields fields = {.sequence = sequence, .kind = PAD};
    put_header(at, &fields, NULL, left - RECORD_BYTES);
    /* Without the zeroes, records of an earlier lap would stand behind a damaged pad. */
    memset(at + RECORD_BYTES, 0, left - RECORD_BYTES);
}

static void
put_record(unsigned char *at, const Fields *fields, PyObject *payload)
{
    const char *data = PyBytes_AS_STRING(payload);
    size_t size = (size_t)PyBytes_GET_SIZE(payload);
    put_header(at, fields, data, size);
    memcpy(at + RECORD_BYTES, data, size);
    memcpy(at + RECORD_BYTES + size, zeroes, (size_t)record_bytes((long long)size) -
                                                 RECORD_BYTES - size);
}

/* Writes as many payloads as fit before *limit*, from *position* on, which is moved behind them.
 * How many, or -1 and an exception. */
static Py_ssize_t
put_records(const Lap *lap, long long *position, long long limit, long long largest,
            Fields *fields, PyObject **payloads, Py_ssize_t count)
{
    Py_ssize_t taken = 0;
    for (; taken < count; taken++) {
        if (!PyBytes_Check(payloads[taken])) {
            PyErr_SetString(PyExc_TypeError, "a payload must be bytes");
            return -1;
        }
        long long size = PyBytes_GET_SIZE(payloads[taken]);
        if (size > largest || size > lap->capacity - RECORD_BYTES - ALIGNMENT ||
            size > (long long)UINT32_MAX)
            break;
        long long total = record_bytes(size), offset = *position % lap->capacity;
        long long left = lap->capacity - offset, skipped = total > left ? left : 0;
        if (skipped + total > limit - *position)
            break;
        if (skipped) {
            put_pad(lap->records + offset, (size_t)left, fields->sequence);
            *position += left;
            offset = 0;
        }
        put_record(lap->records + offset, fields, payloads[taken]);
        *position += total;
        fields->sequence++;
    }
    return taken;
}

PyDoc_STRVAR(append_doc,
             "append(view, capacity_bytes, position, limit, largest_bytes, sequence, received_ns,\n"
             "       connection, kind, flags, payloads) -> (taken, position)\n\n"
             "Writes records into the ring from position on, as far as limit, and commits nothing.\n"
             "Stops before a payload that does not fit or is too large.");

static PyObject *
append_records(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer view;
    long long capacity, position, limit, largest;
    int connection;
    Fields fields;
    PyObject *payloads, *result = NULL;
    Lap lap;
    if (!PyArg_ParseTuple(args, "w*LLLLO&O&ibbO:append", &view, &capacity, &position, &limit,
                          &largest, feedmono_as_uint64, &fields.sequence, feedmono_as_uint64, &fields.received_ns,
                          &connection, &fields.kind, &fields.flags, &payloads))
        return NULL;
    if (connection < 0 || connection > UINT16_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a connection's number has 16 bits");
        goto release;
    }
    fields.connection = (unsigned int)connection;
    if (feedmono_find_lap(&view, capacity, position, &lap) < 0)
        goto release;
    limit = limit < 0 ? 0 : limit;
    PyObject *sequence = PySequence_Fast(payloads, "payloads must be a sequence");
    if (sequence == NULL)
        goto release;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    if (count && fields.sequence > UINT64_MAX - (uint64_t)(count - 1)) {
        PyErr_SetString(PyExc_OverflowError, "sequences have 64 bits");
        Py_DECREF(sequence);
        goto release;
    }
    Py_ssize_t taken =
        put_records(&lap, &position, limit, largest, &fields,
                    PySequence_Fast_ITEMS(sequence), count);
    Py_DECREF(sequence);
    /* Whoever sees the cursor that is stored after this sees the records too. */
    atomic_thread_fence(memory_order_release);
    if (taken >= 0)
        result = Py_BuildValue("nL", taken, position);
release:
    PyBuffer_Release(&view);
    return result;
}

/* A named tuple without a call of its class; steals the payload, even if it fails. */
static PyObject *
make_record(PyTypeObject *type, long long end, const unsigned char *header, PyObject *payload)
{
    PyObject *record = NULL, *items[] = {
        PyLong_FromLongLong(end),
        PyLong_FromUnsignedLongLong(feedmono_get64(header + 8)),
        PyLong_FromUnsignedLongLong(feedmono_get64(header + 16)),
        PyLong_FromLong(header[24] | header[25] << 8),
        PyLong_FromLong(header[26]),
        PyLong_FromLong(header[27]),
        payload,
    };
    const Py_ssize_t count = (Py_ssize_t)(sizeof items / sizeof *items);
    int whole = 1;
    for (Py_ssize_t index = 0; index < count; index++)
        whole &= items[index] != NULL;
    if (whole)
        record = type->tp_alloc(type, count);
    if (record == NULL) {
        for (Py_ssize_t index = 0; index < count; index++)
            Py_XDECREF(items[index]);
        return NULL;
    }
    for (Py_ssize_t index = 0; index < count; index++)
        PyTuple_SET_ITEM(record, index, items[index]);
    /* Numbers and bytes make no cycle: the collector need not look at each that waits. */
    PyObject_GC_UnTrack(record);
    return record;
}

enum found
feedmono_look(const Lap *lap, Reading *reading, unsigned char *header,
              const unsigned char **payload)
{
    long long offset = reading->position % lap->capacity, left = lap->capacity - offset;
    const unsigned char *at = lap->records + offset;
    if (left < RECORD_BYTES) {
        reading->position += left;
        return LAP_END;
    }
    /* Looked at once: another process may write here, and what was checked must be what is used. */
    memcpy(header, at, RECORD_BYTES);
    long long size = feedmono_get32(header);
    unsigned char kind = header[KIND_AT];
    if (size > left - RECORD_BYTES || record_bytes(size) > reading->committed - reading->position ||
        kind > LAST_KIND || feedmono_get64(header + SEQUENCE_AT) <= reading->last)
        return ODD;
    if (kind == PAD) {
        if (!feedmono_is_intact(header, NULL, 0))
            return ODD;
        reading->position += record_bytes(size);
        return LAP_END;
    }
    *payload = at + RECORD_BYTES;
    return RECORD;
}

int
feedmono_is_intact(const unsigned char *header, const void *payload, size_t size)
{
    uint32_t crc = feedmono_crc32(0, header + CRC_FROM, RECORD_BYTES - CRC_FROM);
    return feedmono_crc32(crc, payload, size) == feedmono_get32(header + CRC_AT);
}

void
feedmono_move_on(Reading *reading, const unsigned char *header)
{
    reading->position += record_bytes(feedmono_get32(header));
    reading->last = feedmono_get64(header + SEQUENCE_AT);
}

/* Moves over the record at the position and gives its header and, if it is none of a lap's end,
 * its payload. 1: done, 0: it is damaged or otherwise not usual, -1: an exception. */
static int
next_record(const Lap *lap, Reading *reading, unsigned char *header, PyObject **payload)
{
    const unsigned char *bytes;
    *payload = NULL;
    enum found found = feedmono_look(lap, reading, header, &bytes);
    if (found != RECORD)
        return found == LAP_END;
    size_t size = feedmono_get32(header);
    *payload = PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)size);
    if (*payload == NULL)
        return -1;
    if (!feedmono_is_intact(header, PyBytes_AS_STRING(*payload), size)) {
        Py_CLEAR(*payload);
        return 0;
    }
    feedmono_move_on(reading, header);
    return 1;
}

/* As next_record, over as many as are wanted. -1: an exception. */
static int
collect(const Lap *lap, Reading *reading, long long limit, Py_ssize_t most,
             PyObject *records, PyTypeObject *type)
{
    unsigned char header[RECORD_BYTES];
    PyObject *payload;
    while (reading->position < reading->committed && PyList_GET_SIZE(records) < most) {
        if (reading->position >= limit && PyList_GET_SIZE(records))
            break;
        int found = next_record(lap, reading, header, &payload);
        if (found <= 0)
            return found;
        if (payload == NULL)
            continue;
        PyObject *record = make_record(type, reading->position, header, payload);
        if (record == NULL)
            return -1;
        int added = PyList_Append(records, record);
        Py_DECREF(record);
        if (added < 0)
            return -1;
    }
    return 0;
}

PyDoc_STRVAR(read_doc,
             "read(view, capacity_bytes, position, committed, limit, last_sequence, max_records,\n"
             "     records, record_type) -> (position, last_sequence)\n\n"
             "Appends intact records with rising sequences, and stops before anything else.");

static PyObject *
read_records(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer view;
    long long capacity, limit;
    Reading reading;
    Py_ssize_t most;
    PyObject *records, *type, *result = NULL;
    Lap lap;
    if (!PyArg_ParseTuple(args, "y*LLLLO&nO!O!:read", &view, &capacity, &reading.position,
                          &reading.committed, &limit, feedmono_as_uint64, &reading.last, &most,
                          &PyList_Type, &records, &PyType_Type, &type))
        return NULL;
    PyTypeObject *record_type = (PyTypeObject *)type;
    if (!PyType_IsSubtype(record_type, &PyTuple_Type) ||
        record_type->tp_basicsize != PyTuple_Type.tp_basicsize ||
        record_type->tp_dictoffset != 0) { /* from 3.12 on a dict is not part of the size */
        PyErr_SetString(PyExc_TypeError, "record_type must be a named tuple");
        goto release;
    }
    if (feedmono_find_lap(&view, capacity, reading.position, &lap) < 0)
        goto release;
    /* The records that belong to a cursor are there once it was seen. */
    atomic_thread_fence(memory_order_acquire);
    if (collect(&lap, &reading, limit, most, records, record_type) == 0)
        result = Py_BuildValue("LK", reading.position, (unsigned long long)reading.last);
release:
    PyBuffer_Release(&view);
    return result;
}

static PyMethodDef functions[] = {
    {"cut", cut_frames, METH_VARARGS, cut_doc},
    {"append", append_records, METH_VARARGS, append_doc},
    {"read", read_records, METH_VARARGS, read_doc},
    {NULL, NULL, 0, NULL},
};

int
feedmono_add_frames(PyObject *module)
{
    feedmono_make_crc32();
    return PyModule_AddFunctions(module, functions);
}
