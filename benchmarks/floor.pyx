"""The floor: what calling an empty compiled method with one double costs."""


cdef class Floor:
    def update(self, double x):
        pass
