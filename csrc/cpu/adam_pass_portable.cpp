#define DATAFLEX_ADAM_PASS adam_pass_portable
#include "adam_pass_run.inl"
