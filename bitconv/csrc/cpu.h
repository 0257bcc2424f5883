/* What the CPU can do, for `bitconv doctor`. */
#ifndef BITCONV_CPU_H
#define BITCONV_CPU_H

#include <stddef.h>

typedef struct {
    const char *name;
    int present;
} bc_cpu_feature;

enum { BC_MAX_FEATURES = 16 };

static int bc_cpu_features(bc_cpu_feature *features)
{
    int n = 0;
#define BC_FEATURE(name, test) features[n++] = (bc_cpu_feature){name, (test) != 0}
#if defined(__x86_64__) && defined(__GNUC__)
    BC_FEATURE("avx", __builtin_cpu_supports("avx"));
    BC_FEATURE("avx2", __builtin_cpu_supports("avx2"));
    BC_FEATURE("fma", __builtin_cpu_supports("fma"));
    unsigned a, b, c, d;
    BC_FEATURE("f16c", __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C));
    BC_FEATURE("avxvnni", bc_has_avxvnni());
    BC_FEATURE("avx512f", __builtin_cpu_supports("avx512f"));
    BC_FEATURE("avx512bw", __builtin_cpu_supports("avx512bw"));
    BC_FEATURE("avx512vl", __builtin_cpu_supports("avx512vl"));
    BC_FEATURE("avx512vnni", __builtin_cpu_supports("avx512vnni"));
    BC_FEATURE("avx512vbmi", __builtin_cpu_supports("avx512vbmi"));
#elif defined(__aarch64__)
    BC_FEATURE("neon", 1);
#ifdef BC_HAVE_NEON
    BC_FEATURE("dotprod", bc_has_dotprod());
#endif
#endif
#undef BC_FEATURE
    (void)features;
    return n;
}

#endif
