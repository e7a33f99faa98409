#define DATAFLEX_RADEMACHER kRademacherPortable
#include "rademacher_run.inl"
