# Packing: from the bytes of a checkpoint to those of a tensor. Checks every buffer, then calls C without the GIL.

from libc.stdint cimport uint16_t, uint32_t

cdef extern from "csrc/pack.h" nogil:
    enum: BC_LIMBS, BC_N_PACKERS, BC_PACK_ROWS, BC_STORED_16, BC_STORED_32, BC_STORED_2BIT, BC_STORED_TRITS

    ctypedef struct bc_statistics:
        uint64_t sum[BC_LIMBS]
        uint32_t largest, smallest

    ctypedef struct bc_source:
        const uint8_t *data
        int64_t cols, first, quarter, head_rows
        int32_t stored
        uint32_t threshold

    ctypedef struct bc_target:
        uint8_t *data
        int64_t rows, cols
        int32_t type, tile_rows, tile_cols, micro_rows
        uint16_t d

    ctypedef struct bc_packer:
        const char *name
        int usable()
        void statistics(const void *, int32_t, int64_t, bc_statistics *) noexcept nogil
        int64_t convert(const void *, int32_t, int64_t, int32_t, void *) noexcept nogil
        int64_t pack(const bc_source *, int64_t, int64_t, const bc_target *) noexcept nogil

    const bc_packer *bc_packers[BC_N_PACKERS]

DENSE_TYPES = (BC_F32, BC_F16, BC_BF16)
PACKED_TYPES = (BC_I2_S, BC_TL1, BC_TL2, BC_TQ1_0, BC_TQ2_0)
STORED_16, STORED_32, STORED_2BIT, STORED_TRITS = BC_STORED_16, BC_STORED_32, BC_STORED_2BIT, BC_STORED_TRITS


cdef object usable_packers = None


def packers() -> list:
    """The packers that this CPU can run, fastest first; all give the same results."""
    global usable_packers
    if usable_packers is None:  # a question to the CPU takes long in a virtual machine
        usable_packers = [bc_packers[i].name.decode() for i in range(BC_N_PACKERS) if bc_packers[i].usable()]
    return list(usable_packers)


cdef const bc_packer *find_packer(str name) except NULL:
    if name in packers():
        for i in range(BC_N_PACKERS):
            if bc_packers[i].name.decode() == name:
                return bc_packers[i]
    raise ValueError(f"no packer {name!r} on this CPU; there is {', '.join(packers())}")


def convert_dense(uint8_t[::1] out, int to, const uint8_t[::1] data, int type_id, str packer) -> int:
    """Convert stored F32, F16 or BF16 weights to type `to` of these, rounding half to even.

    Returns how many weights were converted: not all when one further on is not finite or too large for the type.
    """
    cdef const bc_packer *kernels = find_packer(packer)
    cdef int64_t size = 4 if type_id == BC_F32 else 2, out_size = 4 if to == BC_F32 else 2, n = data.shape[0] // size
    if type_id not in DENSE_TYPES or to not in DENSE_TYPES or data.shape[0] % size or out.shape[0] != n * out_size:
        raise ValueError("wrong arguments")
    if n == 0:
        return 0
    if <size_t>&data[0] % <size_t>size or <size_t>&out[0] % <size_t>out_size:
        raise ValueError("the weights are not aligned")
    with nogil:
        n = kernels.convert(&data[0], type_id, n, to, &out[0])
    return n


def weight_statistics(const uint8_t[::1] data, int type_id, str packer) -> tuple:
    """(sum, largest, smallest) of the magnitudes of stored F32, F16 or BF16 weights, exact.

    sum is an integer in units of 2^-149; largest and smallest are float32 bits, smallest that of the weights that are
    not 0, or 0 without any. The sum means nothing once largest is infinite or NaN.
    """
    cdef const bc_packer *kernels = find_packer(packer)
    cdef bc_statistics s
    cdef int64_t size = 4 if type_id == BC_F32 else 2, n = data.shape[0] // size
    if type_id not in DENSE_TYPES or data.shape[0] % size or n > 1 << 40:
        raise ValueError("wrong arguments")
    s.largest, s.smallest = 0, 0xffffffff
    for i in range(BC_LIMBS):
        s.sum[i] = 0
    if n:
        if <size_t>&data[0] % size:
            raise ValueError("the weights are not aligned")
        with nogil:
            kernels.statistics(&data[0], type_id, n, &s)
    return sum(int(s.sum[i]) << (64 * i) for i in range(BC_LIMBS)), s.largest, (s.smallest + 1) & 0xffffffff


def pack(uint8_t[::1] out, int type_id, int64_t rows, int64_t cols, tiles, const uint8_t[::1] source, int stored,
         int64_t first, int64_t start, int64_t stop, str packer, uint32_t threshold=1, int64_t head_rows=0, int d=0) -> int:
    """Place rows start to stop of a ternary tensor in out; returns how many weights are not 0, or -1 for a code 3.

    start and stop are multiples of 32 for TL1 and TL2, or the end. source: the stored rows from `first` on (STORED_2BIT: always the whole matrix). A stored weight whose magnitude, as
    bits, is below threshold is 0. head_rows: rows of the heads whose rotary order changes. d: float16 bits of TQ blocks.
    Neither tail nor padding is written. ValueError when anything does not fit.
    """
    cdef const bc_packer *kernels = find_packer(packer)
    cdef bc_source s
    cdef bc_target t
    cdef int64_t need = ternary_bytes(rows, cols, type_id, tiles, rows), group = 1, held = stop, used
    s.cols, s.first, s.head_rows, s.stored, s.threshold = cols, first, head_rows, stored, threshold
    s.quarter = (rows + 3) // 4
    t.rows, t.cols, t.type, t.d = rows, cols, type_id, <uint16_t>d
    t.tile_rows, t.tile_cols, t.micro_rows = tiles
    if type_id in (BC_TL1, BC_TL2):
        group = BC_PACK_ROWS
    if not 0 <= first <= start <= stop <= rows or start % group or (stop % group and stop != rows) or not 0 <= d < 65536:
        raise ValueError(f"rows {start} to {stop} of {rows}, read from {first}, in groups of {group}")
    if head_rows and (head_rows < 2 or head_rows % 2 or rows % head_rows or first % head_rows):
        raise ValueError(f"heads of {head_rows} rows in {rows} from {first}")
    if head_rows:
        held = (stop + head_rows - 1) // head_rows * head_rows
    sizes = {BC_STORED_16: 2, BC_STORED_32: 4, BC_STORED_2BIT: 1, BC_STORED_TRITS: 1}
    if stored not in sizes or out.shape[0] < need:
        raise ValueError(f"{out.shape[0]} bytes for {rows} x {cols} stored as {stored}; {need} are needed")
    need = s.quarter * cols if stored == BC_STORED_2BIT else (held - first) * cols * sizes[stored]
    if source.shape[0] < need or (stored == BC_STORED_2BIT and first):
        raise ValueError(f"rows {first} to {held} take {need} bytes, not {source.shape[0]}")
    if start == stop:
        return 0
    if <size_t>&source[0] % <size_t>sizes[stored]:
        raise ValueError("the weights are not aligned")
    s.data, t.data = &source[0], &out[0]
    with nogil:
        used = kernels.pack(&s, start, stop, &t)
    return used
