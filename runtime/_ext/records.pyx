"""Reading the records of a sync: what has the usual form without a call of Python's a record, and the rest not at all.

What is usual: dicts with text keys, a type that this reader has read before, a short plain boot, whole numbers within
bounds, a payload that is JSON as it is. Anything else is for `tinylcm.wire.record_from_json`, which says what is wrong
with it.
"""

from cpython.dict cimport PyDict_GetItem
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport PyObject

cimport cython

from .jsonable cimport json_size

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    Py_UCS4 PyUnicode_READ_CHAR(object text, Py_ssize_t index)
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1

cdef enum:
    EPOCH_CHARACTERS = 16
    WORD_CHARACTERS_MAX = 200


cdef inline object _of(dict record, str key):
    """A field, or None."""
    cdef PyObject* found = PyDict_GetItem(record, key)
    return None if found is NULL else <object>found


cdef long long _whole(object value, long long low) except -2:
    """A whole number of at least `low`, which is 0 or more; -1 for anything else."""
    cdef int overflow = 0
    cdef long long number
    if type(value) is not int:
        return -1
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    return -1 if overflow or number < low else number


cdef bint _is_epoch(object value) except -1:
    cdef Py_ssize_t i
    cdef Py_UCS4 character
    if type(value) is not str or PyUnicode_GET_LENGTH(value) != EPOCH_CHARACTERS:
        return False
    for i in range(EPOCH_CHARACTERS):
        character = PyUnicode_READ_CHAR(value, i)
        if not (c"0" <= character <= c"9" or c"a" <= character <= c"f"):
            return False
    return True


cdef bint _is_word(object value) except -1:
    """A short text without characters that need a closer look."""
    cdef Py_ssize_t i
    if type(value) is not str or not PyUnicode_IS_ASCII(value) or PyUnicode_GET_LENGTH(value) > WORD_CHARACTERS_MAX:
        return False
    for i in range(PyUnicode_GET_LENGTH(value)):
        if PyUnicode_READ_CHAR(value, i) == 0:
            return False
    return True


def record_id(value):
    """The id (epoch, seq) of a record that may be bad otherwise, so that it can be settled; None when it has none."""
    if type(value) is not dict:
        return None
    epoch, seq = _of(<dict>value, "epoch"), _of(<dict>value, "seq")
    if not _is_epoch(epoch) or _whole(seq, 1) < 0:
        return None
    return epoch, seq


def with_ids(list records not None):
    """Those of some records that have an id, as `((epoch, seq), record)` in their order; and the epochs among them."""
    cdef list named = []
    cdef set epochs = set()
    cdef object last = None
    for record in records:
        identity = record_id(record)
        if identity is None:
            continue
        named.append((identity, record))
        epoch = (<tuple>identity)[0]
        if epoch is not last:
            epochs.add(epoch)
            last = epoch
    return named, epochs


@cython.final
cdef class RecordReader:
    """Reads the records of some requests, which name the same few types again and again.

    A type that was read once need not be checked again; whatever looks unusual is left to `slowly`, so both take and
    refuse the same.

    Args:
        slowly: reads a record and gives its type, boot, time since boot and payload, or says what is wrong with it.
        depth_max: lists and dicts within each other in a payload.
        bytes_max: of a payload's JSON.
    """

    cdef object _slowly
    cdef int _depth_max
    cdef Py_ssize_t _bytes_max
    cdef set _types

    def __init__(self, slowly, int depth_max, Py_ssize_t bytes_max):
        self._slowly, self._depth_max, self._bytes_max = slowly, depth_max, bytes_max
        self._types = set()

    cdef bint _is_usual(self, object value) except -1:
        cdef Py_ssize_t size
        if type(value) is not dict:
            return False
        kind, boot, payload = _of(<dict>value, "type"), _of(<dict>value, "boot"), _of(<dict>value, "payload")
        if type(kind) is not str or kind not in self._types or not _is_word(boot):
            return False
        if _whole(_of(<dict>value, "boot_ns"), 0) < 0 or type(payload) is not dict:
            return False
        size = json_size(payload, self._depth_max)
        return 0 <= size <= self._bytes_max

    def read(self, value):
        """The type, boot, time since boot and payload of a record whose id was read already.

        Raises:
            WireError: what is wrong with it, for the answer's `refused`.
        """
        if self._is_usual(value):
            return (
                _of(<dict>value, "type"), _of(<dict>value, "boot"), _of(<dict>value, "boot_ns"),
                _of(<dict>value, "payload"),
            )
        found = self._slowly(value)
        self._types.add(found[0])
        return found

    def rows(self, list named not None, Py_ssize_t start, long long last, str device not None, str stream not None,
             special, str boot not None, long long anchor_ns, double anchor_s, double now_s, encode,
             list rows not None):
        """Make rows of what follows without a hole and has the usual form; stops at the first that has not.

        Args:
            named: see `with_ids`.
            start: the first to look at; the one before has said which epoch it is.
            last: the seq that was settled last.
            device, stream: of the rows.
            special: types that mean something beside being stored.
            boot, anchor_ns, anchor_s: the boot whose times are known, by one moment on both clocks.
            now_s: when they came.
            encode: makes JSON of a payload.
            rows: takes (device, stream, epoch, seq, type, boot, boot_ns, at, now_s, payload) of each.

        Returns:
            Where it stopped.
        """
        cdef Py_ssize_t place = start, count = PyList_GET_SIZE(named)
        cdef tuple identity
        cdef long long boot_ns
        if start < 1 or start >= count:
            return place
        epoch = (<tuple>(<tuple>named[start - 1])[0])[0]
        while place < count:
            pair = <tuple>PyList_GET_ITEM(named, place)
            identity = <tuple>(<tuple>pair)[0]
            record = (<tuple>pair)[1]
            if (identity[0] is not epoch and identity[0] != epoch) or <long long>identity[1] != last + 1:
                break
            if not self._is_usual(record):
                break
            kind, its_boot = _of(<dict>record, "type"), _of(<dict>record, "boot")
            if kind in special or (its_boot is not boot and its_boot != boot):
                break
            whole = _of(<dict>record, "boot_ns")
            boot_ns = whole
            text = (<bytes>encode(_of(<dict>record, "payload"))).decode("utf-8")
            rows.append((
                device, stream, epoch, identity[1], kind, its_boot, whole,
                anchor_s - <double>(anchor_ns - boot_ns) / 1e9, now_s, text,
            ))
            last += 1
            place += 1
        return place
