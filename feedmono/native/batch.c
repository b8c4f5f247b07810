/* A batch: usual records, taken together. A sink takes it as if it were the list of its entries, each
   of which is made when somebody asks for it; and it goes into the ledger as a whole. */

#include "fast_path.h"

#define ENTRY_ITEMS 5
#define FRAME_ITEMS 5
#define TAKEN_ITEMS 4

static PyTypeObject *batch_type;

void feedmono_release(Arena *arena)
{
    if (atomic_fetch_sub(&arena->owners, 1) != 1)
        return;
    PyMem_RawFree(arena->bytes);
    PyMem_RawFree(arena->records);
    PyMem_RawFree(arena->deals);
    PyMem_RawFree(arena->keys);
    PyMem_RawFree(arena);
}

/* --- From a batch to the ledger */

/* Enters the record's trades: 1, or 0 if that is not usual and nothing has changed, -1 and an
   exception. */
static int deliver_record(const Batch *self, size_t record, Known *known, int64_t now_ns)
{
    const Arena *arena = self->arena;
    const Held *held = &arena->records[record];
    static Known before[MAX_ROWS]; /* the interpreter's lock is held */
    size_t behind = held->first + held->trades;
    for (size_t at = held->first; at < behind; at++) {
        const Deal *deal = &arena->deals[at];
        int next = feedmono_is_next(&known[deal->symbol], deal->id, deal->time_us);
        if (next <= 0) {
            feedmono_take_back(known, arena, held->first, at, before);
            return next;
        }
        feedmono_enter(&known[deal->symbol], deal, record, at, &before[at - held->first]);
    }
    int64_t ns = now_ns - (int64_t)held->received_ns;
    /* Rounded down, as Python does. */
    int64_t us = ns / 1000 - (ns % 1000 < 0);
    for (size_t at = held->first; at < behind; at++)
        feedmono_observe(self->path, &self->path->delivery, us);
    return 1;
}

PyDoc_STRVAR(deliver_doc,
             "deliver(symbols, changed, now_ns) -> (records, trades)\n\n"
             "Enters the batch's trades, as far as they are the next ones of their symbols; how "
             "many of its records and of their trades that are.");

static PyObject *batch_deliver(Batch *self, PyObject *args)
{
    PyObject *symbols, *changed;
    long long now_ns;
    if (!PyArg_ParseTuple(args, "O!O!L:deliver", &PyDict_Type, &symbols, &PySet_Type, &changed,
                          &now_ns))
        return NULL;
    const Arena *arena = self->arena;
    Known *known = PyMem_RawCalloc(arena->key_count + 1, sizeof *known);
    if (known == NULL)
        return PyErr_NoMemory();
    size_t record = self->begin;
    Py_ssize_t trades = 0;
    int delivered = 1;
    for (size_t i = 0; i < arena->key_count && delivered == 1; i++)
        if (feedmono_know(self->path, symbols, PyList_GET_ITEM(self->symbols, (Py_ssize_t)i), &known[i]) < 0)
            delivered = -1;
    while (delivered == 1 && record < self->end) {
        delivered = deliver_record(self, record, known, now_ns);
        if (delivered == 1)
            trades += arena->records[record++].trades;
    }
    if (delivered >= 0 && feedmono_write_back(self->path, arena, known, self->lasts) < 0)
        delivered = -1;
    for (size_t i = 0; i < arena->key_count && delivered >= 0; i++)
        if (known[i].entered
            && PySet_Add(changed, PyList_GET_ITEM(self->symbols, (Py_ssize_t)i)) < 0)
            delivered = -1;
    feedmono_forget(known, arena->key_count);
    PyMem_RawFree(known);
    if (delivered < 0)
        return NULL;
    return Py_BuildValue("nn", (Py_ssize_t)(record - self->begin), trades);
}

/* --- A batch as the list of its entries */

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

static PyObject *symbol_at(const Batch *self, size_t deal)
{
    Py_ssize_t key = (Py_ssize_t)self->arena->deals[deal].symbol;
    return Py_NewRef(PyList_GET_ITEM(self->symbols, key));
}

static PyObject *bytes_at(const Batch *self, size_t at, size_t size)
{
    return PyBytes_FromStringAndSize((const char *)self->arena->bytes + at, (Py_ssize_t)size);
}

static PyObject *encoded_at(const Batch *self, const Held *held)
{
    PyObject *all = PyList_New(held->trades);
    for (uint32_t i = 0; all != NULL && i < held->trades; i++) {
        const Deal *deal = &self->arena->deals[held->first + i];
        PyObject *encoded = named_tuple(self->path->encoded, (PyObject *[]){
            symbol_at(self, held->first + i),
            bytes_at(self, deal->value + PREFIX_BYTES, deal->value_size - PREFIX_BYTES)}, 2);
        if (encoded == NULL)
            Py_CLEAR(all);
        else
            PyList_SET_ITEM(all, i, encoded);
    }
    return all;
}

static PyObject *entry_at(const Batch *self, size_t record)
{
    const Held *held = &self->arena->records[record];
    PyObject *frame = named_tuple(self->path->frame, (PyObject *[]){
        bytes_at(self, held->payload, held->payload_size),
        PyLong_FromLong(held->connection),
        PyLong_FromUnsignedLongLong(held->sequence),
        PyLong_FromUnsignedLongLong(held->received_ns),
        Py_NewRef(self->path->stream)}, FRAME_ITEMS);
    return named_tuple(self->path->entry, (PyObject *[]){
        PyLong_FromLongLong(held->end), frame, symbol_at(self, held->first),
        encoded_at(self, held), Py_NewRef(Py_None)}, ENTRY_ITEMS);
}

static PyObject *trades_at(const Batch *self, size_t record)
{
    const Held *held = &self->arena->records[record];
    PyObject *trades = PyTuple_New(held->trades);
    for (uint32_t i = 0; trades != NULL && i < held->trades; i++) {
        PyObject *trade = feedmono_trade_at(self->path, self->arena, record, held->first + i);
        if (trade == NULL)
            Py_CLEAR(trades);
        else
            PyTuple_SET_ITEM(trades, i, trade);
    }
    return trades;
}

static Py_ssize_t batch_length(Batch *self)
{
    return (Py_ssize_t)(self->end - self->begin);
}

static PyObject *batch_item(Batch *self, Py_ssize_t at)
{
    if (at < 0 || at >= batch_length(self)) {
        PyErr_SetString(PyExc_IndexError, "a batch has no such entry");
        return NULL;
    }
    return entry_at(self, self->begin + (size_t)at);
}

static PyObject *batch_subscript(Batch *self, PyObject *index)
{
    if (PyIndex_Check(index)) {
        Py_ssize_t at = PyNumber_AsSsize_t(index, PyExc_IndexError);
        if (at == -1 && PyErr_Occurred())
            return NULL;
        return batch_item(self, at < 0 ? at + batch_length(self) : at);
    }
    Py_ssize_t start, stop, step;
    if (!PySlice_Check(index)) {
        PyErr_SetString(PyExc_TypeError, "an entry's number, or a slice");
        return NULL;
    }
    if (PySlice_Unpack(index, &start, &stop, &step) < 0)
        return NULL;
    Py_ssize_t count = PySlice_AdjustIndices(batch_length(self), &start, &stop, step);
    PyObject *entries = PyList_New(count);
    for (Py_ssize_t i = 0; entries != NULL && i < count; i++) {
        PyObject *entry = batch_item(self, start + i * step);
        if (entry == NULL)
            Py_CLEAR(entries);
        else
            PyList_SET_ITEM(entries, i, entry);
    }
    return entries;
}

PyDoc_STRVAR(items_doc, "items() -> list\n\nWhat became of each of its records, oldest first.");

static PyObject *batch_items(Batch *self, PyObject *Py_UNUSED(nothing))
{
    PyObject *all = PyList_New(batch_length(self));
    for (size_t at = self->begin; all != NULL && at < self->end; at++) {
        PyObject *taken = named_tuple(self->path->taken, (PyObject *[]){
            entry_at(self, at), trades_at(self, at), Py_NewRef(self->path->no_cause),
            Py_NewRef(self->path->nothing)}, TAKEN_ITEMS);
        if (taken == NULL)
            Py_CLEAR(all);
        else
            PyList_SET_ITEM(all, (Py_ssize_t)(at - self->begin), taken);
    }
    return all;
}

PyDoc_STRVAR(split_doc, "split(count) -> batch\n\nKeeps its first records; the others, as a batch "
                        "of their own.");

static PyObject *batch_split(Batch *self, PyObject *number)
{
    Py_ssize_t count = PyNumber_AsSsize_t(number, PyExc_IndexError);
    if (count == -1 && PyErr_Occurred())
        return NULL;
    if (count <= 0 || count >= batch_length(self)) {
        PyErr_SetString(PyExc_ValueError, "both parts of a batch must have records");
        return NULL;
    }
    Batch *rest = feedmono_new_batch();
    if (rest == NULL)
        return NULL;
    rest->path = (FastPath *)Py_NewRef(self->path);
    rest->arena = self->arena;
    atomic_fetch_add(&rest->arena->owners, 1);
    rest->symbols = Py_NewRef(self->symbols);
    rest->lasts = Py_NewRef(self->lasts);
    rest->least_latency_us = self->least_latency_us;
    rest->begin = self->begin + (size_t)count;
    rest->end = self->end;
    self->end = rest->begin;
    return (PyObject *)rest;
}

PyDoc_STRVAR(until_doc, "until(end) -> int\n\nHow many of its records end at that position or "
                        "before.");

static PyObject *batch_until(Batch *self, PyObject *number)
{
    long long end = PyLong_AsLongLong(number);
    if (end == -1 && PyErr_Occurred())
        return NULL;
    size_t low = self->begin, high = self->end;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (self->arena->records[middle].end <= end)
            low = middle + 1;
        else
            high = middle;
    }
    return PyLong_FromSize_t(low - self->begin);
}

int feedmono_batch(PyObject *object, Arena **arena, size_t *begin, size_t *end)
{
    if (Py_TYPE(object) != batch_type) {
        PyErr_SetString(PyExc_TypeError, "a batch is wanted");
        return -1;
    }
    Batch *batch = (Batch *)object;
    *arena = batch->arena;
    *begin = batch->begin;
    *end = batch->end;
    return 0;
}

/* --- The type */

static const Held *first_of(const Batch *self)
{
    return &self->arena->records[self->begin];
}

static const Held *last_of(const Batch *self)
{
    return &self->arena->records[self->end - 1];
}

static PyObject *batch_end(Batch *self, void *Py_UNUSED(nothing))
{
    return PyLong_FromLongLong(last_of(self)->end);
}

static PyObject *batch_sequence(Batch *self, void *Py_UNUSED(nothing))
{
    return PyLong_FromUnsignedLongLong(last_of(self)->sequence);
}

static PyObject *batch_first_ns(Batch *self, void *Py_UNUSED(nothing))
{
    return PyLong_FromUnsignedLongLong(first_of(self)->received_ns);
}

static PyObject *batch_last_ns(Batch *self, void *Py_UNUSED(nothing))
{
    return PyLong_FromUnsignedLongLong(last_of(self)->received_ns);
}

static PyObject *batch_trades(Batch *self, void *Py_UNUSED(nothing))
{
    return PyLong_FromSize_t(last_of(self)->first + last_of(self)->trades - first_of(self)->first);
}

static PyObject *batch_least_latency_us(Batch *self, void *Py_UNUSED(nothing))
{
    return PyLong_FromLongLong(self->least_latency_us);
}

static PyGetSetDef batch_values[] = {
    {"end", (getter)batch_end, NULL, "The position behind its last record.", NULL},
    {"sequence", (getter)batch_sequence, NULL, "Of its last record.", NULL},
    {"first_received_ns", (getter)batch_first_ns, NULL, "Of its first record.", NULL},
    {"last_received_ns", (getter)batch_last_ns, NULL, "Of its last record.", NULL},
    {"trades", (getter)batch_trades, NULL, "How many trades its records have.", NULL},
    {"least_latency_us", (getter)batch_least_latency_us, NULL,
     "The shortest time from the exchange's stamp to the socket of what was taken.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef batch_methods[] = {
    {"deliver", (PyCFunction)batch_deliver, METH_VARARGS, deliver_doc},
    {"items", (PyCFunction)batch_items, METH_NOARGS, items_doc},
    {"split", (PyCFunction)batch_split, METH_O, split_doc},
    {"until", (PyCFunction)batch_until, METH_O, until_doc},
    {NULL, NULL, 0, NULL},
};

static void batch_dealloc(Batch *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->arena != NULL)
        feedmono_release(self->arena);
    Py_XDECREF(self->path);
    Py_XDECREF(self->symbols);
    Py_XDECREF(self->lasts);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot batch_slots[] = {
    {Py_tp_doc, "Usual records, taken together; a sequence of their entries."},
    {Py_tp_dealloc, batch_dealloc},
    {Py_tp_methods, batch_methods},
    {Py_tp_getset, batch_values},
    {Py_tp_iter, PySeqIter_New},
    {Py_sq_length, batch_length},
    {Py_sq_item, batch_item},
    {Py_mp_length, batch_length},
    {Py_mp_subscript, batch_subscript},
    {0, NULL},
};

static PyType_Spec batch_spec = {
    .name = "feedmono.native._native.Batch",
    .basicsize = sizeof(Batch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = batch_slots,
};

Batch *feedmono_new_batch(void)
{
    return (Batch *)batch_type->tp_alloc(batch_type, 0);
}

int feedmono_add_batches(PyObject *module)
{
    return add_type(module, &batch_spec, "Batch", &batch_type);
}
