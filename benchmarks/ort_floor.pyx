"""ONNX Runtime through its C interface, with no Python in between: the floor of every way to call it.

The library is the one inside the wheel, opened by its path. Its table of functions only ever grows at the end, so that
a place in it means the same in every version; the places below are of its first versions.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t

cdef extern from "<dlfcn.h>" nogil:
    void* dlopen(const char* path, int mode)
    void* dlsym(void* library, const char* name)
    int RTLD_NOW

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* now)
    int CLOCK_MONOTONIC

ctypedef const void* (*GetApi)(unsigned int version) noexcept nogil
ctypedef const char* (*GetVersion)() noexcept nogil
ctypedef const char* (*Message)(const void* status) noexcept nogil
ctypedef void* (*MakeEnv)(int level, const char* name, void** env) noexcept nogil
ctypedef void* (*MakeOptions)(void** options) noexcept nogil
ctypedef void* (*SetThreads)(void* options, int threads) noexcept nogil
ctypedef void* (*MakeSession)(void* env, const void* model, size_t size, void* options, void** session) noexcept nogil
ctypedef void* (*MakeMemory)(int kind, int type, void** info) noexcept nogil
ctypedef void* (*MakeTensor)(void* info, void* data, size_t size, const int64_t* shape, size_t axes, int type,
                             void** value) noexcept nogil
ctypedef void* (*Run)(void* session, void* options, const char** inputs, const void** values, size_t count,
                      const char** outputs, size_t wanted, void** results) noexcept nogil
ctypedef void (*Release)(void* object) noexcept nogil

cdef struct Base:
    GetApi get_api
    GetVersion get_version

cdef enum:  # places in the table
    MESSAGE = 2
    CREATE_ENV = 3
    CREATE_SESSION = 8
    RUN = 9
    CREATE_OPTIONS = 10
    INTRA_OP_THREADS = 24
    INTER_OP_THREADS = 25
    CREATE_TENSOR = 49
    CREATE_CPU_MEMORY = 69
    RELEASE_SESSION = 95
    RELEASE_VALUE = 96
    API_VERSION = 11
    FLOAT32 = 1


cdef class Session:
    """One input and one output of float32, bound to arrays."""

    cdef void** api
    cdef void* env
    cdef void* session
    cdef void* given
    cdef void* result
    cdef bytes input_name, output_name
    cdef const char* input_text
    cdef const char* output_text
    cdef Py_buffer input_view, output_view
    cdef bint held

    def __init__(self, str library, bytes model, str input_name, input_array, str output_name, output_array):
        cdef void* options = NULL
        cdef void* memory = NULL
        cdef void* handle
        cdef void* symbol
        handle = dlopen(library.encode(), RTLD_NOW)
        symbol = dlsym(handle, b"OrtGetApiBase") if handle != NULL else NULL
        if symbol == NULL:
            raise OSError(f"{library} has no OrtGetApiBase")
        self.api = <void**>(<Base* (*)() noexcept nogil>symbol)().get_api(API_VERSION)
        if self.api == NULL:
            raise OSError(f"{library} does not serve version {API_VERSION} of its interface")
        self.check((<MakeEnv>self.api[CREATE_ENV])(4, b"floor", &self.env))
        self.check((<MakeOptions>self.api[CREATE_OPTIONS])(&options))
        self.check((<SetThreads>self.api[INTRA_OP_THREADS])(options, 1))
        self.check((<SetThreads>self.api[INTER_OP_THREADS])(options, 1))
        self.check(
            (<MakeSession>self.api[CREATE_SESSION])(self.env, <const char*>model, len(model), options, &self.session)
        )
        self.check((<MakeMemory>self.api[CREATE_CPU_MEMORY])(1, 0, &memory))
        PyObject_GetBuffer(input_array, &self.input_view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        PyObject_GetBuffer(output_array, &self.output_view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        self.held = True
        self.given = self.tensor(memory, &self.input_view)
        self.result = self.tensor(memory, &self.output_view)
        self.input_name, self.output_name = input_name.encode(), output_name.encode()
        self.input_text, self.output_text = self.input_name, self.output_name

    def __dealloc__(self):
        if self.given != NULL:
            (<Release>self.api[RELEASE_VALUE])(self.given)
        if self.result != NULL:
            (<Release>self.api[RELEASE_VALUE])(self.result)
        if self.session != NULL:
            (<Release>self.api[RELEASE_SESSION])(self.session)
        if self.held:
            PyBuffer_Release(&self.input_view)
            PyBuffer_Release(&self.output_view)

    cdef int check(self, void* status) except -1:
        if status != NULL:
            raise RuntimeError((<Message>self.api[MESSAGE])(status).decode())
        return 0

    cdef void* tensor(self, void* memory, Py_buffer* view) except NULL:
        cdef int64_t[8] shape
        cdef void* value = NULL
        cdef int axis
        for axis in range(view.ndim):
            shape[axis] = view.shape[axis]
        self.check(
            (<MakeTensor>self.api[CREATE_TENSOR])(
                memory, view.buf, <size_t>view.len, shape, <size_t>view.ndim, FLOAT32, &value
            )
        )
        return value

    cdef inline void* once(self) noexcept nogil:
        cdef const void* given = self.given
        return (<Run>self.api[RUN])(
            self.session, NULL, &self.input_text, &given, 1, &self.output_text, 1, &self.result
        )

    def run(self):
        """Once, called from Python."""
        self.check(self.once())

    def loop_us(self, int count):
        """Microseconds a call of a loop in C."""
        cdef timespec start, end
        cdef int i
        cdef void* status = NULL
        with nogil:
            clock_gettime(CLOCK_MONOTONIC, &start)
            for i in range(count):
                status = self.once()
                if status != NULL:
                    break
            clock_gettime(CLOCK_MONOTONIC, &end)
        self.check(status)
        return ((end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec)) / 1e3 / count
