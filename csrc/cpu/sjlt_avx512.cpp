#define DATAFLEX_SJLT_RUN sjlt_run_avx512
#include "sjlt_run.inl"
