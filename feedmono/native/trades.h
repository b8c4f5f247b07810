/* What trades.c, records.c and fast_path.c share.

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

static inline int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Behind the decimal number without sign and exponent that begins at p; NULL if none does. What
   may not follow a number (a second digit behind a leading zero, a second point) is the
   caller's to see. The text ends with a byte that is neither digit nor point. */
static inline const char *skip_decimal(const char *p)
{
    if (*p == '0')
        p++;
    else if (is_digit(*p))
        while (is_digit(*p))
            p++;
    else
        return NULL;
    if (*p != '.')
        return p;
    if (!is_digit(*++p))
        return NULL;
    while (is_digit(*p))
        p++;
    return p;
}

static inline int add_type(PyObject *module, PyType_Spec *spec, const char *name)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL)
        return -1;
    int added = PyModule_AddObjectRef(module, name, type);
    Py_DECREF(type);
    return added;
}

#endif
