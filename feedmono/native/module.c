/* The extension module feedmono.native._native: the hot loops of the other files. */

#include "parts.h"

static int
add_parts(PyObject *module)
{
    if (feedmono_add_frames(module) < 0)
        return -1;
    if (feedmono_add_trades(module) < 0)
        return -1;
    if (feedmono_add_fast_path(module) < 0)
        return -1;
    return feedmono_add_kafka(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_parts},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "feedmono.native._native",
    .m_doc = "The hot loops in C; each has a twin in Python that gives the same results.",
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
