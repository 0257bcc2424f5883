/* The int8 tile kernel in portable C: the specification of the panel GEMM. */

BC_INLINE void gemm_tile16_scalar(const uint8_t *panel, const int8_t *tokens, int32_t tile, int64_t k, int32_t *acc)
{
    for (int64_t g = 0; g < k / 4; g++)
        for (int32_t t = 0; t < tile; t++)
            for (int r = 0; r < BC_TILE_ROWS; r++)
                for (int i = 0; i < 4; i++)
                    acc[t * BC_PANEL_ROWS + r] +=
                        panel[(g * BC_TILE_ROWS + r) * 4 + i] * tokens[(g * tile + t) * 4 + i];
}

BC_TILE_BY_ROWS(gemm_tile_scalar, gemm_tile16_scalar)
