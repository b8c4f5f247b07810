/* What trades.c, records.c and the usual way of a trade share.

   Each has a type with a twin in Python, whose result is the same for the same input. Each does
   what looks exactly as always, and hands anything unusual, whole, to its twin, which decides
   what it is worth and says what is wrong with it. So nothing there needs to explain an error, and
   a function that gives up only says so; it has set an exception only if there is no memory. */

#ifndef FEEDMONO_NATIVE_TRADES_H
#define FEEDMONO_NATIVE_TRADES_H

#include "parts.h"
#include <stdint.h>
#include <string.h>

#define MAX_TRADE_FIELDS 16
#define MAX_ROWS 256
#define MAX_RECORD_BYTES 2048

/* The value of one field of a trade. A trade is an array of them, without any object made. */
typedef struct {
    enum { NOTHING, TEXT, NUMBER, OBJECT } kind;
    Py_ssize_t size;
    union {
        const char *text; /* ASCII; lives as long as the frame or the object that it is of */
        int64_t number;
        PyObject *object; /* borrowed */
    } is;
} Cell;

/* What a frame holds. */
typedef struct {
    PyObject *origin; /* borrowed */
    int count;
    Cell cells[MAX_ROWS][MAX_TRADE_FIELDS];
} Rows;

/* A record being written. */
typedef struct {
    int size;
    char bytes[MAX_RECORD_BYTES];
} Body;

/* Of trades.c. Each takes a TradeReader. */

int feedmono_is_reader(PyObject *object);
/* What a frame holds, which is followed by a NUL; NULL, without an exception, if it is not the
   usual one. Good until the next call. */
const Rows *feedmono_read_rows(PyObject *reader, const char *frame, Py_ssize_t size);
/* A trade of those read last as the object that stands for it. A new reference. */
PyObject *feedmono_new_trade(PyObject *reader, const Cell *cells);
/* A symbol's text, the same object each time as long as its place is not taken by another. A new
   reference. */
PyObject *feedmono_symbol_text(PyObject *reader, const char *text, Py_ssize_t size);

/* Of records.c. Each takes a TradeEncoder. */

int feedmono_is_encoder(PyObject *object);
/* The bytes object that records of a symbol begin with, whose canonical name this is. A new
   reference; NULL, perhaps with an exception. */
PyObject *feedmono_head_for(PyObject *encoder, PyObject *symbol, PyObject *name);
/* Writes a trade's record; 0 if the encoder in Python is to see to it.

   `shared` holds what the trades of a frame share, in the order of feedmono/avro.py. */
int feedmono_encode(PyObject *encoder, const Cell *cells, PyObject *head, const int64_t *shared,
                    Body *body);

/* Adds the type of records.c to the module; -1 and an exception if it can't. */
int feedmono_add_records(PyObject *module);

/* A new instance of a subclass of tuple (a NamedTuple), its items still to be set. What it will
   hold are texts, numbers and tuples of such, of which no cycle can be made: the garbage
   collector need not look at it. NULL and MemoryError if there is no memory. */
static inline PyObject *new_tuple(PyTypeObject *type, Py_ssize_t size)
{
    PyObject *made = type->tp_alloc(type, size);
    if (made != NULL && PyObject_GC_IsTracked(made))
        PyObject_GC_UnTrack(made);
    return made;
}

/* Whether `new_tuple` can make instances of this type. */
static inline int is_tuple_type(PyObject *type)
{
    return PyType_Check(type) && PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type)
        && ((PyTypeObject *)type)->tp_basicsize == PyTuple_Type.tp_basicsize;
}

/* Which of `count` names this is; -1 and ValueError if it is none of them. */
static inline int index_of(const char *name, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return (int)i;
    PyErr_Format(PyExc_ValueError, "%s is not known here", name);
    return -1;
}

/* Whether it is a whole number of 64 bits, and which. */
static inline int integer_of(PyObject *object, int64_t *value)
{
    int overflow;
    if (!PyLong_CheckExact(object))
        return 0;
    *value = PyLong_AsLongLongAndOverflow(object, &overflow);
    return !overflow;
}

/* Makes a type, adds it to the module and keeps it in `*type`; -1 and an exception if it can't. */
static inline int add_type(PyObject *module, PyType_Spec *spec, const char *name,
                           PyTypeObject **type)
{
    PyObject *made = PyType_FromModuleAndSpec(module, spec, NULL);
    if (made == NULL)
        return -1;
    Py_XSETREF(*type, (PyTypeObject *)made);
    return PyModule_AddObjectRef(module, name, made);
}

#endif
