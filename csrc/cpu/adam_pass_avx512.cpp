#define DATAFLEX_ADAM_PASS adam_pass_avx512
#include "adam_pass_run.inl"
