#define DATAFLEX_DOTS kDotsAvx512
#include "dots_run.inl"
