# What the kernels offer in C, as far as Python calls it.

cdef extern from "csrc/forward.h" nogil:
    enum: BC_LANES, BC_KEYS, BC_PANEL_ROWS, BC_PANEL_COLS, BC_TILE_ROWS, BC_MAX_TILE, BC_FEW, BC_MAX_ROWS, BC_MAX_HEAD_DIM, BC_QUERIES, BC_SEGMENT, BC_MAX_SPLIT, BC_SITES, BC_N_ISAS
    enum: BC_F32, BC_F16, BC_BF16, BC_Q8_0, BC_Q6_K, BC_I2_S, BC_TL1, BC_TL2, BC_TQ1_0, BC_TQ2_0

    ctypedef struct bc_matrix:
        const uint8_t *data
        int64_t rows, cols
        int32_t type, tile_rows, tile_cols, micro_rows
        float scale

    ctypedef struct bc_ternary:
        int32_t type
        const char *gemv_name
        const char *few_name
        const char *panel_name
        void gemv(const bc_matrix *, int64_t, int64_t, const int8_t *, int32_t, const uint8_t *, int32_t *)
        void panel(const bc_matrix *, int64_t, int64_t, int64_t, uint8_t *)
        int64_t panel_end(const bc_matrix *, int64_t)
        int64_t row_step(const bc_matrix *)
        void (*prepare)(const bc_matrix *, const int8_t *, int64_t, int64_t, uint8_t *)
        void (*few)(const bc_matrix *, int64_t, int64_t, const int8_t *, int64_t, const int32_t *, int, int32_t *, int64_t)

    ctypedef struct bc_attention:
        const float *q[BC_QUERIES]
        float *out[BC_QUERIES]
        int32_t n_keys[BC_QUERIES]
        int32_t n_q, head_dim, v_stride
        const void *k
        const void *v
        int32_t cache_type
        float scale
        int64_t k_ahead, v_ahead

    ctypedef struct bc_isa:
        const char *name
        int usable()
        float norm(const float *, const float *, float, int64_t, float *)
        int quantise(const float *, int64_t, int64_t, int8_t *, float *, int32_t *)
        void silu_mul(const float *, const float *, int64_t, float *)
        void relu2_mul(const float *, const float *, int64_t, float *)
        void exp(const float *, int64_t, float *)
        void store_kv(const float *, const float *, int32_t, int32_t, int64_t, void *, void *)
        void attend(const bc_attention *)
        void attend_segment(const bc_attention *, int32_t, float *)
        void merge_segments(const bc_attention *, float *, int64_t)
        void dense(const bc_matrix *, int64_t, int64_t, const float *, int64_t, int64_t, float *, int64_t, const uint8_t *)
        void digits(const float *, int64_t, uint8_t *)
        void tile(const uint8_t *, int32_t, const int8_t *, int32_t, int64_t, int32_t *)
        const char *tile_name
        const bc_ternary *ternary
        int32_t n_ternary

    const bc_isa *bc_isas[BC_N_ISAS]
    const bc_ternary *bc_find_ternary(const bc_isa *, int32_t)
    void bc_rope_rows(const float *, int32_t, int64_t, int64_t, float *, float *)

    ctypedef struct bc_layer:
        const float *attn_norm
        const float *attn_sub_norm
        const float *ffn_norm
        const float *ffn_sub_norm
        bc_matrix q, k, v, output, gate, up, down

    ctypedef struct bc_model:
        const bc_isa *isa
        int32_t n_layers, hidden, ffn, n_heads, n_kv_heads, head_dim, relu2, interleaved
        float eps, attention_scale
        const bc_layer *layers
        const float *output_norm
        bc_matrix embedding, head

    ctypedef struct bc_cache:
        int32_t type
        int64_t n_ctx
        uint8_t *k
        uint8_t *v
        float *parts
        int32_t *parts_done
        const float *cos
        const float *sin

    ctypedef struct bc_batch:
        int64_t n
        const int32_t *token
        const int32_t *position
        const int32_t *sequence
        int64_t n_logits
        const int32_t *logit_rows
        float *logits
        int8_t *trace_codes[4]
        float *trace_scale

    ctypedef struct bc_scratch:
        pass

    int64_t bc_scratch_layout(const bc_model *, int64_t, int32_t, uint8_t *, bc_scratch *)
    int64_t bc_key_block_bytes(int32_t, int64_t)
    int64_t bc_value_block_bytes(int32_t, int64_t)
    int32_t bc_max_queries(int64_t)
    int64_t bc_part_floats(int64_t)
    int64_t bc_split_floats(const bc_model *, int64_t, int64_t, int32_t)
    int64_t bc_site_width(const bc_model *, int)
    int64_t bc_round_up(int64_t, int64_t)
    int bc_is_dense(int32_t)
    int64_t bc_dense_bytes(int32_t, int64_t)
    int64_t bc_digits_bytes(int64_t)
    int32_t bc_forward(const bc_model *, const bc_cache *, const bc_batch *, uint8_t *, int32_t, int32_t *)

cdef extern from "csrc/validate.h" nogil:
    int64_t bc_first_malformed(const bc_matrix *, int64_t, int32_t)

cdef extern from "csrc/cpu.h" nogil:
    enum: BC_MAX_FEATURES
    ctypedef struct bc_cpu_feature:
        const char *name
        int present
    int bc_cpu_features(bc_cpu_feature *)

cdef extern from "csrc/limits.h" nogil:
    ctypedef struct bc_reader:
        int32_t width
        int usable()
    enum: BC_N_READERS, BC_READ_STEP
    const bc_reader bc_readers[BC_N_READERS]
    ctypedef struct bc_read_job:
        const bc_reader *reader
        const uint8_t *data
        int64_t chunks, chunk, ahead
        int32_t streams
    ctypedef struct bc_thread:
        pass
    void bc_read_work(void *, bc_thread *)
    double bc_time_team(int32_t, void (*)(void *, bc_thread *), void *)
    double bc_int8_peak(const bc_isa *, int32_t)
    enum: BC_MAX_LINEARS, BC_GEMM_TOKENS, BC_TABLE_BYTES
    int bc_by_panels(const bc_ternary *, int64_t)
    ctypedef struct bc_input:
        int64_t n, cols, codes_stride
        int8_t *codes
        int8_t *tiles
        float *scale
        int32_t *sum
        uint8_t *tables
    ctypedef struct bc_linear_job:
        const bc_isa *isa
        const bc_matrix *weights
        int64_t n
        bc_input *in_ "in"
        float *out
    double bc_time_linears(bc_linear_job *, int32_t)

cdef extern from *:
    """
    #ifdef _OPENMP
    enum { BC_OPENMP = 1 };
    #else
    enum { BC_OPENMP = 0 };
    #endif
    """
    enum: BC_OPENMP
