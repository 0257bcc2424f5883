# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The strings of a vocabulary: found in a file, decoded and checked without a step of the interpreter for each."""

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

import numpy as np


def walk_strings(const uint8_t[::1] data not None, int64_t position, int64_t count) -> tuple:
    """Find `count` strings, each after its length as a little-endian u64, from `position` on.

    Returns (starts int64 [count + 1], the end of the last): string i is data[starts[i] : starts[i + 1] - 8].
    ValueError with the index of the string that leaves the data.
    """
    cdef int64_t size = data.shape[0], i, wrong = -1
    cdef uint64_t length
    cdef int byte
    if not 0 <= position <= size or count < 0:
        raise ValueError(0)
    cdef int64_t possible = min(count, (size - position) // 8)
    starts = np.empty(possible + 1, np.int64)
    cdef int64_t[::1] at = starts
    with nogil:
        for i in range(possible):
            if size - position < 8:
                wrong = i
                break
            length = 0
            for byte in range(8):
                length |= <uint64_t>data[position + byte] << (8 * byte)
            position += 8
            at[i] = position
            if length > <uint64_t>(size - position):
                wrong = i
                break
            position += <int64_t>length
    if wrong >= 0 or possible < count:
        raise ValueError(wrong if wrong >= 0 else possible)
    at[count] = position + 8
    return starts, position


def decode_strings(const uint8_t[::1] data not None, const int64_t[::1] starts not None, int64_t first, int64_t last) -> list:
    """Return strings first to last - 1 of what `walk_strings` found in the same data; UnicodeDecodeError for other than UTF-8."""
    cdef int64_t i
    if not 0 <= first <= last < starts.shape[0] or starts[last] - 8 > data.shape[0]:
        raise IndexError(f"strings {first} to {last} of {starts.shape[0] - 1}")
    cdef list texts = []
    cdef const char *base = <const char *>&data[0]
    for i in range(first, last):
        texts.append(PyUnicode_DecodeUTF8(base + starts[i], starts[i + 1] - 8 - starts[i], NULL))
    return texts


def as_strings(texts) -> tuple:
    """Lay strings out as `walk_strings` finds them in a file: (data uint8, starts int64 [count + 1])."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.array([len(text) + 8 for text in encoded], np.int64)
    starts = np.full(len(encoded) + 1, 8, np.int64)
    np.cumsum(lengths, out=starts[1:])
    starts[1:] += 8
    return np.frombuffer(b"".join([b"\0" * 8 + text for text in encoded]) + b"\0", np.uint8), starts


# A file is free to choose strings that meet in a table of hashes; it is refused where honest ones never come close.
cdef enum:
    PROBES = 256


cdef inline uint64_t hash_of(const uint8_t *p, int64_t n) noexcept nogil:
    cdef uint64_t h = 0x9E3779B97F4A7C15u ^ <uint64_t>n
    cdef int64_t i
    for i in range(n):
        h = (h ^ p[i]) * 0x100000001B3u
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u
    return h ^ h >> 32


cdef inline uint64_t hash_of_pair(uint64_t pair) noexcept nogil:
    pair = (pair ^ pair >> 32) * 0xD6E8FEB86659FD93u
    pair = (pair ^ pair >> 32) * 0xD6E8FEB86659FD93u
    return pair ^ pair >> 32


cdef int64_t table_size(int64_t entries) noexcept:
    cdef int64_t size = 16
    while size < 2 * entries + 2:
        size *= 2
    return size


cdef class Bpe:
    """Byte-pair encoding by ranked merges.

    tokens, merges: (data uint8, starts int64 [count + 1]) as of `walk_strings`; merges are written "left right", best first.
    usable: uint8 [tokens], non-zero for the tokens that text may become. Of equal tokens, or merges, the last counts.
    ValueError with the index of a merge that is not two usable tokens that make a third; OverflowError for strings that
    are made to be hard to tell apart.
    """

    cdef const uint8_t[::1] data
    cdef const int64_t[::1] starts
    cdef int32_t[::1] slots      # hash of a token -> its id, or -1
    cdef int64_t[:, ::1] pairs   # hash of (left, right) -> left << 32 | right or -1, rank << 32 | id of the result
    cdef int32_t[::1] scratch    # ids, next and previous symbols of one word
    cdef uint64_t[::1] heap

    def __init__(self, tokens, const uint8_t[::1] usable not None, merges):
        self.data, self.starts = tokens
        cdef const uint8_t[::1] texts = merges[0]
        cdef const int64_t[::1] at = merges[1]
        cdef int64_t n = self.starts.shape[0] - 1, n_merges = at.shape[0] - 1, i = 0, wrong = -1
        check_strings(self.data, self.starts)
        check_strings(texts, at)
        if usable.shape[0] != n or n > 2**31 - 1 or n_merges > 2**31 - 1:
            raise TypeError("tokens and their usability are of unequal length, or too many")
        self.slots = np.full(table_size(n), -1, np.int32)
        self.pairs = np.full((table_size(n_merges), 2), -1, np.int64)
        self.scratch, self.heap = np.empty(0, np.int32), np.empty(0, np.uint64)
        with nogil:
            for i in range(n):
                if usable[i] and not self.add_token(<int32_t>i):
                    break
            else:
                for i in range(n_merges):
                    wrong = self.add_merge(&texts[0] + at[i], at[i + 1] - 8 - at[i], i)
                    if wrong:
                        break
                else:
                    i = -1
        if i >= 0 and wrong == 1:
            raise ValueError(i)
        if i >= 0:
            raise OverflowError(f"{PROBES} strings have similar hashes")

    cdef int add_token(self, int32_t token) noexcept nogil:
        cdef const uint8_t *p = &self.data[0] + self.starts[token]
        cdef int64_t length = self.starts[token + 1] - 8 - self.starts[token], slot = self.slot_of(p, length)
        if slot < 0:
            return 0
        self.slots[slot] = token
        return 1

    cdef int64_t slot_of(self, const uint8_t *p, int64_t length) noexcept nogil:
        """Where a token is, or belongs; -1 when too many others are in the way."""
        cdef int64_t mask = self.slots.shape[0] - 1, slot = <int64_t>(hash_of(p, length) & <uint64_t>mask), start, probe
        for probe in range(PROBES):
            if self.slots[slot] < 0:
                return slot
            start = self.starts[self.slots[slot]]
            if self.starts[self.slots[slot] + 1] - 8 - start == length and not memcmp(&self.data[0] + start, p, length):
                return slot
            slot = (slot + 1) & mask
        return -1

    cdef int32_t find(self, const uint8_t *p, int64_t length) noexcept nogil:
        cdef int64_t slot = self.slot_of(p, length)
        return self.slots[slot] if slot >= 0 else -1

    cdef int64_t pair_slot(self, int64_t pair) noexcept nogil:
        cdef int64_t mask = self.pairs.shape[0] - 1, slot = <int64_t>(hash_of_pair(<uint64_t>pair) & <uint64_t>mask), probe
        for probe in range(PROBES):
            if self.pairs[slot, 0] in (-1, pair):
                return slot
            slot = (slot + 1) & mask
        return -1

    cdef int add_merge(self, const uint8_t *p, int64_t length, int64_t rank) noexcept nogil:
        """0, or 1 for a merge that is none, 2 for one that has no place. The union of both halves is looked up as one text."""
        cdef int64_t space = 0, slot
        cdef int32_t left, right, union
        cdef uint8_t text[256]
        cdef uint8_t *joined = text
        while space < length and p[space] != 32:
            space += 1
        left = self.find(p, space)
        right = self.find(p + space + 1, length - space - 1) if space < length else self.find(p, 0)
        if left < 0 or right < 0:
            return 1
        if length > 256:
            joined = <uint8_t *>malloc(length)
            if joined == NULL:
                return 2
        memcpy(joined, p, space)
        if space < length:
            memcpy(joined + space, p + space + 1, length - space - 1)
        union = self.find(joined, max(length - 1, space))
        if joined != text:
            free(joined)
        if union < 0:
            return 1
        slot = self.pair_slot(<int64_t>left << 32 | right)
        if slot < 0:
            return 2
        self.pairs[slot, 0], self.pairs[slot, 1] = <int64_t>left << 32 | right, rank << 32 | union
        return 0

    def token(self, str text not None) -> int:
        """The id of a text that is a token as a whole, or -1."""
        cdef bytes data = text.encode("utf-8")
        return self.find(<const uint8_t *><const char *>data, len(data))

    def encode(self, str word not None) -> list:
        """Merge the neighbours of least rank, leftmost first among equals, until no pair has a rank.

        Begins with single characters; those that are no tokens are left out.
        """
        cdef bytes data = word.encode("utf-8")
        cdef const uint8_t *p = <const uint8_t *><const char *>data
        cdef int64_t size = len(data)
        if size > 2**31 - 1:
            raise MemoryError
        if self.scratch.shape[0] < 3 * size:
            self.scratch, self.heap = np.empty(3 * size, np.int32), np.empty(3 * size, np.uint64)
        cdef int64_t n = 0, i = 0, first
        cdef int32_t token
        while i < size:
            first, i = i, i + 1
            while i < size and p[i] & 0xC0 == 0x80:
                i += 1
            token = self.find(p + first, i - first)
            if token >= 0:
                self.scratch[n] = token
                n += 1
        if n > 1:
            self.merge(n)  # keeps the GIL: the scratch memory belongs to one call at a time
        return [self.scratch[i] for i in range(n) if self.scratch[i] >= 0]

    cdef void merge(self, int64_t n) noexcept nogil:
        """Merge n symbols in place; one that has become part of its left neighbour is -1. A heap entry is rank << 32 | place,
        and stale when the pair there has another rank by now."""
        cdef int32_t *ids = &self.scratch[0]
        cdef int32_t *after = ids + n
        cdef int32_t *before = after + n
        cdef int64_t queued = 0, i, found
        cdef uint64_t best
        for i in range(n):
            after[i], before[i] = <int32_t>(i + 1), <int32_t>(i - 1)
        for i in range(n - 1):
            queued = self.propose(i, i + 1, queued)
        while queued:
            best = self.heap[0]
            queued = pop(&self.heap[0], queued)
            i = <int64_t>(best & <uint64_t>0xFFFFFFFFu)
            if ids[i] < 0 or after[i] >= n:
                continue
            found = self.ranked(ids[i], ids[after[i]])
            if found < 0 or <uint64_t>found >> 32 != best >> 32:
                continue
            ids[i], ids[after[i]] = <int32_t>(found & 0x7FFFFFFF), -1
            after[i] = after[after[i]]
            if after[i] < n:
                before[after[i]] = <int32_t>i
                queued = self.propose(i, after[i], queued)
            if before[i] >= 0:
                queued = self.propose(before[i], i, queued)

    cdef int64_t ranked(self, int32_t left, int32_t right) noexcept nogil:
        cdef int64_t slot = self.pair_slot(<int64_t>left << 32 | right)
        return self.pairs[slot, 1] if slot >= 0 else -1

    cdef int64_t propose(self, int64_t left, int64_t right, int64_t queued) noexcept nogil:
        """Queue a pair that has a rank: at most n - 1 at first and two for each of at most n - 1 merges, fewer than 3 n."""
        cdef int64_t found = self.ranked(self.scratch[left], self.scratch[right])
        return push(&self.heap[0], queued, <uint64_t>found >> 32 << 32 | <uint64_t>left) if found >= 0 else queued


cdef int64_t push(uint64_t *heap, int64_t n, uint64_t value) noexcept nogil:
    cdef int64_t i = n
    while i and heap[(i - 1) // 2] > value:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = value
    return n + 1


cdef int64_t pop(uint64_t *heap, int64_t n) noexcept nogil:
    cdef int64_t i = 0, child = 1
    cdef uint64_t value = heap[n - 1]
    while child < n - 1:
        if child + 1 < n - 1 and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    heap[i] = value
    return n - 1


cdef check_strings(const uint8_t[::1] data, const int64_t[::1] starts):
    """TypeError unless strings lie in ascending order inside the data."""
    cdef int64_t i, n = starts.shape[0] - 1
    if n < 0 or data.shape[0] == 0 or starts[0] < 8 or starts[n] - 8 > data.shape[0]:
        raise TypeError("strings outside their data")
    for i in range(n):
        if starts[i + 1] - 8 < starts[i]:
            raise TypeError("strings out of order")
