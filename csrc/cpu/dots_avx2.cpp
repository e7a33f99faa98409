#define DATAFLEX_DOTS kDotsAvx2
#include "dots_run.inl"
