#define DATAFLEX_DOTS kDotsPortable
#include "dots_run.inl"
