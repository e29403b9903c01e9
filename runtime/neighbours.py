"""The neighbours of a model that ends in a kNN: taking labelled windows on the device, giving up, condensing.

It owns no vector: the store is the model's, and goes with it when a swap replaces the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from tinylcm._ext.engine import Guard

from .errors import ConfigError, InputError
from .loading import LoadedModel

if TYPE_CHECKING:
    from .backends.knn import KNNBackend


class Neighbours:
    """The store of a pipeline's kNN; each call waits for the prediction that runs, and none runs meanwhile.

    Args:
        model: gives the model in use.
        lock: of its pipeline.
    """

    def __init__(self, model: Callable[[], LoadedModel], lock: Guard) -> None:
        self._model, self._lock = model, lock

    def _head(self) -> tuple[LoadedModel, KNNBackend]:
        """The model in use and its kNN; the caller holds the lock."""
        model = self._model()
        head = model.knn
        if head is None:
            raise ConfigError(f"model {model.manifest.name} does not end in a kNN: it has no neighbours")
        return model, head

    def add(self, window: object, label: str) -> int:
        """Take a window as a neighbour of this label; a full store gives one up for it.

        Args:
            window: as `Pipeline.infer` takes it; the stages before the kNN make its vector.
            label: one of the model's.

        Returns:
            Its index.

        Raises:
            ConfigError: the model ends in no kNN, or keeps state, which the window would change.
            InputError: the window does not fit, or there is no such label; nothing was changed.
            ModelError: a stage before the kNN failed on it.
        """
        with self._lock:
            model, head = self._head()
            if model.stateful:
                raise ConfigError(
                    f"model {model.manifest.name} keeps state between windows: a window alone says nothing"
                )
            if label not in model.manifest.labels:
                raise InputError(f"label {label!r} is not one of {', '.join(model.manifest.labels)}")
            model.engine.load(window)
            model.backend.run()
            return int(head.knn.add(head.inputs[0].array[0], model.manifest.labels.index(label)))

    def remove(self, index: int) -> None:
        """Forget one; the last one takes its index.

        Raises:
            InputError: there is none, or it is the last there is.
        """
        with self._lock:
            _, head = self._head()
            if head.knn.size == 1:
                raise InputError("the last neighbour stays: without one there is no prediction")
            head.knn.remove(index)

    def evict(self, count: int = 1) -> int:
        """Give up the oldest ones of the label that has most, one after another, but for the last; how many."""
        with self._lock:
            _, head = self._head()
            return int(head.knn.evict(max(0, min(count, head.knn.size - 1))))

    def condense(self, size: int, method: str = "centres") -> int:
        """Keep so many; how many were given up.

        Args:
            method: `centres` keeps those that cover the others best, label by label in proportion; `balanced` the
                newest of each label in turn.

        Raises:
            ConfigError: a size below 1, or another method.
        """
        with self._lock:
            _, head = self._head()
            return int(head.knn.condense(size, method))

    def counts(self) -> dict[str, int]:
        """Neighbours of each label."""
        with self._lock:
            model, head = self._head()
            found = Counter(head.knn.labels())
        return {label: found[index] for index, label in enumerate(model.manifest.labels)}

    def to_file(self) -> bytes:
        """The kNN with what it holds now, as the `.npz` of a package."""
        with self._lock:
            _, head = self._head()
            return head.to_file()

    def __len__(self) -> int:
        with self._lock:
            return int(self._head()[1].knn.size)

    @property
    def capacity(self) -> int:
        """Most that it can hold."""
        with self._lock:
            return int(self._head()[1].knn.capacity)
