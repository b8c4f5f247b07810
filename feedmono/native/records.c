/* Trades to Avro records: the native twin of the encoder that feedmono/avro.py generates.

   This file knows no schema. A record is written by a plan, a list of steps that avro.py makes of
   the schema: each step appends some bytes. A step takes its value from a trade (by the number of
   the field) or from what all trades of a frame share (numbers behind those of the fields). */

#include "json.h"
#include "trades.h"

#define MAX_STEPS 64
#define MAX_SHARED 8
#define MAX_SYMBOLS 10000
#define MAX_FACTOR_DIGITS 19

enum task {
    HEAD,     /* what only changes with the symbol */
    BYTES,    /* the same bytes in each record */
    STRING,   /* a text */
    DIGITS,   /* a number as text */
    PRODUCT,  /* of two decimal texts, as text */
    LONG,     /* a number */
    ENUM,     /* a number below a limit */
    BOOLEAN,
    OPTIONAL, /* null, and no next step; or the next step */
    RANGE,    /* nothing: the number must be from 0 to below a limit */
};

static const char *const task_names[] = {
    "head", "bytes", "text", "digits", "product", "long", "enum", "boolean", "optional", "range",
};

typedef struct {
    int task;
    int value;
    int other;      /* the second factor of a product */
    int64_t number; /* a long's divisor; the limit of a range or an enum */
    const char *bytes;
    Py_ssize_t size;
} Step;

typedef struct {
    PyObject_HEAD
    PyObject *plan;      /* owns the bytes of the steps */
    PyObject *otherwise; /* the encoder in Python */
    PyObject *head_of;   /* (symbol, canonical symbol) to the head's text */
    PyObject *heads;     /* symbol to (canonical symbol, head) */
    PyTypeObject *encoded;
    int fields;          /* of a trade */
    int shared;          /* by the trades of a frame */
    int symbol;          /* its field */
    int steps;
    Step step[MAX_STEPS];
} Encoder;

static PyTypeObject *encoder_type;

/* What the steps of one record take. */
typedef struct {
    int fields;
    const Cell *cells;
    PyObject *head;
    const int64_t *shared;
} Source;

/* Each of the following returns 1, or 0 if the encoder in Python is to see to it. */

static int add_bytes(Body *body, const char *bytes, Py_ssize_t size)
{
    if (size > MAX_RECORD_BYTES - body->size)
        return 0;
    memcpy(body->bytes + body->size, bytes, size);
    body->size += (int)size;
    return 1;
}

/* Avro's zigzag varint: 7 bits a byte, the low ones first. */
static int add_long(Body *body, int64_t value)
{
    uint64_t zigzag = (uint64_t)value << 1 ^ (uint64_t)(value < 0 ? -1 : 0);
    if (MAX_RECORD_BYTES - body->size < 10)
        return 0;
    for (; zigzag > 127; zigzag >>= 7)
        body->bytes[body->size++] = (char)(zigzag | 128);
    body->bytes[body->size++] = (char)zigzag;
    return 1;
}

static int add_text(Body *body, const char *text, Py_ssize_t size)
{
    return add_long(body, size) && add_bytes(body, text, size);
}

/* What a field of a trade holds. */
static Cell cell_of(PyObject *object)
{
    Cell cell = {.kind = OBJECT, .is.object = object};
    if (object == Py_None) {
        cell.kind = NOTHING;
    } else if (PyUnicode_CheckExact(object) && PyUnicode_IS_COMPACT_ASCII(object)) {
        cell.kind = TEXT;
        cell.is.text = (const char *)PyUnicode_1BYTE_DATA(object);
        cell.size = PyUnicode_GET_LENGTH(object);
    }
    return cell;
}

static int is_null(const Cell *cell)
{
    return cell->kind == NOTHING || (cell->kind == OBJECT && cell->is.object == Py_None);
}

/* A number of the trade or of its frame. */
static int number_of(const Source *source, int value, int64_t *number)
{
    if (value >= source->fields) {
        *number = source->shared[value - source->fields];
        return 1;
    }
    const Cell *cell = &source->cells[value];
    if (cell->kind == NUMBER) {
        *number = cell->is.number;
        return 1;
    }
    return cell->kind == OBJECT && integer_of(cell->is.object, number);
}

/* Writes the digits of a number so that they end at `end`, at least so many; where they begin. */
static char *write_digits(char *end, uint64_t number, int least)
{
    for (; number > 0 || least > 0; number /= 10, least--)
        *--end = (char)('0' + number % 10);
    return end;
}

/* The digits of a plain decimal text as one whole number, and how many stand behind the point. */
static int factor_of(const Cell *cell, uint64_t *digits, int *decimals)
{
    const char *text = cell->is.text;
    Py_ssize_t size = cell->size;
    if (cell->kind != TEXT || skip_decimal(text) != text + size || size > MAX_FACTOR_DIGITS + 1)
        return 0;
    const char *point = memchr(text, '.', size);
    if (point == NULL && size > MAX_FACTOR_DIGITS)
        return 0;
    *decimals = point == NULL ? 0 : (int)(text + size - point - 1);
    *digits = 0;
    for (const char *p = text; p < text + size; p++)
        if (p != point)
            *digits = *digits * 10 + (uint64_t)(*p - '0');
    return 1;
}

/* The exact product: as many decimals as both factors have together. */
static int add_product(Body *body, const Cell *one, const Cell *other)
{
    static const uint64_t half = 10000000000000000000u; /* 10^19 */
    uint64_t factors[2];
    int decimals[2];
    char digits[48], *end = digits + sizeof digits, *begin = end;
    if (!factor_of(one, &factors[0], &decimals[0]) || !factor_of(other, &factors[1], &decimals[1]))
        return 0;
    unsigned __int128 product = (unsigned __int128)factors[0] * factors[1];
    int scale = decimals[0] + decimals[1];
    if (product >= half) {
        begin = write_digits(end, (uint64_t)(product % half), 19);
        product /= half;
    }
    /* At least a 0 before the point. */
    begin = write_digits(begin, (uint64_t)product, scale + 1 - (int)(end - begin));
    if (scale == 0)
        return add_text(body, begin, end - begin);
    return add_long(body, end - begin + 1) && add_bytes(body, begin, end - begin - scale)
        && add_bytes(body, ".", 1) && add_bytes(body, end - scale, scale);
}

static int add_digits(Body *body, const Source *source, int value)
{
    int64_t number;
    char digits[20], *end = digits + sizeof digits;
    if (!number_of(source, value, &number) || number < 0)
        return 0;
    char *begin = write_digits(end, (uint64_t)number, 1);
    return add_text(body, begin, end - begin);
}

/* A number, rounded down to a multiple of the step's own and divided by it. */
static int add_number(Body *body, const Source *source, const Step *step)
{
    int64_t number;
    if (!number_of(source, step->value, &number))
        return 0;
    if (step->number == 1)
        return add_long(body, number);
    return number >= 0 && add_long(body, number / step->number);
}

static int is_below(const Source *source, const Step *step, int64_t *number)
{
    return number_of(source, step->value, number) && *number >= 0 && *number < step->number;
}

static int add_boolean(Body *body, const Cell *cell)
{
    if (cell->kind != OBJECT || !PyBool_Check(cell->is.object))
        return 0;
    return add_bytes(body, cell->is.object == Py_True ? "\1" : "\0", 1);
}

static int take_step(const Step *step, const Source *source, Body *body)
{
    const Cell *cell;
    int64_t number;
    switch (step->task) {
    case HEAD:
        return add_bytes(body, PyBytes_AS_STRING(source->head), PyBytes_GET_SIZE(source->head));
    case BYTES:
        return add_bytes(body, step->bytes, step->size);
    case STRING:
        cell = &source->cells[step->value];
        return cell->kind == TEXT && add_text(body, cell->is.text, cell->size);
    case DIGITS:
        return add_digits(body, source, step->value);
    case PRODUCT:
        return add_product(body, &source->cells[step->value], &source->cells[step->other]);
    case LONG:
        return add_number(body, source, step);
    case ENUM:
        return is_below(source, step, &number) && add_long(body, number);
    case BOOLEAN:
        return add_boolean(body, &source->cells[step->value]);
    case RANGE:
        return is_below(source, step, &number);
    default:
        return 0;
    }
}

static int take_steps(const Encoder *self, const Source *source, Body *body)
{
    for (int i = 0; i < self->steps; i++) {
        const Step *step = &self->step[i];
        if (step->task == OPTIONAL) {
            int skips = is_null(&source->cells[step->value]);
            if (!add_bytes(body, skips ? "\0" : "\2", 1))
                return 0;
            i += skips;
        } else if (!take_step(step, source, body)) {
            return 0;
        }
    }
    return 1;
}

/* --- Heads: what only changes with the symbol */

/* Makes a head and keeps it. A new reference; NULL if there is none for such a symbol: the encoder
   in Python will meet the same error. */
static PyObject *new_head(Encoder *self, PyObject *symbol, PyObject *name)
{
    PyObject *text = PyObject_CallFunctionObjArgs(self->head_of, symbol, name, NULL);
    PyObject *head = text == NULL ? NULL : PyUnicode_AsLatin1String(text);
    Py_XDECREF(text);
    if (head == NULL) {
        /* The encoder in Python will say what is wrong; Ctrl-C is not its to say. */
        if (PyErr_ExceptionMatches(PyExc_Exception))
            PyErr_Clear();
        return NULL;
    }
    if (PyDict_GET_SIZE(self->heads) >= MAX_SYMBOLS)
        PyDict_Clear(self->heads);
    PyObject *pair = PyTuple_Pack(2, name, head);
    if (pair == NULL || PyDict_SetItem(self->heads, symbol, pair) < 0)
        Py_CLEAR(head);
    Py_XDECREF(pair);
    return head;
}

PyObject *feedmono_head_for(PyObject *encoder, PyObject *symbol, PyObject *name)
{
    Encoder *self = (Encoder *)encoder;
    if (!PyUnicode_CheckExact(name))
        return NULL;
    PyObject *pair = PyDict_GetItemWithError(self->heads, symbol);
    if (pair != NULL) {
        PyObject *known = PyTuple_GET_ITEM(pair, 0);
        if (known == name || PyUnicode_Compare(known, name) == 0) {
            PyObject *head = PyTuple_GET_ITEM(pair, 1);
            Py_INCREF(head);
            return head;
        }
    }
    if (PyErr_Occurred())
        return NULL;
    Py_INCREF(name);
    PyObject *head = new_head(self, symbol, name);
    Py_DECREF(name);
    return head;
}

/* --- The type */

int feedmono_is_encoder(PyObject *object)
{
    return Py_TYPE(object) == encoder_type;
}

int feedmono_encode(PyObject *encoder, const Cell *cells, PyObject *head, const int64_t *shared,
                    Body *body)
{
    const Encoder *self = (Encoder *)encoder;
    Source source = {self->fields, cells, head, shared};
    body->size = 0;
    return take_steps(self, &source, body);
}

/* One trade's record. NULL, perhaps with an exception, if the encoder in Python is to do it. */
static PyObject *encode_trade(
    Encoder *self, PyObject *trade, PyObject *canonical, const int64_t *shared)
{
    Body body;
    Cell cells[MAX_TRADE_FIELDS];
    PyObject *head, *encoded = NULL;
    if (!PyTuple_Check(trade) || PyTuple_GET_SIZE(trade) != self->fields)
        return NULL;
    PyObject *symbol = PyTuple_GET_ITEM(trade, self->symbol);
    if (!PyUnicode_CheckExact(symbol))
        return NULL;
    PyObject *name = PyDict_GetItemWithError(canonical, symbol);
    if (name == NULL || (head = feedmono_head_for((PyObject *)self, symbol, name)) == NULL)
        return NULL;
    for (int i = 0; i < self->fields; i++)
        cells[i] = cell_of(PyTuple_GET_ITEM(trade, i));
    if (feedmono_encode((PyObject *)self, cells, head, shared, &body)
        && (encoded = new_tuple(self->encoded, 2)) != NULL) {
        PyTuple_SET_ITEM(encoded, 0, Py_NewRef(symbol));
        PyObject *bytes = PyBytes_FromStringAndSize(body.bytes, body.size);
        if (bytes == NULL)
            Py_CLEAR(encoded);
        else
            PyTuple_SET_ITEM(encoded, 1, bytes);
    }
    Py_DECREF(head);
    return encoded;
}

/* The records of all trades, of which there is at least one; NULL, perhaps with an exception, if one can't be encoded here. */
static PyObject *encode_all(
    Encoder *self, PyObject *trades, PyObject *canonical, const int64_t *shared)
{
    Py_ssize_t count = PySequence_Fast_GET_SIZE(trades);
    PyObject *records = PyList_New(count);
    if (records == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        /* Making a head runs Python, which could change a list. */
        if (PySequence_Fast_GET_SIZE(trades) != count)
            break;
        PyObject *trade = PySequence_Fast_GET_ITEM(trades, i);
        Py_INCREF(trade);
        PyObject *encoded = encode_trade(self, trade, canonical, shared);
        Py_DECREF(trade);
        if (encoded == NULL)
            break;
        PyList_SET_ITEM(records, i, encoded);
        if (i == count - 1)
            return records;
    }
    Py_DECREF(records);
    return NULL;
}

PyDoc_STRVAR(encode_doc,
             "encode(trades, canonical, *shared)\n--\n\nThe records of the trades of one frame; "
             "the answer or error of the encoder in Python if one of them is unusual.");

static PyObject *encoder_encode(Encoder *self, PyObject *const *args, Py_ssize_t count)
{
    int64_t shared[MAX_SHARED];
    PyObject *records = NULL;
    int usual = count == 2 + self->shared && PyDict_CheckExact(args[1])
        && (PyTuple_CheckExact(args[0]) || PyList_CheckExact(args[0]))
        && PySequence_Fast_GET_SIZE(args[0]) > 0;
    for (Py_ssize_t i = 2; usual && i < count; i++)
        usual = integer_of(args[i], &shared[i - 2]);
    if (usual)
        records = encode_all(self, args[0], args[1], shared);
    if (records != NULL || PyErr_Occurred())
        return records;
    return PyObject_Vectorcall(self->otherwise, args, count, NULL);
}

static int is_step(const Encoder *self, const Step *step)
{
    int from_trade = step->task == STRING || step->task == PRODUCT || step->task == BOOLEAN
        || step->task == OPTIONAL;
    int values = self->fields + (from_trade ? 0 : self->shared);
    return step->value >= 0 && step->value < values && step->other >= 0
        && step->other < self->fields && step->number > 0;
}

static int take_step_told(Encoder *self, PyObject *told)
{
    const char *name;
    Step *step = &self->step[self->steps];
    if (!PyTuple_Check(told) || self->steps == MAX_STEPS) {
        PyErr_SetString(PyExc_ValueError, "a step is a tuple, and there are not too many of them");
        return -1;
    }
    if (!PyArg_ParseTuple(told, "siiLy#", &name, &step->value, &step->other, &step->number,
                          &step->bytes, &step->size))
        return -1;
    if ((step->task = index_of(name, task_names, Py_ARRAY_LENGTH(task_names))) < 0)
        return -1;
    if (!is_step(self, step)) {
        PyErr_Format(PyExc_ValueError, "a step that can't be taken: %R", told);
        return -1;
    }
    self->steps++;
    return 0;
}

static int take_steps_told(Encoder *self)
{
    if (self->fields < 1 || self->fields > MAX_TRADE_FIELDS || self->shared < 0
        || self->shared > MAX_SHARED || self->symbol < 0 || self->symbol >= self->fields
        || !is_tuple_type((PyObject *)self->encoded)) {
        PyErr_SetString(PyExc_ValueError, "trades and records must be small named tuples");
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self->plan); i++)
        if (take_step_told(self, PyTuple_GET_ITEM(self->plan, i)) < 0)
            return -1;
    if (self->steps > 0 && self->step[self->steps - 1].task == OPTIONAL) {
        PyErr_SetString(PyExc_ValueError, "the last step is followed by none");
        return -1;
    }
    return 0;
}

static PyObject *encoder_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *names[] = {"plan", "encoded", "fields", "shared", "symbol",
                            "head_of", "otherwise", NULL};
    PyObject *plan, *encoded, *head_of, *otherwise;
    int fields, shared, symbol;
    if (!PyArg_ParseTupleAndKeywords(args, named, "O!O!iiiOO", names, &PyTuple_Type, &plan,
                                     &PyType_Type, &encoded, &fields, &shared, &symbol, &head_of,
                                     &otherwise))
        return NULL;
    Encoder *self = (Encoder *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->plan = Py_NewRef(plan);
    self->encoded = (PyTypeObject *)Py_NewRef(encoded);
    self->head_of = Py_NewRef(head_of);
    self->otherwise = Py_NewRef(otherwise);
    self->fields = fields;
    self->shared = shared;
    self->symbol = symbol;
    self->heads = PyDict_New();
    if (self->heads == NULL || take_steps_told(self) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int encoder_traverse(Encoder *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->encoded);
    Py_VISIT(self->head_of);
    Py_VISIT(self->otherwise);
    Py_VISIT(self->heads);
    return 0;
}

static int encoder_clear(Encoder *self)
{
    Py_CLEAR(self->head_of);
    Py_CLEAR(self->otherwise);
    return 0;
}

static void encoder_dealloc(Encoder *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    encoder_clear(self);
    Py_CLEAR(self->plan);
    Py_CLEAR(self->encoded);
    Py_CLEAR(self->heads);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef encoder_methods[] = {
    {"encode", (PyCFunction)(void (*)(void))encoder_encode, METH_FASTCALL, encode_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot encoder_slots[] = {
    {Py_tp_doc, "TradeEncoder(plan, encoded, fields, shared, symbol, head_of, otherwise): trades "
                "to records."},
    {Py_tp_new, encoder_new},
    {Py_tp_traverse, encoder_traverse},
    {Py_tp_clear, encoder_clear},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_methods, encoder_methods},
    {0, NULL},
};

static PyType_Spec encoder_spec = {
    .name = "feedmono.native._native.TradeEncoder",
    .basicsize = sizeof(Encoder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = encoder_slots,
};

int feedmono_add_records(PyObject *module)
{
    return add_type(module, &encoder_spec, "TradeEncoder", &encoder_type);
}
