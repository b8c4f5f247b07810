/* What is known of a symbol, while usual trades are entered: what was seen (feedmono/delivery/seen.py),
   or what was delivered (ledger.py). Read out of its Ids once, kept in numbers, written back once. */

#include "fast_path.h"

static int number_of(PyObject *object, PyObject *name, int64_t *value)
{
    PyObject *found = PyObject_GetAttr(object, name);
    int is_number = found != NULL && integer_of(found, value);
    Py_XDECREF(found);
    return is_number;
}

static int is_empty_dict(PyObject *object, PyObject *name)
{
    PyObject *found = PyObject_GetAttr(object, name);
    int is_empty = found != NULL && PyDict_CheckExact(found) && PyDict_GET_SIZE(found) == 0;
    Py_XDECREF(found);
    return is_empty;
}

int feedmono_know(const FastPath *self, PyObject *symbols, PyObject *symbol, Known *known)
{
    *known = (Known){0};
    PyObject *ids = PyDict_GetItemWithError(symbols, symbol);
    if (ids != NULL && number_of(ids, self->last_id, &known->last_id)
        && number_of(ids, self->epoch_us, &known->epoch_us)
        && number_of(ids, self->newest_us, &known->newest_us)
        && is_empty_dict(ids, self->islands)) {
        PyObject *strays = PyObject_GetAttr(ids, self->strays);
        if (strays != NULL && PyDict_CheckExact(strays)) {
            known->ids = Py_NewRef(ids);
            if (PyDict_GET_SIZE(strays) > 0)
                known->strays = Py_NewRef(strays);
        }
        Py_XDECREF(strays);
    }
    return PyErr_Occurred() ? -1 : 0;
}

void feedmono_forget(Known *known, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        Py_CLEAR(known[i].ids);
        Py_CLEAR(known[i].strays);
    }
}

int feedmono_is_next(const Known *known, int64_t trade_id, int64_t time_us)
{
    if (known->ids == NULL || trade_id - 1 != known->last_id || time_us < known->epoch_us)
        return 0;
    if (known->strays == NULL)
        return 1;
    PyObject *number = PyLong_FromLongLong(trade_id);
    if (number == NULL)
        return -1;
    int found = PyDict_Contains(known->strays, number);
    Py_DECREF(number);
    return found < 0 ? -1 : !found;
}

void feedmono_enter(Known *known, const Deal *deal, size_t record, size_t at, Known *before)
{
    *before = *known;
    known->last_id = deal->id;
    if (deal->time_us > known->newest_us)
        known->newest_us = deal->time_us;
    known->record = record;
    known->deal = at;
    known->entered = 1;
}

void feedmono_take_back(Known *known, const Arena *arena, size_t first, size_t behind,
                        const Known *before)
{
    for (size_t at = behind; at > first; at--)
        known[arena->deals[at - 1].symbol] = before[at - 1 - first];
}

static int set_number(PyObject *object, PyObject *name, PyObject *number)
{
    int failed = number == NULL ? -1 : PyObject_SetAttr(object, name, number);
    Py_XDECREF(number);
    return failed;
}

PyObject *feedmono_trade_at(const FastPath *self, const Arena *arena, size_t record, size_t deal)
{
    const Held *held = &arena->records[record];
    const Rows *rows = feedmono_read_rows(
        self->reader, (const char *)arena->bytes + held->payload, held->payload_size);
    if (rows == NULL || deal < held->first || deal - held->first >= (size_t)rows->count) {
        PyErr_SetString(PyExc_SystemError, "a frame does not read as it did");
        return NULL;
    }
    return feedmono_new_trade(self->reader, rows->cells[deal - held->first]);
}

int feedmono_write_back(const FastPath *self, const Arena *arena, const Known *known,
                      PyObject *lasts)
{
    for (size_t i = 0; i < arena->key_count; i++) {
        if (!known[i].entered)
            continue;
        const Key *key = &arena->keys[i];
        PyObject *last;
        if (lasts != NULL && key->record == known[i].record && key->deal == known[i].deal)
            last = Py_NewRef(PyList_GET_ITEM(lasts, (Py_ssize_t)i));
        else
            last = feedmono_trade_at(self, arena, known[i].record, known[i].deal);
        uint64_t sequence = arena->records[known[i].record].sequence;
        int failed = last == NULL
            || PyObject_SetAttr(known[i].ids, self->last, last) < 0
            || set_number(known[i].ids, self->last_id, PyLong_FromLongLong(known[i].last_id)) < 0
            || set_number(known[i].ids, self->newest_us,
                          PyLong_FromLongLong(known[i].newest_us)) < 0
            || set_number(known[i].ids, self->sequence, PyLong_FromUnsignedLongLong(sequence)) < 0;
        Py_XDECREF(last);
        if (failed)
            return -1;
    }
    return 0;
}

void feedmono_observe(const FastPath *self, const Durations *durations, int64_t us)
{
    volatile int64_t *words = durations->view.buf;
    int low = 0, high = self->bounds;
    while (low < high) {
        int middle = (low + high) / 2;
        if (self->bound_us[middle] < us)
            low = middle + 1;
        else
            high = middle;
    }
    words[low] = words[low] + 1;
    if (us > 0)
        words[durations->buckets] = words[durations->buckets] + us;
}
