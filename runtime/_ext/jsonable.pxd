cdef Py_ssize_t json_size(object value, int depth) except -2
