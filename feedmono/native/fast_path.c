/* The usual way of a trade through the serializer: the native twin of feedmono/delivery/fast_path.py.

   A record that holds one trade of the stream, the next one of its symbol, becomes an entry for the
   sink; an entry that the sink has stored goes into the ledger. Whatever is not exactly so is left
   to the caller, with nothing changed. */

#include "trades.h"

#define DECODED_ITEMS 3
#define ENTRY_ITEMS 5
#define FRAME_ITEMS 5
#define TAKEN_ITEMS 4

/* The items of a Record, of a Frame, of an Entry and of a Taken, in their order. */
enum record { RECORD_END, SEQUENCE, RECEIVED_NS, CONNECTION, KIND, FLAGS, PAYLOAD, RECORD_ITEMS };
enum frame { FRAME_PAYLOAD, FRAME_CONNECTION, FRAME_SEQUENCE, FRAME_RECEIVED_NS, FRAME_ORIGIN };
enum entry { ENTRY_END, ENTRY_FRAME, ENTRY_SYMBOL, ENTRY_TRADES, ENTRY_DEAD };
enum taken { TAKEN_ENTRY, TAKEN_TRADES, TAKEN_CAUSE, TAKEN_SETTLE };

typedef struct {
    PyObject_HEAD
    PyObject *decode;
    PyObject *encode;
    PyObject *unusual; /* the errors of both that the caller sees to */
    PyTypeObject *frame;
    PyTypeObject *entry;
    PyTypeObject *taken;
    PyObject *stream;
    PyObject *no_cause;
    PyObject *nothing;
    int fields; /* of a trade */
    int symbol; /* its fields */
    int trade_id;
    int time;
    long kind;
    /* The names of attributes of Ids. */
    PyObject *epoch_us, *islands, *last, *last_id, *newest_us, *sequence, *strays;
    PyObject *popleft;
} FastPath;

/* A trade that is the next one of its symbol. */
typedef struct {
    PyObject *ids;
    PyObject *symbol;
    PyObject *trade_id;
    PyObject *time;
    int64_t time_us;
    int is_newest;
} Next;

/* A tuple with so many items, or NULL. */
static PyObject *tuple_of(PyObject *object, Py_ssize_t items)
{
    return PyTuple_Check(object) && PyTuple_GET_SIZE(object) == items ? object : NULL;
}

/* Rounds down, as Python does. */
static int64_t floored(int64_t value, int64_t divisor)
{
    return value / divisor - (value % divisor < 0);
}

static int number_of(PyObject *object, PyObject *name, int64_t *value)
{
    PyObject *found = PyObject_GetAttr(object, name);
    int is_number = found != NULL && integer_of(found, value);
    Py_XDECREF(found);
    return is_number;
}

/* Whether an attribute of Ids is a dict in which an id is not; any id, if that is NULL. */
static int is_missing(PyObject *ids, PyObject *name, PyObject *trade_id)
{
    PyObject *found = PyObject_GetAttr(ids, name);
    int is_empty = found != NULL && PyDict_CheckExact(found) && PyDict_GET_SIZE(found) == 0;
    if (!is_empty && trade_id != NULL && found != NULL && PyDict_CheckExact(found))
        is_empty = PyDict_Contains(found, trade_id) == 0;
    Py_XDECREF(found);
    return is_empty;
}

/* Whether a trade is the next one of its symbol: 1 or 0, perhaps with an exception. What `next`
   holds is borrowed of the trade and of the symbols. */
static int is_next(const FastPath *self, PyObject *symbols, PyObject *trade, Next *next)
{
    int64_t trade_id, last_id, epoch_us, newest_us;
    if (tuple_of(trade, self->fields) == NULL)
        return 0;
    next->symbol = PyTuple_GET_ITEM(trade, self->symbol);
    next->trade_id = PyTuple_GET_ITEM(trade, self->trade_id);
    next->time = PyTuple_GET_ITEM(trade, self->time);
    if (!integer_of(next->trade_id, &trade_id) || !integer_of(next->time, &next->time_us))
        return 0;
    next->ids = PyDict_GetItemWithError(symbols, next->symbol);
    if (next->ids == NULL || !number_of(next->ids, self->last_id, &last_id)
        || !number_of(next->ids, self->epoch_us, &epoch_us)
        || !number_of(next->ids, self->newest_us, &newest_us))
        return 0;
    next->is_newest = next->time_us > newest_us;
    return trade_id - 1 == last_id && next->time_us >= epoch_us
        && is_missing(next->ids, self->islands, NULL)
        && is_missing(next->ids, self->strays, next->trade_id);
}

/* Makes it the last one; -1 and an exception if it can't. */
static int follow(const FastPath *self, const Next *next, PyObject *trade, PyObject *sequence)
{
    if (next->is_newest && PyObject_SetAttr(next->ids, self->newest_us, next->time) < 0)
        return -1;
    if (PyObject_SetAttr(next->ids, self->last_id, next->trade_id) < 0
        || PyObject_SetAttr(next->ids, self->last, trade) < 0)
        return -1;
    return PyObject_SetAttr(next->ids, self->sequence, sequence);
}

static int append_number(PyObject *list, int64_t number)
{
    PyObject *object = PyLong_FromLongLong(number);
    int failed = object == NULL ? -1 : PyList_Append(list, object);
    Py_XDECREF(object);
    return failed;
}

/* A named tuple of these items, whose references it takes over; NULL if it or one of them could
   not be made. */
static PyObject *named_tuple(PyTypeObject *type, PyObject *const *items, int count)
{
    PyObject *made = new_tuple(type, count);
    int whole = made != NULL;
    for (int i = 0; i < count; i++) {
        whole = whole && items[i] != NULL;
        if (made != NULL)
            PyTuple_SET_ITEM(made, i, items[i]);
        else
            Py_XDECREF(items[i]);
    }
    if (!whole)
        Py_CLEAR(made);
    return made;
}

/* --- From the ring to the sink */

/* What the caller of `take` gives. */
typedef struct {
    PyObject *records;
    Py_ssize_t at;
    int64_t base;
    PyObject *names;
    PyObject *symbols;
    PyObject *now_ms;
    PyObject *taken;
    PyObject *latencies;
} Take;

/* Whether an error of the decoder or the encoder is the caller's to see to; it is then gone. */
static int is_unusual(const FastPath *self)
{
    if (!PyErr_ExceptionMatches(self->unusual))
        return 0;
    PyErr_Clear();
    return 1;
}

/* The one trade of a decoded frame, borrowed; NULL if it is none of the stream alone. */
static PyObject *only_trade(const FastPath *self, PyObject *decoded)
{
    int64_t origin, stream;
    if (tuple_of(decoded, DECODED_ITEMS) == NULL)
        return NULL;
    PyObject *trades = tuple_of(PyTuple_GET_ITEM(decoded, 0), 1);
    if (trades == NULL || !integer_of(PyTuple_GET_ITEM(decoded, 1), &origin)
        || !integer_of(self->stream, &stream) || origin != stream
        || tuple_of(PyTuple_GET_ITEM(decoded, 2), 0) == NULL)
        return NULL;
    return PyTuple_GET_ITEM(trades, 0);
}

static PyObject *taken_of(const FastPath *self, PyObject *record, int64_t end, PyObject *trades,
                          PyObject *symbol, PyObject *encoded)
{
    PyObject *frame = named_tuple(self->frame, (PyObject *[]){
        Py_NewRef(PyTuple_GET_ITEM(record, PAYLOAD)),
        Py_NewRef(PyTuple_GET_ITEM(record, CONNECTION)),
        Py_NewRef(PyTuple_GET_ITEM(record, SEQUENCE)),
        Py_NewRef(PyTuple_GET_ITEM(record, RECEIVED_NS)),
        Py_NewRef(self->stream)}, FRAME_ITEMS);
    PyObject *entry = named_tuple(self->entry, (PyObject *[]){
        PyLong_FromLongLong(end), frame, Py_NewRef(symbol), Py_NewRef(encoded),
        Py_NewRef(Py_None)}, ENTRY_ITEMS);
    return named_tuple(self->taken, (PyObject *[]){
        entry, Py_NewRef(trades), Py_NewRef(self->no_cause), Py_NewRef(self->nothing)},
        TAKEN_ITEMS);
}

/* Takes a frame whose one trade may be the next of its symbol: 1 if it was, 0 if not, -1 with an
   exception. */
static int take_trade(
    const FastPath *self, const Take *take, PyObject *record, PyObject *decoded)
{
    Next next;
    int64_t end, received_ns;
    PyObject *received = PyTuple_GET_ITEM(record, RECEIVED_NS);
    PyObject *sequence = PyTuple_GET_ITEM(record, SEQUENCE);
    PyObject *trade = only_trade(self, decoded);
    if (trade == NULL || !integer_of(received, &received_ns)
        || !integer_of(PyTuple_GET_ITEM(record, RECORD_END), &end)
        || !is_next(self, take->symbols, trade, &next))
        return PyErr_Occurred() ? -1 : 0;
    PyObject *trades = PyTuple_GET_ITEM(decoded, 0);
    /* The encoder runs Python, which might let go of them. */
    Py_INCREF(next.ids);
    PyObject *encoded = PyObject_Vectorcall(self->encode, (PyObject *[]){
        trades, take->names, self->stream, received, sequence, take->now_ms}, 6, NULL);
    PyObject *taken = NULL;
    int done = -1;
    if (encoded == NULL) {
        done = is_unusual(self) ? 0 : -1;
    } else if ((taken = taken_of(self, record, take->base + end, trades, next.symbol, encoded))
                   != NULL
               && PyList_Append(take->taken, taken) == 0
               && follow(self, &next, trade, sequence) == 0) {
        done = append_number(take->latencies, received_ns / 1000 - next.time_us) < 0 ? -1 : 1;
    }
    Py_XDECREF(taken);
    Py_XDECREF(encoded);
    Py_DECREF(next.ids);
    return done;
}

/* Takes one record: 1, or 0 if it is the caller's, -1 with an exception. What its frame holds is
   told if it could be read. */
static int take_record(
    const FastPath *self, const Take *take, PyObject *record, PyObject **decoded)
{
    int64_t kind, flags;
    if (tuple_of(record, RECORD_ITEMS) == NULL
        || !integer_of(PyTuple_GET_ITEM(record, KIND), &kind) || kind != self->kind
        || !integer_of(PyTuple_GET_ITEM(record, FLAGS), &flags) || flags != 0)
        return 0;
    *decoded = PyObject_CallOneArg(self->decode, PyTuple_GET_ITEM(record, PAYLOAD));
    if (*decoded == NULL)
        return is_unusual(self) ? 0 : -1;
    return take_trade(self, take, record, *decoded);
}

PyDoc_STRVAR(take_doc,
             "take(records, at, base, names, symbols, now_ms, taken, latencies_us)\n--\n\n"
             "Takes the usual records from *at* on: where the first other one is, and what its "
             "frame holds if that could be read.");

static PyObject *fast_path_take(FastPath *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t at, base;
    if (count != 8 || !PyList_CheckExact(args[0]) || !integer_of(args[1], &at) || at < 0
        || !integer_of(args[2], &base) || !PyDict_CheckExact(args[4])
        || !PyList_CheckExact(args[6]) || !PyList_CheckExact(args[7])) {
        PyErr_SetString(PyExc_TypeError, "take: a list, two numbers, two mappings, a number and "
                                         "two lists");
        return NULL;
    }
    Take take = {args[0], (Py_ssize_t)at, base, args[3], args[4], args[5], args[6], args[7]};
    PyObject *decoded = NULL;
    while (take.at < PyList_GET_SIZE(take.records)) {
        PyObject *record = Py_NewRef(PyList_GET_ITEM(take.records, take.at));
        Py_CLEAR(decoded);
        int taken = take_record(self, &take, record, &decoded);
        Py_DECREF(record);
        if (taken < 0) {
            Py_XDECREF(decoded);
            return NULL;
        }
        if (taken == 0)
            return Py_BuildValue("nN", take.at, decoded != NULL ? decoded : Py_NewRef(Py_None));
        take.at++;
    }
    Py_XDECREF(decoded);
    return Py_BuildValue("nO", take.at, Py_None);
}

/* --- From the sink to the ledger */

/* What the caller of `deliver` gives, and what is to be told. */
typedef struct {
    PyObject *outstanding;
    int64_t end;
    PyObject *symbols;
    PyObject *changed;
    int64_t now_ns;
    PyObject *latencies;
    int64_t done;
    int64_t done_end;
    int64_t sequence;
} Deliver;

/* Enters what was taken of one record if it is stored: 1, or 0 if it is not or is the caller's,
   -1 with an exception. */
static int deliver_taken(const FastPath *self, Deliver *deliver, PyObject *taken)
{
    Next next;
    int64_t end, sequence, received_ns;
    PyObject *entry, *frame, *trades, *encoded;
    if (tuple_of(taken, TAKEN_ITEMS) == NULL
        || (entry = tuple_of(PyTuple_GET_ITEM(taken, TAKEN_ENTRY), ENTRY_ITEMS)) == NULL
        || !integer_of(PyTuple_GET_ITEM(entry, ENTRY_END), &end) || end > deliver->end
        || (trades = tuple_of(PyTuple_GET_ITEM(taken, TAKEN_TRADES), 1)) == NULL
        || tuple_of(PyTuple_GET_ITEM(taken, TAKEN_SETTLE), 0) == NULL
        || (frame = tuple_of(PyTuple_GET_ITEM(entry, ENTRY_FRAME), FRAME_ITEMS)) == NULL
        || !integer_of(PyTuple_GET_ITEM(frame, FRAME_SEQUENCE), &sequence)
        || !integer_of(PyTuple_GET_ITEM(frame, FRAME_RECEIVED_NS), &received_ns))
        return 0;
    /* A trade that could not be normalized has no encoding. */
    encoded = PyTuple_GET_ITEM(entry, ENTRY_TRADES);
    if (!PyList_CheckExact(encoded) || PyList_GET_SIZE(encoded) != 1
        || !is_next(self, deliver->symbols, PyTuple_GET_ITEM(trades, 0), &next))
        return PyErr_Occurred() ? -1 : 0;
    if (follow(self, &next, PyTuple_GET_ITEM(trades, 0), PyTuple_GET_ITEM(frame, FRAME_SEQUENCE))
            < 0
        || PySet_Add(deliver->changed, next.symbol) < 0
        || append_number(deliver->latencies, floored(deliver->now_ns - received_ns, 1000)) < 0)
        return -1;
    deliver->done++;
    deliver->done_end = end;
    if (sequence > deliver->sequence)
        deliver->sequence = sequence;
    return 1;
}

PyDoc_STRVAR(deliver_doc,
             "deliver(outstanding, end, symbols, changed, now_ns, latencies_us)\n--\n\n"
             "Enters the usual ones of what is stored, oldest first: how many, up to which end, "
             "and their highest sequence.");

static PyObject *fast_path_deliver(FastPath *self, PyObject *const *args, Py_ssize_t count)
{
    Deliver deliver = {.done_end = -1, .sequence = -1};
    if (count != 6 || !integer_of(args[1], &deliver.end) || !PyDict_CheckExact(args[2])
        || !PySet_CheckExact(args[3]) || !integer_of(args[4], &deliver.now_ns)
        || !PyList_CheckExact(args[5])) {
        PyErr_SetString(PyExc_TypeError, "deliver: a deque, a number, a mapping, a set, a number "
                                         "and a list");
        return NULL;
    }
    deliver.outstanding = args[0];
    deliver.symbols = args[2];
    deliver.changed = args[3];
    deliver.latencies = args[5];
    Py_ssize_t left = PyObject_Size(deliver.outstanding);
    if (left < 0)
        return NULL;
    for (; left > 0; left--) {
        PyObject *taken = PySequence_GetItem(deliver.outstanding, 0);
        if (taken == NULL)
            return NULL;
        int delivered = deliver_taken(self, &deliver, taken);
        Py_DECREF(taken);
        if (delivered < 0)
            return NULL;
        if (delivered == 0)
            break;
        PyObject *gone = PyObject_CallMethodNoArgs(deliver.outstanding, self->popleft);
        if (gone == NULL)
            return NULL;
        Py_DECREF(gone);
    }
    return Py_BuildValue("LLL", (long long)deliver.done, (long long)deliver.done_end,
                         (long long)deliver.sequence);
}

/* --- The type */

static int is_field(const FastPath *self, int field)
{
    return field >= 0 && field < self->fields;
}

/* The names that are looked up; -1 and an exception if there is no memory. */
static int make_names(FastPath *self)
{
    struct {
        PyObject **name;
        const char *text;
    } names[] = {
        {&self->epoch_us, "epoch_us"}, {&self->islands, "islands"}, {&self->last, "last"},
        {&self->last_id, "last_id"}, {&self->newest_us, "newest_us"},
        {&self->sequence, "sequence"}, {&self->strays, "_strays"}, {&self->popleft, "popleft"},
        {&self->no_cause, ""},
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(names); i++)
        if ((*names[i].name = PyUnicode_InternFromString(names[i].text)) == NULL)
            return -1;
    return (self->nothing = PyTuple_New(0)) == NULL ? -1 : 0;
}

static PyObject *fast_path_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *names[] = {"decode", "encode", "unusual", "frame", "entry", "taken", "kind",
                            "stream", "fields", "symbol", "trade_id", "time", NULL};
    PyObject *decode, *encode, *unusual, *frame, *entry, *taken, *stream;
    FastPath *self = (FastPath *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (!PyArg_ParseTupleAndKeywords(args, named, "OOOO!O!O!lO!iiii", names, &decode, &encode,
                                     &unusual, &PyType_Type, &frame, &PyType_Type, &entry,
                                     &PyType_Type, &taken, &self->kind, &PyLong_Type, &stream,
                                     &self->fields, &self->symbol, &self->trade_id, &self->time)) {
        Py_DECREF(self);
        return NULL;
    }
    self->decode = Py_NewRef(decode);
    self->encode = Py_NewRef(encode);
    self->unusual = Py_NewRef(unusual);
    self->frame = (PyTypeObject *)Py_NewRef(frame);
    self->entry = (PyTypeObject *)Py_NewRef(entry);
    self->taken = (PyTypeObject *)Py_NewRef(taken);
    self->stream = Py_NewRef(stream);
    if (!is_tuple_type(frame) || !is_tuple_type(entry) || !is_tuple_type(taken)
        || !is_field(self, self->symbol) || !is_field(self, self->trade_id)
        || !is_field(self, self->time)) {
        PyErr_SetString(PyExc_TypeError, "frame, entry and taken must be named tuples, and symbol, "
                                         "trade_id and time fields of a trade");
        Py_DECREF(self);
        return NULL;
    }
    if (make_names(self) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int fast_path_traverse(FastPath *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->decode);
    Py_VISIT(self->encode);
    Py_VISIT(self->unusual);
    Py_VISIT(self->frame);
    Py_VISIT(self->entry);
    Py_VISIT(self->taken);
    return 0;
}

static int fast_path_clear(FastPath *self)
{
    Py_CLEAR(self->decode);
    Py_CLEAR(self->encode);
    Py_CLEAR(self->unusual);
    Py_CLEAR(self->frame);
    Py_CLEAR(self->entry);
    Py_CLEAR(self->taken);
    return 0;
}

static void fast_path_dealloc(FastPath *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    fast_path_clear(self);
    Py_CLEAR(self->stream);
    Py_CLEAR(self->no_cause);
    Py_CLEAR(self->nothing);
    Py_CLEAR(self->epoch_us);
    Py_CLEAR(self->islands);
    Py_CLEAR(self->last);
    Py_CLEAR(self->last_id);
    Py_CLEAR(self->newest_us);
    Py_CLEAR(self->sequence);
    Py_CLEAR(self->strays);
    Py_CLEAR(self->popleft);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef fast_path_methods[] = {
    {"take", (PyCFunction)(void (*)(void))fast_path_take, METH_FASTCALL, take_doc},
    {"deliver", (PyCFunction)(void (*)(void))fast_path_deliver, METH_FASTCALL, deliver_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot fast_path_slots[] = {
    {Py_tp_doc, "FastPath(decode, encode, unusual, frame, entry, taken, kind, stream, fields, "
                "symbol, trade_id, time): the usual way of a trade."},
    {Py_tp_new, fast_path_new},
    {Py_tp_traverse, fast_path_traverse},
    {Py_tp_clear, fast_path_clear},
    {Py_tp_dealloc, fast_path_dealloc},
    {Py_tp_methods, fast_path_methods},
    {0, NULL},
};

static PyType_Spec fast_path_spec = {
    .name = "feedmono.native._native.FastPath",
    .basicsize = sizeof(FastPath),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = fast_path_slots,
};

int feedmono_add_fast_path(PyObject *module)
{
    static PyTypeObject *type;
    return add_type(module, &fast_path_spec, "FastPath", &type);
}
