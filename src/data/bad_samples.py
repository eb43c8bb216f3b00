"""Training samples that cannot be read, where the configuration lets a run go on without them."""

import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from src.data.reading import Item, read_item


class BadSamples:
    """The bad items of a training split, each named once, up to a budget.

    The threads that read ahead add to it, the training loop asks for what is new.

    Args:
        items: of the split; an item is known by its index in them.
        table: value in a label file -> class id.
        budget: how many items may be bad (`data.max_bad_samples`).
        known: names of items that were found bad, and told, before the run was interrupted.
    """

    def __init__(self, items: Sequence[Item], table: dict[int, int], budget: int, known: Iterable[str] = ()) -> None:
        self.items, self.table, self.budget = items, table, budget
        names = set(known)
        self.reasons = {i: "found before" for i, item in enumerate(items) if item.name in names} if names else {}
        self.told = set(self.reasons)
        self.lock = threading.Lock()

    def add(self, index: int, reason: str) -> None:
        """Notes a bad item; ValueError that lists all of them once there are more than the budget allows."""
        with self.lock:
            self.reasons.setdefault(index, reason)
            if len(self.reasons) <= self.budget:
                return
            listed = "\n  ".join(f"{self.items[i].name}: {reason}" for i, reason in self.reasons.items())
        raise ValueError(
            f"{len(self.reasons)} training samples cannot be read, data.max_bad_samples allows {self.budget}; mend or "
            f"remove them, or raise data.max_bad_samples:\n  {listed}"
        )

    def take_new(self) -> list[dict[str, str]]:
        """`name` and `reason` of the items that were noted since the last call."""
        with self.lock:
            fresh = [index for index in self.reasons if index not in self.told]
            self.told.update(fresh)
            return [{"name": self.items[i].name, "reason": self.reasons[i]} for i in fresh]

    def merge(self, all_reduce: Callable[[np.ndarray], np.ndarray]) -> None:
        """Adds what the other devices have found. all_reduce: int64 array (N,) -> its sum over devices."""
        found = np.zeros(len(self.items), np.int64)
        with self.lock:
            found[list(self.reasons)] = 1
        for index in np.flatnonzero(all_reduce(found)).tolist():
            if index not in self.reasons:
                self.add(index, self.explain(index))

    def explain(self, index: int) -> str:
        """What reading an item says, here, that another device could not read."""
        try:
            read_item(self.items[index], self.table)
        except (ValueError, OSError) as error:
            return str(error)
        return "unreadable for another device only; compare the copies of the data"

    @property
    def names(self) -> list[str]:
        """All bad items."""
        with self.lock:
            return sorted(self.items[index].name for index in self.reasons)
