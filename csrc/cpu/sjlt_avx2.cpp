#define DATAFLEX_SJLT_RUN sjlt_run_avx2
#include "sjlt_run.inl"
