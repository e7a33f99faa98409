#define DATAFLEX_SJLT_RUN sjlt_run_portable
#include "sjlt_run.inl"
