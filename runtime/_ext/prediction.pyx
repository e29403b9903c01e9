"""A prediction as one compact object: what costs something (its id, its tuple of scores) is made when asked for."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.math cimport NAN, isnan
from libc.string cimport memcpy

cimport cython

FIELDS = (
    "id", "label", "confidence", "scores", "latency_us", "drift", "model", "version", "variant", "first_sample",
    "last_sample", "start_s", "end_s", "filled", "event", "timing",
)


@cython.final
@cython.freelist(16)
cdef class Prediction:
    """What a model says of one window.

    Attributes:
        id: unique for this device, for `Device.label`.
        label: the class that was decided for; `postprocess.reject` when none is sure enough.
        confidence: the greatest score after smoothing, 0 to 1 for models that give probabilities.
        scores: one score a label, in the order of the labels, after activation and smoothing.
        latency_us: the whole of `infer`, checks and monitors included, in microseconds.
        timing: its parts, in microseconds: `load` (checks, steps before the model, quantisation), `run` (the model),
            `post` (scores, smoothing, decision) and `monitors`.
        drift: alarms raised at this window, a tuple, empty when there is none.
        model, version: what predicted; version is empty for a plain model file.
        variant: of an experiment; empty outside of one.
        first_sample, last_sample: the window's place in the stream, counted from 0; -1 outside of a stream.
        start_s, end_s: the times of these two samples, where samples carry time; else NaN.
        filled: samples of the window that did not come and were held, interpolated or marked.
        event: the label has just been decided for, outside of the refractory period.
        outputs: further outputs that the manifest asks for, name to array; None without.
        stages_us: what each stage of a chain took, in microseconds; None for a single model.
    """

    def __init__(self, id, label, double confidence, scores, double latency_us, drift=(), model="", version="",
                 variant="", long long first_sample=-1, long long last_sample=-1, double start_s=NAN,
                 double end_s=NAN, long long filled=0, bint event=False, timing=None, labels=(), outputs=None):
        self._id = id
        self.label = label
        self.confidence = confidence
        self._scores = tuple(scores)
        self.latency_us = latency_us
        self.drift = tuple(drift)
        self.model = model
        self.version = version
        self.variant = variant
        self.first_sample = first_sample
        self.last_sample = last_sample
        self.start_s = start_s
        self.end_s = end_s
        self.filled = filled
        self.event = event
        self._labels = tuple(labels)
        self.outputs = outputs
        parts = timing or {}
        self.load_us = parts.get("load", 0.0)
        self.run_us = parts.get("run", 0.0)
        self.post_us = parts.get("post", 0.0)
        self.monitors_us = parts.get("monitors", 0.0)

    def __dealloc__(self):
        PyMem_Free(self._values)

    cdef int _keep(self, const float* scores, Py_ssize_t count) except -1:
        self._values = <float*>PyMem_Malloc(<size_t>count * sizeof(float))
        if self._values is NULL:
            raise MemoryError("no memory for a prediction's scores")
        memcpy(self._values, scores, <size_t>count * sizeof(float))
        self._count = count
        return 0

    @property
    def id(self):
        if self._id is None:
            self._id = f"{self._session}-{self._number}"
        return self._id

    @property
    def scores(self):
        cdef Py_ssize_t i
        if self._scores is None:
            self._scores = tuple([self._values[i] for i in range(self._count)])
        return self._scores

    @property
    def timing(self):
        return {"load": self.load_us, "run": self.run_us, "post": self.post_us, "monitors": self.monitors_us}

    def top(self, k=5):
        """The k labels with the greatest scores, best first: `[(label, score), ...]`.

        Labels are their numbers where the prediction was made without.
        """
        ranked = sorted(enumerate(self.scores), key=lambda item: -item[1])[:k]
        return [(self._labels[i] if i < len(self._labels) else str(i), score) for i, score in ranked]

    def to_dict(self):
        """The fields by name, without the outputs; a time that is not known is None."""
        values = {name: getattr(self, name) for name in FIELDS}
        for name in ("start_s", "end_s"):
            if isnan(values[name]):
                values[name] = None
        return values

    def __eq__(self, other):
        if not isinstance(other, Prediction):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self):
        return hash(self.id)

    def __repr__(self):
        return (
            f"Prediction(id={self.id!r}, label={self.label!r}, confidence={self.confidence:.4g}, "
            f"latency_us={self.latency_us:.1f}, drift={self.drift!r}, model={self.model!r}, version={self.version!r})"
        )

    def __reduce__(self):
        values = [getattr(self, name) for name in FIELDS]
        return Prediction, (*values, self._labels, self.outputs)
