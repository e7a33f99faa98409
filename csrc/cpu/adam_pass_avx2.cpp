#define DATAFLEX_ADAM_PASS adam_pass_avx2
#include "adam_pass_run.inl"
