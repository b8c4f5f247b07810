/* Batches to librdkafka, and what became of their messages: the loops of feedmono/sinks/kafka.py.

   The producer is confluent-kafka's: it is configured, polled, flushed and closed there. It loads
   this file as a plugin of librdkafka's ("plugin.library.paths"), which finds `conf_init`; so the
   handle of the producer is told here, and every acknowledgement as it comes, in librdkafka's own
   thread and without the interpreter. A message costs 1.5 µs that way in the place of 3 (two
   messages a trade, raw with its header; producer and sender together).

   librdkafka's functions are those that confluent-kafka has loaded. Their declarations are written
   down here, since its wheels have no headers; they are what its public interface promises
   (rdkafka.h of 1.6 and later). */

#include "batch.h"

#include <dlfcn.h>
#include <stdio.h>
#include <time.h>

#define ANY_PARTITION (-1)
#define QUEUE_FULL (-184)
#define MAX_TAG_CHARS 96

typedef struct rd_kafka_s rd_kafka_t;
typedef struct rd_kafka_conf_s rd_kafka_conf_t;
typedef struct rd_kafka_topic_s rd_kafka_topic_t;
typedef struct rd_kafka_topic_conf_s rd_kafka_topic_conf_t;

typedef struct {
    int error;
    rd_kafka_topic_t *topic;
    int32_t partition;
    void *payload;
    size_t payload_size;
    void *key;
    size_t key_size;
    int64_t offset;
    void *opaque;
} rd_kafka_message_t;

/* The tags of rd_kafka_producev's arguments. */
enum { END = 0, TOPIC = 2, VALUE = 4, KEY = 5, HEADER = 9 };

typedef int on_new_t(rd_kafka_t *, const rd_kafka_conf_t *, void *, char *, size_t);
typedef int on_acknowledgement_t(rd_kafka_t *, rd_kafka_message_t *, void *);

static struct {
    int (*add_on_new)(rd_kafka_conf_t *, const char *, on_new_t *, void *);
    int (*add_on_acknowledgement)(rd_kafka_t *, const char *, on_acknowledgement_t *, void *);
    rd_kafka_topic_t *(*topic_new)(rd_kafka_t *, const char *, rd_kafka_topic_conf_t *);
    void (*topic_destroy)(rd_kafka_topic_t *);
    int (*produce)(rd_kafka_topic_t *, int32_t, int, void *, size_t, const void *, size_t, void *);
    int (*producev)(rd_kafka_t *, ...);
    int (*last_error)(void);
} rd;

/* The producer that was made last, until it is taken. */
static rd_kafka_t *newest;

/* How many messages were not stored, of all hand-overs. */
static atomic_long failures;

/* What this thread is handing over. If librdkafka refuses it then and there since it knows that the
   topic is gone, say, it tells so twice: by an acknowledgement at once, and by what it returns. */
static _Thread_local const void *handing_over;

/* Records that were handed over together. */
typedef struct {
    atomic_size_t owners; /* the object in Python, and its messages under way */
    atomic_long left;     /* messages that are not stored */
    atomic_llong stored_ns;
    Arena *arena;
    size_t begin; /* of its records */
    size_t end;
} Part;

static void release_part(Part *part, size_t owners)
{
    if (atomic_fetch_sub(&part->owners, owners) != owners)
        return;
    feedmono_release(part->arena);
    PyMem_RawFree(part);
}

static long long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (long long)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* --- The plugin */

/* Called by librdkafka's threads, once for each message. */
static int on_acknowledgement(rd_kafka_t *rk, rd_kafka_message_t *message, void *opaque)
{
    (void)rk;
    (void)opaque;
    /* What confluent-kafka produces has an opaque of its own if there is a callback for it. */
    if (message->opaque != NULL || message->payload == NULL)
        return 0;
    /* Without one its bytes are a copy behind librdkafka's own head of the message: no mark. */
    Tag *tag = tag_before(message->payload);
    if (tag->mark != TAG_MARK)
        return 0;
    /* The caller takes care of what was not taken. */
    if (message->payload == handing_over)
        return 0;
    Part *part = tag->part;
    if (message->error) {
        tag->error = message->error;
        atomic_fetch_add(&failures, 1);
    } else if (atomic_fetch_sub(&part->left, 1) == 1) {
        atomic_store(&part->stored_ns, now_ns());
    }
    release_part(part, 1);
    return 0;
}

static int on_new(rd_kafka_t *rk, const rd_kafka_conf_t *conf, void *opaque, char *error,
                  size_t size)
{
    (void)conf;
    (void)opaque;
    (void)error;
    (void)size;
    int failed = rd.add_on_acknowledgement(rk, "feedmono", on_acknowledgement, NULL);
    /* librdkafka makes it even so; but no batch must be handed to it. */
    newest = failed ? NULL : rk;
    return failed;
}

/* What librdkafka calls of a plugin. */
__attribute__((visibility("default"))) int conf_init(
    rd_kafka_conf_t *conf, void **opaque, char *error, size_t size);

int conf_init(rd_kafka_conf_t *conf, void **opaque, char *error, size_t size)
{
    (void)opaque;
    if (rd.add_on_new != NULL)
        return rd.add_on_new(conf, "feedmono", on_new, NULL);
    snprintf(error, size, "this plugin works within feedmono only");
    return -1;
}

PyDoc_STRVAR(kafka_load_doc,
             "kafka_load(path)\n--\n\nLooks librdkafka's functions up in a library that is loaded "
             "and linked with it. Raises OSError if they are not there.");

static PyObject *kafka_load(PyObject *Py_UNUSED(module), PyObject *path)
{
    struct {
        const char *name;
        void **function;
    } wanted[] = {
        {"rd_kafka_conf_interceptor_add_on_new", (void **)&rd.add_on_new},
        {"rd_kafka_interceptor_add_on_acknowledgement", (void **)&rd.add_on_acknowledgement},
        {"rd_kafka_topic_new", (void **)&rd.topic_new},
        {"rd_kafka_topic_destroy", (void **)&rd.topic_destroy},
        {"rd_kafka_produce", (void **)&rd.produce},
        {"rd_kafka_producev", (void **)&rd.producev},
        {"rd_kafka_last_error", (void **)&rd.last_error},
    };
    const char *text = PyUnicode_AsUTF8(path);
    if (text == NULL)
        return NULL;
    void *library = dlopen(text, RTLD_LAZY | RTLD_NOLOAD);
    if (library == NULL)
        return PyErr_Format(PyExc_OSError, "%s is not loaded", text);
    /* The handle is kept: what is looked up must stay. */
    for (size_t i = Py_ARRAY_LENGTH(wanted); i-- > 0;)
        if ((*wanted[i].function = dlsym(library, wanted[i].name)) == NULL) {
            rd.add_on_new = NULL;
            return PyErr_Format(PyExc_OSError, "librdkafka has no %s", wanted[i].name);
        }
    Py_RETURN_NONE;
}

/* --- What was handed over */

typedef struct {
    PyObject_HEAD
    Part *part;
} Sent;

static PyTypeObject *sent_type, *hand_over_type;

static PyObject *sent_left(Sent *self, void *Py_UNUSED(nothing))
{
    return PyLong_FromLong(atomic_load(&self->part->left));
}

static PyObject *sent_stored_ns(Sent *self, void *Py_UNUSED(nothing))
{
    return PyLong_FromLongLong(atomic_load(&self->part->stored_ns));
}

static int append_failure(PyObject *list, size_t record, size_t rank, Tag *tag)
{
    int error = tag->error;
    if (error == 0)
        return 0;
    PyObject *failure = Py_BuildValue("nni", (Py_ssize_t)record, (Py_ssize_t)rank, error);
    int failed = failure == NULL ? -1 : PyList_Append(list, failure);
    Py_XDECREF(failure);
    tag->error = 0;
    return failed;
}

PyDoc_STRVAR(sent_failures_doc,
             "failures() -> list\n\nThe messages that were not stored, each told once: the number "
             "of its record, of itself in that (0: the frame), and librdkafka's error.");

static PyObject *sent_failures(Sent *self, PyObject *Py_UNUSED(nothing))
{
    const Part *part = self->part;
    const Arena *arena = part->arena;
    PyObject *list = PyList_New(0);
    for (size_t at = part->begin; list != NULL && at < part->end; at++) {
        const Held *held = &arena->records[at];
        int failed = append_failure(list, at - part->begin, 0,
                                    tag_before(arena->bytes + held->payload));
        for (uint32_t i = 0; i < held->trades && !failed; i++)
            failed = append_failure(
                list, at - part->begin, i + 1,
                tag_before(arena->bytes + arena->deals[held->first + i].value));
        if (failed)
            Py_CLEAR(list);
    }
    return list;
}

static void sent_dealloc(Sent *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->part != NULL)
        release_part(self->part, 1);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyGetSetDef sent_values[] = {
    {"left", (getter)sent_left, NULL, "How many of its messages are not stored.", NULL},
    {"stored_ns", (getter)sent_stored_ns, NULL,
     "When the last of them was, Unix time; 0: not yet, or just now.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef sent_methods[] = {
    {"failures", (PyCFunction)sent_failures, METH_NOARGS, sent_failures_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot sent_slots[] = {
    {Py_tp_doc, "Records that were handed over together."},
    {Py_tp_dealloc, sent_dealloc},
    {Py_tp_methods, sent_methods},
    {Py_tp_getset, sent_values},
    {0, NULL},
};

static PyType_Spec sent_spec = {
    .name = "feedmono.native._native.Sent",
    .basicsize = sizeof(Sent),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = sent_slots,
};

/* --- Handing over */

typedef struct {
    PyObject_HEAD
    rd_kafka_t *rk;
    rd_kafka_topic_t *raw;
    rd_kafka_topic_t *trades;
    unsigned char prefix[PREFIX_BYTES];
    int64_t origin;
} HandOver;

/* Each of the two gives 0, or librdkafka's error. */

static int produce_frame(const HandOver *self, Part *part, const Held *held, const Key *key)
{
    unsigned char *bytes = part->arena->bytes;
    char text[MAX_TAG_CHARS];
    *tag_before(bytes + held->payload) = (Tag){.part = part, .mark = TAG_MARK};
    int size = snprintf(text, sizeof text, "%u:%llu:%llu:%lld", held->connection,
                        (unsigned long long)held->sequence, (unsigned long long)held->received_ns,
                        (long long)self->origin);
    handing_over = bytes + held->payload;
    int error = rd.producev(self->rk, TOPIC, self->raw, VALUE, (void *)(bytes + held->payload),
                            (size_t)held->payload_size, KEY, (void *)(bytes + key->text),
                            (size_t)key->size, HEADER, "frame", (void *)text, (ssize_t)size, END);
    handing_over = NULL;
    return error;
}

static int produce_trade(const HandOver *self, Part *part, const Deal *deal)
{
    unsigned char *bytes = part->arena->bytes;
    const Key *key = &part->arena->keys[deal->symbol];
    *tag_before(bytes + deal->value) = (Tag){.part = part, .mark = TAG_MARK};
    memcpy(bytes + deal->value, self->prefix, PREFIX_BYTES);
    handing_over = bytes + deal->value;
    int failed = rd.produce(self->trades, ANY_PARTITION, 0, bytes + deal->value, deal->value_size,
                            bytes + key->text, key->size, NULL);
    handing_over = NULL;
    return failed ? rd.last_error() : 0;
}

/* Hands over one record's messages: how many; fewer than all if one is not taken. */
static size_t produce_record(const HandOver *self, Part *part, const Held *held)
{
    const Arena *arena = part->arena;
    const Key *key = &arena->keys[arena->deals[held->first].symbol];
    size_t handed = 0;
    if (produce_frame(self, part, held, key) != 0)
        return 0;
    for (handed = 1; handed <= held->trades; handed++)
        if (produce_trade(self, part, &arena->deals[held->first + handed - 1]) != 0)
            break;
    return handed;
}

PyDoc_STRVAR(hand_over_write_doc,
             "write(batch, at) -> (records, messages, sent)\n\n"
             "Hands over a batch's records from that one on: how many, how many messages of the "
             "next one if it was not taken whole, and what tells of them.");

static PyObject *hand_over_write(HandOver *self, PyObject *args)
{
    PyObject *batch;
    Py_ssize_t at;
    Arena *arena;
    size_t begin, end, record, messages = 0, handed = 0;
    if (!PyArg_ParseTuple(args, "On:write", &batch, &at)
        || feedmono_batch(batch, &arena, &begin, &end) < 0)
        return NULL;
    if (self->rk == NULL || at < 0 || begin + (size_t)at > end) {
        PyErr_SetString(PyExc_ValueError, "closed, or no such record");
        return NULL;
    }
    Sent *sent = (Sent *)sent_type->tp_alloc(sent_type, 0);
    Part *part = PyMem_RawCalloc(1, sizeof *part);
    if (sent == NULL || part == NULL) {
        Py_XDECREF(sent);
        PyMem_RawFree(part);
        return PyErr_NoMemory();
    }
    begin += (size_t)at;
    for (record = begin; record < end; record++)
        messages += 1 + arena->records[record].trades;
    part->arena = arena;
    part->begin = begin;
    sent->part = part;
    atomic_fetch_add(&arena->owners, 1);
    /* All of them first: acknowledgements may come before this ends. */
    atomic_init(&part->owners, messages + 1);
    atomic_init(&part->left, (long)messages);
    size_t all = messages;
    for (record = begin; record < end; record++) {
        const Held *held = &arena->records[record];
        handed = produce_record(self, part, held);
        messages -= handed;
        if (handed <= held->trades)
            break;
        handed = 0;
    }
    /* The one that was not taken whole is another's from here on, but for what was taken. */
    part->end = handed ? record + 1 : record;
    if (messages > 0) {
        if (atomic_fetch_sub(&part->left, (long)messages) == (long)messages && messages < all)
            atomic_store(&part->stored_ns, now_ns());
        release_part(part, messages);
    }
    return Py_BuildValue("nnN", (Py_ssize_t)(record - begin), (Py_ssize_t)handed, sent);
}

static void close_topics(HandOver *self)
{
    if (self->rk == NULL)
        return;
    rd.topic_destroy(self->raw);
    rd.topic_destroy(self->trades);
    self->rk = NULL;
}

PyDoc_STRVAR(hand_over_close_doc, "close()\n--\n\nBefore the producer goes.");

static PyObject *hand_over_close(HandOver *self, PyObject *Py_UNUSED(nothing))
{
    close_topics(self);
    Py_RETURN_NONE;
}

static PyObject *hand_over_failures(HandOver *Py_UNUSED(self), void *Py_UNUSED(nothing))
{
    return PyLong_FromLong(atomic_load(&failures));
}

static PyObject *hand_over_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *names[] = {"raw_topic", "trades_topic", "prefix", "origin", NULL};
    const char *raw, *trades, *prefix;
    Py_ssize_t size;
    long long origin;
    if (!PyArg_ParseTupleAndKeywords(args, named, "ssy#L", names, &raw, &trades, &prefix, &size,
                                     &origin))
        return NULL;
    if (size != PREFIX_BYTES)
        return PyErr_Format(PyExc_ValueError, "a prefix has %d bytes", PREFIX_BYTES);
    rd_kafka_t *rk = newest;
    newest = NULL;
    if (rk == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "no producer was made with this plugin just now");
        return NULL;
    }
    HandOver *self = (HandOver *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->raw = rd.topic_new(rk, raw, NULL);
    self->trades = rd.topic_new(rk, trades, NULL);
    if (self->raw == NULL || self->trades == NULL) {
        int error = rd.last_error();
        if (self->raw != NULL)
            rd.topic_destroy(self->raw);
        if (self->trades != NULL)
            rd.topic_destroy(self->trades);
        Py_DECREF(self);
        return PyErr_Format(PyExc_RuntimeError, "librdkafka refuses a topic: error %d", error);
    }
    self->rk = rk;
    self->origin = origin;
    memcpy(self->prefix, prefix, PREFIX_BYTES);
    return (PyObject *)self;
}

/* What is not closed is left: the producer may be gone. */
static void hand_over_dealloc(HandOver *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyGetSetDef hand_over_values[] = {
    {"failures", (getter)hand_over_failures, NULL,
     "How many messages were not stored so far, of all that this process has handed over.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef hand_over_methods[] = {
    {"write", (PyCFunction)hand_over_write, METH_VARARGS, hand_over_write_doc},
    {"close", (PyCFunction)hand_over_close, METH_NOARGS, hand_over_close_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot hand_over_slots[] = {
    {Py_tp_doc, "HandOver(raw_topic, trades_topic, prefix, origin): to the producer that was made "
                "last, of confluent-kafka's, with this file as its plugin."},
    {Py_tp_new, hand_over_new},
    {Py_tp_dealloc, hand_over_dealloc},
    {Py_tp_methods, hand_over_methods},
    {Py_tp_getset, hand_over_values},
    {0, NULL},
};

static PyType_Spec hand_over_spec = {
    .name = "feedmono.native._native.HandOver",
    .basicsize = sizeof(HandOver),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = hand_over_slots,
};

static PyMethodDef functions[] = {
    {"kafka_load", kafka_load, METH_O, kafka_load_doc},
    {NULL, NULL, 0, NULL},
};

int feedmono_add_kafka(PyObject *module)
{
    if (add_type(module, &sent_spec, "Sent", &sent_type) < 0
        || add_type(module, &hand_over_spec, "HandOver", &hand_over_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
