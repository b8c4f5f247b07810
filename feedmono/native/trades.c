/* Frames of an exchange to trades, in one pass: the native twin of an exchange's `decode`.

   This file knows JSON and the ways to write a trade, but no exchange: what its frames look like
   is told by a shape (feedmono/exchanges/_shape.py), a tree of two levels. The outer object holds
   one object or a list of objects, each of them a trade.

   A frame is a bytes object, whose last byte is followed by a NUL. No text, number or structure
   goes on over a NUL, so no function here needs to know where the frame ends. */

#include "json.h"
#include "trades.h"

#define MAX_KEYS 24
#define MAX_CHOICES 8
#define MAX_DEPTH 16
#define SLOTS 64
#define NAMES 1024

/* --- A shape */

/* How the value of a key is written. */
enum kind {
    CHOICE,    /* one of some texts, in quotes or not (true, null), each with its values */
    SYMBOL,    /* a text without escapes */
    IDENTITY,  /* a number of at most 63 bits */
    DECIMAL,   /* a decimal number, its text */
    QUOTED,    /* the same in quotes */
    UNIX_TIME, /* a number of milliseconds or microseconds, told apart by its magnitude */
    RFC_3339,  /* a time in UTC with six decimals */
    ONE,       /* the object that is the trade */
    MANY,      /* the list of them */
};

static const char *const kind_names[] = {
    "choice", "symbol", "identity", "decimal", "quoted", "unix time", "rfc 3339", "one", "many",
};

/* Where a value goes that is no field of a trade. */
enum { NOWHERE = -1, ORIGIN = -2 };

typedef struct {
    const char *text;
    Py_ssize_t size;
    PyObject *values[2];
} Choice;

typedef struct {
    const char *text;
    Py_ssize_t size;
    int kind;
    int targets[2]; /* fields of the trade, or NOWHERE, or ORIGIN */
    int choices;
    Choice choice[MAX_CHOICES];
    signed char next; /* key of the same slot, or -1 */
} Key;

typedef struct {
    int count;
    uint64_t required;
    signed char slots[SLOTS];
    Key keys[MAX_KEYS];
} Object;

typedef struct {
    PyObject_HEAD
    PyObject *plan;      /* owns all texts and values of the shape */
    PyObject *otherwise; /* the careful way */
    PyTypeObject *trade;
    PyTypeObject *decoded;
    PyObject *nothing;   /* an empty tuple: there are no problems */
    int fields;          /* of a trade */
    int filled[MAX_TRADE_FIELDS];
    int64_t first_microsecond;
    int64_t max_time_us;
    int64_t max_symbol_chars;
    int64_t max_decimal_chars;
    PyObject *stream;    /* the origin where the frame tells none */
    int symbol;          /* its field */
    Object frame;
    Object row;
    PyObject *names[NAMES]; /* symbols met before, by a hash of their bytes */
    Rows rows;           /* what is read of a frame so far */
} Reader;

static PyTypeObject *reader_type;

static unsigned slot_of(const char *text, Py_ssize_t size)
{
    if (size == 0)
        return 0;
    return ((unsigned char)text[0] + 31u * (unsigned char)text[size - 1] + 7u * (unsigned)size)
        % SLOTS;
}

/* The number of the key in that object, -1 if it is not one that counts. */
static int find(const Object *object, const char *text, Py_ssize_t size)
{
    int at = object->slots[slot_of(text, size)];
    while (at >= 0) {
        const Key *key = &object->keys[at];
        if (key->size == size && memcmp(key->text, text, size) == 0)
            break;
        at = key->next;
    }
    return at;
}

/* --- Values */

static PyObject *new_text(const char *text, Py_ssize_t size)
{
    PyObject *made = PyUnicode_New(size, 127);
    if (made != NULL)
        memcpy(PyUnicode_1BYTE_DATA(made), text, size);
    return made;
}

PyObject *feedmono_symbol_text(PyObject *reader, const char *text, Py_ssize_t size)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (Py_ssize_t i = 0; i < size; i++)
        hash = (hash ^ (unsigned char)text[i]) * 16777619u;
    PyObject **place = &((Reader *)reader)->names[(hash ^ hash >> 16) % NAMES];
    if (*place == NULL || PyUnicode_GET_LENGTH(*place) != size
        || memcmp(PyUnicode_1BYTE_DATA(*place), text, size) != 0) {
        PyObject *made = new_text(text, size);
        if (made == NULL)
            return NULL;
        Py_XSETREF(*place, made);
    }
    return Py_NewRef(*place);
}

static void put_text(Cell *cell, const char *text, Py_ssize_t size)
{
    cell->kind = TEXT;
    cell->size = size;
    cell->is.text = text;
}

static void put_number(Cell *cell, int64_t number)
{
    cell->kind = NUMBER;
    cell->is.number = number;
}

static const char *read_symbol(const Reader *self, const char *p, Cell *cell)
{
    const char *end = skip_text(p);
    if (end == NULL)
        return NULL;
    Py_ssize_t size = end - p - 2;
    if (size == 0 || size > self->max_symbol_chars)
        return NULL;
    put_text(cell, p + 1, size);
    return end;
}

static const char *read_decimal(const Reader *self, const char *p, Cell *cell)
{
    const char *begin = p;
    if ((p = skip_decimal(p)) == NULL || p - begin > self->max_decimal_chars)
        return NULL;
    put_text(cell, begin, p - begin);
    return p;
}

static const char *read_quoted(const Reader *self, const char *p, Cell *cell)
{
    if (*p != '"')
        return NULL;
    p = read_decimal(self, p + 1, cell);
    return p != NULL && *p == '"' ? p + 1 : NULL;
}

static const char *read_identity(const char *p, Cell *cell)
{
    int64_t value;
    if ((p = scan_integer(p, &value)) != NULL)
        put_number(cell, value);
    return p;
}

static const char *put_time(const Reader *self, const char *end, int64_t time_us, Cell *cell)
{
    if (time_us <= 0 || time_us > self->max_time_us)
        return NULL;
    put_number(cell, time_us);
    return end;
}

static const char *read_unix_time(const Reader *self, const char *p, Cell *cell)
{
    int64_t value;
    if ((p = scan_integer(p, &value)) == NULL)
        return NULL;
    if (value < self->first_microsecond) {
        if (value > INT64_MAX / 1000)
            return NULL;
        value *= 1000;
    }
    return put_time(self, p, value, cell);
}

/* The number that `size` digits make, -1 if there is something else. */
static int64_t digits(const char *p, int size)
{
    int64_t value = 0;
    for (int i = 0; i < size; i++) {
        if (!is_digit(p[i]))
            return -1;
        value = value * 10 + (p[i] - '0');
    }
    return value;
}

/* Days from 1970-01-01 to a day of the Gregorian calendar, -1 if there is none or it is before:
   the year begins in March here, so that the day of a leap year is its last. */
static int64_t days_to(int64_t year, int64_t month, int64_t day)
{
    static const int lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (year < 1970 || month < 1 || month > 12 || day < 1)
        return -1;
    int leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > lengths[month - 1] + (month == 2 && leap))
        return -1;
    int64_t years = year - (month <= 2);
    int64_t months = (month + 9) % 12;
    int64_t in_year = (153 * months + 2) / 5 + day - 1;
    return years * 365 + years / 4 - years / 100 + years / 400 + in_year - 719468;
}

/* "2024-05-27T12:33:10.826003Z", and no other form of it. */
static const char *read_rfc_3339(const Reader *self, const char *p, Cell *cell)
{
    const char *end = skip_text(p);
    if (end == NULL || end - p != 29)
        return NULL;
    p++;
    if (p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' || p[16] != ':'
        || p[19] != '.' || p[26] != 'Z')
        return NULL;
    int64_t days = days_to(digits(p, 4), digits(p + 5, 2), digits(p + 8, 2));
    int64_t hour = digits(p + 11, 2), minute = digits(p + 14, 2), second = digits(p + 17, 2);
    int64_t micros = digits(p + 20, 6);
    if (days < 0 || hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0
        || second > 59 || micros < 0)
        return NULL;
    int64_t time_us = (((days * 24 + hour) * 60 + minute) * 60 + second) * 1000000 + micros;
    return put_time(self, end, time_us, cell);
}

/* Puts the values of the choice that stands there. */
static const char *read_choice(Reader *self, const Key *key, const char *p, Cell *cells)
{
    for (int i = 0; i < key->choices; i++) {
        const Choice *choice = &key->choice[i];
        if (strncmp(p, choice->text, choice->size) != 0)
            continue;
        for (int k = 0; k < 2; k++) {
            int target = key->targets[k];
            if (target == ORIGIN) {
                self->rows.origin = choice->values[k];
            } else if (target != NOWHERE) {
                cells[target].kind = OBJECT;
                cells[target].is.object = choice->values[k];
            }
        }
        return p + choice->size;
    }
    return NULL;
}

/* --- Objects */

static const char *read_row(Reader *self, const char *p);

static const char *read_rows(Reader *self, const char *p)
{
    if (*p++ != '[')
        return NULL;
    p = skip_space(p);
    if (*p == ']')
        return p + 1;
    for (;;) {
        if ((p = read_row(self, p)) == NULL)
            return NULL;
        p = skip_space(p);
        if (*p == ']')
            return p + 1;
        if (*p++ != ',')
            return NULL;
        p = skip_space(p);
    }
}

static const char *read_value(Reader *self, const Key *key, const char *p, Cell *cells)
{
    /* Of the kinds that fill just one field. */
    Cell *cell = key->targets[0] < 0 ? NULL : cells + key->targets[0];
    switch (key->kind) {
    case CHOICE:
        return read_choice(self, key, p, cells);
    case SYMBOL:
        return read_symbol(self, p, cell);
    case IDENTITY:
        return read_identity(p, cell);
    case DECIMAL:
        return read_decimal(self, p, cell);
    case QUOTED:
        return read_quoted(self, p, cell);
    case UNIX_TIME:
        return read_unix_time(self, p, cell);
    case RFC_3339:
        return read_rfc_3339(self, p, cell);
    case ONE:
        return read_row(self, p);
    default:
        return read_rows(self, p);
    }
}

/* An object of that shape: each key of it at most once, all required ones, and others, which
   only have to be JSON. */
static const char *read_object(Reader *self, const Object *object, const char *p, Cell *cells)
{
    uint64_t seen = 0;
    if (*p != '{')
        return NULL;
    p = skip_space(p + 1);
    if (*p == '}')
        return object->required == 0 ? p + 1 : NULL;
    for (;;) {
        const char *text = p + 1;
        if ((p = skip_text(p)) == NULL)
            return NULL;
        int at = find(object, text, p - text - 1);
        p = skip_space(p);
        if (*p++ != ':')
            return NULL;
        p = skip_space(p);
        if (at < 0) {
            p = skip_value(p, MAX_DEPTH);
        } else {
            if (seen >> at & 1)
                return NULL;
            seen |= (uint64_t)1 << at;
            p = read_value(self, &object->keys[at], p, cells);
        }
        if (p == NULL)
            return NULL;
        p = skip_space(p);
        if (*p == '}')
            return (seen & object->required) == object->required ? p + 1 : NULL;
        if (*p++ != ',')
            return NULL;
        p = skip_space(p);
    }
}

/* One trade, which becomes the last of those found, finished or not. */
static const char *read_row(Reader *self, const char *p)
{
    if (self->rows.count == MAX_ROWS)
        return NULL;
    Cell *cells = self->rows.cells[self->rows.count++];
    for (int i = 0; i < self->fields; i++)
        cells[i].kind = NOTHING;
    return read_object(self, &self->row, p, cells);
}

const Rows *feedmono_read_rows(PyObject *reader, const char *frame, Py_ssize_t size)
{
    Reader *self = (Reader *)reader;
    self->rows.count = 0;
    self->rows.origin = self->stream;
    const char *p = read_object(self, &self->frame, skip_space(frame), NULL);
    return p != NULL && skip_space(p) == frame + size ? &self->rows : NULL;
}

/* --- Objects of Python */

static PyObject *object_of(Reader *self, int field, const Cell *cell)
{
    switch (cell->kind) {
    case TEXT:
        return field == self->symbol
            ? feedmono_symbol_text((PyObject *)self, cell->is.text, cell->size)
            : new_text(cell->is.text, cell->size);
    case NUMBER:
        return PyLong_FromLongLong(cell->is.number);
    case OBJECT:
        return Py_NewRef(cell->is.object);
    default:
        return Py_NewRef(Py_None);
    }
}

PyObject *feedmono_new_trade(PyObject *reader, const Cell *cells)
{
    Reader *self = (Reader *)reader;
    PyObject *trade = new_tuple(self->trade, self->fields);
    for (int i = 0; trade != NULL && i < self->fields; i++) {
        PyObject *object = object_of(self, i, &cells[i]);
        if (object == NULL)
            Py_CLEAR(trade);
        else
            PyTuple_SET_ITEM(trade, i, object);
    }
    return trade;
}

static PyObject *decoded_of(Reader *self, const Rows *rows)
{
    PyObject *trades = PyTuple_New(rows->count);
    for (int i = 0; trades != NULL && i < rows->count; i++) {
        PyObject *trade = feedmono_new_trade((PyObject *)self, rows->cells[i]);
        if (trade == NULL)
            Py_CLEAR(trades);
        else
            PyTuple_SET_ITEM(trades, i, trade);
    }
    if (trades == NULL)
        return NULL;
    if (PyObject_GC_IsTracked(trades))
        PyObject_GC_UnTrack(trades);
    PyObject *decoded = new_tuple(self->decoded, 3);
    if (decoded == NULL) {
        Py_DECREF(trades);
        return NULL;
    }
    PyTuple_SET_ITEM(decoded, 0, trades);
    PyTuple_SET_ITEM(decoded, 1, Py_NewRef(rows->origin));
    PyTuple_SET_ITEM(decoded, 2, Py_NewRef(self->nothing));
    return decoded;
}

/* --- The type */

int feedmono_is_reader(PyObject *object)
{
    return Py_TYPE(object) == reader_type;
}

PyDoc_STRVAR(read_doc, "read(frame)\n--\n\nWhat a frame holds; the careful way's answer or "
                       "error if it does not look as always.");

static PyObject *reader_read(Reader *self, PyObject *frame)
{
    const Rows *rows = NULL;
    if (PyBytes_CheckExact(frame))
        rows = feedmono_read_rows((PyObject *)self, PyBytes_AS_STRING(frame),
                                  PyBytes_GET_SIZE(frame));
    if (rows == NULL)
        return PyObject_CallOneArg(self->otherwise, frame);
    return decoded_of(self, rows);
}

/* The text of a choice and its values; -1 and an exception if it is something else. */
static int take_choice(Choice *choice, PyObject *told)
{
    if (!PyTuple_Check(told)) {
        PyErr_SetString(PyExc_TypeError, "a choice is a tuple");
        return -1;
    }
    return PyArg_ParseTuple(told, "y#OO", &choice->text, &choice->size, &choice->values[0],
                            &choice->values[1])
        ? 0 : -1;
}

/* Whether the targets of a key can be those of its kind. */
static int are_targets(const Reader *self, const Key *key, int in_row)
{
    for (int k = 0; k < 2; k++) {
        int target = key->targets[k];
        if (target >= self->fields || target < ORIGIN || (target >= 0 && !in_row)
            || (target == ORIGIN && (in_row || key->kind != CHOICE)))
            return 0;
    }
    if (key->kind == ONE || key->kind == MANY)
        return !in_row && key->targets[0] == NOWHERE;
    return key->kind == CHOICE || (key->targets[0] >= 0 && key->targets[1] == NOWHERE);
}

/* Keeps which fields a key fills; -1 if one of them is filled by another one, too. */
static int fill(Reader *self, const Key *key, int required)
{
    for (int k = 0; k < 2; k++) {
        int target = key->targets[k];
        if (target >= 0 && (self->filled[target]++ || !required))
            return -1;
    }
    return 0;
}

static int take_key(Reader *self, Object *object, PyObject *told)
{
    PyObject *choices;
    const char *kind;
    int required;
    Key *key = &object->keys[object->count];
    if (!PyTuple_Check(told) || object->count == MAX_KEYS) {
        PyErr_SetString(PyExc_ValueError, "a key is a tuple, and there are not too many of them");
        return -1;
    }
    if (!PyArg_ParseTuple(told, "y#sp(ii)O!", &key->text, &key->size, &kind, &required,
                          &key->targets[0], &key->targets[1], &PyTuple_Type, &choices))
        return -1;
    key->choices = (int)PyTuple_GET_SIZE(choices);
    if ((key->kind = index_of(kind, kind_names, Py_ARRAY_LENGTH(kind_names))) < 0)
        return -1;
    if (key->choices > MAX_CHOICES
        || !are_targets(self, key, object == &self->row) || fill(self, key, required) < 0) {
        PyErr_SetString(PyExc_ValueError, "a shape with a key that can't be read");
        return -1;
    }
    for (int i = 0; i < key->choices; i++)
        if (take_choice(&key->choice[i], PyTuple_GET_ITEM(choices, i)) < 0)
            return -1;
    unsigned slot = slot_of(key->text, key->size);
    key->next = object->slots[slot];
    object->slots[slot] = (signed char)object->count;
    if (required)
        object->required |= (uint64_t)1 << object->count;
    if (key->kind == SYMBOL)
        self->symbol = key->targets[0];
    object->count++;
    return 0;
}

static int take_keys(Reader *self, Object *object, PyObject *keys)
{
    memset(object->slots, -1, sizeof object->slots);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keys); i++)
        if (take_key(self, object, PyTuple_GET_ITEM(keys, i)) < 0)
            return -1;
    return 0;
}

/* Takes the plan apart; what it points to is owned by `self->plan`. */
static int take_plan(Reader *self)
{
    PyObject *trade, *decoded, *frame, *row;
    if (!PyArg_ParseTuple(self->plan, "OOiOLLLLO!O!", &trade, &decoded, &self->fields,
                          &self->stream, &self->first_microsecond, &self->max_time_us,
                          &self->max_symbol_chars, &self->max_decimal_chars, &PyTuple_Type,
                          &frame, &PyTuple_Type, &row))
        return -1;
    if (!is_tuple_type(trade) || !is_tuple_type(decoded) || self->fields < 1
        || self->fields > MAX_TRADE_FIELDS) {
        PyErr_SetString(PyExc_TypeError, "trade and decoded must be small named tuples");
        return -1;
    }
    self->trade = (PyTypeObject *)trade;
    self->decoded = (PyTypeObject *)decoded;
    if (take_keys(self, &self->frame, frame) < 0)
        return -1;
    return take_keys(self, &self->row, row);
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *names[] = {"plan", "otherwise", NULL};
    PyObject *plan, *otherwise;
    if (!PyArg_ParseTupleAndKeywords(args, named, "O!O", names, &PyTuple_Type, &plan, &otherwise))
        return NULL;
    Reader *self = (Reader *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(plan);
    self->plan = plan;
    Py_INCREF(otherwise);
    self->otherwise = otherwise;
    self->symbol = NOWHERE;
    self->nothing = PyTuple_New(0);
    if (self->nothing == NULL || take_plan(self) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int reader_traverse(Reader *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->plan);
    Py_VISIT(self->otherwise);
    return 0;
}

static int reader_clear(Reader *self)
{
    Py_CLEAR(self->otherwise);
    return 0;
}

static void reader_dealloc(Reader *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->plan);
    Py_CLEAR(self->otherwise);
    Py_CLEAR(self->nothing);
    for (int i = 0; i < NAMES; i++)
        Py_CLEAR(self->names[i]);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef reader_methods[] = {
    {"read", (PyCFunction)reader_read, METH_O, read_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, "TradeReader(plan, otherwise): frames of one shape to trades."},
    {Py_tp_new, reader_new},
    {Py_tp_traverse, reader_traverse},
    {Py_tp_clear, reader_clear},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods},
    {0, NULL},
};

static PyType_Spec reader_spec = {
    .name = "feedmono.native._native.TradeReader",
    .basicsize = sizeof(Reader),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = reader_slots,
};

int feedmono_add_trades(PyObject *module)
{
    if (add_type(module, &reader_spec, "TradeReader", &reader_type) < 0)
        return -1;
    return feedmono_add_records(module);
}
