/* What fast_path.c, batch.c and known.c share: the types of the usual way of a trade, and how its
   trades are entered into what is known of their symbols. */

#ifndef FEEDMONO_NATIVE_FAST_PATH_H
#define FEEDMONO_NATIVE_FAST_PATH_H

#include "batch.h"

#define MAX_BUCKETS 64

/* Counts durations: the words of feedmono/counters.py, which other processes read. */
typedef struct {
    Py_buffer view;
    int buckets;
} Durations;

typedef struct {
    PyObject_HEAD
    PyObject *reader;
    PyObject *encoder;
    PyTypeObject *frame;
    PyTypeObject *entry;
    PyTypeObject *encoded;
    PyTypeObject *taken;
    PyObject *stream;
    PyObject *no_cause;
    PyObject *nothing;
    int symbol; /* fields of a trade */
    int trade_id;
    int time;
    int bounds;
    int64_t bound_us[MAX_BUCKETS];
    Durations receive;
    Durations delivery;
    /* The names of attributes of Ids. */
    PyObject *epoch_us, *islands, *last, *last_id, *newest_us, *sequence, *strays;
    struct Take *scratch; /* of fast_path.c */
    size_t usual_bytes; /* about what the last batch took */
} FastPath;

typedef struct {
    PyObject_HEAD
    FastPath *path;
    Arena *arena;
    PyObject *symbols; /* list: by key */
    PyObject *lasts;   /* list: the trade with the last id, by key */
    size_t begin;      /* of its records in the arena */
    size_t end;
    int64_t least_latency_us;
} Batch;

/* What is known of a symbol while its trades are entered. */
typedef struct {
    PyObject *ids;    /* NULL: it is none of the usual ones */
    PyObject *strays; /* NULL: there are none */
    int64_t last_id;
    int64_t epoch_us;
    int64_t newest_us;
    size_t record; /* of the last trade entered */
    size_t deal;
    int entered;
} Known;

/* Adds the type of batch.c to the module; -1 and an exception if it can't. */
int feedmono_add_batches(PyObject *module);
/* An empty one, which is given away. NULL and an exception if there is no memory. */
Batch *feedmono_new_batch(void);

/* Of known.c. */

/* Looks up what is known of a symbol. It is left empty if that is not the usual; -1 and an
   exception if it can't be told. */
int feedmono_know(const FastPath *self, PyObject *symbols, PyObject *symbol, Known *known);
/* Lets go of it. */
void feedmono_forget(Known *known, size_t count);
/* Whether a trade simply continues its symbol's range: 1 or 0, or -1 and an exception. */
int feedmono_is_next(const Known *known, int64_t trade_id, int64_t time_us);
/* Enters a trade, of that number; `before` gets what to `feedmono_take_back`. */
void feedmono_enter(Known *known, const Deal *deal, size_t record, size_t at, Known *before);
/* Takes back what was entered of these trades. */
void feedmono_take_back(Known *known, const Arena *arena, size_t first, size_t behind,
                        const Known *before);
/* The trade of that place as the object that stands for it: read anew out of its frame. */
PyObject *feedmono_trade_at(const FastPath *self, const Arena *arena, size_t record, size_t deal);
/* Writes what was entered into the symbols' Ids; 0, or -1 and an exception. The last trades that are
   not those of the arena's keys, which `lasts` has, are made anew. */
int feedmono_write_back(const FastPath *self, const Arena *arena, const Known *known,
                        PyObject *lasts);
/* Counts a duration, as `Counters.observe_all` does: the buckets, and behind them the sum. */
void feedmono_observe(const FastPath *self, const Durations *durations, int64_t us);

#endif
